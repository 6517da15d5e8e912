"""Rollouts with a small velocity network: exactness, sharing, windows, and what the policy gradient rests on."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from wr1_jax.config import NoiseWarpConfig, ObjectiveConfig, SamplingConfig
from wr1_jax.objective.policy_gradient import microbatches, policy_gradient
from wr1_jax.sampling import sde, solvers
from wr1_jax.sampling.guidance import guided
from wr1_jax.sampling.injection import Injection, injection_weights
from wr1_jax.sampling.rollout import rollout
from wr1_jax.sampling.schedule import Schedule
from wr1_jax.sampling.sde import Policy

LATENT = (2, 3, 4, 2)
PROMPTS, GROUP = 2, 4
PARAMS = {"scale": jnp.float32(0.8), "text": jnp.float32(0.3), "wave": jnp.float32(0.5)}


def model(params):
  """A network with the transformer's signature."""

  def velocity(x, timestep, text):
    time = timestep.reshape(-1, 1, 1, 1, 1) / 1000
    mixed = params["scale"] * x + params["wave"] * jnp.sin(2 * jnp.roll(x, 1, axis=2) + time)
    return mixed + params["text"] * text.mean((1, 2)).reshape(-1, 1, 1, 1, 1)

  return velocity


def network(params):
  return guided(model(params), 2.0)


@functools.cache
def make_policy(**options):
  return Policy.make(Schedule.make(8, 3.0), SamplingConfig(**options))


def inputs(prompts=PROMPTS, group=GROUP, seed=0):
  keys = jax.random.split(jax.random.key(seed), 4)
  start = jax.random.normal(keys[0], (prompts, *LATENT))
  text = jax.random.normal(keys[1], (prompts, 3, 5))
  negative = jax.random.normal(keys[2], (1, 3, 5))
  return start, text, negative, jax.random.split(keys[3], prompts * group)


def make_injection(start, strength=0.4):
  delta = jax.random.normal(jax.random.key(9), start.shape)
  return Injection(delta, jnp.asarray(injection_weights(8, NoiseWarpConfig(strength=strength, delta_steps=0.5))))


@functools.cache
def sampler(policy, *, window=2):
  """`(start, text, negative, keys, window_start, injection) -> Rollout`, compiled."""
  return jax.jit(
    lambda start, text, negative, keys, window_start, injection=None: rollout(
      network(PARAMS), policy, start, text, negative, keys, window_start, window=window, injection=injection
    )
  )


def repeated(tree, times=GROUP):
  """Arrays, or an injection's delta, with every sample `times` times in a row."""
  if isinstance(tree, Injection):
    return tree._replace(delta=repeated(tree.delta, times))
  return jnp.repeat(tree, times, axis=0)


def ode(start, text, negative, policy, injection=None):
  return jax.jit(
    lambda x: solvers.euler(
      lambda x, t: network(PARAMS)(x, t, text, negative), policy.schedule, x, after_step=injection or solvers.unchanged
    )
  )(start)


@pytest.mark.parametrize(
  "silent, inject", [(dict(noise="sqrt", sqrt_scale=0.0), False), (dict(noise="cps", cps_eta=0.0), True)]
)
def test_no_noise_is_exactly_the_ode(silent, inject):
  policy = make_policy(**silent)
  start, text, negative, keys = inputs()
  injection = make_injection(start) if inject else None
  sample = sampler(policy)
  expected = repeated(ode(start, text, negative, policy, injection))
  for window_start in (0, 3, 6):
    out = sample(start, text, negative, keys, window_start, injection)
    np.testing.assert_array_equal(out.latents, expected)


