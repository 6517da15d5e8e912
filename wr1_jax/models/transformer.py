"""The Wan2.1 text-to-video transformer (arXiv 2503.20314), as diffusers' `WanTransformer3DModel` computes it.

The weights of all layers are stacked along a first axis and the layers are a scan. Products inside the layers are in
`dtype`; norms, modulation, time embedding, rotary embedding and the first and last projections (which are cheap, and
touch latents that are float32) are in float32.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, Key

from wr1_jax.config import LoRAConfig
from wr1_jax.errors import UserError
from wr1_jax.models import weights
from wr1_jax.models.attention import Attention
from wr1_jax.models.lora import LoRALinear, LoRAParam
from wr1_jax.models.rotary import apply_rotary, rotary_angles
from wr1_jax.parallel.mesh import check_heads, gather, shard_batch, shard_params, shard_tokens

Tokens = Float[Array, "B N dim"]
Heads = Float[Array, "B N heads head_dim"]
Text = Float[Array, "B L dim"]
Rotary = tuple[Float[Array, "N pairs"], Float[Array, "N pairs"]]
Latents = Float[Array, "B T H W C"]

_TEXT_TO_VIDEO = {
  "cross_attn_norm": True,
  "qk_norm": "rms_norm_across_heads",
  "image_dim": None,
  "added_kv_proj_dim": None,
}


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
  """Sizes, under diffusers' names and with its defaults (Wan2.1-T2V-14B)."""

  patch_size: tuple[int, int, int] = (1, 2, 2)
  num_attention_heads: int = 40
  attention_head_dim: int = 128
  in_channels: int = 16
  out_channels: int | None = 16
  text_dim: int = 4096
  freq_dim: int = 256
  ffn_dim: int = 13824
  num_layers: int = 40
  cross_attn_norm: bool = True
  qk_norm: str | None = "rms_norm_across_heads"
  eps: float = 1e-6
  image_dim: int | None = None
  added_kv_proj_dim: int | None = None

  @property
  def dim(self) -> int:
    return self.num_attention_heads * self.attention_head_dim

  @classmethod
  def from_folder(cls, folder: str | os.PathLike) -> TransformerConfig:
    """Reads a diffusers folder's config.json; a `UserError` where it is not of a Wan2.1 text-to-video transformer."""
    values = weights.read_config(folder)
    kind = values.get("_class_name", "WanTransformer3DModel")
    if kind != "WanTransformer3DModel":
      raise UserError(f"{folder} holds a {kind}, where a WanTransformer3DModel is needed.")
    config = weights.parse_config(cls, values, folder)
    values = dataclasses.asdict(config)
    for name, value in _TEXT_TO_VIDEO.items():
      if values[name] != value:
        raise UserError(
          f"the transformer in {folder} has {name} = {values[name]!r}; only Wan2.1 text-to-video "
          f"transformers can be loaded, which have {value!r}."
        )
    return config


class Projections(nnx.Module):
  """The weights of one attention: projections with adapters, and RMS norms of queries and keys over all heads."""

  def __init__(self, config: TransformerConfig, *, lora: LoRAConfig | None, dtype: DTypeLike, rngs: nnx.Rngs):
    linear = functools.partial(LoRALinear, config.dim, config.dim, lora=lora, dtype=dtype, rngs=rngs)
    norm = functools.partial(nnx.RMSNorm, config.dim, epsilon=config.eps, dtype=jnp.float32, rngs=rngs)
    self.heads = config.num_attention_heads
    self.to_q, self.to_k, self.to_v, self.to_out = linear(), linear(), linear(), linear()
    self.norm_q, self.norm_k = norm(), norm()

  def queries(self, x: Tokens, rotary: Rotary | None = None) -> Heads:
    return self._normed(self.norm_q, self.to_q(x), rotary)

  def keys(self, x: Tokens | Text, rotary: Rotary | None = None) -> Heads:
    return self._normed(self.norm_k, self.to_k(x), rotary)

  def values(self, x: Tokens | Text) -> Heads:
    return self._split(self.to_v(x))

  def out(self, attended: Heads) -> Tokens:
    return self.to_out(einops.rearrange(attended, "b n h d -> b n (h d)"))

  def _normed(self, norm: nnx.RMSNorm, x: Tokens, rotary: Rotary | None) -> Heads:
    heads = self._split(norm(x))
    return (heads if rotary is None else apply_rotary(heads, *rotary)).astype(x.dtype)

  def _split(self, x: Tokens) -> Heads:
    return einops.rearrange(x, "b n (h d) -> b n h d", h=self.heads)


