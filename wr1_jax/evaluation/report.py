"""What an evaluation writes: a table, evaluation.json, evaluation.md, videos and a picture."""

from __future__ import annotations

import collections
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from wr1_jax.data import video_files
from wr1_jax.evaluation.measures import FRECHET, MEASURES, Measured
from wr1_jax.evaluation.paired import Row

_NAMED_REASONS = 3  # of a measure, in evaluation.md
_FRAMES_SHOWN = 3  # of a video, in the picture
_TITLE_LENGTH = 150  # characters


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
  """All that was found."""

  setup: Mapping[str, Any]  # what was evaluated, and how; for JSON
  prompts: Sequence[str]
  base: Sequence[Measured]  # one a prompt
  tuned: Sequence[Measured] | None  # None: there is only the base model
  rows: Mapping[str, Row]  # by the names of `MEASURES` and of `FRECHET`
  left_out: Mapping[str, str]  # what was not measured at all, and why

  def missing(self, name: str) -> list[tuple[str, int]]:
    """Why videos, of both models together, lack a measure, and how many; the most frequent reason first."""
    videos = [*self.base, *(self.tuned or ())]
    return collections.Counter(video.reasons[name] for video in videos if name in video.reasons).most_common()


def table(evaluation: Evaluation) -> list[list[str]]:
  """Cells, the headings first. The base model alone has its mean and the standard error of that."""
  if evaluation.tuned is None:
    head = ["measure", "better", "base", "standard error", "videos"]
  else:
    head = ["measure", "better", "base", "tuned", "difference", "its standard error", "z", "videos"]
  return [head] + [
    [measure.title, measure.better or "-", *_cells(evaluation.rows[measure.name], evaluation.tuned is not None)]
    for measure in (*MEASURES, FRECHET)
    if measure.name in evaluation.rows
  ]


def text(evaluation: Evaluation) -> str:
  """The table for a terminal."""
  rows = table(evaluation)
  widths = [max(map(len, column)) for column in zip(*rows)]
  alignments = "<<" + ">" * (len(widths) - 2)
  lines = ["  ".join(f"{cell:{a}{width}}" for cell, a, width in zip(row, alignments, widths)) for row in rows]
  return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def write(evaluation: Evaluation, folder: Path) -> None:
  """Writes evaluation.json and evaluation.md."""
  content = json.dumps(_json(evaluation), indent=2, allow_nan=False) + "\n"
  (folder / "evaluation.json").write_text(content, encoding="utf-8")
  (folder / "evaluation.md").write_text(_markdown(evaluation), encoding="utf-8")


def write_runs(evaluations: Mapping[str, Evaluation], folder: Path) -> None:
  """Writes runs.md: one row a run with its mean paired differences from the base model, and their standard errors."""
  first = next(iter(evaluations.values()))
  shown = [measure for measure in (*MEASURES, FRECHET) if measure.name in first.rows]
  base = ["base", *(f"{first.rows[measure.name].base:.4g}" for measure in shown)]
  lines = ["# Runs", "", "Base: mean. Runs: mean difference from base +- standard error, prompt by prompt.", ""]
  lines += [_bar(["run", *(measure.title for measure in shown)]), _bar(["---"] + ["---:"] * len(shown)), _bar(base)]
  for name, evaluation in evaluations.items():
    rows = [evaluation.rows[measure.name] for measure in shown]
    lines.append(_bar([name, *(f"{row.difference:+.3g} +- {row.difference_error:.2g}" for row in rows)]))
  (folder / "runs.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_video(
  folder: Path, place: int, base: UInt8[np.ndarray, "T H W 3"], tuned: UInt8[np.ndarray, "T H W 3"] | None, fps: int
) -> None:
  """Writes videos/PLACE.mp4: base on the left, tuned on the right."""
  frames = base if tuned is None else np.concatenate([base, tuned], axis=2)
  video_files.write_mp4(folder / "videos" / f"{place:03d}.mp4", frames, fps)


