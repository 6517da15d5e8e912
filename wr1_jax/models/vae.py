"""Wan2.1's video autoencoder: videos to latents a quarter as long and an eighth as wide and high, and back.

The model is diffusers' `AutoencoderKLWan`. Latents come and go normalised, each channel by the mean and standard
deviation in config.json, which is how the transformer knows them. Both directions run over a few latent frames at a
time in one `lax.scan`, so that no activation as long as the video exists beside input and output.

    model = vae.load(folder / "vae", dtype=jnp.bfloat16)
    graphdef, state = nnx.split(model)

    @jax.jit
    def decode(state, latents):
      return vae.to_uint8(nnx.merge(graphdef, state).decode(latents))
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, DTypeLike, Float, UInt8

from wr1_jax.errors import UserError
from wr1_jax.models import weights
from wr1_jax.models.vae_layers import (
  AttentionBlock,
  ChannelNorm,
  Downsample,
  Memory,
  ResidualBlock,
  Stream,
  Upsample,
  VideoConv,
)
from wr1_jax.models.weights import CONV2D, CONV3D, Layout, Tensor
from wr1_jax.parallel.mesh import replicated

_LOG_VARIANCE = (-30.0, 20.0)  # diffusers clamps the posterior's to these


@dataclasses.dataclass(frozen=True)
class VAEConfig:
  """Sizes, under the names (and with the defaults) of `AutoencoderKLWan`'s config.json."""

  base_dim: int = 96  # channels at full resolution
  decoder_base_dim: int | None = None  # None: base_dim
  z_dim: int = 16  # latent channels
  dim_mult: tuple[int, ...] = (1, 2, 4, 4)  # channels of each stage, in base_dims; frames halve between stages
  num_res_blocks: int = 2
  temperal_downsample: tuple[bool, ...] = (False, True, True)  # which halvings also halve the number of frames
  latents_mean: tuple[float, ...] = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
  )  # fmt: skip
  latents_std: tuple[float, ...] = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
  )  # fmt: skip
  # Options that Wan2.1's autoencoder does not use, known here only to be refused.
  attn_scales: tuple[float, ...] = ()
  is_residual: bool = False
  patch_size: int | None = None
  in_channels: int = 3
  out_channels: int = 3

  @classmethod
  def from_folder(cls, folder: str | os.PathLike) -> VAEConfig:
    """Reads `folder`/config.json; a `UserError` where it is absent, or describes another kind of autoencoder."""
    config = weights.parse_config(cls, weights.read_config(folder), folder)
    place = Path(folder) / "config.json"
    unused = {
      "attn_scales": (config.attn_scales, ()),
      "is_residual": (config.is_residual, False),
      "patch_size": (config.patch_size, None),
      "in_channels": (config.in_channels, 3),
      "out_channels": (config.out_channels, 3),
    }
    for name, (value, supported) in unused.items():
      if value != supported:
        raise UserError(
          f"{place} has {name} = {value}; only {supported} is supported. Wan2.1's autoencoder is needed, "
          "and this may be Wan2.2's."
        )
    lengths = {
      "temperal_downsample": (len(config.temperal_downsample), len(config.dim_mult) - 1),
      "latents_mean": (len(config.latents_mean), config.z_dim),
      "latents_std": (len(config.latents_std), config.z_dim),
    }
    for name, (length, expected) in lengths.items():
      if length != expected:
        raise UserError(f"{place} has {length} values in {name}; {expected} would go with its dim_mult and z_dim.")
    return config

  @property
  def time_factor(self) -> int:
    """Frames per latent frame, after the first."""
    return 2 ** sum(self.temperal_downsample)

  @property
  def space_factor(self) -> int:
    """Pixels per latent pixel, along each side."""
    return 2 ** (len(self.dim_mult) - 1)

  def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
    """The latents' (T, H, W, C) for a video of these sizes; a `UserError` for one that does not fit."""
    if frames < 1 or (frames - 1) % self.time_factor:
      below = max(frames - 1, 0) // self.time_factor * self.time_factor + 1
      raise UserError(
        f"a video of {frames} frames does not fit the autoencoder, which takes {self.time_factor} k + 1 "
        f"of them; the closest are {below} and {below + self.time_factor}."
      )
    if min(height, width) < 1 or height % self.space_factor or width % self.space_factor:
      raise UserError(
        f"a video of {width}x{height} pixels does not fit the autoencoder: both sides must be multiples "
        f"of {self.space_factor}."
      )
    steps, rows, columns = (frames - 1) // self.time_factor, height // self.space_factor, width // self.space_factor
    return (1 + steps, rows, columns, self.z_dim)


