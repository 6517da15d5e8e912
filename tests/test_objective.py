"""Advantages, the clipped loss and its KL, and its accumulation over microbatches."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from wr1_jax.config import ObjectiveConfig, SamplingConfig
from wr1_jax.objective.advantage import advantages
from wr1_jax.objective.policy_gradient import microbatches, policy_gradient
from wr1_jax.objective.policy_loss import StoredSteps, policy_loss
from wr1_jax.sampling.rollout import Rollout
from wr1_jax.sampling.schedule import Schedule
from wr1_jax.sampling.sde import Policy

CONFIG = ObjectiveConfig()
LATENT = (2, 3, 4, 2)
POLICY = Policy.make(Schedule.make(20, 3.0), SamplingConfig())
STEP_WEIGHTS = POLICY.step_weights(range(10))
PARAMS = {"scale": jnp.float32(0.8), "text": jnp.float32(0.3), "wave": jnp.float32(0.5)}
REFERENCE = {"scale": jnp.float32(0.7), "text": jnp.float32(0.2), "wave": jnp.float32(0.45)}


def network(params):
  """A small guided network with the trainer's signature."""

  def velocity(x, timestep, text, negative):
    del negative
    time = timestep.reshape(-1, 1, 1, 1, 1) / 1000
    return (
      params["scale"] * x
      + params["wave"] * jnp.sin(2 * x + time)
      + params["text"] * text.mean((1, 2)).reshape(-1, 1, 1, 1, 1)
    )

  return velocity


TEXT = jax.random.normal(jax.random.key(5), (3, 4, 6))


def stored_steps(count=8, seed=0) -> StoredSteps:
  keys = jax.random.split(jax.random.key(seed), 4)
  state, noise = jax.random.normal(keys[0], (2, count, *LATENT))
  step = jax.random.randint(keys[1], (count,), 0, 10)
  prompt = jnp.arange(count) % 3
  v = network(PARAMS)(state, POLICY.schedule.timestep(step, count), TEXT[prompt], None)
  action = POLICY.mean(state, v, step) + POLICY.std_at(step) * noise
  return StoredSteps(
    state=state,
    action=action,
    step=step,
    log_prob=0.002 * jax.random.normal(keys[2], (count,)) + _log_prob_by_scipy(PARAMS, state, action, step, prompt),
    advantage=jax.random.normal(keys[3], (count,)),
    weight=jnp.ones((count,)),
    prompt=prompt,
  )


def _mean_by_hand(params, state, step, prompt):
  v = network(params)(state, POLICY.schedule.timestep(step, len(step)), TEXT[prompt], None)
  step = np.asarray(step)
  each = lambda table: np.asarray(table, np.float64)[step].reshape(-1, 1, 1, 1, 1)
  sigma, dt = each(POLICY.schedule.sigmas[:-1]), each(POLICY.schedule.dt)
  s = float(POLICY.schedule.sigmas[1]) * sigma
  state = np.asarray(state, np.float64)
  mean = state * (1 + s**2 * dt / (2 * sigma)) + np.asarray(v, np.float64) * (1 + s**2 * (1 - sigma) / (2 * sigma)) * dt
  return mean, s * np.sqrt(-dt)


def _log_prob_by_scipy(params, state, action, step, prompt):
  mean, std = _mean_by_hand(params, state, step, prompt)
  return scipy.stats.norm.logpdf(np.asarray(action), mean, std).mean(axis=(1, 2, 3, 4))


def loss_of(params, steps, config=CONFIG, total=None, reference=REFERENCE, step_weights=STEP_WEIGHTS):
  return policy_loss(
    network(params),
    network(reference) if config.kl_weight else None,
    steps,
    TEXT,
    None,
    steps.weight.sum() if total is None else total,
    policy=POLICY,
    step_weights=step_weights,
    config=config,
  )


