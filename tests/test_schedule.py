"""The sigma grid, against diffusers'."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from wr1_jax.errors import UserError
from wr1_jax.sampling.schedule import Schedule


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 8.5])
@pytest.mark.parametrize("steps", [1, 2, 8, 20, 50, 100])
def test_grid_is_that_of_diffusers(steps, shift):
  diffusers = pytest.importorskip("diffusers")
  theirs = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
  theirs.set_timesteps(steps)
  ours = Schedule.make(steps, shift)
  np.testing.assert_allclose(ours.sigmas, theirs.sigmas.numpy(), rtol=0, atol=1e-6)
  np.testing.assert_array_equal(ours.timesteps, theirs.timesteps.numpy())
  assert ours.sigmas[-1] == 0 and ours.sigmas[0] < 1 and ours.steps == steps


def test_known_timesteps():
  assert Schedule.make(20, 3.0).timesteps[:10].tolist() == [999, 982, 964, 944, 923, 900, 875, 848, 818, 786]


def test_timestep_of_one_or_of_each_sample():
  schedule = Schedule.make(20, 3.0)
  np.testing.assert_array_equal(schedule.timestep(1, 3), [982.0] * 3)
  each = schedule.timestep(jnp.array([0, 2]), 2)
  np.testing.assert_array_equal(each, [999.0, 964.0])
  assert each.dtype == jnp.float32


@pytest.mark.parametrize("steps, shift, key", [(0, 3.0, "steps"), (20, 0.0, "shift"), (20, -1.0, "shift")])
def test_impossible_grids_are_refused(steps, shift, key):
  with pytest.raises(UserError, match=f"sampling.{key}"):
    Schedule.make(steps, shift)
