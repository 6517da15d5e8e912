"""The stochastic policy: one sampling step as a Gaussian whose mean is linear in latents and velocity.

Flow-GRPO (Liu et al., 2025) turns the ODE of flow matching into an SDE with the same marginals. `s` is its noise scale:

  linear, sqrt:  mean = x [1 + s^2 dt / (2 sigma)] + v [1 + s^2 (1 - sigma) / (2 sigma)] dt,   std = s sqrt(|dt|)
  cps:           mean = (1 - sigma') (x - sigma v) + sqrt(sigma'^2 - s^2) (x + (1 - sigma) v),  std = s

`cps` (Coefficients-Preserving Sampling, Wang and Yu, 2025) gives the predicted data and noise the coefficients that the
next level asks for. That keeps the marginals where the predictions are exact; where the network can only predict a
mean, samples lose spread, however small the steps. All densities here are the true ones, of N(mean, std^2).
"""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Float64, Int

from wr1_jax.config import SamplingConfig
from wr1_jax.sampling.schedule import Schedule


@dataclasses.dataclass(frozen=True, eq=False)
class Policy:
  """Each step's Gaussian: `mean = x + velocity_weight v + drift x`, and `std`.

  Without noise, `drift` is exactly 0 and `velocity_weight` exactly dt: an Euler step.
  """

  schedule: Schedule
  drift: Float32[np.ndarray, "S"]
  velocity_weight: Float32[np.ndarray, "S"]
  std: Float32[np.ndarray, "S"]

  @classmethod
  def make(cls, schedule: Schedule, config: SamplingConfig) -> Policy:
    """The steps of `schedule` with the form and size of noise that `config` asks for."""
    sigma, sigma_next = (part.astype(np.float64) for part in (schedule.sigmas[:-1], schedule.sigmas[1:]))
    dt = schedule.dt.astype(np.float64)
    scale = noise_scale(schedule, config)
    if config.noise == "cps":
      drift = np.sqrt(sigma_next**2 - scale**2) - sigma_next
      velocity_weight = dt + (1 - sigma) * drift
      std = scale
    else:
      drift = scale**2 * dt / (2 * sigma)
      velocity_weight = dt + (1 - sigma) * drift
      std = scale * np.sqrt(-dt)
    return cls(schedule, *(part.astype(np.float32) for part in (drift, velocity_weight, std)))

  def mean(
    self,
    x: Float[Array, "B T H W C"],
    v: Float[Array, "B T H W C"],
    step: Int[Array, ""] | Int[Array, "B"],
  ) -> Float[Array, "B T H W C"]:
    """The mean of the next latents; `step` is one for all samples or one for each."""
    # In this order, without noise, the sum is an Euler step to the last bit.
    return x + _per_sample(self.velocity_weight, step) * v + _per_sample(self.drift, step) * x

  def std_at(self, step: Int[Array, ""] | Int[Array, "B"]) -> Float[Array, "#B 1 1 1 1"]:
    """The standard deviation at `step`, shaped to multiply latents [B, T, H, W, C]."""
    return _per_sample(self.std, step)

  def velocity_scale(self) -> Float32[np.ndarray, "S"]:
    """std over |d mean / d velocity|: the velocity's own standard deviation, if the noise were the network's.

    Flash-GRPO's lambda, written so that it also holds for `cps`. A step's grad log p is proportional to its inverse.
    """
    return self.std / np.abs(self.velocity_weight)

  def step_weights(self, steps: range) -> Float32[np.ndarray, "S"]:
    """Weights of the steps' losses, lambda over the mean of lambda over `steps`, those that may be trained.

    (Flash-GRPO divides by the mean over the steps that a batch happens to have drawn; this is its expectation.)
    """
    scale = self.velocity_scale()
    return scale / scale[steps.start : steps.stop].mean()


def noise_scale(schedule: Schedule, config: SamplingConfig) -> Float64[np.ndarray, "S"]:
  """`s` of each step.

  linear: `sigma_min + (sigma_max - sigma_min) sigma`, with the grid's last entry (0) as sigma_min and its second as
    sigma_max, as in Flow-GRPO's code for Wan.
  sqrt: `a sqrt(sigma / (1 - sigma))`, the sigma of the denominator clamped, or the first step explodes.
  cps: `sigma' sin(eta pi / 2)`; so the last step has no noise.
  """
  sigmas = schedule.sigmas.astype(np.float64)
  if config.noise == "linear":
    return sigmas[-1] + (sigmas[1] - sigmas[-1]) * sigmas[:-1]
  if config.noise == "sqrt":
    return config.sqrt_scale * np.sqrt(sigmas[:-1] / (1 - np.minimum(sigmas[:-1], config.sqrt_max_sigma)))
  return sigmas[1:] * math.sin(config.cps_eta * math.pi / 2)


def log_prob(
  action: Float[Array, "B T H W C"],
  mean: Float[Array, "B T H W C"],
  std: Float[Array, "#B 1 1 1 1"],
) -> Float[Array, "B"]:
  """log N(action; mean, std^2), float32, as the mean over a sample's elements; NaN where std is 0."""
  z = (action - mean) / std
  return jnp.mean(-0.5 * jnp.square(z) - jnp.log(std) - 0.5 * math.log(2 * math.pi), axis=(1, 2, 3, 4))


def _per_sample(table: Float32[np.ndarray, "S"], step: Int[Array, ""] | Int[Array, "B"]) -> Float[Array, "#B 1 1 1 1"]:
  """The entries of `table` at `step`, shaped to multiply latents [B, T, H, W, C]."""
  return jnp.asarray(table)[step].reshape(-1, 1, 1, 1, 1)
