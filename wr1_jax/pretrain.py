"""Pre-trains a small Wan-shaped model: `python -m wr1_jax.pretrain --config=configs/pretrain.py --workdir=DIR`.

The model learns the toy world (`wr1_jax.world`), which is rendered while it trains: first the autoencoder, then
transformer and text encoder together, by flow matching. DIR/wan-tiny is the finished model in diffusers layout.

The same command goes on from the last checkpoint in DIR. It ends early, and saves, on SIGTERM or SIGINT and where
`--minutes=M` have passed; `--stages=vae` leaves the second stage for another time. DIR/wan-tiny/vae is the mark of a
finished autoencoder: the first stage is then left out. `--config.start=FOLDER` trains a finished model's transformer
further.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from wr1_jax import cli, errors
from wr1_jax.config import ModelConfig
from wr1_jax.models import pipeline
from wr1_jax.pretraining import config as config_lib
from wr1_jax.pretraining.clips import Sampler
from wr1_jax.pretraining.config import PretrainConfig
from wr1_jax.pretraining.flow_stage import FlowStage
from wr1_jax.pretraining.loop import Patience, Run
from wr1_jax.pretraining.report import Report
from wr1_jax.pretraining.vae_stage import VAEStage
from wr1_jax.training import run_folder, stop

STAGES = ("vae", "flow")
_STARTED = time.monotonic()


def pretrain(config: PretrainConfig, workdir: Path, patience: Patience, stages: Sequence[str] = STAGES) -> None:
  """Runs the stages, each from where it is.

  Raises:
    stop.Stop: it was time to end; what was reached is saved.
    UserError: something in the config, the machine or the run folder does not allow the run.
  """
  config_lib.check(config)
  with run_folder.opened(workdir, config), Sampler(config) as sampler:
    run_folder.describe(workdir, config, sidecar={})
    start = pipeline.find_folder(ModelConfig(path=config.start)) if config.start else None
    run = Run(config, workdir, patience, sampler, Report(workdir / "report.json"), start)
    if start and not run.has_vae:
      for part in ("tokenizer", "vae"):
        shutil.copytree(start / part, run.out / part, dirs_exist_ok=True)
    if "vae" in stages and not run.has_vae:
      VAEStage(run).run()
    patience.check()
    if "flow" in stages:
      if not run.has_vae:
        raise errors.UserError(
          f"there is no {run.out / 'vae'} yet: the vae stage makes it, and the flow stage needs it."
        )
      FlowStage(run).run()


def main(argv: list[str]) -> None:
  """The command line."""

  def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "the run's folder", flag_values=values)
    flags.DEFINE_list("stages", list(STAGES), f"of {', '.join(STAGES)}: those to run", flag_values=values)
    flags.DEFINE_float("minutes", 0.0, "save and end after this time; 0: no limit", flag_values=values)

  sys.stdout.reconfigure(line_buffering=True)
  with errors.reported(), contextlib.ExitStack() as stack:
    config, values = cli.parse(argv, define_flags, PretrainConfig)
    if not values.workdir:
      raise errors.UserError("--workdir=DIR is missing: the folder that the run writes to and resumes from.")
    if unknown := set(values.stages) - set(STAGES):
      raise errors.UserError(f"--stages names {', '.join(sorted(unknown))}; there are {' and '.join(STAGES)}.")
    workdir = Path(values.workdir)
    patience = Patience(stack.enter_context(stop.on_signals()), values.minutes, _STARTED)
    try:
      pretrain(config, workdir, patience, values.stages)
    except stop.Stop as signal:
      print(f"stopped by {signal}; the same command goes on from here.")
    else:
      print(f"finished {' and '.join(values.stages)}: {workdir / 'wan-tiny'}")
    print(Report(workdir / "report.json").table())


if __name__ == "__main__":
  main(sys.argv)
