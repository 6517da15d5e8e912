"""From what the sidecar found out about a clip to what the clip is worth (World-R1's reward).

R = R_3D + lambda_gen R_gen, R_3D = S_meta + S_recon + S_traj, each S in [0, 1], and each with a weight of its own for
ablations. A clip of a single frame or of a prompt without camera words has no S_traj, and a clip of a dynamic prompt no
R_3D: these terms are left out of its sum. A term that should be there and could not be computed is NaN, and so is the
sum, unless the term's weight is 0.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from wr1_jax.config import CameraConfig, RewardsConfig
from wr1_jax.rewards.jobs import ClipResult
from wr1_jax.rewards.lpips import LPIPS
from wr1_jax.rewards.trajectory import trajectory_score
from wr1_jax.sidecar.messages import Part

NO_TARGET = "the prompt names no camera move"
SINGLE_FRAME = "a single frame has no camera path"
DYNAMIC = "a dynamic prompt has no 3D reward"

TERMS = ("total", "recon", "traj", "meta", "general")
METRICS = tuple(f"reward/{term}" for term in TERMS)  # as in logs

Target = Float[np.ndarray, "T 4 4"] | None  # the path asked for, camera-to-world, the scene `scene_depth` away


@dataclasses.dataclass(frozen=True)
class ClipReward:
  """R and its terms. NaN: see `reasons`, whose keys are those of `metrics`."""

  total: float
  recon: float
  traj: float
  meta: float
  general: float
  reasons: Mapping[str, str]
  lpips: float = math.nan  # between clip and rendered scene, mean over frames; what S_recon is made of

  @property
  def valid(self) -> bool:
    """Whether all terms that belong to this clip could be computed."""
    return math.isfinite(self.total)

  @property
  def failures(self) -> list[str]:
    """Why terms that belong to this clip could not be computed."""
    return [
      f"{name}: {reason}"
      for name, reason in self.reasons.items()
      if name != "reward/total" and reason not in (NO_TARGET, SINGLE_FRAME, DYNAMIC)
    ]

  def metrics(self) -> dict[str, float]:
    """The numbers by the names in `METRICS`."""
    return {name: getattr(self, term) for name, term in zip(METRICS, TERMS)}


class Composer:
  """Puts rewards together; holds the LPIPS network."""

  def __init__(self, config: RewardsConfig, camera: CameraConfig):
    self._config, self._camera = config, camera
    self._weights = {
      "meta": config.meta_weight,
      "recon": config.recon_weight,
      "traj": config.traj_weight,
      "general": config.general_weight,
    }
    self._lpips = LPIPS(config.lpips_network)

  def __call__(
    self, results: Sequence[ClipResult], targets: Sequence[Target], static: Sequence[bool]
  ) -> list[ClipReward]:
    """The reward of each clip.

    Args:
      targets: one a clip; None: its prompt names no camera move.
      static: one a clip; False: its prompt is dynamic.
    """
    if not len(results) == len(targets) == len(static):
      raise ValueError(f"{len(results)} results, {len(targets)} targets, {len(static)} flags")
    distances = self._distances([result if is_static else None for result, is_static in zip(results, static)])
    return [self._reward(*clip) for clip in zip(results, targets, static, distances)]

  def _distances(self, results: Sequence[ClipResult | None]) -> list[float]:
    """LPIPS between each clip and the scene rendered at its frames' poses, mean over frames; NaN without a scene.

    All clips of a shape at once: for each call the host waits until the device, which a sidecar may share, is free.
    """
    distances = [math.nan] * len(results)
    alike = collections.defaultdict(list)
    for place, result in enumerate(results):
      if result is not None and result.frames is not None and result.rendered is not None:
        alike[result.frames.shape].append(place)
    for places in alike.values():
      clips, scenes = (np.concatenate([getattr(results[i], name) for i in places]) for name in ("frames", "rendered"))
      for place, frames in zip(places, np.split(self._lpips(clips, scenes), len(places))):
        distances[place] = float(frames.mean())
    return distances

  def _reward(self, result: ClipResult, target: Target, static: bool, distance: float) -> ClipReward:
    terms: dict[str, float | str] = {"general": self._judged(result, "general")}
    left_out = {}
    if static:
      terms["meta"] = self._judged(result, "meta")
      terms["recon"] = self._reconstruction(result, distance)
      if target is None or len(target) == 1:
        left_out["traj"] = NO_TARGET if target is None else SINGLE_FRAME
      else:
        terms["traj"] = self._trajectory(result, target)
    else:
      left_out = dict.fromkeys(("meta", "recon", "traj"), DYNAMIC)
    missing = {name: score for name, score in terms.items() if isinstance(score, str)}
    scores = {name: math.nan if name in missing else score for name, score in terms.items()}
    # A weight of 0 takes a term out of the sum: 0 times NaN would be NaN.
    weighted = {name: self._weights[name] * score for name, score in scores.items() if self._weights[name]}
    total = sum(weighted.values()) if weighted else math.nan
    reasons = missing | left_out
    if not weighted:
      reasons["total"] = "no term of this clip has a weight"
    elif math.isnan(total):
      needed = sorted(f"reward/{name}" for name in weighted.keys() & missing.keys())
      reasons["total"] = f"without {', '.join(needed)} there is no sum"
    numbers = dict.fromkeys(left_out, math.nan) | scores
    reasons = {f"reward/{name}": reason for name, reason in reasons.items()}
    return ClipReward(total=total, **numbers, reasons=reasons, lpips=distance)

  # Each of these returns a score, or the reason why there is none.

  def _judged(self, result: ClipResult, part: Part) -> float | str:
    """S_meta or R_gen."""
    score = {"meta": result.meta, "general": result.general}[part]
    return score if math.isfinite(score) else result.reasons.get(part, f"the sidecar gave {score}")

  def _reconstruction(self, result: ClipResult, distance: float) -> float | str:
    """S_recon = 1 - LPIPS, within [0, 1]."""
    if result.frames is None or result.rendered is None:
      return result.reasons.get("reconstruction", "there is no reconstruction")
    return min(max(1 - distance, 0.0), 1.0) if math.isfinite(distance) else f"LPIPS is {distance}"

  def _trajectory(self, result: ClipResult, target: np.ndarray) -> float | str:
    """S_traj."""
    if result.poses is None:
      return result.reasons.get("reconstruction", "there is no reconstruction")
    score = trajectory_score(result.poses, result.depth_unit, target, self._camera.scene_depth, self._config)
    return score.score if math.isfinite(score.score) else score.reason
