"""Low-rank adapters (LoRA, arXiv 2106.09685): the only trained weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from wr1_jax.config import LoRAConfig


class LoRAParam(nnx.Param):
  """An adapter's weight, float32. The type tells adapters from base weights: `nnx.split(model, LoRAParam, ...)`."""


class LoRALinear(nnx.Linear):
  """A linear layer with an adapter: x W + b + (alpha / rank) (x A) B, products in `dtype`.

  A is Gaussian with standard deviation 1 / rank (as peft's "gaussian" initialisation) and B zero, so that a new adapter
  changes nothing. With `lora` None it is a plain linear layer with the same base weights under the same names.
  """

  def __init__(self, in_features: int, out_features: int, *, lora: LoRAConfig | None, dtype: DTypeLike, rngs: nnx.Rngs):
    super().__init__(in_features, out_features, dtype=dtype, param_dtype=dtype, rngs=rngs)
    self.lora = lora
    if lora is not None:
      gaussian = jax.random.normal(rngs.lora(), (in_features, lora.rank), jnp.float32) / lora.rank
      self.lora_a = LoRAParam(gaussian)
      self.lora_b = LoRAParam(jnp.zeros((lora.rank, out_features), jnp.float32))

  def __call__(self, x: Float[Array, "... features"]) -> Float[Array, "... out"]:
    out = super().__call__(x)
    if self.lora is None:
      return out
    a, b = self.lora_a.astype(self.dtype), self.lora_b.astype(self.dtype)
    return out + (x.astype(self.dtype) @ a) @ b * (self.lora.alpha / self.lora.rank)
