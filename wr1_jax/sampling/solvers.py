"""Deterministic samplers: from noise to data along the velocity field."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from wr1_jax.sampling.schedule import Schedule

# (latents, timestep) -> dx/dsigma
Velocity = Callable[[Float[Array, "B T H W C"], Float[Array, "B"]], Float[Array, "B T H W C"]]
# (latents at the end of a step, the step's index) -> the latents to go on from
AfterStep = Callable[[Float[Array, "B T H W C"], Int[Array, ""]], Float[Array, "B T H W C"]]


def unchanged(x: Float[Array, "B T H W C"], step: Int[Array, ""]) -> Float[Array, "B T H W C"]:
  """The `AfterStep` that does nothing."""
  del step
  return x


def euler(
  velocity: Velocity,
  schedule: Schedule,
  x: Float[Array, "B T H W C"],
  *,
  start: int | Int[Array, ""] = 0,
  stop: int | Int[Array, ""] | None = None,
  after_step: AfterStep = unchanged,
) -> Float[Array, "B T H W C"]:
  """Takes Euler steps `start` up to, and not including, `stop` (None: to the end of the grid).

  Args:
    velocity: the field; traced once.
    schedule: the grid.
    x: float32 latents at `schedule.sigmas[start]`.
    start: first step; may be traced, as may `stop`.
    stop: one past the last step.
    after_step: applied to the latents at the end of each step.

  Returns:
    The latents at `schedule.sigmas[stop]`.
  """
  dt = jnp.asarray(schedule.dt)

  def body(step: Int[Array, ""], x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
    v = velocity(x, schedule.timestep(step, len(x)))
    return after_step(x + dt[step] * v, step)

  return jax.lax.fori_loop(start, schedule.steps if stop is None else stop, body, x)


def unipc(
  velocity: Velocity,
  schedule: Schedule,
  x: Float[Array, "B T H W C"],
  *,
  after_step: AfterStep = unchanged,
) -> Float[Array, "B T H W C"]:
  """The whole grid with UniPC of order 2 (Zhao et al., 2023), as diffusers' `UniPCMultistepScheduler` for Wan2.1.

  That is: B(h) of type bh2 on predicted data, lower order at both ends, the corrector after every step but the last.
  The corrector recomputes a sample from the one before it; what `after_step` did to the sample is added to the result,
  or it would be lost.

  Args:
    velocity: the field; traced once and called S times.
    schedule: the grid.
    x: float32 latents at `schedule.sigmas[0]`.
    after_step: applied to the latents at the end of each step.

  Returns:
    The latents at sigma 0.
  """
  table = _unipc_table(schedule)

  def body(carry: tuple[Array, ...], row: tuple[Array, ...]) -> tuple[tuple[Array, ...], None]:
    predicted, change, before, data, data_before = carry
    step, sigma, correct, predict = row
    x = predicted + change
    data_new = x - sigma * velocity(x, schedule.timestep(step, len(x)))
    # At step 0 there is nothing to correct with: `correct.predicted` is 1 there and 0 at all other steps.
    x = (
      correct.predicted * predicted
      + correct.before * before
      + correct.data_new * data_new
      + correct.data * data
      + correct.data_before * data_before
      + change
    )
    predicted = predict.sample * x + predict.data_new * data_new + predict.data * data
    return (predicted, after_step(predicted, step) - predicted, x, data_new, data), None

  zero = jnp.zeros_like(x)
  rows = (jnp.arange(schedule.steps), jnp.asarray(schedule.sigmas[:-1]), *jax.tree.map(jnp.asarray, table))
  (x, change, *_), _ = jax.lax.scan(body, (x, zero, zero, zero, zero), rows)
  return x + change


class _Correct(NamedTuple):
  """What to multiply and add up for a step's corrected sample: numbers, or [S] for all steps."""

  predicted: float | Float32[np.ndarray, "S"]  # of the sample that the previous step predicted
  before: float | Float32[np.ndarray, "S"]  # of the corrected sample one step back
  data_new: float | Float32[np.ndarray, "S"]  # of the data predicted here,
  data: float | Float32[np.ndarray, "S"]  # one step back
  data_before: float | Float32[np.ndarray, "S"]  # and two


class _Predict(NamedTuple):
  """What to multiply and add up for the next sample: numbers, or [S] for all steps."""

  sample: float | Float32[np.ndarray, "S"]  # of the corrected sample
  data_new: float | Float32[np.ndarray, "S"]  # of the data predicted here
  data: float | Float32[np.ndarray, "S"]  # and one step back


def _unipc_table(schedule: Schedule) -> tuple[_Correct, _Predict]:
  """Every step of UniPC is linear in samples and predicted data: here are the weights, worked out in float64."""
  correct, predict = [_Correct(1, 0, 0, 0, 0)], []
  for step in range(schedule.steps):
    order = min(2, step + 1, schedule.steps - step)
    predict.append(_predict_weights(schedule, step, order))
    if step + 1 < schedule.steps:
      correct.append(_correct_weights(schedule, step, order))
  return _Correct(*np.float32(correct).T), _Predict(*np.float32(predict).T)


def _predict_weights(schedule: Schedule, step: int, order: int) -> _Predict:
  """UniP from `step` to the next; `order` 2 with its constant 1/2, as the bh2 variant simplifies it."""
  shrink, growth = _exponentials(schedule, step)
  if order == 1:
    return _Predict(shrink, growth, 0)
  slope = 0.5 * growth / _log_snr_ratio(schedule, step)
  return _Predict(shrink, growth - slope, slope)


def _correct_weights(schedule: Schedule, step: int, order: int) -> _Correct:
  """UniC for the sample at `step + 1`, of the same order as the prediction that led there."""
  shrink, growth = _exponentials(schedule, step)
  if order == 1:
    return _Correct(0, shrink, 0.5 * growth, 0.5 * growth, 0)
  ratio = _log_snr_ratio(schedule, step)
  h = _log_snr(schedule, step + 1) - _log_snr(schedule, step)
  phi_1 = np.expm1(-h)
  phi_2 = phi_1 / -h - 1
  phi_3 = phi_2 / -h - 1 / 2
  past, now = np.linalg.solve([[1, 1], [ratio, 1]], [phi_2 / phi_1, 2 * phi_3 / phi_1])
  return _Correct(0, shrink, growth * now, growth * (1 - now - past / ratio), growth * past / ratio)


def _exponentials(schedule: Schedule, step: int) -> tuple[float, float]:
  """`(sigma' / sigma, alpha' (1 - e^-h))`: the first-order weights of sample and data from `step` to the next."""
  sigma, sigma_next = schedule.sigmas[step : step + 2].astype(np.float64)
  shrink = sigma_next / sigma
  return shrink, (1 - sigma_next) - (1 - sigma) * shrink


def _log_snr(schedule: Schedule, step: int) -> float:
  """lambda = log(alpha / sigma) with alpha = 1 - sigma."""
  sigma = schedule.sigmas[step].astype(np.float64)
  return np.log1p(-sigma) - np.log(sigma)


def _log_snr_ratio(schedule: Schedule, step: int) -> float:
  """The previous step in log SNR over this one: negative."""
  before, here, after = (_log_snr(schedule, i) for i in (step - 1, step, step + 1))
  return (before - here) / (after - here)
