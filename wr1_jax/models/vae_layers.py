"""Layers of Wan's causal video autoencoder, channels last: arrays are `[B, T, H, W, C]`.

A video passes through the autoencoder in chunks of frames. Every layer that looks back in time keeps the last frames it
saw, so that the result does not depend on where the chunks are cut; a `Stream` carries those frames along.

Architecture and parameters: Wan2.1's VAE as in diffusers' `AutoencoderKLWan`.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import nnx
from jax import lax
from jaxtyping import Array, DTypeLike, Float

# What a causal layer remembers is the last frames of its input: one array per layer, in the order in which they run.
Memory = tuple[Float[Array, "B T H W C"], ...]

_KERNEL_FRAMES = 3  # every convolution over time sees the current frame and two earlier ones
_OVER_TIME = (_KERNEL_FRAMES, 1, 1)  # kernel of the convolutions that only mix frames
# Channels per frame up to which a convolution is a matrix product on GPUs; Wan2.1's own autoencoder begins at 96.
_NARROW = 64


class Stream:
  """Takes one chunk of a video through the causal layers.

  Args:
    memory: `Stream.memory` after the previous chunk; None for the first chunk, whose first frame Wan neither halves nor
      doubles in time: it holds one frame more than a multiple of the network's factor.
  """

  def __init__(self, memory: Memory | None):
    self.first = memory is None
    self._past = iter(memory or ())
    self._memory: list[Array] = []

  @property
  def memory(self) -> Memory:
    """What the layers that have run so far remember for the next chunk."""
    return tuple(self._memory)

  def extend(self, x: Float[Array, "B T H W C"], frames: int) -> Float[Array, "B T+frames H W C"]:
    """Puts the `frames` frames in front of `x` that came before it (zeros before the video), and remembers the last.

    Each layer that looks back calls this once a chunk, always in the same order.
    """
    batch, _, *rest = x.shape
    past = jnp.zeros((batch, frames, *rest), x.dtype) if self.first else next(self._past)
    x = jnp.concatenate([past, x], axis=1)
    self._memory.append(x[:, -frames:])
    return x

  def causal(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T+2 H W C"]:
    """`x` with all the history that a convolution over time needs to give one output frame per frame of `x`."""
    return self.extend(x, _KERNEL_FRAMES - 1)


class FrameConv(nnx.Module):
  """2-D convolution of every frame; `padding` is (before, after), the same for rows and columns."""

  def __init__(
    self,
    inputs: int,
    outputs: int,
    size: int,
    *,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
    dtype: DTypeLike,
    rngs: nnx.Rngs,
  ):
    self.stride = stride
    self.padding = padding
    self.kernel = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), (size, size, inputs, outputs), dtype))
    self.bias = nnx.Param(jnp.zeros((outputs,), dtype))

  def __call__(self, x: Float[Array, "B T H W I"]) -> Float[Array, "B T H2 W2 O"]:
    return _convolve_frames(x, self.kernel[...], self.stride, self.padding) + self.bias[...]


class VideoConv(nnx.Module):
  """3-D convolution with odd sides, "same" over space and "valid" over time."""

  def __init__(
    self,
    inputs: int,
    outputs: int,
    size: tuple[int, int, int] = (_KERNEL_FRAMES, 3, 3),
    *,
    time_stride: int = 1,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
  ):
    self.time_stride = time_stride
    self.kernel = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), (*size, inputs, outputs), dtype))
    self.bias = nnx.Param(jnp.zeros((outputs,), dtype))

  def __call__(self, x: Float[Array, "B T H W I"]) -> Float[Array, "B T2 H W O"]:
    # As a 2-D convolution of the frames that each output sees, laid side by side in the channels. XLA's 3-D
    # convolutions took 24 times as long at full resolution on CPU; on an H200, decoding 832x480x81 took 0.93 s with
    # them and takes 0.75 s so.
    frames, height, _, _, _ = self.kernel.shape
    last = x.shape[1] - frames
    seen = jnp.concatenate([x[:, i : last + i + 1 : self.time_stride] for i in range(frames)], axis=-1)
    kernel = rearrange(self.kernel[...], "t h w i o -> h w (t i) o")
    return _convolve_frames(seen, kernel, 1, (height // 2, height // 2)) + self.bias[...]


def _convolve_frames(
  x: Float[Array, "B T H W I"], kernel: Float[Array, "h w I O"], stride: int, padding: tuple[int, int]
) -> Float[Array, "B T H2 W2 O"]:
  convolve = functools.partial(_convolution, stride=stride, padding=padding)
  *sides, inputs, outputs = kernel.shape
  narrow = inputs <= _KERNEL_FRAMES * _NARROW and outputs <= _NARROW
  if not narrow and max(sides) > 1:
    return convolve(x, kernel)
  # cuDNN is slow where channels are few, and choosing an algorithm for each of a training step's 300 convolutions takes
  # minutes. On an H200, gradients of 48 -> 16 channels for 272 frames of 96x96 took 185 ms with its default algorithm
  # and take 9 ms as a matrix product. A kernel of one pixel is such a product to begin with, whatever its channels.
  of_patches = functools.partial(_product_of_patches, stride=stride, padding=padding)
  return lax.platform_dependent(x, kernel, cuda=of_patches, default=convolve)


def _convolution(x: Array, kernel: Array, *, stride: int, padding: tuple[int, int]) -> Array:
  frames = rearrange(x, "b t h w i -> (b t) h w i")
  y = lax.conv_general_dilated(
    frames, kernel, (stride, stride), (padding, padding), dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  return rearrange(y, "(b t) h w o -> b t h w o", b=x.shape[0])


def _product_of_patches(x: Array, kernel: Array, *, stride: int, padding: tuple[int, int]) -> Array:
  """The same convolution as one matrix product of all patches, at the price of a copy of `x` for each tap."""
  rows, columns, _, outputs = kernel.shape
  x = jnp.pad(x, ((0, 0), (0, 0), padding, padding, (0, 0)))
  height, width = (x.shape[2] - rows) // stride + 1, (x.shape[3] - columns) // stride + 1
  taps = [
    x[:, :, row : row + stride * (height - 1) + 1 : stride, column : column + stride * (width - 1) + 1 : stride]
    for row in range(rows)
    for column in range(columns)
  ]
  return _product(jnp.concatenate(taps, axis=-1), kernel.reshape(-1, outputs))


@jax.custom_vjp
def _product(patches: Float[Array, "B T H W K"], kernel: Float[Array, "K O"]) -> Float[Array, "B T H W O"]:
  """`patches @ kernel`, whose gradient by the kernel is found frame by frame."""
  return patches @ kernel


def _product_forward(patches: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
  return patches @ kernel, (patches, kernel)


def _product_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
  patches, kernel = saved
  # As one product, the kernel's gradient is a few numbers, each a sum over all places: work for a few of a GPU's
  # processors. The barrier keeps XLA from making one product of it again.
  of_frames = jnp.einsum("bthwk,bthwo->btko", patches, gradient, preferred_element_type=jnp.float32)
  of_kernel = lax.optimization_barrier(of_frames).sum(axis=(0, 1))
  return gradient @ kernel.T, of_kernel.astype(kernel.dtype)


_product.defvjp(_product_forward, _product_backward)


class ChannelNorm(nnx.Module):
  """Scales each pixel's channels to root mean square 1, in float32 whatever the dtype of the activations."""

  def __init__(self, channels: int):
    self.scale = nnx.Param(jnp.ones((channels,), jnp.float32))

  def __call__(self, x: Float[Array, "... C"]) -> Float[Array, "... C"]:
    y = x.astype(jnp.float32)
    norm = jnp.sqrt(jnp.sum(jnp.square(y), axis=-1, keepdims=True))
    y = y / jnp.maximum(norm, 1e-12) * (math.sqrt(x.shape[-1]) * self.scale[...])
    return y.astype(x.dtype)


