"""The gradient of the policy loss over all rollouts of an iteration, a microbatch at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import einops
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from wr1_jax.config import ObjectiveConfig
from wr1_jax.objective.policy_loss import LossTerms, StoredSteps, policy_loss
from wr1_jax.sampling import sde
from wr1_jax.sampling.guidance import GuidedModel
from wr1_jax.sampling.rollout import Rollout

Params = TypeVar("Params")


def microbatches(
  rollouts: Rollout,
  advantage: Float[Array, "R B"],
  weight: Float[Array, "R B"],
  *,
  prompts_per_rollout: int,
  size: int,
) -> StoredSteps:
  """All stochastic steps of R rollouts as M = R * K * B / size microbatches: each leaf is [M, size, ...].

  A microbatch takes every (B / size)-th sample of one rollout. With a rollout's samples laid out over n devices, n
  dividing `size`, each device so works on its own samples and none are moved.

  Args:
    rollouts: stacked, each leaf [R, ...] (`jax.tree.map(lambda *x: jnp.stack(x), *list_of_rollouts)`).
    advantage: of each sample.
    weight: of each sample, 1 or 0.
    prompts_per_rollout: row r * this + p of the text table belongs to prompt p of rollout r.
    size: steps in a microbatch; divides B.
  """
  count, window, batch = rollouts.log_prob.shape
  spread = lambda x: jnp.broadcast_to(x[:, None], (count, window, batch))
  group_size = batch // prompts_per_rollout
  prompt = jnp.arange(count)[:, None] * prompts_per_rollout + jnp.arange(batch)[None] // group_size
  steps = StoredSteps(
    state=rollouts.states,
    action=rollouts.actions,
    step=jnp.broadcast_to(rollouts.steps[:, :, None], (count, window, batch)),
    log_prob=rollouts.log_prob,
    advantage=spread(advantage),
    weight=spread(weight),
    prompt=spread(prompt),
  )
  return jax.tree.map(lambda x: einops.rearrange(x, "r k (n m) ... -> (r k m) n ...", n=size), steps)


def policy_gradient(
  velocity: Callable[[Params], GuidedModel],
  reference: GuidedModel | None,
  params: Params,
  steps: StoredSteps,
  text: Float[Array, "P L D"],
  negative: Float[Array, "1 L D"] | None,
  *,
  policy: sde.Policy,
  step_weights: Float32[Array, "S"],
  config: ObjectiveConfig,
  shard: Callable[[Array], Array] = lambda x: x,
) -> tuple[Params, LossTerms]:
  """Gradient and terms of the loss, averaged over all steps of weight 1; see `policy_loss`.

  One traced copy of the forward and backward pass, scanned over microbatches. If no step has weight 1, the gradient
  is 0.

  Args:
    velocity: from trained parameters to the guided network.
    reference: the guided reference network; None if `config.kl_weight` is 0.
    params: the trained parameters, float32.
    steps: from `microbatches`, each leaf [M, N, ...].
    text: embeddings of all prompts.
    negative: embedding of the negative prompt; None without guidance.
    policy: the one that the rollouts used.
    step_weights: `policy.step_weights(...)`, or ones.
    config: the objective.
    shard: applied to each array [N, ...] of a microbatch: the place for a sharding constraint.
  """
  total_weight = steps.weight.sum()

  def loss(params: Params, microbatch: StoredSteps) -> tuple[Float[Array, ""], LossTerms]:
    terms = policy_loss(
      velocity(params),
      reference,
      microbatch,
      text,
      negative,
      total_weight,
      policy=policy,
      step_weights=step_weights,
      config=config,
    )
    return terms.loss, terms

  def add(total: tuple[Params, LossTerms], microbatch: StoredSteps) -> tuple[tuple[Params, LossTerms], None]:
    share = jax.grad(loss, has_aux=True)(params, jax.tree.map(shard, microbatch))
    return jax.tree.map(jnp.add, total, share), None

  zero = (jax.tree.map(jnp.zeros_like, params), LossTerms(*[jnp.zeros(())] * len(LossTerms._fields)))
  return jax.lax.scan(add, zero, steps)[0]
