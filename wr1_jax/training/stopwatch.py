"""Where the time of an iteration goes."""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Iterator


class Stopwatch:
  """Adds up seconds by name; started when it is made."""

  def __init__(self):
    self._started = time.perf_counter()
    self._seconds: dict[str, float] = collections.defaultdict(float)

  @contextlib.contextmanager
  def measure(self, name: str) -> Iterator[None]:
    """Adds the time that the block takes to `name`."""
    started = time.perf_counter()
    yield
    self.add(name, time.perf_counter() - started)

  def add(self, name: str, seconds: float) -> None:
    """Adds time that was measured elsewhere."""
    self._seconds[name] += seconds

  def seconds(self) -> dict[str, float]:
    """`time/NAME` of everything measured, and `time/total` since the start."""
    total = time.perf_counter() - self._started
    return {f"time/{name}": value for name, value in {**self._seconds, "total": total}.items()}
