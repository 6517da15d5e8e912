"""Measures of one clip: how well its reconstruction explains it, and how its camera went.

The protocol is World-R1's, as far as it is known: a clip is reconstructed, the scene is rendered at the recovered
cameras, and renders are compared with the frames they belong to. All arithmetic is float64.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jaxtyping import Float, UInt8
from scipy import ndimage
from scipy.spatial.transform import Rotation

from wr1_jax.rewards.trajectory import anchored

HIGHEST_PSNR = 100.0  # dB; equal frames, whose PSNR is infinite, count as this, so that a mean stays finite

_SSIM_RADIUS = 5  # pixels around the middle of the 11 x 11 window
_SSIM_SIGMA = 1.5
_SSIM_C1, _SSIM_C2 = 0.01**2, 0.03**2  # (K1 L)^2 and (K2 L)^2 for values in [0, 1]
_STILL = 1e-6  # a path that stays this close to its start, in scene depths, does not translate


def psnr(frames: UInt8[np.ndarray, "T H W 3"], others: UInt8[np.ndarray, "T H W 3"]) -> float:
  """Peak signal-to-noise ratio in dB: 10 log10(255^2 / mean squared error) of each frame, then the mean over frames.

  A frame counts at most `HIGHEST_PSNR`.

  Raises:
    ValueError: the clips differ in shape.
  """
  _check_pair(frames, others)
  error = np.square(frames.astype(np.float64) - others).mean(axis=(1, 2, 3))
  least = 255**2 / 10 ** (HIGHEST_PSNR / 10)
  return float(np.mean(10 * np.log10(255**2 / np.maximum(error, least))))


def ssim(frames: UInt8[np.ndarray, "T H W 3"], others: UInt8[np.ndarray, "T H W 3"]) -> float:
  """Structural similarity (Wang et al. 2004), at most 1: the mean over frames, colour channels and positions.

  RGB in [0, 1], Gaussian windows of 11 x 11 pixels with sigma 1.5 that lie wholly inside the frame, K1 = 0.01 and
  K2 = 0.03, variances without Bessel's correction: scikit-image's `gaussian_weights=True, use_sample_covariance=False`.

  Raises:
    ValueError: the clips differ in shape, or a side is shorter than a window.
  """
  _check_pair(frames, others)
  if min(frames.shape[1:3]) <= 2 * _SSIM_RADIUS:
    raise ValueError(f"frames of {frames.shape[1:3]} are smaller than a window of {2 * _SSIM_RADIUS + 1} pixels")
  return float(np.mean([_ssim_of_frame(*(x / 255 for x in pair)) for pair in zip(frames, others)]))


def _ssim_of_frame(x: Float[np.ndarray, "H W 3"], y: Float[np.ndarray, "H W 3"]) -> float:
  def local_mean(values: Float[np.ndarray, "H W 3"]) -> Float[np.ndarray, "h w 3"]:
    inside = slice(_SSIM_RADIUS, -_SSIM_RADIUS)
    return ndimage.gaussian_filter(values, _SSIM_SIGMA, radius=_SSIM_RADIUS, axes=(0, 1))[inside, inside]

  mean_x, mean_y = local_mean(x), local_mean(y)
  var_x, var_y = local_mean(x * x) - mean_x**2, local_mean(y * y) - mean_y**2
  covariance = local_mean(x * y) - mean_x * mean_y
  brightness = (2 * mean_x * mean_y + _SSIM_C1) / (mean_x**2 + mean_y**2 + _SSIM_C1)
  return float(np.mean(brightness * (2 * covariance + _SSIM_C2) / (var_x + var_y + _SSIM_C2)))


@dataclasses.dataclass(frozen=True)
class CameraErrors:
  """Sums over the frames of a clip; a longer clip has larger ones."""

  rotation: float  # RotErr, radians
  translation: float  # TransErr, in largest distances from the start; NaN: the target does not translate
  pose: float  # CamMC; NaN likewise


def camera_errors(recovered: Float[np.ndarray, "T 4 4"], target: Float[np.ndarray, "T 4 4"]) -> CameraErrors:
  """RotErr, TransErr and CamMC (CameraCtrl, MotionCtrl) of a recovered camera-to-world path against its target.

  Both paths are taken relative to their first camera, and each path's translations are divided by their own largest
  norm. Then, over all frames,

    RotErr = sum arccos((tr(R1^T R2) - 1) / 2),  TransErr = sum |t1 - t2|,  CamMC = sum |[R1|t1] - [R2|t2]|_F.

  A path that does not translate has no largest norm: a drift of a hair's breadth would be blown up to a whole move.
  Where the target is such a path (a pan, a fixed camera) only RotErr is defined. Where the recovered one is, it keeps
  its translations, which are 0. The division makes TransErr blind to how far a camera goes, only S_traj sees that.

  Args:
    recovered: translations in median depths of the recovered scene.
    target: translations in scene depths.

  Raises:
    ValueError: the paths differ in shape or are not finite.
  """
  recovered, target = np.asarray(recovered, np.float64), np.asarray(target, np.float64)
  if recovered.shape != target.shape or recovered.shape[1:] != (4, 4):
    raise ValueError(f"paths of shapes {recovered.shape} and {target.shape} cannot be compared")
  if not (np.isfinite(recovered).all() and np.isfinite(target).all()):
    raise ValueError("a camera pose is not finite")
  recovered, target = anchored(recovered), anchored(target)
  between = recovered[:, :3, :3].mT @ target[:, :3, :3]
  rotation = float(Rotation.from_matrix(between).magnitude().sum())
  if _reach(target) <= _STILL:
    return CameraErrors(rotation, math.nan, math.nan)
  difference = _normalised(recovered)[:, :3] - _normalised(target)[:, :3]
  translation = np.linalg.norm(difference[:, :, 3], axis=-1).sum()
  return CameraErrors(rotation, float(translation), float(np.linalg.norm(difference, axis=(1, 2)).sum()))


def _reach(path: Float[np.ndarray, "T 4 4"]) -> float:
  return float(np.linalg.norm(path[:, :3, 3], axis=-1).max())


def _normalised(path: Float[np.ndarray, "T 4 4"]) -> Float[np.ndarray, "T 4 4"]:
  reach = _reach(path)
  path = path.copy()
  path[:, :3, 3] /= reach if reach > _STILL else 1.0
  return path


def _check_pair(frames: np.ndarray, others: np.ndarray) -> None:
  if frames.shape != others.shape or frames.ndim != 4 or not frames.size:
    raise ValueError(f"clips of shapes {frames.shape} and {others.shape} cannot be compared")