class Block(nnx.Module):
  """One layer: self-attention over the video, cross-attention to the text, MLP.

  It comes in two parts, `enter` up to the self-attention and `leave` from there on, so that the two can be
  rematerialised without it.
  """

  def __init__(self, config: TransformerConfig, *, lora: LoRAConfig | None, dtype: DTypeLike, rngs: nnx.Rngs):
    linear = functools.partial(nnx.Linear, dtype=dtype, param_dtype=dtype, rngs=rngs)
    self.norm1, self.norm2, self.norm3 = (_layer_norm(config, affine, rngs) for affine in (False, True, False))
    self.attn1 = Projections(config, lora=lora, dtype=dtype, rngs=rngs)
    self.attn2 = Projections(config, lora=lora, dtype=dtype, rngs=rngs)
    self.ffn_in = linear(config.dim, config.ffn_dim)
    self.ffn_out = linear(config.ffn_dim, config.dim)
    self.scale_shift_table = nnx.Param(_modulation_init(rngs, 6, config.dim))

  def enter(self, x: Tokens, modulation: Float[Array, "B 6 dim"], rotary: Rotary) -> tuple[Heads, Heads, Heads]:
    """Queries, keys and values of the self-attention."""
    shift, scale, *_ = self._modulation(modulation)
    h = _modulate(self.norm1(x), shift, scale).astype(x.dtype)
    return self.attn1.queries(h, rotary), self.attn1.keys(h, rotary), self.attn1.values(h)

  def leave(
    self, x: Tokens, attended: Heads, modulation: Float[Array, "B 6 dim"], text: Text, attention: Attention
  ) -> Tokens:
    """The layer's output, from its input and what the self-attention gave."""
    _, _, gate, ffn_shift, ffn_scale, ffn_gate = self._modulation(modulation)
    x = (x + self.attn1.out(attended) * gate).astype(x.dtype)
    h = self.norm2(x).astype(x.dtype)
    # The text is not masked: Wan attends to all tokens, also the zeros after a prompt's end.
    x = x + self.attn2.out(attention(self.attn2.queries(h), self.attn2.keys(text), self.attn2.values(text)))
    h = _modulate(self.norm3(x), ffn_shift, ffn_scale).astype(x.dtype)
    return (x + self.ffn_out(jax.nn.gelu(self.ffn_in(h), approximate=True)) * ffn_gate).astype(x.dtype)

  def _modulation(self, modulation: Float[Array, "B 6 dim"]) -> list[Float[Array, "B 1 dim"]]:
    return jnp.split(self.scale_shift_table + modulation, 6, axis=1)


