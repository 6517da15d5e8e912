"""Trains: `python -m wr1_jax.train --config=configs/tiny.py --workdir=DIR`.

One iteration, as in the World-R1 paper: prompts -> text embeddings and camera paths -> warped start noise -> rollouts
with a stochastic window -> videos -> rewards -> advantages within each prompt's group -> one update of the adapters.

The same command goes on from the last checkpoint in DIR, with the same numbers as if it had never stopped.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import jax
from absl import flags
from tqdm import tqdm

from wr1_jax import cli, errors, randomness
from wr1_jax.config import Config
from wr1_jax.data import prompts
from wr1_jax.models import pipeline
from wr1_jax.objective.advantage import advantages
from wr1_jax.parallel.mesh import make_mesh, shard_params
from wr1_jax.randomness import Purpose
from wr1_jax.rewards.transport import make_client
from wr1_jax.training import before_after, phases, preflight, programs, reports, run_folder, state, stop
from wr1_jax.training.checkpoint import Checkpoints
from wr1_jax.training.iteration import Runner
from wr1_jax.training.run_log import RunLog
from wr1_jax.training.stopwatch import Stopwatch


def train(config: Config, workdir: Path) -> None:
  """Runs until `config.train.iterations`, a signal, or an error.

  Raises:
    UserError: something in the input, the machine or the run folder does not allow the run, or the loss is not finite.
  """
  mesh = make_mesh(config.mesh)
  preflight.check(config, mesh)
  prompt_sets = {
    phases.Phase.MAIN: prompts.load_static(config.data),
    phases.Phase.DYNAMIC: prompts.load_dynamic(config.data),
  }
  prompt_keys = {
    phases.Phase.MAIN: randomness.stream(config.train.seed, Purpose.STATIC_PROMPTS),
    phases.Phase.DYNAMIC: randomness.stream(config.train.seed, Purpose.DYNAMIC_PROMPTS),
  }
  groups, iterations = config.train.groups, config.train.iterations
  videos_a_rollout = config.train.groups_per_rollout * config.train.group_size

  with contextlib.ExitStack() as stack:
    stack.enter_context(run_folder.opened(workdir, config))
    request = stack.enter_context(stop.on_signals())
    checkpoints = stack.enter_context(Checkpoints(workdir / "checkpoints", config.train.keep_checkpoints))
    rewards = stack.enter_context(make_client(config.rewards))
    rewards.check_room(videos_a_rollout, config.video.frames, config.video.height, config.video.width)

    model = pipeline.load(config, mesh, randomness.stream(config.train.seed, Purpose.INIT))
    train_state = state.init(model.lora, state.make_optimizer(config.optimizer))
    train_state = jax.device_put(train_state, shard_params(mesh, train_state))
    checkpoints.check_room(train_state)
    done = checkpoints.latest() or 0
    if done:
      train_state = checkpoints.restore(done, train_state)
    run = programs.compile_all(config, model, mesh, train_state)
    reports.startup(config, model, run, done)
    runner = Runner(config, model, mesh, run, rewards)

    run_folder.describe(workdir, config, rewards.versions)
    log = stack.enter_context(RunLog(workdir, resume_at=done))
    bar = stack.enter_context(tqdm(total=iterations, initial=done, desc="training", unit="it", disable=None))
    try:
      for iteration in range(done, iterations):
        watch = Stopwatch()
        place = phases.place(iteration, config.train)
        drawn = prompt_sets[place.phase].draw(prompt_keys[place.phase], place.earlier * groups, groups)

        # Rollouts. Each batch of videos is on its way to the sidecar while the next is made.
        batches = []
        for start in reports.rollout_bar(range(0, groups, config.train.groups_per_rollout)):
          request.check()
          group = drawn[start : start + config.train.groups_per_rollout]
          batch = runner.roll_out(train_state.lora, iteration, start, group, place.phase, watch)
          batches.append(batch.without_videos() if batches else batch)  # the log shows those of the first

        # Rewards, and how much better each video is than the others of its prompt.
        scored = runner.collect(batches, place.phase, watch, request)
        advantage = advantages(scored.total, scored.valid, config.objective)

        # One update.
        train_state, terms = runner.update(train_state, batches, advantage, watch)
        done = iteration + 1
        metrics = reports.metrics(scored, advantage, terms, watch)
        reports.check_finite(metrics, iteration, batches, scored, workdir)

        # Logs and checkpoint.
        log.scalars(iteration, place.phase, metrics)
        if iteration % config.train.video_every == 0 or done == iterations:
          reports.show(log, iteration, batches, scored, config)
        reports.progress(bar, iteration, place.phase, metrics, scored)
        if done % config.train.checkpoint_every == 0 or done == iterations:
          checkpoints.save(done, train_state)
    except stop.Stop as signal:
      reports.stopped(signal, done)
      if done and checkpoints.latest() != done:
        checkpoints.save(done, train_state)
    checkpoints.wait()
    shown = []
    if done == iterations:
      compared = prompt_sets[phases.Phase.MAIN].texts[: config.train.compare]
      shown = before_after.show(log, workdir, done, config, model, mesh, train_state.lora, compared)
  reports.finished(workdir, done, iterations, shown)


def main(argv: list[str]) -> None:
  """The command line."""

  def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "the run's folder", flag_values=values)

  sys.stdout.reconfigure(line_buffering=True)  # a log file shows every iteration as soon as it is done
  with errors.reported():
    config, values = cli.parse(argv, define_flags)
    if not values.workdir:
      raise errors.UserError("--workdir=DIR is missing: the folder that the run writes to and resumes from.")
    train(config, Path(values.workdir))


if __name__ == "__main__":
  main(sys.argv)
