"""S_traj: how well a recovered camera path follows the one that was asked for.

World-R1 defines the reward as a negative exponential of the translation error and the rotation error and leaves the
exact form open. Here, with both paths anchored at their first frame,

  S = exp(-(e_t / translation_tolerance + e_r / rotation_tolerance)),

e_r the root mean square over frames of the angle between the two rotations, and e_t that of the distance between the
two positions, in units of the target's reach: its largest distance from the start. For a straight path that is its
length; for one that comes back (move left, then move right) the length would let a camera that stands still score well.

A path recovered from a video has no absolute scale, and the scene that the target was drawn for is an assumed one. Both
are therefore measured in the depth of their own scene, and the recovered positions p are fitted to the target's t by
one least-squares factor <p, t> / <p, p>. The factor is kept within [1/max_scale, max_scale]: otherwise the hair's drift
of a camera that stands still would be scaled up into the whole move, and a reversed path could hide by shrinking to a
point. One factor about the common first frame is fitted rather than a similarity transform, whose rotation is
undetermined for a straight path. Where the target does not leave its place (a pan, a fixed camera) nothing is fitted,
and e_t is in scene depths.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jaxtyping import Float

from wr1_jax.config import RewardsConfig

_STILL = 1e-6  # a target that stays this close to its start, in scene depths, does not translate


@dataclasses.dataclass(frozen=True)
class TrajectoryScore:
  """S_traj in [0, 1] and what it was made of; all NaN, with a reason, if it could not be computed."""

  score: float
  translation_error: float = math.nan  # root mean square, in the target's reach; in scene depths if it stays put
  rotation_error: float = math.nan  # root mean square, degrees
  scale: float = math.nan  # fitted factor on the recovered positions
  reason: str = ""  # why the score is NaN


def trajectory_score(
  recovered: Float[np.ndarray, "T 4 4"],
  depth_unit: float,
  target: Float[np.ndarray, "T 4 4"],
  scene_depth: float,
  config: RewardsConfig,
) -> TrajectoryScore:
  """Scores `recovered` against `target`, camera-to-world paths of the same frames, in float64.

  Args:
    depth_unit: median depth of the recovered scene, in the units of `recovered`.
    scene_depth: depth of the scene that `target` assumes, in its units.

  Raises:
    ValueError: the two paths are not of the same shape.
  """
  recovered, target = np.asarray(recovered, np.float64), np.asarray(target, np.float64)
  if recovered.shape != target.shape or recovered.shape[1:] != (4, 4):
    raise ValueError(f"paths of shapes {recovered.shape} and {target.shape} cannot be compared")
  if not (np.isfinite(recovered).all() and np.isfinite(target).all()):
    return TrajectoryScore(math.nan, reason="a camera pose is not finite")
  if not (math.isfinite(depth_unit) and depth_unit > 0):
    return TrajectoryScore(math.nan, reason=f"the recovered scene has a median depth of {depth_unit}")

  recovered, target = anchored(recovered), anchored(target)
  rotation_error = math.degrees(_root_mean_square(_angles_between(recovered[:, :3, :3], target[:, :3, :3])))
  positions, wanted = recovered[:, :3, 3] / depth_unit, target[:, :3, 3] / scene_depth
  reach = np.linalg.norm(wanted, axis=-1).max()
  scale, unit = (_fitted_scale(positions, wanted, config.max_scale), reach) if reach > _STILL else (1.0, 1.0)
  translation_error = _root_mean_square(np.linalg.norm(scale * positions - wanted, axis=-1)) / unit
  score = math.exp(
    -(translation_error / config.translation_tolerance + rotation_error / config.rotation_tolerance_degrees)
  )
  return TrajectoryScore(score, translation_error, rotation_error, scale)


def anchored(poses: Float[np.ndarray, "T 4 4"]) -> Float[np.ndarray, "T 4 4"]:
  """The same path, seen from its first camera."""
  rotation, position = poses[0, :3, :3], poses[0, :3, 3]
  to_first = np.eye(4)
  to_first[:3, :3], to_first[:3, 3] = rotation.T, -rotation.T @ position
  return to_first @ poses


def _fitted_scale(positions: Float[np.ndarray, "T 3"], wanted: Float[np.ndarray, "T 3"], most: float) -> float:
  length = float(np.sum(positions * positions))
  best = float(np.sum(positions * wanted)) / length if length > 0 else 1.0
  return min(max(best, 1 / most), most)


def _angles_between(a: Float[np.ndarray, "T 3 3"], b: Float[np.ndarray, "T 3 3"]) -> Float[np.ndarray, "T"]:
  """Geodesic distances in radians, from |A - B| = 2 sqrt(2) sin(angle / 2), exact where the trace's arccos is not."""
  chord = np.linalg.norm(a - b, axis=(-2, -1)) / (2 * math.sqrt(2))
  return 2 * np.arcsin(np.minimum(chord, 1.0))


def _root_mean_square(values: Float[np.ndarray, "T"]) -> float:
  return math.sqrt(np.mean(values**2))
