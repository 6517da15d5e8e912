"""Flow-GRPO's loss: a clipped policy gradient on stored stochastic steps, with a KL to the reference policy."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from wr1_jax.config import ObjectiveConfig
from wr1_jax.sampling import sde
from wr1_jax.sampling.guidance import GuidedModel

_MAX_LOG_RATIO = 20.0  # exp of more could overflow


class StoredSteps(NamedTuple):
  """N stochastic steps of rollouts, from any prompts and samples.

  Attributes:
    state: what the network saw.
    action: what the policy answered.
    step: index in the sampling grid.
    log_prob: of the action when it was taken.
    advantage: of the step's sample.
    weight: 1, or 0 for a step that takes no part; then its other numbers may be anything, NaN included.
    prompt: row of the step's prompt in the table of text embeddings.
  """

  state: Float[Array, "N T H W C"]
  action: Float[Array, "N T H W C"]
  step: Int32[Array, "N"]
  log_prob: Float[Array, "N"]
  advantage: Float[Array, "N"]
  weight: Float[Array, "N"]
  prompt: Int32[Array, "N"]


class LossTerms(NamedTuple):
  """Weighted means over steps, or a microbatch's share of them: shares add up to the mean."""

  loss: Float[Array, ""]
  ratio_mean: Float[Array, ""]  # new over old probability
  clip_fraction: Float[Array, ""]  # of ratios outside of 1 +- clip_range
  kl: Float[Array, ""]  # NaN if kl_weight is 0: it is not computed then
  advantage_abs: Float[Array, ""]


def policy_loss(
  velocity: GuidedModel,
  reference: GuidedModel | None,
  steps: StoredSteps,
  text: Float[Array, "P L D"],
  negative: Float[Array, "1 L D"] | None,
  total_weight: Float[Array, ""],
  *,
  policy: sde.Policy,
  step_weights: Float32[Array, "S"],
  config: ObjectiveConfig,
) -> LossTerms:
  """The share of `steps` in the mean loss of a batch whose weights add up to `total_weight`.

  Per step, with log-probabilities averaged over elements and A the advantage:

      ratio = exp(clip(log p_new - log p_old, -20, 20))
      loss = step_weight max(-A ratio, -A clip(ratio, 1 - c, 1 + c)) + kl_weight mean((mean - mean_ref)^2) / (2 std^2)

  As in Flash-GRPO's code, the step weight scales the policy term and not the KL.

  Args:
    velocity: the policy's guided network, differentiated through.
    reference: the reference's; None skips the KL and is allowed only if `config.kl_weight` is 0.
    steps: a microbatch.
    text: embeddings of all prompts.
    negative: embedding of the negative prompt; None without guidance.
    total_weight: sum of `steps.weight` over all microbatches; 0 is fine and gives loss 0.
    policy: the one that the rollouts used.
    step_weights: `policy.step_weights(...)`, or ones.
    config: clip range and KL weight.
  """
  if config.kl_weight and reference is None:
    raise ValueError(f"kl_weight = {config.kl_weight} needs a reference policy")
  steps = _without_excluded(steps)
  timestep = policy.schedule.timestep(steps.step, len(steps.step))
  step_text = text[steps.prompt]
  share = steps.weight / jnp.maximum(total_weight, 1e-8)

  v = velocity(steps.state, timestep, step_text, negative)
  new_log_prob = sde.log_prob(steps.action, policy.mean(steps.state, v, steps.step), policy.std_at(steps.step))
  ratio = jnp.exp(jnp.clip(new_log_prob - steps.log_prob, -_MAX_LOG_RATIO, _MAX_LOG_RATIO))
  clipped = jnp.clip(ratio, 1 - config.clip_range, 1 + config.clip_range)
  losses = jnp.asarray(step_weights)[steps.step] * jnp.maximum(-steps.advantage * ratio, -steps.advantage * clipped)

  kl = jnp.full_like(losses, jnp.nan)
  if config.kl_weight:
    v_reference = jax.lax.stop_gradient(reference(steps.state, timestep, step_text, negative))
    # Both policies have the same std, and means that differ by velocity_weight (v - v_reference).
    velocity_scale = jnp.asarray(policy.velocity_scale())[steps.step]
    kl = jnp.mean(jnp.square(v - v_reference), axis=(1, 2, 3, 4)) / (2 * jnp.square(velocity_scale))
    losses = losses + config.kl_weight * kl

  return LossTerms(
    loss=jnp.sum(share * losses),
    ratio_mean=jnp.sum(share * ratio),
    clip_fraction=jnp.sum(share * (jnp.abs(ratio - 1) > config.clip_range)),
    kl=jnp.sum(share * kl),
    advantage_abs=jnp.sum(share * jnp.abs(steps.advantage)),
  )


def _without_excluded(steps: StoredSteps) -> StoredSteps:
  """Steps of weight 0 with zeros in place of their numbers: 0 times NaN would be NaN, in the gradient too."""

  def clean(x: Float[Array, "N ..."]) -> Float[Array, "N ..."]:
    return jnp.where(steps.weight.reshape(-1, *[1] * (x.ndim - 1)) > 0, x, 0)

  return steps._replace(
    state=clean(steps.state),
    action=clean(steps.action),
    log_prob=clean(steps.log_prob),
    advantage=clean(steps.advantage),
  )
