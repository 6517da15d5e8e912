"""Everything that is measured of one clip, by name."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from wr1_jax.config import Config
from wr1_jax.evaluation import metrics, motion
from wr1_jax.rewards import compose
from wr1_jax.rewards.jobs import ClipResult, in_scene_depths

NO_TRANSLATION = "the path asked for does not translate, so there is no direction to compare"


@dataclasses.dataclass(frozen=True)
class Measure:
  """What is measured, and which way is better; "": neither."""

  name: str
  title: str
  better: Literal["higher", "lower", ""]


MEASURES = (
  Measure("consistency/psnr", "3D reconstruction, PSNR (dB)", "higher"),
  Measure("consistency/ssim", "3D reconstruction, SSIM", "higher"),
  Measure("consistency/lpips", "3D reconstruction, LPIPS", "lower"),
  Measure("camera/rot_err", "camera, RotErr (radians, sum over frames)", "lower"),
  Measure("camera/trans_err", "camera, TransErr (sum over frames)", "lower"),
  Measure("camera/cam_mc", "camera, CamMC (sum over frames)", "lower"),
  Measure("motion/lk_flow", "motion, Lucas-Kanade flow (% of width a frame)", ""),
  Measure("reward/total", "reward R", "higher"),
  Measure("reward/recon", "reward S_recon", "higher"),
  Measure("reward/traj", "reward S_traj", "higher"),
  Measure("reward/meta", "reward S_meta", "higher"),
  Measure("reward/general", "reward R_gen", "higher"),
)
FRECHET = Measure("frechet/vae", "Frechet distance to real clips (VAE latents)", "lower")

# What the paper reports and this evaluation does not.
LEFT_OUT = {
  "held_out_frames": "the reconstructor fits all frames of a clip, and cannot leave some out to be compared later",
  "mvcs": "it compares per-frame depths, which the reward sidecar does not return",
  "vbench": "its five scores come from networks whose weights are not part of this project",
}

_CONSISTENCY = ("consistency/psnr", "consistency/ssim", "consistency/lpips")
_CAMERA = ("camera/rot_err", "camera/trans_err", "camera/cam_mc")


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
  """A number for every name in `MEASURES`, NaN where there is none; `reasons`, by the same names, says why."""

  values: Mapping[str, float]
  reasons: Mapping[str, str]


class Meter:
  """Measures clips; its composer holds the LPIPS network."""

  def __init__(self, config: Config):
    self._config = config
    self._compose = compose.Composer(config.rewards, config.camera)

  def __call__(self, video: UInt8[np.ndarray, "T H W 3"], result: ClipResult, target: compose.Target) -> Measured:
    """Measures one clip.

    Args:
      video: the clip as it was made.
      result: what the sidecar found out about it.
      target: the path asked for, see `compose.Target`.
    """
    (reward,) = self._compose([result], [target], [True])
    values = {measure.name: math.nan for measure in MEASURES}
    values |= {**reward.metrics(), "motion/lk_flow": motion.flow_percent(video)}
    reasons = dict(reward.reasons)
    for names, found in (
      (_CONSISTENCY, self._consistency(result, reward.lpips)),
      (_CAMERA, self._camera(result, target)),
    ):
      if isinstance(found, str):
        reasons |= dict.fromkeys(names, found)
      else:
        values |= dict(zip(names, found))
        reasons |= {name: NO_TRANSLATION for name, value in zip(names, found) if math.isnan(value)}
    return Measured(values, reasons)

  # Each of these returns numbers, or the reason why there are none.

  def _consistency(self, result: ClipResult, distance: float) -> tuple[float, float, float] | str:
    """Renders against the frames they belong to, at the processed size; `distance` is their LPIPS."""
    if result.frames is None or result.rendered is None:
      return result.reasons.get("reconstruction", "there is no reconstruction")
    pair = (result.frames, result.rendered)
    return metrics.psnr(*pair), metrics.ssim(*pair), distance

  def _camera(self, result: ClipResult, target: compose.Target) -> tuple[float, float, float] | str:
    """The recovered path against the one asked for."""
    if target is None:
      return compose.NO_TARGET
    if len(target) == 1:
      return compose.SINGLE_FRAME
    if result.poses is None:
      return result.reasons.get("reconstruction", "there is no reconstruction")
    recovered = in_scene_depths(result.poses, result.depth_unit)
    if not np.isfinite(recovered).all():
      return "a camera pose is not finite"
    errors = metrics.camera_errors(recovered, in_scene_depths(target, self._config.camera.scene_depth))
    return errors.rotation, errors.translation, errors.pose