class MidBlock(nnx.Module):
  """The narrowest part: attention between two residual blocks."""

  def __init__(self, channels: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
    self.resnets = nnx.List([ResidualBlock(channels, channels, dtype=dtype, rngs=rngs) for _ in range(2)])
    self.attentions = nnx.List([AttentionBlock(channels, dtype=dtype, rngs=rngs)])

  def __call__(self, x: Float[Array, "B T H W C"], stream: Stream) -> Float[Array, "B T H W C"]:
    x = self.resnets[0](x, stream)
    x = self.attentions[0](x, stream)
    return self.resnets[1](x, stream)


class Encoder(nnx.Module):
  """Pixels to the posterior's parameters, before the last 1x1x1 convolution."""

  def __init__(self, config: VAEConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
    inputs = config.base_dim
    self.conv_in = VideoConv(config.in_channels, inputs, dtype=dtype, rngs=rngs)
    layers = []
    for stage, multiple in enumerate(config.dim_mult):
      channels = config.base_dim * multiple
      for _ in range(config.num_res_blocks):
        layers.append(ResidualBlock(inputs, channels, dtype=dtype, rngs=rngs))
        inputs = channels
      if stage < len(config.dim_mult) - 1:
        layers.append(Downsample(channels, temporal=config.temperal_downsample[stage], dtype=dtype, rngs=rngs))
    self.down_blocks = nnx.List(layers)
    self.mid_block = MidBlock(inputs, dtype=dtype, rngs=rngs)
    self.norm_out = ChannelNorm(inputs)
    self.conv_out = VideoConv(inputs, 2 * config.z_dim, dtype=dtype, rngs=rngs)

  def __call__(self, x: Float[Array, "B T H W 3"], stream: Stream) -> Float[Array, "B T2 H2 W2 2*C"]:
    x = self.conv_in(stream.causal(x))
    for layer in self.down_blocks:
      x = layer(x, stream)
    x = self.mid_block(x, stream)
    return self.conv_out(stream.causal(jax.nn.silu(self.norm_out(x))))


class UpBlock(nnx.Module):
  """One stage of the decoder. It ends in an `Upsample`, of frames too with `temporal`, save where that is None."""

  def __init__(
    self, inputs: int, channels: int, resnets: int, *, temporal: bool | None, dtype: DTypeLike, rngs: nnx.Rngs
  ):
    widths = [inputs] + [channels] * resnets
    self.resnets = nnx.List(
      [ResidualBlock(before, after, dtype=dtype, rngs=rngs) for before, after in zip(widths, widths[1:])]
    )
    self.upsamplers = nnx.List([])
    if temporal is not None:
      self.upsamplers.append(Upsample(channels, temporal=temporal, dtype=dtype, rngs=rngs))

  def __call__(self, x: Float[Array, "B T H W I"], stream: Stream) -> Float[Array, "B T2 H2 W2 O"]:
    for layer in (*self.resnets, *self.upsamplers):
      x = layer(x, stream)
    return x


class Decoder(nnx.Module):
  """Latents, after the first 1x1x1 convolution, to pixels."""

  def __init__(self, config: VAEConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
    base = config.decoder_base_dim or config.base_dim
    widths = [base * multiple for multiple in reversed(config.dim_mult)]
    temporal = [*reversed(config.temperal_downsample), None]
    self.conv_in = VideoConv(config.z_dim, widths[0], dtype=dtype, rngs=rngs)
    self.mid_block = MidBlock(widths[0], dtype=dtype, rngs=rngs)
    inputs = [widths[0], *(width // 2 for width in widths)]  # each stage's end halves the channels
    self.up_blocks = nnx.List(
      [
        UpBlock(*sizes, config.num_res_blocks + 1, temporal=doubles, dtype=dtype, rngs=rngs)
        for *sizes, doubles in zip(inputs, widths, temporal)
      ]
    )
    self.norm_out = ChannelNorm(widths[-1])
    self.conv_out = VideoConv(widths[-1], config.out_channels, dtype=dtype, rngs=rngs)

  def __call__(self, x: Float[Array, "B T H W C"], stream: Stream) -> Float[Array, "B T2 H2 W2 3"]:
    x = self.conv_in(stream.causal(x))
    x = self.mid_block(x, stream)
    for block in self.up_blocks:
      x = block(x, stream)
    return self.conv_out(stream.causal(jax.nn.silu(self.norm_out(x))))


class WanVAE(nnx.Module):
  """The autoencoder; `dtype` is that of convolutions and activations, norms are float32."""

  def __init__(self, config: VAEConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
    self.config = config
    self.dtype = dtype
    self.encoder = Encoder(config, dtype=dtype, rngs=rngs)
    self.quant_conv = VideoConv(2 * config.z_dim, 2 * config.z_dim, (1, 1, 1), dtype=dtype, rngs=rngs)
    self.post_quant_conv = VideoConv(config.z_dim, config.z_dim, (1, 1, 1), dtype=dtype, rngs=rngs)
    self.decoder = Decoder(config, dtype=dtype, rngs=rngs)

  def encode(self, video: Float[Array, "B T H W 3"], *, frames_per_chunk: int = 1) -> Float[Array, "B T2 H2 W2 C"]:
    """The posterior's mean, normalised.

    Args:
      video: float32 in [-1, 1].
      frames_per_chunk: latent frames that are made at once; changes memory and speed, not the result.

    Returns:
      float32 latents of `config.latent_shape`.

    Raises:
      UserError: a number of frames or a size that the autoencoder cannot take.
    """
    mean, _ = self.posterior(video, frames_per_chunk=frames_per_chunk)
    return (mean - jnp.asarray(self.config.latents_mean)) / jnp.asarray(self.config.latents_std)

  def posterior(
    self, video: Float[Array, "B T H W 3"], *, frames_per_chunk: int = 1
  ) -> tuple[Float[Array, "B T2 H2 W2 C"], Float[Array, "B T2 H2 W2 C"]]:
    """Mean and logarithm of the variance of the latents, float32 and not normalised; arguments as for `encode`."""
    self.config.latent_shape(*video.shape[1:4])

    def encode_chunk(frames: Array, stream: Stream) -> Array:
      return self.quant_conv(self.encoder(frames.astype(self.dtype), stream)).astype(jnp.float32)

    parameters = _in_chunks(encode_chunk, video, frames_per_chunk * self.config.time_factor)
    mean, log_variance = jnp.split(parameters, 2, axis=-1)
    return mean, jnp.clip(log_variance, *_LOG_VARIANCE)

  def decode(
    self, latents: Float[Array, "B T H W C"], *, frames_per_chunk: int = 1, clip: bool = True
  ) -> Float[Array, "B T2 H2 W2 3"]:
    """The video that normalised `latents` stand for.

    Args:
      latents: float32.
      frames_per_chunk: latent frames that are decoded at once; changes memory and speed, not the result. At 832x480 and
        bfloat16 on an H200 each adds about 1.7 GiB to the 4 that one takes, and makes nothing faster.
      clip: False leaves pixels as the last convolution gives them, so that a loss can pull back those out of range.

    Returns:
      float32 in [-1, 1].
    """
    latents = latents * jnp.asarray(self.config.latents_std) + jnp.asarray(self.config.latents_mean)

    def decode_chunk(frames: Array, stream: Stream) -> Array:
      pixels = self.decoder(self.post_quant_conv(frames.astype(self.dtype)), stream)
      pixels = pixels.astype(jnp.float32)
      return jnp.clip(pixels, -1.0, 1.0) if clip else pixels

    return _in_chunks(decode_chunk, latents, frames_per_chunk)


def _in_chunks(
  network: Callable[[Array, Stream], Array], x: Float[Array, "B T H W C"], chunk: int
) -> Float[Array, "B T2 H2 W2 O"]:
  """Runs a causal network over the first frame, then over `chunk` frames at a time, and joins what it returns.

  Where one chunk would hold them all, the first frame goes with it: half as much to compile.
  """
  rest = x.shape[1] - 1
  if rest <= chunk:
    return network(x, Stream(None))
  stream = Stream(None)
  head = network(x[:, :1], stream)
  padding = -rest % chunk  # nothing looks ahead: what zeros at the end become is cut off again
  x = jnp.pad(x[:, 1:], ((0, 0), (0, padding), (0, 0), (0, 0), (0, 0)))

  def step(memory: Memory, frames: Array) -> tuple[Memory, Array]:
    stream = Stream(memory)
    y = network(frames, stream)
    return stream.memory, y

  _, tail = lax.scan(step, stream.memory, rearrange(x, "b (n t) h w c -> n b t h w c", t=chunk))
  tail = rearrange(tail, "n b t h w c -> b (n t) h w c")
  return jnp.concatenate([head, tail[:, : tail.shape[1] * rest // (rest + padding)]], axis=1)


def to_uint8(video: Float[Array, "*dims"]) -> UInt8[Array, "*dims"]:
  """Pixels in [-1, 1] as the nearest of 0..255."""
  return jnp.round(jnp.clip(video, -1.0, 1.0) * 127.5 + 127.5).astype(jnp.uint8)


def tensor_table(state: nnx.State) -> dict[str, Tensor]:
  """Where `AutoencoderKLWan`'s checkpoint holds each leaf of a `WanVAE`'s state: the modules have diffusers' names."""
  return {"/".join(map(str, path)): _tensor(path, variable) for path, variable in nnx.to_flat_state(state)}


def _tensor(path: tuple[str | int, ...], variable: nnx.Variable) -> Tensor:
  *modules, leaf = path
  # In diffusers "resample" is a sequence whose second part is the convolution.
  prefix = ".".join("resample.1" if module == "resample" else str(module) for module in modules)
  if leaf == "bias":
    return Tensor(f"{prefix}.bias")
  if leaf == "kernel":
    return Tensor(f"{prefix}.weight", CONV2D if variable.ndim == 4 else CONV3D)
  # A norm's scale broadcasts over channels-first arrays: images in the attentions ("norm"), videos elsewhere.
  return Tensor(f"{prefix}.gamma", Layout("c 1 1 -> c" if modules[-1] == "norm" else "c 1 1 1 -> c"))


def load(folder: str | os.PathLike, *, dtype: DTypeLike, mesh: Mesh | None = None) -> WanVAE:
  """Reads the `vae` folder of a diffusers checkpoint; with a mesh, every device holds all of the weights.

  Raises:
    UserError: a missing or damaged folder, or one that holds something else (see `weights.load`).
  """
  config = VAEConfig.from_folder(folder)
  abstract = nnx.eval_shape(lambda: WanVAE(config, dtype=dtype, rngs=nnx.Rngs(0)))
  graphdef, state = nnx.split(abstract)
  shardings = None if mesh is None else jax.tree.map(lambda _: replicated(mesh), state)
  return nnx.merge(graphdef, weights.load(folder, state, tensor_table(state), shardings=shardings))
