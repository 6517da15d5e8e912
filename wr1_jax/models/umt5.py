"""The UMT5 text encoder, as transformers' `UMT5EncoderModel`: T5 with a relative position bias in every layer.

Layers are stacked along the first axis of every parameter and run by one `lax.scan`.
"""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from wr1_jax.errors import UserError
from wr1_jax.models import weights
from wr1_jax.models.weights import Tensor, linear
from wr1_jax.parallel.mesh import shard_params


@dataclasses.dataclass(frozen=True)
class UMT5Config:
  """Sizes, under the names of `UMT5EncoderModel`'s config.json."""

  vocab_size: int
  d_model: int
  d_kv: int  # channels of a head
  d_ff: int
  num_layers: int
  num_heads: int
  relative_attention_num_buckets: int = 32
  relative_attention_max_distance: int = 128  # in tokens; all that is farther shares a bucket
  layer_norm_epsilon: float = 1e-6
  feed_forward_proj: str = "gated-gelu"

  @classmethod
  def from_folder(cls, folder: str | os.PathLike) -> UMT5Config:
    """Reads `folder`/config.json; a `UserError` where it is absent, or describes another kind of encoder."""
    config = weights.parse_config(cls, weights.read_config(folder), folder)
    if config.feed_forward_proj != cls.feed_forward_proj:
      raise UserError(
        f"{Path(folder) / 'config.json'} has feed_forward_proj = {config.feed_forward_proj!r}; Wan's "
        f"text encoders have {cls.feed_forward_proj!r}, and no other is supported."
      )
    return config


class Norm(nnx.RMSNorm):
  """Root-mean-square norm with a float32 scale, computed in float32 whatever the dtype that comes and goes."""

  def __init__(self, config: UMT5Config, *, dtype: DTypeLike, rngs: nnx.Rngs):
    super().__init__(config.d_model, epsilon=config.layer_norm_epsilon, dtype=dtype, param_dtype=jnp.float32, rngs=rngs)


class Linear(nnx.Linear):
  """A linear layer without bias, initialised with the standard deviation `scale`."""

  def __init__(self, inputs: int, outputs: int, *, scale: float, dtype: DTypeLike, rngs: nnx.Rngs):
    initializer = nnx.initializers.normal(scale)
    super().__init__(
      inputs, outputs, use_bias=False, kernel_init=initializer, dtype=dtype, param_dtype=dtype, rngs=rngs
    )


class SelfAttention(nnx.Module):
  """Attention whose logits are not scaled, and get a learnt bias for the distance between two tokens."""

  def __init__(self, config: UMT5Config, *, dtype: DTypeLike, rngs: nnx.Rngs):
    self.heads = config.num_heads
    width, inner = config.d_model, config.num_heads * config.d_kv
    # Standard deviations of Mesh TensorFlow's T5: those of q make up for the unscaled logits.
    self.q = Linear(width, inner, scale=(width * config.d_kv) ** -0.5, dtype=dtype, rngs=rngs)
    self.k = Linear(width, inner, scale=width**-0.5, dtype=dtype, rngs=rngs)
    self.v = Linear(width, inner, scale=width**-0.5, dtype=dtype, rngs=rngs)
    self.o = Linear(inner, width, scale=inner**-0.5, dtype=dtype, rngs=rngs)
    shape = (config.relative_attention_num_buckets, config.num_heads)
    self.distance_bias = nnx.Param(jax.random.normal(rngs.params(), shape, jnp.float32) * width**-0.5)

  def __call__(
    self, x: Float[Array, "B L D"], mask: Bool[Array, "B L"], buckets: Int[Array, "L L"]
  ) -> Float[Array, "B L D"]:
    q, k, v = (rearrange(project(x), "b l (h d) -> b l h d", h=self.heads) for project in (self.q, self.k, self.v))
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
    logits += rearrange(self.distance_bias[...][buckets], "q k h -> h q k")
    logits = jnp.where(mask[:, None, None, :], logits, jnp.finfo(jnp.float32).min)
    y = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits).astype(v.dtype), v)
    return self.o(rearrange(y, "b l h d -> b l (h d)"))


class FeedForward(nnx.Module):
  """A gated linear unit with the tanh form of GELU."""

  def __init__(self, config: UMT5Config, *, dtype: DTypeLike, rngs: nnx.Rngs):
    width, hidden = config.d_model, config.d_ff
    self.wi_0 = Linear(width, hidden, scale=width**-0.5, dtype=dtype, rngs=rngs)
    self.wi_1 = Linear(width, hidden, scale=width**-0.5, dtype=dtype, rngs=rngs)
    self.wo = Linear(hidden, width, scale=hidden**-0.5, dtype=dtype, rngs=rngs)

  def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
    return self.wo(jax.nn.gelu(self.wi_0(x), approximate=True) * self.wi_1(x))


