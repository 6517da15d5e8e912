"""Proxies for the two learned judges, from image statistics alone: no weights, no GPU, no opinion on content.

`offset_view_proxy` stands in for the vision-language model that judges the scene from an offset view (S_meta), and
`frame_quality_proxy` for the human-preference model (R_gen). They notice the coarse faults only: holes, floaters,
smeared texture and billboards in the one; blur, noise, bad exposure and flatness in the other.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

from wr1_jax.config import ReconstructionConfig, RewardsConfig
from wr1_jax.sidecar import geometry
from wr1_jax.sidecar.offset_view import offset_pose
from wr1_jax.sidecar.scorers import View

SPECKS_TOLERATED = 0.02  # share of specks at which the offset view's score is down to 1/e
SPECK_CONTRAST = 0.12  # brightness by which a pixel must stick out of its 3 x 3 surroundings to be a speck
WALL_CONTRAST = 0.04  # brightness by which the offset view must differ from a flat wall's to show relief
FULL_RELIEF = 0.2  # share of pixels that must differ so for the full score
HOLE_SIDE = 5  # pixels; holes and islands of alpha narrower than about half of this are specks


class OffsetViewProxy:
  """S_meta of the default config: a proxy for the judge, see `offset_view_proxy`."""

  def __init__(self, config: RewardsConfig):
    self._threads = ThreadPoolExecutor(config.threads)
    self._judge = functools.partial(offset_view_proxy, config=config.reconstruction)

  def __call__(self, views: Sequence[View], prompts: Sequence[str]) -> list[float]:
    return list(self._threads.map(self._judge, views))


class FrameQualityProxy:
  """R_gen of the default config: a proxy for the judge, see `frame_quality_proxy`."""

  def __init__(self, config: RewardsConfig):
    self._threads = ThreadPoolExecutor(config.threads)

  def __call__(self, frames: UInt8[np.ndarray, "N K H W 3"], prompts: Sequence[str]) -> list[float]:
    return list(self._threads.map(frame_quality_proxy, frames))


def offset_view_proxy(view: View, config: ReconstructionConfig) -> float:
  """A proxy for a judge of the offset view: coverage x freedom from floaters x detail x relief, in [0, 1].

  Coverage is measured against what a wall at the median depth, seen by one camera only, would fill of the offset view.
  More than that earns nothing, so a camera that moves far, an orbit say, has no advantage. Relief halves the score of a
  scene that is one flat billboard, or a frozen clip, of which nothing else can be known, would be the perfect scene.
  """
  covered = view.offset_alpha > 0.9
  interior = ndimage.binary_erosion(covered, iterations=2)
  if interior.mean() < 0.05:
    return 0.0
  coverage = min(1.0, float(view.offset_alpha.mean()) / wall_coverage(config))
  middle, offset = _luma(view.frames[len(view.frames) // 2]), _luma(view.offset_view)
  specks = float(np.mean(np.abs(view.offset_alpha - ndimage.median_filter(view.offset_alpha, HOLE_SIDE)) > 0.5))
  specks += max(0.0, float(_sticks_out(offset)[covered].mean() - _sticks_out(middle).mean()))
  detail = min(1.0, float(_slope(offset)[interior].mean() / max(_slope(middle).mean(), 1e-6)))
  wall, on_wall = _wall(view, config)
  compared = on_wall & covered
  same = float(np.mean(np.abs(wall - offset)[compared] < WALL_CONTRAST)) if compared.any() else 0.0
  relief = min(1.0, (1 - same) / FULL_RELIEF)
  return float(coverage * np.exp(-specks / SPECKS_TOLERATED) * detail**0.5 * (0.5 + 0.5 * relief))


def wall_coverage(config: ReconstructionConfig) -> float:
  """Share of the offset view that a wall at depth 1 fills if only the camera without offset saw it."""
  shrunk = 1 / (1 + config.offset_back)
  shift = config.focal * config.offset_side * shrunk
  across = min(0.5, 0.5 * shrunk + shift) - max(-0.5, -0.5 * shrunk + shift)
  return max(across, 0.05) * shrunk


def _wall(view: View, config: ReconstructionConfig) -> tuple[Float[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
  """The offset view's brightness if the scene were a wall at the median depth that shows the middle frame.

  Returns:
    Brightness, and where the middle frame reaches.
  """
  luma = _luma(view.frames[len(view.frames) // 2])
  h, w = luma.shape
  camera = geometry.intrinsics(h, w, (h, w), config.focal)
  middle = view.poses[len(view.poses) // 2]
  shift = (np.linalg.inv(middle) @ offset_pose(view.poses, view.depth_unit, config))[:3, 3] / view.depth_unit
  v, u = np.mgrid[:h, :w] + 0.5
  focal, cx, cy = camera[0, 0], camera[0, 2], camera[1, 2]
  u = focal * shift[0] + (1 - shift[2]) * (u - cx) + cx
  v = focal * shift[1] + (1 - shift[2]) * (v - cy) + cy
  wall = ndimage.map_coordinates(luma, [v - 0.5, u - 0.5], order=1, mode="nearest")
  return wall, (u > 0) & (u < w) & (v > 0) & (v < h)


def frame_quality_proxy(frames: UInt8[np.ndarray, "K h w 3"]) -> float:
  """A proxy for an aesthetic judge: the geometric mean of sharpness, exposure and contrast, in [0, 1].

  Averaged over the frames. Sharpness compares the energy of fine and of coarse detail. In photographs they are of one
  size; blur lacks the fine, and noise has little else, so adding noise to a blurred image does not pay.
  """
  return float(np.mean([_frame_quality(_luma(frame)) for frame in frames]))


def _frame_quality(luma: Float[np.ndarray, "h w"]) -> float:
  contrast = min(1.0, float(luma.std()) / 0.15)
  clipped = float(np.mean((luma < 0.02) | (luma > 0.98)))
  exposure = max(0.0, 1 - 2 * abs(float(luma.mean()) - 0.45)) ** 0.5 * max(0.0, 1 - 2 * clipped)
  return (_sharpness(luma) * exposure * contrast) ** (1 / 3)


def _sharpness(luma: Float[np.ndarray, "h w"]) -> float:
  """1 where the finest octave has 0.5 to 1.2 times the energy of the octave below; 0 for blur and for white noise."""
  smooth = ndimage.gaussian_filter(luma, 1.0)
  smoother = ndimage.gaussian_filter(luma, 2.0)
  fine, coarse = float(np.var(luma - smooth)), float(np.var(smooth - smoother))
  # Less than the rounding to 8 bits is no detail.
  if coarse < 1e-7:
    return 0.0
  return float(np.interp(fine / coarse, [0.15, 0.5, 1.2, 8.0], [0.0, 1.0, 1.0, 0.0]))


def _luma(image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w"]:
  # Not a matrix product: its library would start threads of its own in each of the judges' threads.
  return sum(weight * image[..., channel] for channel, weight in enumerate(geometry.LUMA)) / 255


def _sticks_out(luma: Float[np.ndarray, "h w"]) -> np.ndarray:
  return np.abs(luma - ndimage.median_filter(luma, 3)) > SPECK_CONTRAST


def _slope(luma: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
  return np.hypot(ndimage.sobel(luma, 0), ndimage.sobel(luma, 1))