class WanTransformer(nnx.Module):
  """Latents, a timestep and a text embedding in; the velocity eps - x0 out."""

  def __init__(
    self,
    config: TransformerConfig,
    *,
    lora: LoRAConfig | None,
    dtype: DTypeLike,
    attention: Attention,
    remat: str,
    rngs: nnx.Rngs,
  ):
    """Random weights.

    Args:
      lora: adapters; without them the base weights are the same, under the same names.
      dtype: of the layers' weights, activations and products.
      attention: its mesh is also what activations are spread over.
      remat: what the backward pass keeps: each layer's input ("full"), also what the self-attention needs
        ("attention"), or everything ("none").
      rngs: streams "params" and, with adapters, "lora".

    Raises:
      UserError: the mesh or the attention kernel does not fit the attention heads.
    """
    check_heads(attention.mesh, config.num_attention_heads)
    attention.kernel(dtype, config.attention_head_dim)  # what it cannot compute is said now
    self.config, self.dtype, self.attention, self.remat = config, dtype, attention, remat
    dim, patch = config.dim, math.prod(config.patch_size)
    # Accelerators would multiply float32 matrices in 10 or 7 bits, and these layers are cheap.
    linear = functools.partial(nnx.Linear, precision="highest", rngs=rngs)
    text_linear = functools.partial(nnx.Linear, dtype=dtype, param_dtype=dtype, rngs=rngs)
    self.patch_embedding = linear(patch * config.in_channels, dim)
    self.time_in, self.time_out, self.time_proj = linear(config.freq_dim, dim), linear(dim, dim), linear(dim, 6 * dim)
    self.text_in, self.text_out = text_linear(config.text_dim, dim), text_linear(dim, dim)

    @nnx.split_rngs(splits=config.num_layers)
    @nnx.vmap
    def stacked(rngs: nnx.Rngs) -> Block:
      return Block(config, lora=lora, dtype=dtype, rngs=rngs)

    self.blocks = stacked(rngs)
    self.norm_out = _layer_norm(config, False, rngs)
    self.scale_shift_table = nnx.Param(_modulation_init(rngs, 2, dim))
    self.proj_out = linear(dim, patch * (config.out_channels or config.in_channels))

  def __call__(self, latents: Latents, timestep: Float[Array, "B"], text: Float[Array, "B L text"]) -> Latents:
    """The velocity at `latents` (float32; rows and columns divide by the patch), float32.

    `timestep` is 1000 sigma, cut to an integer as diffusers does but of floating type. `text` holds all L tokens, with
    zeros after the prompt's end.
    """
    mesh = self.attention.mesh
    batch, *sizes, _ = latents.shape
    grid = tuple(size // patch for size, patch in zip(sizes, self.config.patch_size))
    axes = dict(zip(("pt", "ph", "pw"), self.config.patch_size))
    patches = einops.rearrange(latents, "b (t pt) (h ph) (w pw) c -> b (t h w) (pt ph pw c)", **axes)
    cos, sin = rotary_angles(grid, self.config.attention_head_dim)

    tokens = patches.shape[1]
    pad = 0 if mesh is None else -tokens % mesh.shape["sequence"]
    x, cos, sin = (jnp.pad(a, [(0, 0)] * (a.ndim - 2) + [(0, pad), (0, 0)]) for a in (patches, cos, sin))
    lengths = jnp.full((batch,), tokens) if pad else None

    x = shard_tokens(self.patch_embedding(x).astype(self.dtype), mesh)
    time = self.time_out(nnx.silu(self.time_in(_sinusoids(timestep, self.config.freq_dim))))
    modulation = shard_batch(self.time_proj(nnx.silu(time)).reshape(batch, 6, -1), mesh)
    text = shard_batch(self.text_out(jax.nn.gelu(self.text_in(text), approximate=True)), mesh)
    x = self._layers(x, modulation, text, (cos, sin), lengths)

    shift, scale = jnp.split(self.scale_shift_table + time[:, None], 2, axis=1)
    patches = self.proj_out(_modulate(self.norm_out(x), shift, scale))[:, :tokens]
    velocity = einops.rearrange(
      patches, "b (t h w) (pt ph pw c) -> b (t pt) (h ph) (w pw) c", t=grid[0], h=grid[1], w=grid[2], **axes
    )
    return shard_batch(velocity, mesh)

  def _layers(
    self, x: Tokens, modulation: Float[Array, "B 6 dim"], text: Text, rotary: Rotary, lengths: Array | None
  ) -> Tokens:
    """All blocks in turn."""
    mesh = self.attention.mesh
    graphdef, layers = nnx.split(self.blocks)

    # Weights spread over fsdp are gathered inside what is rematerialised, so that no whole copies are kept.
    def enter(layer: nnx.State, x: Tokens) -> tuple[Heads, Heads, Heads]:
      return nnx.merge(graphdef, gather(layer, mesh)).enter(x, modulation, rotary)

    def leave(layer: nnx.State, x: Tokens, attended: Heads) -> Tokens:
      return nnx.merge(graphdef, gather(layer, mesh)).leave(x, attended, modulation, text, self.attention)

    # A scan cannot merge what is computed again with the first time, so nothing need prevent that.
    remat = functools.partial(jax.checkpoint, prevent_cse=False)
    if self.remat == "attention":
      enter, leave = remat(enter), remat(leave)

    def layer_step(x: Tokens, layer: nnx.State) -> tuple[Tokens, None]:
      attended = self.attention(*enter(layer, x), key_lengths=lengths, shard_sequence=True)
      return shard_tokens(leave(layer, x, attended), mesh), None

    if self.remat == "full":
      layer_step = remat(layer_step)
    return jax.lax.scan(layer_step, x, layers)[0]


@dataclasses.dataclass(frozen=True)
class AdaptedTransformer:
  """How to put the trained network, and the reference that it departs from, together from one set of base weights.

  It holds no arrays: close over it in `jax.jit` and pass the states as arguments.
  """

  config: TransformerConfig
  graphdef: nnx.GraphDef
  base_graphdef: nnx.GraphDef

  def velocity(self, lora: nnx.State, base: nnx.State) -> WanTransformer:
    """The network with adapters: call it as `model(latents, timestep, text)`."""
    return nnx.merge(self.graphdef, lora, base)

  def reference(self, base: nnx.State) -> WanTransformer:
    """The network without adapters."""
    return nnx.merge(self.base_graphdef, base)


def load(
  folder: str | os.PathLike,
  *,
  dtype: DTypeLike,
  lora: LoRAConfig,
  lora_key: Key[Array, ""],
  attention: Attention,
  remat: str,
) -> tuple[AdaptedTransformer, nnx.State, nnx.State]:
  """Loads base weights from a diffusers folder and makes new adapters.

  Over `attention.mesh` both are spread by `shard_params`; without a mesh they are on the default device.

  Returns:
    the network, the adapters' state (float32) and the base weights' state (`dtype`, or float32 where it matters). Their
    shardings, for `jax.jit`, are `jax.tree.map(lambda x: x.sharding, state)`.

  Raises:
    UserError: a folder that does not hold a Wan2.1 transformer, or a mesh or attention kernel that does not fit it.
  """
  config = TransformerConfig.from_folder(folder)
  build = functools.partial(WanTransformer, config, dtype=dtype, attention=attention, remat=remat)
  base_graphdef, abstract_base = nnx.split(nnx.eval_shape(lambda: build(lora=None, rngs=nnx.Rngs(0))))

  def adapters(key: Key[Array, ""]) -> nnx.State:
    # Inside jit the base weights that this makes are never computed.
    return nnx.state(build(lora=lora, rngs=nnx.Rngs(params=0, lora=key)), LoRAParam)

  graphdef = nnx.graphdef(nnx.eval_shape(lambda: build(lora=lora, rngs=nnx.Rngs(0))))
  mesh = attention.mesh
  lora_shardings = None if mesh is None else shard_params(mesh, jax.eval_shape(adapters, lora_key))
  base_shardings = None if mesh is None else shard_params(mesh, abstract_base)
  base = weights.load(folder, abstract_base, tensor_table(config), shardings=base_shardings)
  return (
    AdaptedTransformer(config, graphdef, base_graphdef),
    jax.jit(adapters, out_shardings=lora_shardings)(lora_key),
    base,
  )


def tensor_table(config: TransformerConfig) -> dict[str, weights.Tensor]:
  """Where diffusers keeps each base weight."""
  linear, layer = weights.linear, "blocks.{layer}"
  patch = weights.Layout("o c t h w -> (t h w c) o", tuple(zip("thw", config.patch_size)))
  table = {
    "patch_embedding/kernel": weights.Tensor("patch_embedding.weight", patch),
    "patch_embedding/bias": weights.Tensor("patch_embedding.bias"),
    **linear("time_in", "condition_embedder.time_embedder.linear_1"),
    **linear("time_out", "condition_embedder.time_embedder.linear_2"),
    **linear("time_proj", "condition_embedder.time_proj"),
    **linear("text_in", "condition_embedder.text_embedder.linear_1"),
    **linear("text_out", "condition_embedder.text_embedder.linear_2"),
    "blocks/scale_shift_table": weights.Tensor(f"{layer}.scale_shift_table"),
    "blocks/norm2/scale": weights.Tensor(f"{layer}.norm2.weight"),
    "blocks/norm2/bias": weights.Tensor(f"{layer}.norm2.bias"),
    **linear("blocks/ffn_in", f"{layer}.ffn.net.0.proj"),
    **linear("blocks/ffn_out", f"{layer}.ffn.net.2"),
    "scale_shift_table": weights.Tensor("scale_shift_table"),
    **linear("proj_out", "proj_out"),
  }
  for attn in ("attn1", "attn2"):
    for name in ("to_q", "to_k", "to_v"):
      table |= linear(f"blocks/{attn}/{name}", f"{layer}.{attn}.{name}")
    table |= linear(f"blocks/{attn}/to_out", f"{layer}.{attn}.to_out.0")
    for name in ("norm_q", "norm_k"):
      table[f"blocks/{attn}/{name}/scale"] = weights.Tensor(f"{layer}.{attn}.{name}.weight")
  return table


def _layer_norm(config: TransformerConfig, affine: bool, rngs: nnx.Rngs) -> nnx.LayerNorm:
  return nnx.LayerNorm(
    config.dim,
    epsilon=config.eps,
    use_bias=affine,
    use_scale=affine,
    dtype=jnp.float32,
    use_fast_variance=False,
    rngs=rngs,
  )


def _modulation_init(rngs: nnx.Rngs, rows: int, dim: int) -> Float[Array, "1 rows dim"]:
  return jax.random.normal(rngs.params(), (1, rows, dim), jnp.float32) / dim**0.5


def _modulate(
  x: Float[Array, "B N dim"], shift: Float[Array, "B 1 dim"], scale: Float[Array, "B 1 dim"]
) -> Float[Array, "B N dim"]:
  return x * (1 + scale) + shift


def _sinusoids(timestep: Float[Array, "B"], channels: int) -> Float[Array, "B channels"]:
  """Cosines, then sines, of the timestep at `channels / 2` frequencies from 1 down to 1 / 10000 (excluded)."""
  half = channels // 2
  # Exponents are rounded to float32 and then exact: at timestep 999 any other rounding than diffusers' would show.
  exponents = np.arange(half, dtype=np.float32) * np.float32(-math.log(10_000)) / np.float32(half)
  frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
  angles = timestep.astype(jnp.float32)[:, None] * frequencies
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
