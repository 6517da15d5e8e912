"""How much better a sample is than the others of its prompt."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32

from wr1_jax.config import ObjectiveConfig

_EPSILON = 1e-4  # Flow-GRPO's, added to the standard deviation


class Advantages(NamedTuple):
  """Per sample: what to multiply its loss with, and whether it takes part at all (1 or 0)."""

  values: Float32[np.ndarray, "P G"]
  weights: Float32[np.ndarray, "P G"]


def advantages(
  rewards: Float[np.ndarray, "P G"], valid: Bool[np.ndarray, "P G"], config: ObjectiveConfig
) -> Advantages:
  """`(reward - mean of its group) / (std + 1e-4)`, clipped (Flow-GRPO).

  Samples that are not `valid`, or whose reward is not finite, take no part: not in the mean, not in the std, and with
  weight 0 not in the loss. Nor does a whole group with fewer than two valid samples or with equal rewards.

  Args:
    rewards: of G samples for each of P prompts.
    valid: which of them count.
    config: `advantage_std` (of each group, or one std of all samples that take part), `advantage_clip`.
  """
  rewards = np.where(valid & np.isfinite(rewards), rewards, np.nan).astype(np.float64)
  highest = np.fmax.reduce(rewards, axis=1, keepdims=True)
  lowest = np.fmin.reduce(rewards, axis=1, keepdims=True)
  taken = np.isfinite(rewards) & (highest > lowest)
  if not taken.any():
    return Advantages(np.zeros(rewards.shape, np.float32), np.zeros(rewards.shape, np.float32))

  rewards = np.where(taken, rewards, 0)
  counts = np.maximum(taken.sum(axis=1, keepdims=True), 1)
  centred = np.where(taken, rewards - rewards.sum(axis=1, keepdims=True) / counts, 0)
  if config.advantage_std == "group":
    std = np.sqrt(np.square(centred).sum(axis=1, keepdims=True) / counts)
  else:
    std = rewards[taken].std()
  values = np.clip(centred / (std + _EPSILON), -config.advantage_clip, config.advantage_clip)
  return Advantages(values.astype(np.float32), taken.astype(np.float32))
