"""Small random transformers, in JAX alone and as diffusers folders."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from wr1_jax.config import LoRAConfig
from wr1_jax.models import transformer, weights
from wr1_jax.models.attention import Attention
from wr1_jax.models.lora import LoRAParam

LORA = LoRAConfig(rank=2, alpha=6.0)


def small_config(heads: int, head_dim: int, layers: int = 2, **sizes) -> transformer.TransformerConfig:
  sizes = {"text_dim": 24, "freq_dim": 32, "ffn_dim": 40} | sizes
  return transformer.TransformerConfig(
    num_attention_heads=heads, attention_head_dim=head_dim, num_layers=layers, **sizes
  )


def build(
  config: transformer.TransformerConfig, attention: Attention = Attention(), remat: str = "full"
) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
  """A float32 model split into graph, adapters and base; no weight is zero or one, adapters' B included."""
  abstract = nnx.eval_shape(
    lambda: transformer.WanTransformer(
      config, lora=LORA, dtype=jnp.float32, attention=attention, remat=remat, rngs=nnx.Rngs(0)
    )
  )
  graphdef, lora, base = nnx.split(abstract, LoRAParam, ...)
  return graphdef, _random(lora), _random(base)


def save_folder(folder: Path, config: transformer.TransformerConfig) -> nnx.State:
  """Writes a random base model as a diffusers folder and returns its state."""
  _, _, base = build(config)
  values = {name: value for name, value in vars(config).items()} | {"_class_name": "WanTransformer3DModel"}
  weights.save(folder, base, transformer.tensor_table(config), values)
  return base


def inputs(config: transformer.TransformerConfig, batch: int = 2, sizes: tuple[int, int, int] = (3, 6, 10)):
  """Latents, timesteps and text embeddings."""
  rng = np.random.default_rng(0)
  latents = rng.standard_normal((batch, *sizes, config.in_channels), np.float32)
  timestep = np.asarray([999.0, 317.0, 25.0, 700.0] * batch, np.float32)[:batch]
  text = rng.standard_normal((batch, 7, config.text_dim), np.float32)
  return latents, timestep, text


def _random(abstract: nnx.State) -> nnx.State:
  rng = np.random.default_rng(1)
  flat = []
  for path, leaf in nnx.to_flat_state(abstract):
    scale = leaf.shape[-2] ** -0.5 if path[-1] in ("kernel", "lora_a", "lora_b") else 0.3
    value = scale * rng.standard_normal(leaf.shape, np.float32) + (path[-1] == "scale")
    flat.append((path, leaf.replace(jnp.asarray(value, jnp.float32))))
  return nnx.from_flat_state(flat)