class TestAdvantages:
  everyone = np.ones((2, 4), bool)

  def test_group_std(self):
    rewards = np.array([[1.0, 2, 3, 4], [10, 10, 10, 14]])
    got = advantages(rewards, self.everyone, CONFIG)
    centred = rewards - rewards.mean(1, keepdims=True)
    np.testing.assert_allclose(got.values, centred / (rewards.std(1, keepdims=True) + 1e-4), rtol=1e-6)
    assert got.weights.all()

  def test_batch_std(self):
    rewards = np.array([[1.0, 2, 3, 4], [10, 10, 10, 14]])
    got = advantages(rewards, self.everyone, dataclasses.replace(CONFIG, advantage_std="batch"))
    centred = rewards - rewards.mean(1, keepdims=True)
    np.testing.assert_allclose(got.values, centred / (rewards.std() + 1e-4), rtol=1e-6)

  def test_clipped(self):
    rewards = np.array([[0.0] * 99 + [1.0]])
    got = advantages(rewards, np.ones_like(rewards, bool), CONFIG)
    assert got.values[0, -1] == 5

  @pytest.mark.parametrize("std", ["group", "batch"])
  def test_samples_without_a_reward_change_nothing(self, std):
    config = dataclasses.replace(CONFIG, advantage_std=std)
    rewards = np.array([[1.0, np.nan, 3, 7], [5, 6, 100, np.inf], [1, np.nan, 4, 9], [2, 2, 2, 2]])
    valid = np.array([[1, 1, 1, 1], [1, 1, 0, 1], [0, 1, 0, 1], [1, 1, 1, 1]], bool)
    got = advantages(rewards, valid, config)
    np.testing.assert_array_equal(got.weights, [[1, 0, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    assert (got.values[got.weights == 0] == 0).all()
    taken = [np.array([1.0, 3, 7]), np.array([5.0, 6])]
    spread = [np.concatenate(taken).std()] * 2 if std == "batch" else [r.std() for r in taken]
    expected = [(r - r.mean()) / (s + 1e-4) for r, s in zip(taken, spread, strict=True)]
    np.testing.assert_allclose(got.values[got.weights == 1], np.concatenate(expected), rtol=1e-6)

  def test_nothing_to_learn_from(self):
    for rewards in (np.full((2, 4), np.nan), np.full((2, 4), 0.1)):
      got = advantages(rewards, self.everyone, dataclasses.replace(CONFIG, advantage_std="batch"))
      assert not got.values.any() and not got.weights.any()


def test_loss_is_the_written_formula():
  steps = stored_steps()
  terms = loss_of(PARAMS, steps)
  mean, std = _mean_by_hand(PARAMS, steps.state, steps.step, steps.prompt)
  mean_reference, _ = _mean_by_hand(REFERENCE, steps.state, steps.step, steps.prompt)
  ratio = np.exp(
    _log_prob_by_scipy(PARAMS, steps.state, steps.action, steps.step, steps.prompt) - np.asarray(steps.log_prob)
  )
  a = np.asarray(steps.advantage)
  clipped = np.clip(ratio, 1 - 1e-3, 1 + 1e-3)
  kl = ((mean - mean_reference) ** 2 / (2 * std**2)).mean(axis=(1, 2, 3, 4))
  losses = STEP_WEIGHTS[np.asarray(steps.step)] * np.maximum(-a * ratio, -a * clipped) + 0.004 * kl
  np.testing.assert_allclose(terms.loss, losses.mean(), rtol=1e-4)
  np.testing.assert_allclose(terms.kl, kl.mean(), rtol=1e-4)
  np.testing.assert_allclose(terms.ratio_mean, ratio.mean(), rtol=1e-5)
  np.testing.assert_allclose(terms.clip_fraction, (np.abs(ratio - 1) > 1e-3).mean(), rtol=1e-6)
  np.testing.assert_allclose(terms.advantage_abs, np.abs(a).mean(), rtol=1e-6)
  assert 0 < terms.clip_fraction < 1


def test_gradient_is_the_finite_difference():
  steps = stored_steps()
  # The old log-probability is the present one, so that no ratio sits on the edge of the clip.
  old = _log_prob_by_scipy(PARAMS, steps.state, steps.action, steps.step, steps.prompt)
  steps = steps._replace(log_prob=jnp.float32(old))
  config = dataclasses.replace(CONFIG, clip_range=0.2, kl_weight=0.1)
  gradient = jax.grad(lambda params: loss_of(params, steps, config).loss)(PARAMS)
  for name, value in PARAMS.items():
    step = 1e-2
    up, down = (loss_of({**PARAMS, name: value + d}, steps, config).loss for d in (step, -step))
    np.testing.assert_allclose(gradient[name], (up - down) / (2 * step), rtol=2e-2, atol=1e-4)


def test_kl_is_zero_at_the_reference_and_has_a_gradient_elsewhere():
  steps = stored_steps()._replace(advantage=jnp.zeros((8,)))
  loss = lambda params: loss_of(params, steps).loss
  value, gradient = jax.value_and_grad(loss)(REFERENCE)
  assert value == 0 and all(g == 0 for g in gradient.values())
  value, gradient = jax.value_and_grad(loss)(PARAMS)
  assert value > 0 and all(g > 0 for g in gradient.values())


def test_a_clipped_ratio_has_no_gradient():
  """In the direction that the advantage asks for; in the other it is pulled back."""
  config = dataclasses.replace(CONFIG, kl_weight=0.0)
  steps = stored_steps()._replace(advantage=jnp.ones((8,)))
  old = _log_prob_by_scipy(PARAMS, steps.state, steps.action, steps.step, steps.prompt)
  gradient = lambda shift: jax.grad(
    lambda params: loss_of(params, steps._replace(log_prob=jnp.float32(old + shift)), config).loss
  )(PARAMS)
  assert all(g == 0 for g in gradient(-0.01).values())
  assert all(g != 0 for g in gradient(+0.01).values())


def test_far_log_ratios_stay_finite():
  steps = stored_steps()._replace(log_prob=jnp.full((8,), -1e4))
  terms, gradient = jax.value_and_grad(lambda params: loss_of(params, steps).loss)(PARAMS)
  assert np.isfinite(terms) and all(np.isfinite(g) for g in gradient.values())


def test_without_kl_no_reference_is_needed_and_kl_is_nan():
  config = dataclasses.replace(CONFIG, kl_weight=0.0)
  terms = loss_of(PARAMS, stored_steps(), config)
  assert np.isfinite(terms.loss) and np.isnan(terms.kl)
  with pytest.raises(ValueError, match="reference"):
    policy_loss(
      network(PARAMS), None, stored_steps(), TEXT, None, 8, policy=POLICY, step_weights=STEP_WEIGHTS, config=CONFIG
    )


def test_excluded_steps_may_hold_nan():
  steps = stored_steps()
  keep = jnp.array([1, 0, 1, 1, 0, 1, 1, 0], bool)
  nan = lambda x: jnp.where(keep.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.nan)
  dirty = steps._replace(
    state=nan(steps.state),
    action=nan(steps.action),
    log_prob=nan(steps.log_prob),
    advantage=nan(steps.advantage),
    weight=keep.astype(jnp.float32),
  )
  alone = jax.tree.map(lambda x: x[keep], steps)
  got, gradient = jax.value_and_grad(lambda params: loss_of(params, dirty).loss)(PARAMS)
  expected, expected_gradient = jax.value_and_grad(lambda params: loss_of(params, alone).loss)(PARAMS)
  np.testing.assert_allclose(got, expected, rtol=1e-5)
  for name in PARAMS:
    np.testing.assert_allclose(gradient[name], expected_gradient[name], rtol=1e-4, atol=1e-7)


@jax.jit
def gradient_of(steps):
  return policy_gradient(
    network, network(REFERENCE), PARAMS, steps, TEXT, None, policy=POLICY, step_weights=STEP_WEIGHTS, config=CONFIG
  )


@functools.cache
def make_rollouts(count=3, window=2, prompts=1, group=4):
  batch = prompts * group
  keys = jax.random.split(jax.random.key(7), 4)
  stored = stored_steps(count * window * batch, seed=8)
  shape = (count, window, batch)
  rollouts = Rollout(
    states=stored.state.reshape(*shape, *LATENT),
    actions=stored.action.reshape(*shape, *LATENT),
    steps=jax.random.randint(keys[0], (count, window), 0, 10),
    log_prob=stored.log_prob.reshape(shape),
    latents=jnp.zeros((count, batch, *LATENT)),
  )
  return rollouts, jax.random.normal(keys[1], (count, batch)), (jax.random.uniform(keys[2], (count, batch)) < 0.7) * 1.0


def test_microbatches_hold_every_step_once_with_what_belongs_to_it():
  rollouts, advantage, weight = make_rollouts(prompts=2, group=4)
  tag = jnp.arange(3 * 2 * 8.0).reshape(3, 2, 8)
  rollouts = rollouts._replace(log_prob=tag, states=rollouts.states.at[..., 0, 0, 0, 0].set(tag))
  steps = microbatches(rollouts, advantage, weight, prompts_per_rollout=2, size=4)
  rollouts, advantage, weight, steps = jax.device_get((rollouts, advantage, weight, steps))
  assert steps.state.shape == (12, 4, *LATENT)
  assert sorted(steps.log_prob.ravel().tolist()) == list(range(48))
  for m, n in np.ndindex(12, 4):
    r, k, b = np.unravel_index(int(steps.log_prob[m, n]), (3, 2, 8))
    assert steps.state[m, n, 0, 0, 0, 0] == steps.log_prob[m, n]
    np.testing.assert_array_equal(steps.action[m, n], rollouts.actions[r, k, b])
    assert steps.step[m, n] == rollouts.steps[r, k]
    assert steps.advantage[m, n] == advantage[r, b] and steps.weight[m, n] == weight[r, b]
    assert steps.prompt[m, n] == 2 * r + b // 4
  # Two devices that hold samples 0-3 and 4-7 each find their own in every microbatch.
  assert (np.array([0, 0, 1, 1]) == steps.log_prob % 8 // 4).all()


def test_gradient_does_not_depend_on_microbatches():
  rollouts, advantage, weight = make_rollouts()
  assert 0 < weight.sum() < weight.size
  flat = microbatches(rollouts, advantage, weight, prompts_per_rollout=1, size=4)
  flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), flat)
  loss, gradient = jax.jit(jax.value_and_grad(lambda params: loss_of(params, flat).loss))(PARAMS)
  for size in (1, 4):
    steps = microbatches(rollouts, advantage, weight, prompts_per_rollout=1, size=size)
    got_gradient, terms = gradient_of(steps)
    np.testing.assert_allclose(terms.loss, loss, rtol=1e-5)
    for name in PARAMS:
      np.testing.assert_allclose(got_gradient[name], gradient[name], rtol=1e-4)


def test_no_valid_sample_gives_no_gradient():
  rollouts, advantage, weight = make_rollouts()
  steps = microbatches(rollouts, advantage * jnp.nan, weight * 0, prompts_per_rollout=1, size=2)
  gradient, terms = gradient_of(steps)
  assert terms.loss == 0 and all(g == 0 for g in gradient.values())
