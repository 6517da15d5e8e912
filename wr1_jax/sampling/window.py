"""Which steps of a rollout are stochastic (Flow-GRPO-Fast): only these are stored and trained."""

from __future__ import annotations

import jax
import numpy as np
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
    raise UserError(f"sampling.window = {config.window}: at least one step of a rollout must be stochastic.")
  if not 0 <= config.window_start_min <= config.window_start_max:
    raise UserError(
      f"sampling.window_start_min = {config.window_start_min} and sampling.window_start_max = "
      f"{config.window_start_max}: they must satisfy 0 <= min <= max."
    )
  steps = trainable_steps(config)
  if steps.stop > config.steps:
    raise UserError(
      f"A window of sampling.window = {config.window} steps that starts at sampling.window_start_max = "
      f"{config.window_start_max} ends at step {steps[-1]}, but the steps of sampling.steps = {config.steps} are "
      f"0..{config.steps - 1}: lower window_start_max to at most {config.steps - config.window}, or take more steps."
    )
  _check_noise(config)
  silent = [step for step in steps if Policy.make(schedule, config).std[step] == 0]
  if silent:
    raise UserError(
      f"With sampling.noise = {config.noise!r} and sampling.steps = {config.steps} the window may cover step "
      f"{silent[0]}, which has no noise, so its action has no probability density: keep the window away from it "
      f"(sampling.window_start_max; the last step of 'cps' is always silent) or raise the noise."
    )


def _check_noise(config: SamplingConfig) -> None:
  """Refuses noise sizes for which the formulas have no meaning."""
  if config.noise == "sqrt" and not (np.isfinite(config.sqrt_scale) and config.sqrt_scale >= 0):
    raise UserError(f"sampling.sqrt_scale = {config.sqrt_scale}: it must be a positive number, such as 0.7.")
  if config.noise == "sqrt" and not 0 < config.sqrt_max_sigma < 1:
    raise UserError(f"sampling.sqrt_max_sigma = {config.sqrt_max_sigma}: it must lie between 0 and 1, such as 0.96.")
  if config.noise == "cps" and not 0 <= config.cps_eta <= 1:
    raise UserError(f"sampling.cps_eta = {config.cps_eta}: it must lie between 0 and 1, such as 0.8.")
