"""Sizes, intrinsics and camera paths that both processes need, and brightness (numpy and scipy only: no torch, no jax).

Cameras follow OpenCV: +x right, +y down, +z forward; poses are camera-to-world; the centre of the first pixel is at
(0.5, 0.5).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial.transform import Rotation, Slerp

from wr1_jax.config import ReconstructionConfig

SIDE_MULTIPLE = 8  # processed sides divide by this, so that the image pyramid halves evenly
MIN_SIDE = 32  # LPIPS's network runs out of pixels below
LUMA = (0.299, 0.587, 0.114)  # weights of R, G and B in brightness (ITU-R BT.601)


def processed_size(height: int, width: int, config: ReconstructionConfig) -> tuple[int, int]:
  """The size (h, w) at which clips of `height` x `width` are reconstructed and compared.

  About `config.max_pixels` at the same aspect, never larger than the input but for rounding to `SIDE_MULTIPLE`.
  """
  shrink = min(1.0, (config.max_pixels / (height * width)) ** 0.5)
  h, w = (max(MIN_SIDE, SIDE_MULTIPLE * round(side * shrink / SIDE_MULTIPLE)) for side in (height, width))
  return h, w


def intrinsics(height: int, width: int, size: tuple[int, int], focal: float) -> Float[np.ndarray, "3 3"]:
  """Intrinsics in pixels of an image of `size` (h, w) that was resized from `height` x `width`.

  Args:
    focal: in widths of the original image, whose pixels are square. Rounding may stretch the resized image a little, so
      fx and fy differ; each field of view stays that of the original.
  """
  h, w = size
  return np.array([[focal * w, 0, w / 2], [0, focal * width * h / height, h / 2], [0, 0, 1]], np.float32)


def keep_frames(frames: int, most: int) -> Int[np.ndarray, "n"]:
  """Indices of at most `most` evenly spaced frames out of `frames`, the first and the last among them."""
  return np.unique(np.round(np.linspace(0, frames - 1, min(frames, most))).astype(int))


def interpolate_poses(
  poses: Float[np.ndarray, "n 4 4"], at: Int[np.ndarray, "n"], frames: int
) -> Float[np.ndarray, "T 4 4"]:
  """A pose for every frame from poses at the frames `at`: slerp for rotations, straight lines for positions."""
  if len(at) == frames:
    return np.asarray(poses, np.float64)
  times = np.arange(frames)
  result = np.tile(np.eye(4), (frames, 1, 1))
  result[:, :3, :3] = Slerp(at, Rotation.from_matrix(poses[:, :3, :3]))(times).as_matrix()
  result[:, :3, 3] = np.stack([np.interp(times, at, poses[:, axis, 3]) for axis in range(3)], -1)
  return result
