"""What a clip is like in the space of the video autoencoder, in a few numbers; and real clips to compare with.

A clip is described by 2 C + 3 statistics of its C latent channels (35 for Wan's 16), few enough that some 64 clips say
something about their covariance:

  the mean and the logarithm of the standard deviation of every channel;
  the correlation of neighbouring positions along time, rows and columns, each the mean over channels.

They see whether brightness, colour, contrast, smoothness and motion are those of real clips, and neither objects nor
what a prompt asks for.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, UInt8
from PIL import Image

from wr1_jax.config import Config, VideoConfig
from wr1_jax.errors import UserError
from wr1_jax.models.pipeline import WanModel
from wr1_jax.parallel.mesh import batch_sharding, batch_shards, replicated
from wr1_jax.rewards import clips
from wr1_jax.rewards.clips import ClipError

_POSITIONS = (1, 2, 3)  # axes of latents [B, T, H, W, C]
_SMALL = 1e-6


def latent_features(latents: Float[Array, "B T H W C"]) -> Float[Array, "B F"]:
  """The F = 2 C + 3 statistics of every clip, float32. Where an axis has one position, its correlation is 0."""
  mean = latents.mean(_POSITIONS, keepdims=True)
  centred = latents - mean
  variance = jnp.square(centred).mean(_POSITIONS)
  correlations = []
  for axis in _POSITIONS:
    size = latents.shape[axis]
    here, there = (jnp.take(centred, jnp.arange(start, start + size - 1), axis=axis) for start in (0, 1))
    covariance = (here * there).mean(_POSITIONS) if size > 1 else jnp.zeros_like(variance)
    correlations.append((covariance / (variance + _SMALL)).mean(-1))
  return jnp.concatenate(
    [mean[:, 0, 0, 0], 0.5 * jnp.log(variance + _SMALL), jnp.stack(correlations, axis=-1)], axis=-1
  )


class Extractor:
  """The features of clips of one size, one clip a device at a time."""

  def __init__(self, config: Config, model: WanModel, mesh: Mesh):
    self._model, self._mesh, self._chunk = model, mesh, config.model.vae_frames_per_chunk
    self._features = jax.jit(self._of_clips, out_shardings=replicated(mesh))

  def __call__(self, videos: UInt8[np.ndarray, "N T H W 3"]) -> Float32[np.ndarray, "N F"]:
    """One row a clip. Compiled once for every size of clips."""
    size, sharding = batch_shards(self._mesh), batch_sharding(self._mesh)
    found = []
    for start in range(0, len(videos), size):
      chosen = videos[np.minimum(np.arange(start, start + size), len(videos) - 1)]  # the last one fills the batch up
      found.append(jax.device_get(self._features(self._model.vae_state, jax.device_put(chosen, sharding))))
    return np.concatenate(found)[: len(videos)]

  def _of_clips(self, vae_state: nnx.State, videos: UInt8[Array, "B T H W 3"]) -> Float[Array, "B F"]:
    autoencoder = nnx.merge(self._model.vae_graphdef, vae_state)
    pixels = videos.astype(jnp.float32) / 127.5 - 1
    return latent_features(autoencoder.encode(pixels, frames_per_chunk=self._chunk))


def find_real(folder: Path) -> list[Path]:
  """The clips of a folder (.mp4, .npy), by name.

  Raises:
    UserError: there is no such folder, or no clip in it.
  """
  try:
    return clips.find(folder)
  except UserError as error:
    raise UserError(str(error).replace("--videos", "--real")) from error


def read_real(files: list[Path], video: VideoConfig) -> Iterator[UInt8[np.ndarray, "T H W 3"] | str]:
  """Each clip's first frames at the size of `video`, or the reason why it is left out.

  A clip of another size is scaled until it covers the frame, and cut around its middle.
  """
  for file in files:
    try:
      clip = clips.read(file)
    except ClipError as error:
      yield str(error)
      continue
    if len(clip) < video.frames:
      yield f"{file.name} has {len(clip)} frames, fewer than {video.frames}"
    else:
      yield _fitted(clip[: video.frames], video.height, video.width)


def _fitted(clip: UInt8[np.ndarray, "T h w 3"], height: int, width: int) -> UInt8[np.ndarray, "T H W 3"]:
  if clip.shape[1:3] == (height, width):
    return clip
  scale = max(height / clip.shape[1], width / clip.shape[2])
  rows, columns = max(height, round(clip.shape[1] * scale)), max(width, round(clip.shape[2] * scale))
  top, left = (rows - height) // 2, (columns - width) // 2
  scaled = [Image.fromarray(frame).resize((columns, rows), Image.Resampling.LANCZOS) for frame in clip]
  return np.stack([np.asarray(frame)[top : top + height, left : left + width] for frame in scaled])