def write_picture(
  folder: Path,
  prompts: Sequence[str],
  base: Sequence[UInt8[np.ndarray, "T H W 3"]],
  tuned: Sequence[UInt8[np.ndarray, "T H W 3"]] | None,
) -> None:
  """Writes videos.png: a row for each prompt, frames of the base model's video and then of the tuned one's."""
  models = {"base": base} if tuned is None else {"base": base, "tuned": tuned}
  columns = _FRAMES_SHOWN * len(models)
  height = 0.35 + 2.4 * base[0].shape[1] / base[0].shape[2]  # inches of a row
  figure = Figure(figsize=(2.4 * columns, height * len(prompts)), layout="constrained")
  canvas = FigureCanvasAgg(figure)
  for part, prompt, *videos in zip(np.atleast_1d(figure.subfigures(len(prompts), 1)), prompts, *models.values()):
    part.suptitle(prompt[:_TITLE_LENGTH], fontsize=8, x=0.01, ha="left", parse_math=False)
    axes = iter(part.subplots(1, columns))
    for name, video in zip(models, videos):
      for index in np.linspace(0, len(video) - 1, _FRAMES_SHOWN).astype(int):
        axis = next(axes)
        axis.imshow(video[index])
        axis.set_axis_off()
        axis.set_title(f"{name}, frame {index}", fontsize=7)
  canvas.draw()
  Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).save(folder / "videos.png")


def _cells(row: Row, paired: bool) -> list[str]:
  numbers = [row.base, row.base_error]
  if paired:
    numbers = [row.base, row.tuned, row.difference, row.difference_error]
  cells = [f"{number:.4g}" if math.isfinite(number) else "-" for number in numbers]
  if paired:
    cells.append(f"{row.z:+.1f}" if math.isfinite(row.z) else "-")
  return [*cells, str(row.count)]


def _json(evaluation: Evaluation) -> dict[str, Any]:
  paired = evaluation.tuned is not None
  metrics = {}
  for measure in (*MEASURES, FRECHET):
    if measure.name in evaluation.rows:
      row = evaluation.rows[measure.name]
      metrics[measure.name] = {"title": measure.title, "better": measure.better or None, **_numbers(row, paired)}
  videos = []
  for place, prompt in enumerate(evaluation.prompts):
    models = {"base": evaluation.base[place]} | ({"tuned": evaluation.tuned[place]} if paired else {})
    found = {name: {**_finite(video.values), "reasons": dict(video.reasons)} for name, video in models.items()}
    videos.append({"prompt": prompt, **found})
  return {**evaluation.setup, "metrics": metrics, "left_out": dict(evaluation.left_out), "videos": videos}


def _numbers(row: Row, paired: bool) -> dict[str, float | int | None]:
  numbers = {**dataclasses.asdict(row), "z": row.z}
  if not paired:
    numbers = {name: numbers[name] for name in ("count", "missing_base", "base", "base_error")}
  return _finite(numbers)


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
  return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _markdown(evaluation: Evaluation) -> str:
  head, *rows = table(evaluation)
  lines = ["# Evaluation", ""]
  lines += [f"* {name}: {value}" for name, value in evaluation.setup.items() if name != "config"]
  lines += ["", _bar(head), _bar(["---"] * 2 + ["---:"] * (len(head) - 2)), *map(_bar, rows), ""]
  lines += [_about(evaluation), ""]
  missing = {m.name: evaluation.missing(m.name) for m in MEASURES if m.name in evaluation.rows}
  if any(missing.values()):
    lines += ["Videos without a number, of all models together, and why:", ""]
    for measure in MEASURES:
      if reasons := missing.get(measure.name):
        named = "; ".join(f"{count} times {reason}" for reason, count in reasons[:_NAMED_REASONS])
        lines.append(f"* {measure.title}: {named}{'; and others' if len(reasons) > _NAMED_REASONS else ''}")
    lines.append("")
  lines += ["Not measured:", "", *(f"* {name}: {reason}" for name, reason in evaluation.left_out.items()), ""]
  return "\n".join(lines)


def _about(evaluation: Evaluation) -> str:
  if evaluation.tuned is None:
    return "Means over the videos that have the measure; a standard error is that of the mean (of Frechet: bootstrap)."
  return (
    "Means over the prompts whose videos both have the measure. Every prompt starts from the same noise under both "
    "models, so the standard error is that of the mean of the paired differences (of Frechet: bootstrap over prompts "
    "and real clips), and z is the difference in its standard errors."
  )


def _bar(cells: Sequence[str]) -> str:
  return f"| {' | '.join(cells)} |"
