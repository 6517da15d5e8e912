"""The loop that both stages share: it can be stopped at any step, and goes on from there."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from wr1_jax import randomness
from wr1_jax.errors import UserError
from wr1_jax.pretraining.bank import Bank
from wr1_jax.pretraining.clips import Sampler
from wr1_jax.pretraining.config import PretrainConfig, StageConfig
from wr1_jax.pretraining.report import Report
from wr1_jax.training import state, stop
from wr1_jax.training.checkpoint import Checkpoints
from wr1_jax.training.programs import Program
from wr1_jax.training.run_log import RunLog
from wr1_jax.training.state import TrainState

_KEPT = 2  # checkpoints

# (weights, key, entries of the bank, how many there are) -> loss and what else to log
Loss = Callable[[PyTree, Key[Array, ""], PyTree, Int[Array, ""]], tuple[Float[Array, ""], dict[str, Float[Array, ""]]]]
# (state, sums of what is logged, entries, how many) -> the next state and sums
Step = Callable[[TrainState, PyTree, PyTree, Int[Array, ""]], tuple[TrainState, PyTree]]


class Patience:
  """How long a run may go on: until a signal comes, or its time is up."""

  def __init__(self, request: stop.StopRequest, minutes: float, started: float):
    """`minutes` are counted from `started` (`time.monotonic`); 0: no limit."""
    self._request, self._minutes, self._started = request, minutes, started

  def check(self) -> None:
    """Raises `stop.Stop` once it is time to save and end."""
    self._request.check()
    if self._minutes and time.monotonic() - self._started > 60 * self._minutes:
      raise stop.Stop(f"--minutes={self._minutes:g}")


@dataclasses.dataclass(frozen=True)
class Run:
  """What the stages of a run share."""

  config: PretrainConfig
  workdir: Path
  patience: Patience
  sampler: Sampler
  report: Report
  start: Path | None = None  # the model folder to go on from

  @property
  def out(self) -> Path:
    """The model folder that the run makes."""
    return self.workdir / "wan-tiny"

  @property
  def has_vae(self) -> bool:
    """Whether the first stage is finished."""
    return (self.out / "vae" / "config.json").exists()


@dataclasses.dataclass(frozen=True)
class Stage:
  """One of the two trainings.

  Attributes:
    programs: compiled `Step`s, each with the number of the step before which it is done.
    evaluate: gets the averaged weights, the log and the number of steps done; returns what to log.
  """

  name: str
  config: StageConfig
  programs: tuple[tuple[int, Program], ...]
  evaluate: Callable[[PyTree, RunLog, int], dict[str, float]]

  def program(self, step: int) -> Program:
    """What takes the step of this number."""
    return next(program for until, program in self.programs if step < until)


def make_optimizer(config: StageConfig) -> optax.GradientTransformation:
  """AdamW behind a global-norm clip; the learning rate rises linearly and falls as a cosine."""
  rate = optax.warmup_cosine_decay_schedule(
    0.0, config.learning_rate, min(config.warmup_steps, config.steps // 4), config.steps, config.end_learning_rate
  )
  return optax.chain(
    optax.clip_by_global_norm(config.max_grad_norm),
    optax.adamw(rate, config.beta1, config.beta2, weight_decay=config.weight_decay, mask=_decays),
  )


def _decays(weights: PyTree) -> PyTree:
  return jax.tree.map_with_path(lambda path, _: "kernel" in jax.tree_util.keystr(path), weights)


def make_step(loss: Loss, config: StageConfig, key: Key[Array, ""]) -> Step:
  """One update by the gradient of `loss`, whose draws are a function of `key` and the number of updates before."""
  optimizer = make_optimizer(config)

  def step(train_state: TrainState, sums: PyTree, entries: PyTree, filled: Int[Array, ""]) -> tuple[TrainState, PyTree]:
    weights, moments, ema, updates = train_state
    draw = randomness.at(key, updates)
    (value, terms), gradients = jax.value_and_grad(loss, has_aux=True)(weights, draw, entries, filled)
    changes, moments = optimizer.update(gradients, moments, weights)
    weights = optax.apply_updates(weights, changes)
    updates += 1
    decay = jnp.minimum(config.ema_decay, (1 + updates) / (10 + updates))
    ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, ema, weights)
    terms = {"loss": value, "grad_norm": optax.tree.norm(gradients), **terms}
    return TrainState(weights, moments, ema, updates), jax.tree.map(jnp.add, sums, terms)

  return step


def no_sums(*names: str) -> dict[str, Float[Array, ""]]:
  """What a step adds to, at the start."""
  return {name: jnp.zeros((), jnp.float32) for name in ("loss", "grad_norm", *names)}


def init_state(weights: PyTree, config: StageConfig) -> TrainState:
  """The state before the first step. The weights stand where training proper has its adapters."""
  return state.init(weights, make_optimizer(config))


def train(run: Run, stage: Stage, train_state: TrainState, sums: PyTree, bank: Bank) -> PyTree:
  """Trains from the last checkpoint to the stage's end, and returns the averaged weights.

  Raises:
    stop.Stop: it was time to end; what was reached is saved.
    UserError: the loss is not finite, or the disk is full.
  """
  folder, config, steps = run.workdir / stage.name, run.config.loop, stage.config.steps
  with Checkpoints(folder / "checkpoints", _KEPT) as checkpoints:
    done = checkpoints.latest() or 0
    if done:
      train_state = checkpoints.restore(done, train_state)
      print(f"{stage.name}: going on after step {done} of {steps}", flush=True)
    if done == steps:
      return train_state.ema
    with RunLog(folder, resume_at=done + 1) as log:
      pace, summed = _Pace(run.report, stage.name, bank), 0
      try:
        while done < steps:
          run.patience.check()
          entries, filled = bank.at(done)
          program = stage.program(done)
          train_state, sums = program(train_state, sums, entries, np.int32(filled))
          done, summed = done + 1, summed + 1
          pace.after_step(program.name, done, sums)
          evaluates, saves = (
            done == steps or done % every == 0 for every in (config.evaluate_every, config.checkpoint_every)
          )
          if evaluates or saves or done % config.log_every == 0 or done in [until for until, _ in stage.programs]:
            values, sums, summed = _means(sums, summed, stage.name, done), jax.tree.map(jnp.zeros_like, sums), 0
            values |= pace.measure(program.name, done)
            if evaluates:
              values |= stage.evaluate(train_state.ema, log, done)
            log.scalars(done, stage.name, values)
            print(f"{stage.name} {done}/{steps} " + " ".join(f"{k} {v:.4g}" for k, v in values.items()), flush=True)
            if saves:
              checkpoints.save(done, train_state)
            pace.start(done)
      except stop.Stop:
        if done and checkpoints.latest() != done:
          _means(sums, max(summed, 1), stage.name, done)
          checkpoints.save(done, train_state)
        checkpoints.wait()
        print(f"{stage.name}: stopped and saved after step {done} of {steps}", flush=True)
        raise
      checkpoints.wait()
  return train_state.ema


def _means(sums: PyTree, count: int, stage: str, done: int) -> dict[str, float]:
  """Means over `count` steps; a `UserError` where one is not finite."""
  values = {name: float(value) / count for name, value in jax.device_get(sums).items()}
  if not all(map(math.isfinite, values.values())):
    raise UserError(
      f"the {stage} stage is not finite after step {done}: {values}. Start the same command again to go on from the "
      f"last checkpoint, or set a lower config.{stage}.learning_rate and another --workdir."
    )
  return values


class _Pace:
  """How fast each program steps, without its first call, evaluations and the like."""

  def __init__(self, report: Report, stage: str, bank: Bank):
    self._report, self._stage, self._bank = report, stage, bank
    self._steps: dict[str, int] = {}
    self._seconds: dict[str, float] = {}
    self._refills: dict[str, int] = {}

  def start(self, done: int) -> None:
    """Counts from here on; the device must be idle."""
    self._begun, self._done, self._blocks = time.perf_counter(), done, self._bank.blocks

  def after_step(self, name: str, done: int, result: PyTree) -> None:
    """To be called after every step: waits for a program's first."""
    if name not in self._steps:
      jax.block_until_ready(result)
      self._steps[name], self._seconds[name], self._refills[name] = 0, 0.0, 0
      self.start(done)

  def measure(self, name: str, done: int) -> dict[str, float]:
    """What to log; the device must be idle."""
    self._steps[name] += done - self._done
    self._seconds[name] += time.perf_counter() - self._begun
    self._refills[name] += self._bank.blocks - self._blocks
    if not self._steps[name]:
      return {}
    steps, seconds = self._steps[name], self._seconds[name]
    alone = seconds - self._refills[name] * self._bank.block_seconds
    self._report.quiet(f"{name}: steps a second, fresh clips included", steps / seconds)
    self._report.quiet(f"{name}: ms a step, fresh clips taken off", 1000 * alone / steps)
    operations = self._report[f"{name}: TFLOP a step"]
    self._report.quiet(f"{name}: TFLOP a second, fresh clips taken off", operations * steps / max(alone, 1e-9))
    if self._bank.block_seconds:
      self._report.quiet(f"{self._stage}: clips a second into the bank", self._bank.clips_a_second)
    self._report.quiet(f"{self._stage}: seconds waited for the host to fill the bank", self._bank.waited_to_fill)
    self._report.quiet(f"{self._stage}: seconds waited for the host while training", self._bank.waited)
    return {"steps_per_second": steps / seconds}
