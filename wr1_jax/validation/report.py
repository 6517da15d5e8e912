"""From verdicts to the table of what was measured, and what it should be."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from wr1_jax.config import RewardsConfig
from wr1_jax.rewards.trajectory import trajectory_score
from wr1_jax.validation import paths, trials
from wr1_jax.validation.measures import auroc, path_error, rank_correlation
from wr1_jax.validation.paths import Path
from wr1_jax.validation.trials import Verdict
from wr1_jax.world import Clips, inconsistency


@dataclasses.dataclass(frozen=True)
class Line:
  """One measure."""

  name: str
  value: float
  count: int  # clips, or pairs of clip and path, that it was taken over
  target: str = ""  # such as "<= 2"; empty: none

  @property
  def holds(self) -> bool | None:
    """Whether the target is met; None: there is none, or nothing was measured."""
    if not self.target or not math.isfinite(self.value):
      return None
    relation, bound = self.target.split()
    return self.value <= float(bound) if relation == "<=" else self.value >= float(bound)


class Report:
  """Everything that can be said of the verdicts on `clips`."""

  def __init__(self, clips: Clips, verdicts: Sequence[Verdict], seconds: dict[str, float], config: RewardsConfig):
    self._clips, self._verdicts, self._seconds, self._config = clips, verdicts, seconds, config
    self._by_kind: dict[str, dict[int, Verdict]] = {}
    for verdict in verdicts:
      self._by_kind.setdefault(verdict.kind, {})[verdict.clip] = verdict
    self._rigid = self._by_kind["rigid"]
    self._found = {i: verdict.poses for i, verdict in self._rigid.items() if verdict.poses is not None}
    self._errors = {i: path_error(poses, clips.poses[i]) for i, poses in self._found.items()}
    self._moving = [i for i in trials.moving(clips) if i in self._found]

  def lines(self) -> list[Line]:
    """All measures."""
    return [*self._paths(), *self._consistency(), *self._wrong_paths(), self._ranks(), *self._frozen(), *self._costs()]

  def groups(self) -> list[dict[str, Any]]:
    """Medians over the rigid clips of each place and each move."""
    clips = self._clips
    places = ["room" if " room " in caption else "landscape" for caption in clips.captions]
    moves = [
      {0: "no move named", 1: str(moves[0]) if moves else ""}.get(len(moves), "composite") for moves in clips.moves
    ]
    return [
      {"clips": name} | self._medians([i for i in self._errors if names[i] == name])
      for names in (places, moves)
      for name in sorted(set(names))
    ]

  def rows(self) -> list[dict[str, Any]]:
    """Every verdict, for JSON."""
    rows = []
    for verdict in self._verdicts:
      row = {
        "kind": verdict.kind,
        "clip": verdict.clip,
        "caption": self._clips.captions[verdict.clip],
        **verdict.scores,
      }
      if verdict.kind == "rigid" and verdict.clip in self._errors:
        row |= dataclasses.asdict(self._errors[verdict.clip])
      rows.append({k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()})
      rows[-1]["failures"] = list(verdict.failures)
    return rows

  def _medians(self, chosen: Sequence[int]) -> dict[str, float]:
    columns = {
      "count": len(chosen),
      "rotation": [self._errors[i].rotation for i in chosen],
      "direction": [self._errors[i].direction for i in chosen],
      "size": [self._errors[i].size for i in chosen],
      "recon": [self._rigid[i].scores["recon"] for i in chosen],
      "traj": [self._rigid[i].scores["traj"] for i in chosen],
    }
    return {name: _median(values) if isinstance(values, list) else values for name, values in columns.items()}

  def _paths(self) -> list[Line]:
    rotation = [error.rotation for error in self._errors.values()]
    direction = [error.direction for error in self._errors.values() if math.isfinite(error.direction)]
    return [
      Line("rotation error, median, degrees", _median(rotation), len(rotation), "<= 2"),
      Line("direction error of the translation, median, degrees", _median(direction), len(direction), "<= 10"),
      Line("rigid clips without a reconstruction", len(self._rigid) - len(self._found), len(self._rigid), "<= 0"),
    ]

  def _consistency(self) -> list[Line]:
    lines, rigid = [], self._scores("rigid", "recon")
    for kind in inconsistency.KINDS:
      spoiled = self._scores(kind, "recon")
      lines.append(Line(f"S_recon: AUROC of rigid against {kind}", auroc(rigid, spoiled), len(spoiled), ">= 0.95"))
    pairs = [
      self._rigid[i].scores["recon"] > verdict.scores["recon"]
      for kind in inconsistency.KINDS
      for i, verdict in self._by_kind.get(kind, {}).items()
    ]
    return [
      *lines,
      Line("S_recon: share of spoiled clips below their own rigid clip", float(np.mean(pairs)), len(pairs)),
    ]

  def _wrong_paths(self) -> list[Line]:
    right = [self._rigid[i].scores["traj"] for i in self._moving]
    frozen = self._scores("frozen", "traj")
    what = "S_traj: AUROC of the true path against"
    lines = [Line(f"{what} a frozen camera", auroc(right, frozen), len(frozen), ">= 0.95")]
    for kind in trials.WRONG:
      wrong = {i: trials.wrong_paths(self._clips, i).get(kind) for i in self._moving}
      scores = {i: self._score(self._found[i], path) for i, path in wrong.items() if path is not None}
      name = f"{what} the {kind} one"
      lines.append(Line(name, auroc(right, list(scores.values())), len(scores), ">= 0.95"))
      hinted = self._by_kind.get(kind, {})
      if hinted:
        value = auroc(right, self._scores(kind, "traj"))
        lines.append(Line(f"{name}, the reconstructor starting from it", value, len(hinted), ">= 0.95"))
        change = [abs(verdict.scores["traj"] - scores[i]) for i, verdict in hinted.items() if i in scores]
        lines.append(Line(f"S_traj: largest change of a {kind} path's score by that start", max(change), len(change)))
    return lines

  def _ranks(self) -> Line:
    """Scores of perturbed paths, from what was recovered and from the truth."""
    recovered, true = [], []
    for i in self._moving:
      for path in paths.perturbed(self._clips.poses[i], np.random.default_rng(i)):
        recovered.append(self._score(self._found[i], path))
        true.append(self._score(self._clips.poses[i], path))
    name = "S_traj: rank correlation with minus the true path's error, over perturbed paths"
    return Line(name, rank_correlation(recovered, true), len(true), ">= 0.8")

  def _frozen(self) -> list[Line]:
    pairs = [(self._rigid[i].scores["total"], v.scores["total"]) for i, v in self._by_kind.get("frozen", {}).items()]
    margins = [moving - frozen for moving, frozen in pairs]
    return [
      Line("pairs whose frozen clip has the higher total", sum(margin <= 0 for margin in margins), len(pairs), "<= 0"),
      Line("smallest lead of a moving clip over its frozen one, total", min(margins, default=math.nan), len(pairs)),
    ]

  def _costs(self) -> list[Line]:
    lines = [
      Line(f"seconds a clip: {part}", value, len(self._verdicts)) for part, value in sorted(self._seconds.items())
    ]
    return [*lines, Line("seconds a clip: all", sum(self._seconds.values()), len(self._verdicts))]

  def _scores(self, kind: str, term: str) -> list[float]:
    return [verdict.scores[term] for verdict in self._by_kind.get(kind, {}).values()]

  def _score(self, found: Path, asked: Path) -> float:
    return trajectory_score(found, 1.0, asked, 1.0, self._config).score


def _median(values: Sequence[float]) -> float:
  finite = [value for value in values if math.isfinite(value)]
  return float(np.median(finite)) if finite else math.nan


def markdown(lines: Sequence[Line], groups: Sequence[dict[str, Any]]) -> str:
  """Two tables: the measures, and medians by group of clips."""
  text = ["| measure | clips | value | target | holds |", "|---|---:|---:|---:|---|"]
  for line in lines:
    holds = {True: "yes", False: "**no**", None: ""}[line.holds]
    text.append(f"| {line.name} | {line.count} | {_number(line.value)} | {line.target} | {holds} |")
  text += [
    "",
    "| rigid clips, medians | clips | rotation error, ° | direction error, ° | length of the path | S_recon | S_traj |",
  ]
  text.append("|---|---:|---:|---:|---:|---:|---:|")
  for group in groups:
    cells = [
      group["clips"],
      group["count"],
      *(_number(group[k]) for k in ("rotation", "direction", "size", "recon", "traj")),
    ]
    text.append("| " + " | ".join(map(str, cells)) + " |")
  return "\n".join(text) + "\n"


def _number(value: float) -> str:
  return f"{value:.3g}" if math.isfinite(value) else "–"
