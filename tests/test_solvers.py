"""Euler and UniPC, against diffusers' schedulers, on a velocity field that is not linear."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wr1_jax.config import NoiseWarpConfig
from wr1_jax.sampling import solvers
from wr1_jax.sampling.guidance import guided
from wr1_jax.sampling.injection import Injection, injection_weights
from wr1_jax.sampling.schedule import Schedule

SHAPE = (2, 3, 4, 5, 2)


def field(module, x, timestep):
  """The same velocity field for jax and for torch."""
  time = timestep.reshape(-1, 1, 1, 1, 1) / 1000
  return 0.7 * x - module.sin(1.7 * x + 2 * time) + 0.4 * time * module.tanh(2 * x)


def start():
  return np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)


def diffusers_loop(scheduler, steps):
  torch = pytest.importorskip("torch")
  scheduler.set_timesteps(steps)
  x = torch.from_numpy(start())
  for timestep in scheduler.timesteps:
    x = scheduler.step(field(torch, x, timestep.expand(len(x))), timestep, x, return_dict=False)[0]
  return x.numpy()


@pytest.mark.parametrize("steps, shift", [(1, 3.0), (2, 3.0), (3, 5.0), (8, 3.0), (20, 3.0), (20, 5.0), (50, 3.0)])
def test_unipc_is_that_of_diffusers(steps, shift):
  diffusers = pytest.importorskip("diffusers")
  theirs = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
  expected = diffusers_loop(theirs, steps)
  got = solvers.unipc(lambda x, t: field(jnp, x, t), Schedule.make(steps, shift), jnp.asarray(start()))
  np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("steps", [1, 8, 20])
def test_euler_is_that_of_diffusers(steps):
  diffusers = pytest.importorskip("diffusers")
  torch = pytest.importorskip("torch")
  schedule = Schedule.make(steps, 3.0)

  class Euler(diffusers.FlowMatchEulerDiscreteScheduler):
    def set_timesteps(self, count):
      del count
      self.sigmas = torch.from_numpy(schedule.sigmas)
      self.timesteps = torch.from_numpy(schedule.timesteps).float()

  got = solvers.euler(lambda x, t: field(jnp, x, t), schedule, jnp.asarray(start()))
  np.testing.assert_allclose(got, diffusers_loop(Euler(), steps), rtol=0, atol=1e-5)


@pytest.mark.parametrize("solver, order", [(solvers.euler, 1), (solvers.unipc, 2)])
def test_order_of_convergence(solver, order):
  """Towards the exact solution for Gaussian data, x = m + sqrt(variance(sigma)) z."""
  deviation = 0.5

  def solve(steps):
    schedule = Schedule.make(steps, 1.0)

    def velocity(x, timestep):
      # Sigma itself: the whole timestep is too coarse for this comparison.
      sigma = jnp.asarray(schedule.sigmas)[jnp.argmax(jnp.asarray(schedule.timesteps) == timestep[0])]
      return x * (sigma - (1 - sigma) * deviation**2) / ((1 - sigma) ** 2 * deviation**2 + sigma**2)

    return float(solver(velocity, schedule, jnp.ones((1, 1, 1, 1, 1)))[0, 0, 0, 0, 0])

  coarse, fine = (abs(solve(steps) - deviation) for steps in (16, 64))
  assert fine < coarse / 4**order * 1.8


def test_a_range_of_steps_may_be_traced_and_composes():
  schedule = Schedule.make(8, 3.0)
  traces = []

  def velocity(x, timestep):
    traces.append(1)
    return field(jnp, x, timestep)

  part = jax.jit(lambda x, a, b: solvers.euler(velocity, schedule, x, start=a, stop=b))
  whole = jax.jit(lambda x: solvers.euler(lambda x, t: field(jnp, x, t), schedule, x))(start())
  first = part(start(), 0, 3)
  count = len(traces)
  np.testing.assert_array_equal(part(first, 3, 8), whole)
  np.testing.assert_array_equal(part(part(start(), 0, 7), 7, 8), whole)
  np.testing.assert_array_equal(part(first, 3, 3), first)
  assert len(traces) == count


def test_unipc_traces_the_network_once_and_compiles_once():
  traces = []

  def velocity(x, timestep):
    traces.append(1)
    return field(jnp, x, timestep)

  sample = jax.jit(lambda x: solvers.unipc(velocity, Schedule.make(50, 3.0), x))
  sample(start())
  sample(start() + 1)
  assert len(traces) == 1


def test_unipc_keeps_what_is_injected():
  """A push after step 0 of a motionless flow: the corrector may bend it a little but not undo it."""
  schedule = Schedule.make(8, 3.0)
  push = lambda x, step: jnp.where(step == 0, x + 1, x)
  still = lambda x, timestep: jnp.zeros_like(x)
  for solver in (solvers.euler, solvers.unipc):
    moved = solver(still, schedule, jnp.asarray(start()), after_step=push)
    np.testing.assert_allclose(moved, start() + 1, atol=0.05)


def test_injection_restores_mean_and_std_and_ends():
  weights = injection_weights(20, NoiseWarpConfig(strength=0.35))
  np.testing.assert_allclose(weights[:4], 0.35 * np.array([1, 0.55, 0.1, 0]) / 1.65, rtol=1e-6)
  assert injection_weights(50, NoiseWarpConfig()).nonzero()[0].tolist() == list(range(8))
  assert injection_weights(2, NoiseWarpConfig(strength=0.4)).tolist() == pytest.approx([0.4, 0])

  x = jnp.asarray(3 + 2 * start())
  delta = jax.random.normal(jax.random.key(0), SHAPE)
  injection = Injection(delta, weights)
  moved = injection(x, 0)
  axes = (1, 2, 3, 4)
  np.testing.assert_allclose(moved.mean(axes), x.mean(axes), rtol=1e-5)
  np.testing.assert_allclose(moved.std(axes), x.std(axes), rtol=1e-5)
  np.testing.assert_array_equal(injection(x, 3), x)
  # The direction is the delta's: what was added, up to the restoring of mean and std.
  added = np.asarray(moved - x)
  assert all(np.corrcoef(a.ravel(), d.ravel())[0, 1] > 0.95 for a, d in zip(added, np.asarray(delta), strict=True))


def test_guidance():
  per_sample = lambda values: values.reshape(-1, 1, 1, 1, 1)
  model = lambda x, timestep, text: x * per_sample(text.mean(axis=(1, 2))) + per_sample(timestep)
  x, timestep = jnp.asarray(start()), jnp.array([1.0, 2.0])
  text, negative = jnp.stack([jnp.full((3, 4), 2.0), jnp.full((3, 4), 3.0)]), jnp.full((1, 3, 4), -1.0)
  each = per_sample(jnp.array([2.0, 3.0]))
  np.testing.assert_allclose(
    guided(model, 5.0)(x, timestep, text, negative),
    -x + 5 * (each * x + x) + per_sample(timestep),
    rtol=1e-4,
    atol=1e-4,
  )
  np.testing.assert_array_equal(guided(model, 1.0)(x, timestep, text, None), model(x, timestep, text))
