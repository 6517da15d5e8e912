"""A plot of a run's rewards from its metrics.jsonl."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from wr1_jax.rewards.compose import METRICS
from wr1_jax.training.phases import Phase

_WINDOW = 9  # iterations that the thick line is a mean over, at most


def read(metrics: Path) -> list[dict]:
  """The records of a metrics.jsonl, one an iteration."""
  return [json.loads(line) for line in metrics.read_text().splitlines()]


def rewards(records: Sequence[dict]) -> UInt8[np.ndarray, "H W 3"]:
  """The reward and its parts over the iterations: thin as measured, thick as a running mean; dynamic phases shaded."""
  figure = Figure(figsize=(14, 2.8), layout="constrained")
  canvas = FigureCanvasAgg(figure)
  iterations = np.array([record["iteration"] for record in records])
  dynamic = [record["iteration"] for record in records if record["phase"] == Phase.DYNAMIC]
  for axes, name in zip(figure.subplots(1, len(METRICS)), METRICS):
    values = np.array([math.nan if record[name] is None else record[name] for record in records])
    if name == METRICS[0]:  # a dynamic phase's sum has other terms
      values = np.where(np.isin(iterations, dynamic), math.nan, values)
    known = np.isfinite(values)
    axes.plot(iterations[known], values[known], linewidth=0.8, color="tab:blue", alpha=0.5, marker=".", markersize=3)
    axes.plot(iterations[known], _running_mean(values[known]), linewidth=2, color="tab:blue")
    for iteration in dynamic:
      axes.axvspan(iteration - 0.5, iteration + 0.5, color="tab:orange", alpha=0.15, linewidth=0)
    axes.set_title(name, fontsize=9)
    axes.set_xlabel("iteration", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
  canvas.draw()
  return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _running_mean(values: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
  """The mean over up to `_WINDOW` values around each."""
  half = min(_WINDOW, max(1, len(values) // 3)) // 2
  return np.array([values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))])
