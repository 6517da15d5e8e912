"""What training changes: the adapters, the optimiser's moments and the running average."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int, PyTree

from wr1_jax.config import OptimizerConfig


class TrainState(NamedTuple):
  """All of a checkpoint. Weights and moments are float32."""

  lora: PyTree
  optimizer: Any  # optax state of the same structure
  ema: PyTree
  updates: Int[Array, ""]  # optimiser steps done


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
  """AdamW behind a global-norm clip."""
  return optax.chain(
    optax.clip_by_global_norm(config.max_grad_norm),
    optax.adamw(config.learning_rate, b1=config.beta1, b2=config.beta2, weight_decay=config.weight_decay),
  )


def init(lora: PyTree, optimizer: optax.GradientTransformation) -> TrainState:
  """The state before the first update: the average starts as a copy of the adapters."""
  return TrainState(lora, optimizer.init(lora), jax.tree.map(jnp.copy, lora), jnp.zeros((), jnp.int32))


def apply_gradients(
  state: TrainState,
  gradients: PyTree,
  contributes: Bool[Array, ""],
  optimizer: optax.GradientTransformation,
  config: OptimizerConfig,
) -> TrainState:
  """One optimiser step, and every `ema_every` of them one step of the running average.

  Where no sample contributed (`contributes` is False) nothing changes: neither the moments, nor the count, nor the
  average move on a gradient that means nothing.
  """
  steps, moments = optimizer.update(gradients, state.optimizer, state.lora)
  lora = optax.apply_updates(state.lora, steps)
  updates = state.updates + 1
  decay = jnp.minimum(config.ema_decay, (1 + updates) / (10 + updates))  # Flow-GRPO's warm-up
  averaged = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state.ema, lora)
  ema = jax.tree.map(lambda old, new: jnp.where(updates % config.ema_every == 0, new, old), state.ema, averaged)
  changed = TrainState(lora, moments, ema, updates)
  return jax.tree.map(lambda old, new: jnp.where(contributes, new, old), state, changed)
