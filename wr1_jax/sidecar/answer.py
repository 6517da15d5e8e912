"""From the request for a batch of clips to its answer, whichever way the two travel."""

from __future__ import annotations

import importlib.metadata
import platform
import sys

import numpy as np

from wr1_jax.sidecar.messages import ClipScores, ScoreBatch, Scored
from wr1_jax.sidecar.scorers import Outcome, Scorers, Unscored, View

_REPORTED_LIBRARIES = ("numpy", "scipy", "torch", "transformers", "gsplat", "depth-anything-3", "ray")


def answer(scorers: Scorers, request: ScoreBatch, arrays: dict[str, np.ndarray]) -> Scored:
  """Scores a batch; leaves its pictures and poses in `arrays`."""
  shape = request.shape
  paths = [arrays["paths"][i] if given else None for i, given in enumerate(request.with_path)]
  outcomes, seconds = scorers(arrays["videos"], paths, request.prompts, request.parts, size=(shape.rows, shape.columns))
  for i, outcome in enumerate(outcomes):
    if isinstance(outcome.view, View):
      for name in ("frames", "rendered", "offset_view", "poses"):
        arrays[name][i] = getattr(outcome.view, name)
  return Scored(request.job, tuple(_scores(outcome) for outcome in outcomes), seconds)


def _scores(outcome: Outcome) -> ClipScores:
  def number(value: float | Unscored | None) -> float | None:
    return value if isinstance(value, float) else None

  depth_unit = float(outcome.view.depth_unit) if isinstance(outcome.view, View) else None
  return ClipScores(depth_unit, number(outcome.meta), number(outcome.general), outcome.reasons)


def versions() -> dict[str, str]:
  """Versions of Python and of what the scorers have imported."""
  found = {"python": platform.python_version()}
  for library in _REPORTED_LIBRARIES:
    if library.replace("-", "_") in sys.modules:
      found[library] = importlib.metadata.version(library)
  return found