def test_only_the_window_is_random():
  """Before it a group's samples agree; after it they follow the ODE from where it left them."""
  policy = make_policy()
  start, text, negative, keys = inputs()
  out = sampler(policy)(start, text, negative, keys, 3)
  assert out.steps.tolist() == [3, 4]
  velocity = lambda x, t: network(PARAMS)(x, t, text, negative)
  prefix = solvers.euler(velocity, policy.schedule, start, stop=3)
  np.testing.assert_allclose(out.states[0], repeated(prefix), rtol=1e-6, atol=1e-6)
  np.testing.assert_array_equal(out.states[1], out.actions[0])
  velocity = lambda x, t: network(PARAMS)(x, t, repeated(text), negative)
  suffix = solvers.euler(velocity, policy.schedule, out.actions[1], start=5)
  np.testing.assert_allclose(out.latents, suffix, rtol=1e-6, atol=1e-6)
  # The noise is standard, and fresh for every sample and step.
  mean = [policy.mean(x, velocity(x, policy.schedule.timestep(i, 8)), i) for x, i in zip(out.states, out.steps)]
  noise = np.stack([(a - m) / policy.std[i] for a, m, i in zip(out.actions, mean, out.steps)]).reshape(16, -1)
  assert abs(noise.mean()) < 0.15 and abs(noise.std() - 1) < 0.1
  assert np.abs(np.corrcoef(noise) - np.eye(16)).max() < 0.6


def test_log_prob_is_that_of_the_stored_action():
  policy = make_policy()
  start, text, negative, keys = inputs()
  out = sampler(policy, window=3)(start, text, negative, keys, 1, make_injection(start))
  for k, step in enumerate(out.steps):
    v = network(PARAMS)(out.states[k], policy.schedule.timestep(step, 8), repeated(text), negative)
    expected = sde.log_prob(out.actions[k], policy.mean(out.states[k], v, step), policy.std_at(step))
    np.testing.assert_allclose(out.log_prob[k], expected, rtol=1e-5)


def test_injection_is_in_the_next_state_and_not_in_the_action():
  policy = make_policy()
  start, text, negative, keys = inputs()
  injection = make_injection(start)
  out = sampler(policy)(start, text, negative, keys, 1, injection)
  assert np.abs(out.states[1] - out.actions[0]).max() > 0.01
  np.testing.assert_allclose(out.states[1], repeated(injection)(out.actions[0], 1), rtol=1e-6, atol=1e-6)


def test_a_shared_prefix_changes_nothing():
  policy = make_policy()
  start, text, negative, keys = inputs()
  injection = make_injection(start)
  sample = sampler(policy)
  shared = sample(start, text, negative, keys, 4, injection)
  apart = sample(repeated(start), text, negative, keys, 4, repeated(injection))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), shared, apart)


def test_starts_may_differ_within_a_group():
  policy = make_policy()
  start, text, negative, keys = inputs()
  each = jax.random.normal(jax.random.key(3), (PROMPTS * GROUP, *LATENT))
  out = sampler(policy, window=1)(each, text, negative, keys, 0)
  np.testing.assert_array_equal(out.states[0], each)


def test_a_delta_for_other_samples_than_the_starts_is_refused():
  start, text, negative, keys = inputs()
  injection = repeated(make_injection(start))
  with pytest.raises(ValueError, match="delta"):
    rollout(network(PARAMS), make_policy(), start, text, negative, keys, 0, window=1, injection=injection)


def test_a_sample_does_not_depend_on_the_others():
  """Its noise comes from its own key and the step alone."""
  policy = make_policy()
  start, text, negative, keys = inputs()
  together = sampler(policy)(start, text, negative, keys, 2).latents
  second = sampler(policy)(start[1:], text[1:], negative, keys[GROUP:], 2).latents
  np.testing.assert_allclose(second, together[GROUP:], rtol=1e-6, atol=1e-6)


def test_windows_at_different_places_share_one_program():
  traces = []

  def counted(x, timestep, text):
    traces.append(x.shape)
    return model(PARAMS)(x, timestep, text)

  policy = make_policy()
  start, text, negative, keys = inputs()
  sample = jax.jit(lambda i: rollout(guided(counted, 2.0), policy, start, text, negative, keys, i, window=2))
  sample(0)
  count = len(traces)
  # Before the window once a prompt, in it and after it once a sample.
  assert [shape[0] for shape in traces] == [PROMPTS, PROMPTS * GROUP, PROMPTS * GROUP]
  results = [sample(i).latents for i in range(7)]
  assert len(traces) == count and sample._cache_size() == 1
  assert all(np.isfinite(r).all() for r in results)
  assert np.abs(results[0] - results[6]).max() > 0.1


