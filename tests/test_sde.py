"""The stochastic steps: formulas, densities, marginals, and the options that are refused."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from wr1_jax.config import SamplingConfig
from wr1_jax.errors import UserError
from wr1_jax.sampling import sde, window
from wr1_jax.sampling.schedule import Schedule
from wr1_jax.sampling.sde import Policy

FORMS = ("linear", "sqrt", "cps")
SHAPE = (3, 2, 3, 4, 2)


def make(form, steps=20, **options) -> Policy:
  return Policy.make(Schedule.make(steps, 3.0), SamplingConfig(noise=form, steps=steps, **options))


@pytest.mark.parametrize("form", FORMS)
def test_mean_and_std_are_the_written_formulas(form):
  policy = make(form)
  sigmas = policy.schedule.sigmas.astype(np.float64)
  x, v = np.random.default_rng(1).standard_normal((2, *SHAPE))
  for i in range(20):
    sigma, after, dt = sigmas[i], sigmas[i + 1], sigmas[i + 1] - sigmas[i]
    if form == "cps":
      s = after * math.sin(0.8 * math.pi / 2)
      x0, x1 = x - sigma * v, x + (1 - sigma) * v
      mean, std = (1 - after) * x0 + math.sqrt(after**2 - s**2) * x1, s
    else:
      s = sigmas[1] * sigma if form == "linear" else 0.7 * math.sqrt(sigma / (1 - min(sigma, 0.96)))
      mean = x * (1 + s**2 * dt / (2 * sigma)) + v * (1 + s**2 * (1 - sigma) / (2 * sigma)) * dt
      std = s * math.sqrt(-dt)
    np.testing.assert_allclose(policy.mean(jnp.float32(x), jnp.float32(v), jnp.int32(i)), mean, atol=2e-6)
    np.testing.assert_allclose(policy.std[i], std, rtol=1e-6)


def test_steps_may_differ_between_samples():
  policy = make("linear")
  x, v = jax.random.normal(jax.random.key(0), (2, *SHAPE))
  steps = jnp.array([3, 0, 7])
  together = policy.mean(x, v, steps)
  for b, step in enumerate(steps):
    np.testing.assert_array_equal(together[b], policy.mean(x[b : b + 1], v[b : b + 1], step)[0])
  np.testing.assert_array_equal(policy.std_at(steps).ravel(), policy.std[np.asarray(steps)])


def test_no_noise_is_an_euler_step():
  for policy in (make("sqrt", sqrt_scale=0.0), make("cps", cps_eta=0.0)):
    assert not policy.drift.any() and not policy.std.any()
    np.testing.assert_array_equal(policy.velocity_weight, policy.schedule.dt)


def test_log_prob_is_that_of_a_normal():
  action, mean = np.random.default_rng(2).standard_normal((2, *SHAPE)).astype(np.float32)
  std = np.array([0.05, 0.3, 2.0], np.float32).reshape(-1, 1, 1, 1, 1)
  expected = scipy.stats.norm.logpdf(action, mean, std).mean(axis=(1, 2, 3, 4))
  got = sde.log_prob(action, mean, std)
  np.testing.assert_allclose(got, expected, rtol=1e-5)
  assert got.dtype == jnp.float32


def _variance_error(form: str, steps: int, deviation: float) -> float:
  """Largest relative error of the samples' variance over sigma >= 0.02, for data N(0, deviation^2).

  With the exact velocity everything is Gaussian and linear, so the variance is carried along in closed form.
  """
  policy = make(form, steps)
  sigmas = policy.schedule.sigmas.astype(np.float64)
  true = (1 - sigmas) ** 2 * deviation**2 + sigmas**2
  slope = (sigmas - (1 - sigmas) * deviation**2)[:-1] / true[:-1]  # v = slope x
  variance, worst = true[0], 0.0
  for i in np.flatnonzero(sigmas[1:] >= 0.02):
    gain = 1 + float(policy.drift[i]) + float(policy.velocity_weight[i]) * slope[i]
    variance = gain**2 * variance + float(policy.std[i]) ** 2
    worst = max(worst, abs(variance / true[i + 1] - 1))
  return worst


@pytest.mark.parametrize("deviation", [0.3, 1.0])
@pytest.mark.parametrize("form", ["linear", "sqrt"])
def test_marginals_are_kept_as_steps_shrink(form, deviation):
  coarse, fine = _variance_error(form, 500, deviation), _variance_error(form, 4000, deviation)
  assert fine < 0.01
  assert fine < coarse / 4


@pytest.mark.parametrize("steps", [5, 20])
def test_cps_keeps_the_marginals_of_a_point_exactly(steps):
  """For a single clip the predicted data and noise are exact, and so then is `cps`, at any step size."""
  assert _variance_error("cps", steps, 0.0) < 1e-5


def test_lambda_is_flash_grpos():
  policy = make("linear")
  sigma, dt = policy.schedule.sigmas[:-1].astype(np.float64), policy.schedule.dt.astype(np.float64)
  s = float(policy.schedule.sigmas[1]) * sigma
  root = np.sqrt(-dt)
  expected = 1 / (root / s + s * root * (1 - sigma) / (2 * sigma))
  np.testing.assert_allclose(policy.velocity_scale(), expected, rtol=1e-5)
  # The table in Flash-GRPO's training script, on a grid that differs a little from ours.
  table = [7.4770, 7.0414, 6.6112, 6.1867, 5.7682, 5.3559, 4.9502, 4.5513, 4.1596, 3.7754]
  np.testing.assert_allclose(policy.velocity_scale()[:10], table, rtol=3e-3)


def test_step_weights_average_to_one_over_trainable_steps():
  config = SamplingConfig(window=2, window_start_min=3, window_start_max=6)
  assert window.trainable_steps(config) == range(3, 8)
  for form in FORMS:
    policy = make(form)
    weights = policy.step_weights(window.trainable_steps(config))
    assert weights[3:8].mean() == pytest.approx(1, rel=1e-6)
    np.testing.assert_allclose(weights / weights[3], policy.velocity_scale() / policy.velocity_scale()[3], rtol=1e-6)


def test_window_start_is_uniform_and_inclusive():
  config = SamplingConfig(window_start_min=2, window_start_max=5)
  starts = jax.vmap(lambda key: window.draw_start(key, config))(jax.random.split(jax.random.key(0), 4000))
  values, counts = np.unique(starts, return_counts=True)
  assert values.tolist() == [2, 3, 4, 5]
  assert scipy.stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("form", FORMS)
def test_good_options_pass(form):
  window.check(SamplingConfig(noise=form))


@pytest.mark.parametrize(
  "options, complaint",
  [
    (dict(window=0), "sampling.window = 0"),
    (dict(window_start_min=4, window_start_max=3), "min <= max"),
    (dict(window_start_min=-1), "0 <= min"),
    (dict(steps=8), "window_start_max to at most 7"),
    (dict(window=3, window_start_max=18), "window_start_max to at most 17"),
    (dict(noise="cps", window_start_max=19), "step 19, which has no noise"),
    (dict(noise="cps", cps_eta=0.0), "no noise"),
    (dict(noise="sqrt", sqrt_scale=0.0), "no noise"),
    (dict(noise="linear", steps=1, window_start_max=0), "no noise"),
    (dict(shift=0.0), "sampling.shift"),
  ],
)
def test_bad_options_are_refused(options, complaint):
  with pytest.raises(UserError, match=complaint):
    window.check(SamplingConfig(**options))
