"""The latents that rollouts start from, with the camera path in them.

Four ways, `NoiseWarpConfig.mode`:
  none             plain i.i.d. noise;
  initial          the noise carried along the camera path is the start (World-R1, the paper);
  blend            a variance-preserving mix of it with plain noise;
  stepwise_delta   the start is plain noise, and the sampler adds a delta to its state during the first steps: the
                   difference between the carried and the plain noise, low-passed, of unit variance (public release).
A clip whose prompt asks for no camera path starts from plain noise in every mode, and its delta is zero.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from wr1_jax.camera.noise_warp import blend, warped_noise
from wr1_jax.config import CameraConfig, NoiseWarpConfig


class StartNoise(NamedTuple):
  """Where rollouts start."""

  latents: Float[Array, "P T H W C"]  # N(0, 1)
  delta: Float[Array, "P T H W C"] | None  # of mode stepwise_delta only: variance 1 over each clip, or all zero


@functools.partial(jax.jit, static_argnames=("latent_shape", "camera", "warp"))
def start_noise(
  plain_keys: Key[Array, "P"],
  camera_keys: Key[Array, "P"],
  poses: Float[Array, "P F 4 4"],
  has_path: Bool[Array, "P"],
  *,
  latent_shape: tuple[int, int, int, int],
  camera: CameraConfig,
  warp: NoiseWarpConfig,
) -> StartNoise:
  """Start noise for P clips of `latent_shape` = (T, H, W, C).

  Args:
    plain_keys: one key a clip, for the i.i.d. noise (`Purpose.START_NOISE`).
    camera_keys: one key a clip, for all that goes with the camera path (`Purpose.CAMERA_NOISE`).
    poses: target paths at video frame rate, see `camera.trajectory.target_paths`; ignored where `has_path` is false.

  Clips do not depend on each other, so the result is the same however P is split over devices.
  """
  plain = jax.vmap(lambda key: jax.random.normal(key, latent_shape))(plain_keys)
  if warp.mode == "none":
    return StartNoise(plain, None)
  carried = jax.vmap(lambda key, path: warped_noise(key, path, latent_shape, camera, warp))(camera_keys, poses)
  has_path = has_path[:, None, None, None, None]
  match warp.mode:
    case "initial":
      return StartNoise(jnp.where(has_path, carried, plain), None)
    case "blend":
      return StartNoise(jnp.where(has_path, blend(plain, carried, warp.strength), plain), None)
    case "stepwise_delta":
      delta = low_pass(carried - plain, warp.delta_blur)
      delta /= jnp.std(delta, axis=(1, 2, 3, 4), keepdims=True)
      return StartNoise(plain, jnp.where(has_path, delta, 0.0))
  raise ValueError(f"unknown noise warp mode {warp.mode!r}")


def low_pass(noise: Float[Array, "*batch H W C"], side: int) -> Float[Array, "*batch H W C"]:
  """Adds white noise up over boxes of `side` x `side` pixels and divides by the root of their count.

  Boxes end at the picture's edge, so the variance is the same everywhere: that of `noise`.
  """
  before, after = (side - 1) // 2, side // 2
  batch = noise.ndim - 3
  window = (1,) * batch + (side, side, 1)
  around = [(0, 0)] * batch + [(before, after)] * 2 + [(0, 0)]
  sums = jax.lax.reduce_window(noise, 0.0, jax.lax.add, window, (1,) * noise.ndim, around)

  def covered(length: int) -> np.ndarray:
    at = np.arange(length)
    return np.minimum(at + after, length - 1) - np.maximum(at - before, 0) + 1

  height, width = noise.shape[-3:-1]
  return sums / np.sqrt(np.outer(covered(height), covered(width)), dtype=np.float32)[..., None]
