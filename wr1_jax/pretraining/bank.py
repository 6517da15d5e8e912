"""Clips that wait on the device to be trained on."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from wr1_jax.pretraining.clips import Block, Sampler
from wr1_jax.pretraining.config import StageConfig


class Bank:
  """Arrays whose first axis is over clips; which clips there are at a step is a function of the step alone.

  At step s the clips `max(0, n - bank) .. n` are there with n = bank_first + fresh (s // fresh_every), each at the
  place that is its number modulo `bank`. So a run that goes on finds what it would have had.
  """

  def __init__(self, config: StageConfig, sampler: Sampler, make: Callable[[Block], PyTree], check: Callable[[], None]):
    """An empty bank.

    Args:
      make: makes a block of entries, arrays [fresh, ...] on the device.
      check: called before each block, and may raise.
    """
    self._config, self._sampler, self._make, self._check = config, sampler, make, check
    self._stream: Iterator[Block] | None = None
    self._entries: PyTree | None = None
    self._count = 0  # clips that have been drawn
    self.blocks = 0  # that were made
    self.waited = 0.0  # seconds that the next block was not ready on the host, since the bank was filled
    self.waited_to_fill = 0.0  # and before
    self.block_seconds = 0.0  # mean time that a block took to be made while the bank was filled

  @property
  def clips_a_second(self) -> float:
    """How fast the bank was filled."""
    return self._config.fresh / self.block_seconds

  def at(self, step: int) -> tuple[PyTree, int]:
    """The entries for a step, and how many of them there are; steps must not fall."""
    config = self._config
    count = min(config.bank_first, config.bank) + config.fresh * (step // config.fresh_every)
    if self._stream is None:
      self._count = max(0, count - config.bank)
      self._stream = self._sampler.stream(self._count, config.fresh, config.unsound_share)
      self._fill(count)
    while self._count < count:
      self._add()
    return self._entries, min(count, config.bank)

  def _fill(self, count: int) -> None:
    self._add()  # the processes start
    jax.block_until_ready(self._entries)
    started, before, self.waited = time.perf_counter(), self._count, 0.0
    while self._count < count:
      self._add()
    jax.block_until_ready(self._entries)
    self.waited_to_fill, self.waited = self.waited, 0.0
    blocks = (self._count - before) // self._config.fresh
    self.block_seconds = (time.perf_counter() - started) / blocks if blocks else 0.0

  def _add(self) -> None:
    self._check()
    started = time.perf_counter()
    block = next(self._stream)
    self.waited += time.perf_counter() - started
    made = self._make(block)
    if self._entries is None:
      self._entries = jax.tree.map(lambda x: jnp.zeros((self._config.bank, *x.shape[1:]), x.dtype), made)
    self._entries = _write(self._entries, made, self._count % self._config.bank)
    self._count += self._config.fresh
    self.blocks += 1


@functools.partial(jax.jit, donate_argnums=0)
def _write(entries: PyTree, made: PyTree, start: Int[Array, ""]) -> PyTree:
  return jax.tree.map(lambda all, new: jax.lax.dynamic_update_slice_in_dim(all, new, start, 0), entries, made)
