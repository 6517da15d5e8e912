"""Which steps of a rollout are stochastic (Flow-GRPO-Fast): only these are stored and trained."""

from __future__ import annotations

import jax
from jaxtyping import Array, Int, Key

from wr1_jax.config import SamplingConfig
from wr1_jax.errors import UserError
from wr1_jax.sampling.schedule import Schedule
from wr1_jax.sampling.sde import Policy


def trainable_steps(config: SamplingConfig) -> range:
  """Every step that some window covers."""
  return range(config.window_start_min, config.window_start_max + config.window)


def draw_start(key: Key[Array, ""], config: SamplingConfig) -> Int[Array, ""]:
  """The window's first step, uniform in `window_start_min..window_start_max`, both included; int32."""
  return jax.random.randint(key, (), config.window_start_min, config.window_start_max + 1)


def check(config: SamplingConfig) -> None:
  """Refuses sampling options that cannot be trained with.

  Raises:
    UserError: a bad grid, a window outside of it, or a window that may cover a step without noise, whose action has
      no density.
  """
  schedule = Schedule.make(config.steps, config.shift)
  if config.window < 1:
    raise UserError(f"config.sampling.window = {config.window}: at least one step of a rollout must be stochastic.")
  if not 0 <= config.window_start_min <= config.window_start_max:
    raise UserError(
      f"config.sampling.window_start_min = {config.window_start_min} and config.sampling.window_start_max = "
      f"{config.window_start_max}: they must satisfy 0 <= min <= max."
    )
  steps = trainable_steps(config)
  if steps.stop > config.steps:
    raise UserError(
      f"a window of config.sampling.window = {config.window} steps that starts at config.sampling.window_start_max = "
      f"{config.window_start_max} ends at step {steps[-1]}, but the steps of config.sampling.steps = {config.steps} "
      f"are 0..{config.steps - 1}: lower window_start_max to at most {config.steps - config.window}, or take more "
      "steps."
    )
  silent = [step for step in steps if Policy.make(schedule, config).std[step] == 0]
  if silent:
    raise UserError(
      f"with config.sampling.noise = {config.noise!r} and config.sampling.steps = {config.steps} the window may cover "
      f"step {silent[0]}, which has no noise, so its action has no probability density: keep the window away from it "
      f"(config.sampling.window_start_max; the last step of 'cps' is always silent) or raise the noise."
    )