@pytest.mark.parametrize("form", ["linear", "cps"])
def test_ratio_is_one_before_the_first_update(form):
  policy = make_policy(noise=form)
  start, text, negative, keys = inputs()
  out = [sampler(policy)(start, text, negative, keys, i, make_injection(start)) for i in (1, 4)]
  rollouts = jax.tree.map(lambda *x: jnp.stack(x), *out)

  @jax.jit
  def update(rollouts):
    steps = microbatches(rollouts, jnp.ones((2, 8)), jnp.ones((2, 8)), prompts_per_rollout=PROMPTS, size=2)
    return policy_gradient(
      network,
      network(PARAMS),
      PARAMS,
      steps,
      jnp.concatenate([text, text]),
      negative,
      policy=policy,
      step_weights=policy.step_weights(range(7)),
      config=ObjectiveConfig(),
    )

  gradient, terms = update(rollouts)
  np.testing.assert_allclose(terms.ratio_mean, 1, atol=2e-6)
  assert terms.clip_fraction == 0 and terms.kl < 1e-9
  assert any(abs(g) > 1e-3 for g in gradient.values())


@pytest.mark.parametrize("form", ["linear", "sqrt", "cps"])
def test_expected_gradient_of_log_prob_is_zero(form):
  """E[grad log p] = 0 over rollout noise, if actions and densities belong together.

  The same check on the latents after an injection, which are not actions, must fail: so it can.
  """
  samples, policy = 4096, make_policy(noise=form)
  start, text, negative, _ = inputs(prompts=1)
  keys = jax.random.split(jax.random.key(11), samples)
  injection = make_injection(start, strength=2.0)

  @jax.jit
  def z_scores(window_start):
    out = rollout(network(PARAMS), policy, start, text, negative, keys, window_start, window=2, injection=injection)

    def log_prob(params, state, action, step):
      v = network(params)(state[None], policy.schedule.timestep(step, 1), text, negative)
      return sde.log_prob(action[None], policy.mean(state[None], v, step), policy.std_at(step))[0]

    def score(actions):
      over_samples = jax.vmap(jax.grad(log_prob), (None, 0, 0, None))
      gradient = jax.vmap(over_samples, (None, 0, 0, 0))(PARAMS, out.states, actions, out.steps)
      gradient = jnp.stack(jax.tree.leaves(gradient))
      return gradient.mean(-1) / (gradient.std(-1) / jnp.sqrt(samples))

    injected = jax.vmap(repeated(injection, samples))(out.actions, out.steps)
    return score(out.actions), score(injected)

  right, wrong = np.stack([z_scores(window_start) for window_start in (0, 2)], axis=1)
  assert np.abs(right).max() < 4
  assert np.abs(wrong).max() > 10


def iteration(start, text, negative, keys, shard):
  """A rollout and the gradient that follows from it."""
  policy = make_policy()
  out = rollout(
    network(PARAMS), policy, start, text, negative, keys, 2, window=2, injection=make_injection(start), shard=shard
  )
  advantage, weight = jax.random.normal(jax.random.key(1), (1, 16)), jnp.ones((1, 16)).at[0, 3].set(0)
  steps = microbatches(jax.tree.map(lambda x: x[None], out), advantage, weight, prompts_per_rollout=2, size=8)
  reference = network({**PARAMS, "wave": jnp.float32(0.4)})
  gradient, terms = policy_gradient(
    network,
    reference,
    PARAMS,
    steps,
    text,
    negative,
    policy=policy,
    step_weights=policy.step_weights(range(7)),
    config=ObjectiveConfig(),
    shard=shard,
  )
  return out, gradient, terms


def test_samples_loss_and_gradient_do_not_depend_on_the_mesh():
  arguments = inputs(prompts=2, group=8)
  alone = jax.jit(lambda *a: iteration(*a, lambda x: x))(*arguments)
  mesh = Mesh(np.array(jax.devices()[:8]).reshape(2, 4), ("data", "fsdp"))
  batch, whole = NamedSharding(mesh, P(("data", "fsdp"))), NamedSharding(mesh, P())
  shard = lambda x: jax.lax.with_sharding_constraint(x, batch if x.shape[0] % 8 == 0 else whole)
  spread = jax.jit(lambda *a: iteration(*a, shard), in_shardings=(whole, whole, whole, batch))(*arguments)
  assert not spread[0].latents.sharding.is_fully_replicated
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), jax.device_get(spread), alone)
