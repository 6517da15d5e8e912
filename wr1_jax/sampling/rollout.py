"""Rollouts: videos from the current policy, with what its update needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import einops
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int32, Key

from wr1_jax import randomness
from wr1_jax.sampling import sde, solvers
from wr1_jax.sampling.guidance import GuidedModel
from wr1_jax.sampling.injection import Injection


class Rollout(NamedTuple):
  """B finished samples, and their K stochastic steps in order.

  Attributes:
    states: what the network saw at each stochastic step, float32.
    actions: what the policy answered, before any injection, float32.
    steps: the index of each stochastic step in the grid.
    log_prob: of the actions under the policy that took them.
    latents: the samples at sigma 0, float32.
  """

  states: Float[Array, "K B T H W C"]
  actions: Float[Array, "K B T H W C"]
  steps: Int32[Array, "K"]
  log_prob: Float[Array, "K B"]
  latents: Float[Array, "B T H W C"]


def rollout(
  velocity: GuidedModel,
  policy: sde.Policy,
  start: Float[Array, "N T H W C"],
  text: Float[Array, "P L D"],
  negative: Float[Array, "1 L D"] | None,
  sample_keys: Key[Array, "B"],
  window_start: Int[Array, ""],
  *,
  window: int,
  injection: Injection | None = None,
  shard: Callable[[Array], Array] = lambda x: x,
) -> Rollout:
  """Samples B = P * G videos, G for each of P prompts; samples of a prompt are consecutive.

  All steps are Euler steps of the ODE but for those of the window. Where the samples of a prompt start from the same
  latents they only part in the window, so the steps before it are taken once for each prompt.

  Meant to be traced into one `jax.jit`: `window_start` may be traced, so that windows at different places share one
  program. The network is traced three times (before, in and after the window).

  Args:
    velocity: the guided network.
    policy: the steps and their noise.
    start: float32 latents at `sigmas[0]`: P of them, one for all samples of a prompt, or B.
    text: embeddings of the prompts.
    negative: embedding of the negative prompt; None without guidance.
    sample_keys: one for each sample; the noise of step i comes from `fold_in(key, i)`, so it depends on nothing else.
    window_start: index of the first stochastic step.
    window: K, how many there are.
    injection: added after every step, for as many samples as `start`; None for no injection.
    shard: applied to each array [N, ...] of samples on its way: the place for a sharding constraint.
  """
  group_size, rest = divmod(len(sample_keys), len(text))
  if rest or len(start) not in (len(text), len(sample_keys)):
    raise ValueError(f"{len(start)} start latents do not go with {len(text)} prompts and {len(sample_keys)} samples")
  if injection is not None and injection.delta.shape != start.shape:
    raise ValueError(f"the delta has shape {injection.delta.shape}, the start latents {start.shape}")
  shared = len(start) < len(sample_keys)
  texts = shard(_repeat(text, group_size))

  # Before the window.
  x = solvers.euler(
    _conditioned(velocity, text if shared else texts, negative),
    policy.schedule,
    shard(start),
    stop=window_start,
    after_step=injection or solvers.unchanged,
  )
  if shared:
    x = shard(_repeat(x, group_size))
    injection = injection and injection._replace(delta=shard(_repeat(injection.delta, group_size)))

  # In it.
  conditioned = _conditioned(velocity, texts, negative)
  after_step = injection or solvers.unchanged

  def stochastic_step(x: Float[Array, "B T H W C"], step: Int[Array, ""]) -> tuple[Array, tuple[Array, ...]]:
    mean = policy.mean(x, conditioned(x, policy.schedule.timestep(step, len(x))), step)
    action = mean + policy.std_at(step) * shard(_noise(sample_keys, step, x.shape[1:]))
    log_prob = sde.log_prob(action, mean, policy.std_at(step))
    return after_step(action, step), (x, action, log_prob)

  steps = window_start + jnp.arange(window, dtype=jnp.int32)
  x, (states, actions, log_prob) = jax.lax.scan(stochastic_step, x, steps)

  # After it.
  latents = solvers.euler(conditioned, policy.schedule, x, start=window_start + window, after_step=after_step)
  return Rollout(states, actions, steps, log_prob, latents)


def _conditioned(
  velocity: GuidedModel, text: Float[Array, "B L D"], negative: Float[Array, "1 L D"] | None
) -> solvers.Velocity:
  """The network for fixed prompts."""
  return lambda x, timestep: velocity(x, timestep, text, negative)


def _repeat(x: Float[Array, "P ..."], times: int) -> Float[Array, "B ..."]:
  """Every entry `times` times in a row."""
  return einops.repeat(x, "p ... -> (p times) ...", times=times)


def _noise(keys: Key[Array, "B"], step: Int[Array, ""], shape: tuple[int, ...]) -> Float[Array, "B ..."]:
  """Each sample's standard normal noise of a step."""
  return jax.vmap(lambda key: jax.random.normal(randomness.at(key, step), shape))(keys)
