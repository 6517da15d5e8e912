"""Clips of the toy world, drawn on the host ahead of the device, and rendered on it."""

from __future__ import annotations

import collections
import concurrent.futures
import functools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from wr1_jax import world
from wr1_jax.models import vae
from wr1_jax.pretraining.config import PretrainConfig
from wr1_jax.world import inconsistency

_AHEAD = 3  # blocks a worker


class Block(NamedTuple):
  """n clips before they are rendered, in host memory."""

  captions: tuple[str, ...]
  poses: Float[np.ndarray, "n T 4 4"]
  scenes: world.Scene


class Sampler:
  """Draws clips in other processes. To be closed, as a context manager."""

  def __init__(self, config: PretrainConfig):
    self._config = config
    self._ahead = _AHEAD * max(config.workers, 1)
    if config.workers:
      context = multiprocessing.get_context("spawn")  # a forked copy of this process would share its device
      self._pool = concurrent.futures.ProcessPoolExecutor(config.workers, context, _begin_worker)
    else:
      self._pool = concurrent.futures.ThreadPoolExecutor(1)
    self._pool.submit(int)  # the processes start now: they take seconds

  def __enter__(self) -> Sampler:
    return self

  def __exit__(self, *_: object) -> None:
    self._pool.shutdown(cancel_futures=True)

  def block(self, start: int, size: int) -> Block:
    """The clips `start .. start + size`, drawn here and now."""
    return _draw(self._config, start, size, 0.0)

  def stream(self, start: int, size: int, unsound_share: float = 0.0) -> Iterator[Block]:
    """Blocks of `size` clips from the clip `start` on, without end; a few are drawn ahead.

    `unsound_share`: of the clips whose scenes no rigid world explains, see `inconsistency.some_unsound`.
    """
    waiting = collections.deque()
    while True:
      while len(waiting) < self._ahead:
        waiting.append(self._pool.submit(_draw, self._config, start, size, unsound_share))
        start += size
      yield waiting.popleft().result()


def _draw(config: PretrainConfig, start: int, size: int, unsound_share: float) -> Block:
  indices = range(start, start + size)
  clips = world.sample(config.seed, indices, config.world, config.camera)
  scenes = clips.scenes
  if unsound_share:
    scenes = inconsistency.some_unsound(scenes, config.seed, indices, unsound_share)
  return Block(clips.captions, clips.poses, scenes)


def _begin_worker() -> None:
  """Keeps a worker off the accelerator, deaf to signals meant for its parent, and not alive for longer than that."""
  jax.config.update("jax_platforms", "cpu")
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.signal(signal.SIGTERM, signal.SIG_IGN)

  def follow() -> None:
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(0)

  threading.Thread(target=follow, daemon=True).start()


def renderer(config: PretrainConfig) -> Callable[[world.Scene, Array], UInt8[Array, "n T H W 3"]]:
  """`render(scenes, poses)`, to be compiled: videos as they are shown, in 256 levels."""
  return functools.partial(_render, config)


def _render(config: PretrainConfig, scenes: world.Scene, poses: Array) -> UInt8[Array, "n T H W 3"]:
  return vae.to_uint8(world.render(scenes, poses, config.world, config.camera).video)


def to_float(video: UInt8[Array, "*dims"]) -> Float[Array, "*dims"]:
  """Pixels of 0..255 as float32 in [-1, 1]."""
  return video.astype(jnp.float32) / 127.5 - 1