class Block(nnx.Module):
  """Self-attention and feed-forward network, each normed before and added after."""

  def __init__(self, config: UMT5Config, *, dtype: DTypeLike, rngs: nnx.Rngs):
    self.attention_norm = Norm(config, dtype=dtype, rngs=rngs)
    self.attention = SelfAttention(config, dtype=dtype, rngs=rngs)
    self.feed_forward_norm = Norm(config, dtype=dtype, rngs=rngs)
    self.feed_forward = FeedForward(config, dtype=dtype, rngs=rngs)

  def __call__(
    self, x: Float[Array, "B L D"], mask: Bool[Array, "B L"], buckets: Int[Array, "L L"]
  ) -> Float[Array, "B L D"]:
    x = x + self.attention(self.attention_norm(x), mask, buckets)
    return x + self.feed_forward(self.feed_forward_norm(x))


class UMT5Encoder(nnx.Module):
  """The encoder; `dtype` is that of matrix products and activations, norms and softmaxes are float32."""

  def __init__(self, config: UMT5Config, *, dtype: DTypeLike, rngs: nnx.Rngs):
    self.config = config
    initializer = nnx.initializers.normal(1.0)
    self.embed = nnx.Embed(
      config.vocab_size, config.d_model, embedding_init=initializer, dtype=dtype, param_dtype=dtype, rngs=rngs
    )

    @nnx.split_rngs(splits=config.num_layers)
    @nnx.vmap
    def stacked(rngs: nnx.Rngs) -> Block:
      return Block(config, dtype=dtype, rngs=rngs)

    self.blocks = stacked(rngs)
    self.final_norm = Norm(config, dtype=dtype, rngs=rngs)

  def __call__(self, tokens: Int[Array, "B L"], mask: Bool[Array, "B L"]) -> Float[Array, "B L D"]:
    """Encodes token sequences.

    Args:
      tokens: int32.
      mask: which tokens there are to be seen; what comes out at the others is of no use.

    Returns:
      hidden states after the last norm, in the encoder's dtype.
    """
    buckets = distance_buckets(tokens.shape[1], self.config)
    graphdef, layers = nnx.split(self.blocks)

    def step(x, layer):
      return nnx.merge(graphdef, layer)(x, mask, buckets), None

    x, _ = lax.scan(step, self.embed(tokens), layers)
    return self.final_norm(x)


def distance_buckets(length: int, config: UMT5Config) -> Int[np.ndarray, "L L"]:
  """The bucket of every (query, key) pair of positions, for T5's relative position bias.

  Half of the buckets are for keys before (or at) the query and half for those after it. In each half, the near
  distances have a bucket each and the far ones share buckets that grow with the logarithm, up to the configured
  distance.
  """
  half = config.relative_attention_num_buckets // 2
  near = half // 2
  distance = np.arange(length)[None, :] - np.arange(length)[:, None]
  # float32 throughout, as in transformers: at a power of two the logarithm decides between two buckets.
  ratio = np.log(np.maximum(np.abs(distance), 1).astype(np.float32) / near)
  ratio = ratio / np.float32(math.log(config.relative_attention_max_distance / near)) * (half - near)
  far = np.minimum(near + ratio.astype(np.int32), half - 1)
  return np.where(np.abs(distance) < near, np.abs(distance), far) + np.where(distance > 0, half, 0)


def tensor_table() -> dict[str, Tensor]:
  """Where `UMT5EncoderModel`'s checkpoint holds each leaf of a `UMT5Encoder`'s state."""
  layer = "encoder.block.{layer}.layer"
  return {
    "embed/embedding": Tensor("shared.weight", aliases=("encoder.embed_tokens.weight",)),
    "blocks/attention_norm/scale": Tensor(f"{layer}.0.layer_norm.weight"),
    **{
      name: tensor
      for projection in "qkvo"
      for name, tensor in linear(
        f"blocks/attention/{projection}", f"{layer}.0.SelfAttention.{projection}", bias=False
      ).items()
    },
    "blocks/attention/distance_bias": Tensor(f"{layer}.0.SelfAttention.relative_attention_bias.weight"),
    "blocks/feed_forward_norm/scale": Tensor(f"{layer}.1.layer_norm.weight"),
    **linear("blocks/feed_forward/wi_0", f"{layer}.1.DenseReluDense.wi_0", bias=False),
    **linear("blocks/feed_forward/wi_1", f"{layer}.1.DenseReluDense.wi_1", bias=False),
    **linear("blocks/feed_forward/wo", f"{layer}.1.DenseReluDense.wo", bias=False),
    "final_norm/scale": Tensor("encoder.final_layer_norm.weight"),
  }


def load(folder: str | os.PathLike, *, dtype: DTypeLike, mesh: Mesh | None = None) -> UMT5Encoder:
  """Reads the `text_encoder` folder of a diffusers checkpoint; a mesh spreads the weights over its fsdp axis.

  Raises:
    UserError: a missing or damaged folder, or one that holds something else (see `weights.load`).
  """
  config = UMT5Config.from_folder(folder)
  abstract = nnx.eval_shape(lambda: UMT5Encoder(config, dtype=dtype, rngs=nnx.Rngs(0)))
  graphdef, state = nnx.split(abstract)
  shardings = None if mesh is None else shard_params(mesh, state)
  return nnx.merge(graphdef, weights.load(folder, state, tensor_table(), shardings=shardings))
