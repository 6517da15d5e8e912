"""Measures whether the rewards mean what they should, against clips of the toy world whose truth is known.

    python -m wr1_jax.world.validate --config=configs/tiny.py --clips=24 --out=runs/validation

Clips that nothing was trained on are rendered: as they are; spoiled so that no rigid scene explains them
(`wr1_jax.world.inconsistency`); and frozen. All go through the config's own reward path, so whichever reconstructor
and judges it names are validated. Besides, clips are scored against paths that they do not follow. What comes out is
printed, and written to DIR/validation.md and, with every clip's scores, to DIR/validation.json.

A reconstruction takes 3 to 5 s on a CPU core, and each clip costs about 6 of them.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from wr1_jax import cli, errors
from wr1_jax.config import Config, to_dict
from wr1_jax.errors import UserError
from wr1_jax.validation import report, trials
from wr1_jax.validation.report import Report


def validate(config: Config, clips: int, hinted: int, batch: int, seed: int, out: Path) -> Report:
  """Renders, scores, prints and writes.

  Args:
    clips: how many rigid clips there are; see `trials.trials` for the others.
    hinted: on how many of them the reconstructor is given wrong paths to start from.
    batch: clips that are scored at once.

  Raises:
    UserError: `out` cannot be written, or the sidecar cannot start.
  """
  try:
    out.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(f"--out={out} cannot be made: {error.strerror}.") from error
  made = trials.held_out(clips, seed, config)
  verdicts, seconds = trials.judge(trials.trials(made, seed, hinted, config), config, batch)
  result = Report(made, verdicts, seconds, config.rewards)
  lines, groups = result.lines(), result.groups()
  table = report.markdown(lines, groups)
  print(table)
  (out / "validation.md").write_text(table, encoding="utf-8")
  content = {
    "measures": [{**_finite(dataclasses.asdict(line)), "holds": line.holds} for line in lines],
    "groups": [_finite(group) for group in groups],
    "clips": result.rows(),
    "config": to_dict(config),
  }
  (out / "validation.json").write_text(json.dumps(content, indent=1, allow_nan=False), encoding="utf-8")
  return result


def _finite(values: dict) -> dict:
  return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def _define_flags(values: flags.FlagValues) -> None:
  flags.DEFINE_integer("clips", 24, "rigid clips", lower_bound=2, flag_values=values)
  flags.DEFINE_integer("hinted", 8, "of them, reconstructed from wrong paths", lower_bound=0, flag_values=values)
  flags.DEFINE_integer("batch", 8, "clips that are scored at once", lower_bound=1, flag_values=values)
  flags.DEFINE_integer("seed", 0, "of the clips", lower_bound=0, flag_values=values)
  flags.DEFINE_string("out", None, "folder for the tables", flag_values=values)


def main(argv: Sequence[str]) -> None:
  """Entry of the command line."""
  with errors.reported():
    config, values = cli.parse(argv, _define_flags)
    if not values.out:
      raise UserError("--out=DIR must be given; see the top of wr1_jax/world/validate.py.")
    validate(config, values.clips, values.hinted, values.batch, values.seed, Path(values.out))


if __name__ == "__main__":
  main(sys.argv)
