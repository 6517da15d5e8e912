"""Camera noise added during sampling, `stepwise_delta` of the World-R1 release."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from wr1_jax.config import NoiseWarpConfig

_PER_SAMPLE = (1, 2, 3, 4)  # axes of latents [B, T, H, W, C]


class Injection(NamedTuple):
  """An `AfterStep` that adds `weights[step] std(x) delta` to the latents and then restores their mean and std.

  The result is the next step's state. It is not the step's action: a log-probability is that of the latents before the
  injection.

  Attributes:
    delta: one for each sample, low-passed and of unit variance.
    weights: one for each sampling step, strength included; see `injection_weights`.
  """

  delta: Float[Array, "B T H W C"]
  weights: Float[Array, "S"]

  def __call__(self, x: Float[Array, "B T H W C"], step: Int[Array, ""]) -> Float[Array, "B T H W C"]:
    weight = jnp.asarray(self.weights)[step]
    mean = x.mean(_PER_SAMPLE, keepdims=True)
    std = x.std(_PER_SAMPLE, keepdims=True)
    moved = x + weight * std * self.delta
    moved_mean = moved.mean(_PER_SAMPLE, keepdims=True)
    moved_std = moved.std(_PER_SAMPLE, keepdims=True)
    restored = (moved - moved_mean) / (moved_std + 1e-6) * std + mean
    return jnp.where(weight > 0, restored, x)


def injection_weights(steps: int, config: NoiseWarpConfig) -> Float32[np.ndarray, "S"]:
  """`Injection.weights` for a grid of `steps`.

  They fall linearly from 1 to `delta_last_weight` over the first `delta_steps` of the grid (at least one step), are
  divided by their sum, and multiplied by `strength`; the steps after that get 0.
  """
  count = max(1, round(config.delta_steps * steps))
  falling = np.linspace(1, config.delta_last_weight, count)
  weights = np.zeros(steps, np.float32)
  weights[:count] = config.strength * falling / falling.sum()
  return weights