class ResidualBlock(nnx.Module):
  """Two rounds of norm, SiLU and causal convolution beside a shortcut."""

  def __init__(self, inputs: int, outputs: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
    self.norm1 = ChannelNorm(inputs)
    self.conv1 = VideoConv(inputs, outputs, dtype=dtype, rngs=rngs)
    self.norm2 = ChannelNorm(outputs)
    self.conv2 = VideoConv(outputs, outputs, dtype=dtype, rngs=rngs)
    unequal = inputs != outputs
    self.conv_shortcut = VideoConv(inputs, outputs, (1, 1, 1), dtype=dtype, rngs=rngs) if unequal else None

  def __call__(self, x: Float[Array, "B T H W I"], stream: Stream) -> Float[Array, "B T H W O"]:
    shortcut = x if self.conv_shortcut is None else self.conv_shortcut(x)
    x = self.conv1(stream.causal(jax.nn.silu(self.norm1(x))))
    x = self.conv2(stream.causal(jax.nn.silu(self.norm2(x))))
    return x + shortcut


class AttentionBlock(nnx.Module):
  """Single-head self-attention among the pixels of each frame."""

  def __init__(self, channels: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
    self.norm = ChannelNorm(channels)
    self.to_qkv = FrameConv(channels, 3 * channels, 1, dtype=dtype, rngs=rngs)
    self.proj = FrameConv(channels, channels, 1, dtype=dtype, rngs=rngs)

  def __call__(self, x: Float[Array, "B T H W C"], stream: Stream) -> Float[Array, "B T H W C"]:
    del stream  # frames do not see each other here
    batch, _, height, _, _ = x.shape
    q, k, v = rearrange(self.to_qkv(self.norm(x)), "b t h w (qkv c) -> qkv (b t) (h w) 1 c", qkv=3)
    # Not through models/attention.py: 384 channels in one head are more than its fused kernels take.
    y = jax.nn.dot_product_attention(q, k, v, implementation="xla")
    return x + self.proj(rearrange(y, "(b t) (h w) 1 c -> b t h w c", b=batch, h=height))


class Downsample(nnx.Module):
  """Halves the sides of the frames, and with `temporal` the number of frames; a video's first frame stays."""

  def __init__(self, channels: int, *, temporal: bool, dtype: DTypeLike, rngs: nnx.Rngs):
    self.resample = FrameConv(channels, channels, 3, stride=2, padding=(0, 1), dtype=dtype, rngs=rngs)
    halving = dict(size=_OVER_TIME, time_stride=2)
    self.time_conv = VideoConv(channels, channels, **halving, dtype=dtype, rngs=rngs) if temporal else None

  def __call__(self, x: Float[Array, "B T H W C"], stream: Stream) -> Float[Array, "B T2 H2 W2 C"]:
    x = self.resample(x)
    if self.time_conv is None:
      return x
    # Two new frames and the one before them make one.
    if not stream.first:
      return self.time_conv(stream.extend(x, 1))
    stream.extend(x, 1)
    return x if x.shape[1] == 1 else jnp.concatenate([x[:, :1], self.time_conv(x)], axis=1)


class Upsample(nnx.Module):
  """Doubles the sides of the frames, and with `temporal` the number of frames; halves the channels."""

  def __init__(self, channels: int, *, temporal: bool, dtype: DTypeLike, rngs: nnx.Rngs):
    self.resample = FrameConv(channels, channels // 2, 3, padding=(1, 1), dtype=dtype, rngs=rngs)
    self.time_conv = VideoConv(channels, 2 * channels, _OVER_TIME, dtype=dtype, rngs=rngs) if temporal else None

  def __call__(self, x: Float[Array, "B T H W C"], stream: Stream) -> Float[Array, "B T2 H2 W2 C/2"]:
    if self.time_conv is not None:
      x = self._double_frames(x, stream)
    return self.resample(repeat(x, "b t h w c -> b t (h h2) (w w2) c", h2=2, w2=2))

  def _double_frames(self, x: Float[Array, "B T H W C"], stream: Stream) -> Float[Array, "B T2 H W C"]:
    # The first frame is not doubled, and the convolution never sees it: to the second frame, zeros came before.
    whole, doubled = (x[:, :1], x[:, 1:]) if stream.first else (x[:, :0], x)
    extended = stream.causal(doubled)
    if not doubled.shape[1]:
      return whole
    doubled = rearrange(self.time_conv(extended), "b t h w (two c) -> b (t two) h w c", two=2)
    return jnp.concatenate([whole, doubled], axis=1)
