"""Every random number of a run, as a function of what it is for.

A draw is named by (seed, purpose, iteration, prompt, sample, step) and by nothing else: not by the number of devices
or hosts, not by how many draws came before it. So a resumed or re-sharded run draws the same numbers.
"""

from __future__ import annotations

import enum

import jax
from jaxtyping import Array, Int, Key


class Purpose(enum.IntEnum):
  """What a draw is for: two purposes never share a stream."""

  INIT = 0  # new weights (LoRA)
  STATIC_PROMPTS = 1  # which prompts an iteration of the main phase uses
  WINDOW = 2  # where the stochastic window starts
  START_NOISE = 3  # the latents that a rollout starts from
  TRANSITION = 4  # the noise of a stochastic sampling step
  CAMERA_NOISE = 5  # fresh noise spent while noise is carried along a camera path
  DYNAMIC_PROMPTS = 6  # which prompts an iteration of the dynamic phase uses


def stream(seed: int, purpose: Purpose) -> Key[Array, ""]:
  """The root key of one purpose."""
  return jax.random.fold_in(jax.random.key(seed), int(purpose))


def at(key: Key[Array, ""], *indices: int | Int[Array, ""]) -> Key[Array, ""]:
  """Folds `indices` (iteration, prompt, sample, step: whichever apply, in that order) into `key`."""
  for index in indices:
    key = jax.random.fold_in(key, index)
  return key


def at_each(key: Key[Array, ""], indices: Int[Array, "n"]) -> Key[Array, "n"]:
  """One key for every index."""
  return jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)
