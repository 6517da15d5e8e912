"""Numbers that say whether a score means what it should."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float
from scipy import stats
from scipy.spatial.transform import Rotation

from wr1_jax.rewards.trajectory import anchored

PARALLAX = 0.02  # a path that goes further than this, in scene depths, has a direction that can be seen


@dataclasses.dataclass(frozen=True)
class PathError:
  """How far a recovered path is from the true one."""

  rotation: float  # degrees, mean over frames
  direction: float  # degrees between the two sets of positions as one vector each, so scale does not matter; or NaN
  size: float  # recovered over true length of these vectors; where the true camera stays: the farthest it went


def path_error(recovered: Float[np.ndarray, "T 4 4"], true: Float[np.ndarray, "T 4 4"]) -> PathError:
  """Compares camera-to-world paths of the same frames; `recovered` in median depths, `true` in scene depths."""
  a, b = anchored(np.asarray(recovered, float)), anchored(np.asarray(true, float))
  turn = Rotation.from_matrix(np.swapaxes(a[:, :3, :3], 1, 2) @ b[:, :3, :3]).magnitude()
  rotation = float(np.degrees(turn).mean())
  reach = np.linalg.norm(b[:, :3, 3], axis=-1).max()
  if reach <= PARALLAX:
    return PathError(rotation, np.nan, float(np.linalg.norm(a[:, :3, 3], axis=-1).max()))
  x, y = a[:, :3, 3].ravel(), b[:, :3, 3].ravel()
  cosine = x @ y / max(np.linalg.norm(x) * np.linalg.norm(y), 1e-12)
  direction = float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
  return PathError(rotation, direction, float(np.linalg.norm(x) / np.linalg.norm(y)))


def auroc(good: np.ndarray, bad: np.ndarray) -> float:
  """The chance that one of `good` scores higher than one of `bad`; a tie counts half. NaN if either is empty."""
  good, bad = (x[np.isfinite(x)] for x in (np.asarray(good, float), np.asarray(bad, float)))
  if not len(good) or not len(bad):
    return float("nan")
  higher = good[:, None] - bad
  return float(((higher > 0) + 0.5 * (higher == 0)).mean())


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
  """Spearman's."""
  return float(stats.spearmanr(a, b).statistic)
