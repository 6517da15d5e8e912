"""The grid of noise levels on which videos are sampled and the policy is trained."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Int32

from wr1_jax.errors import UserError

TRAIN_TIMESTEPS = 1000  # the network's clock runs from 0 (data) to this (noise)


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
  """S sampling steps: step i goes from `sigmas[i]` to `sigmas[i + 1]`.

  `x_sigma = (1 - sigma) x_0 + sigma eps`, so sigma falls from (almost) 1, noise, to exactly 0, data.

  Attributes:
    sigmas: noise levels, S + 1 of them.
    timesteps: what the network is told in place of `sigmas[:-1]`: whole numbers in 0..999.
  """

  sigmas: Float32[np.ndarray, "S+1"]
  timesteps: Int32[np.ndarray, "S"]

  @classmethod
  def make(cls, steps: int, shift: float) -> Schedule:
    """The grid of diffusers' `UniPCMultistepScheduler` with flow sigmas, which Wan2.1 is sampled on.

    Args:
      steps: S.
      shift: bends the grid towards noise; 3 for 480p, 5 for 720p, 1 for none.

    Raises:
      UserError: no steps, or a shift that is not positive.
    """
    if steps < 1:
      raise UserError(f"config.sampling.steps = {steps}: a video needs at least one sampling step.")
    if shift <= 0:
      raise UserError(f"config.sampling.shift = {shift}: it must be positive; 3.0 suits 480p and 5.0 suits 720p.")
    sigmas = np.linspace(1, 1 / TRAIN_TIMESTEPS, steps + 1)[:-1]
    sigmas = shift * sigmas / (1 + (shift - 1) * sigmas)
    sigmas[0] -= 1e-6  # log(1 - sigma), which UniPC needs, must stay finite
    timesteps = np.trunc(TRAIN_TIMESTEPS * sigmas)
    return cls(np.append(sigmas, 0).astype(np.float32), timesteps.astype(np.int32))

  @property
  def steps(self) -> int:
    """S."""
    return len(self.timesteps)

  @property
  def dt(self) -> Float32[np.ndarray, "S"]:
    """`sigmas[i + 1] - sigmas[i]`: negative."""
    return np.diff(self.sigmas)

  def timestep(self, step: int | Int[Array, ""] | Int[Array, "B"], batch: int) -> Float[Array, "B"]:
    """What the network is told at `step` (one for all, or one for each of `batch` samples), as float32."""
    return jnp.broadcast_to(jnp.asarray(self.timesteps, jnp.float32)[step], (batch,))
