"""The optimiser step and the running average."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wr1_jax.config import OptimizerConfig, TrainConfig
from wr1_jax.training import phases, state

_WEIGHTS = {"a": jnp.array([1.0, -2.0]), "b": jnp.ones((2, 2))}


def _step(current, gradients, contributes=True, config=OptimizerConfig()):
  optimizer = state.make_optimizer(config)
  return jax.jit(lambda s, g, c: state.apply_gradients(s, g, c, optimizer, config))(current, gradients, contributes)


def test_step_is_clipped_adamw():
  torch = pytest.importorskip("torch")
  config = OptimizerConfig(learning_rate=0.1, weight_decay=0.2, max_grad_norm=0.5)
  current = state.init(_WEIGHTS, state.make_optimizer(config))
  theirs = {name: torch.nn.Parameter(torch.tensor(np.asarray(value))) for name, value in _WEIGHTS.items()}
  optimizer = torch.optim.AdamW(theirs.values(), lr=0.1, weight_decay=0.2, betas=(0.9, 0.999))
  for scale in (3.0, -1.0, 0.01):
    gradients = jax.tree.map(lambda x: scale * (x + 0.3), _WEIGHTS)
    current = _step(current, gradients, config=config)
    for name, parameter in theirs.items():
      parameter.grad = torch.tensor(np.asarray(gradients[name]))
    torch.nn.utils.clip_grad_norm_(theirs.values(), 0.5)
    optimizer.step()
  for name, parameter in theirs.items():
    np.testing.assert_allclose(current.lora[name], parameter.detach().numpy(), rtol=1e-5)


def test_a_step_without_contributions_changes_nothing():
  current = state.init(_WEIGHTS, state.make_optimizer(OptimizerConfig()))
  for _ in range(7):
    current = _step(current, _WEIGHTS)
  nothing = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), _WEIGHTS)
  after = _step(current, nothing, contributes=False)
  jax.tree.map(np.testing.assert_array_equal, after, current)


def test_average_moves_every_eight_updates_with_a_warm_up():
  config = OptimizerConfig(learning_rate=0.1)
  current = state.init(_WEIGHTS, state.make_optimizer(config))
  for update in range(1, 17):
    before = current.ema
    current = _step(current, _WEIGHTS, config=config)
    if update % 8:
      np.testing.assert_array_equal(current.ema["a"], before["a"])
    else:
      decay = min(0.9, (1 + update) / (10 + update))
      np.testing.assert_allclose(current.ema["a"], decay * before["a"] + (1 - decay) * current.lora["a"], rtol=1e-6)


def test_phases_alternate_and_count_their_own_iterations():
  config = TrainConfig(main_iterations=3, dynamic_iterations=2)
  places = [phases.place(i, config) for i in range(10)]
  assert "".join(p.phase[0] for p in places) == "mmmddmmmdd"
  assert [p.earlier for p in places] == [0, 1, 2, 0, 1, 3, 4, 5, 2, 3]
  assert all(phases.place(i, TrainConfig(main_iterations=3, dynamic_iterations=0)).phase == "main" for i in range(9))
