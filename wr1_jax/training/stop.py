"""Stopping when asked to: SIGTERM (a scheduler) and SIGINT (a person) let a run save and end."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class Stop(Exception):
  """Raised at a point where a run may end."""


class StopRequest:
  """Whether a signal has come; `check` at every point where the run may end."""

  def __init__(self):
    self._name: str | None = None

  def receive(self, number: int, frame: FrameType | None) -> None:
    """The signal handler. A second signal ends the program at once."""
    del frame
    self._name = signal.Signals(number).name
    signal.signal(number, signal.SIG_DFL)

  def check(self) -> None:
    """Raises `Stop` once a signal has come."""
    if self._name is not None:
      raise Stop(self._name)


@contextlib.contextmanager
def on_signals() -> Iterator[StopRequest]:
  """Within the block, SIGTERM and SIGINT set the request instead of ending the program."""
  request = StopRequest()
  before = {number: signal.signal(number, request.receive) for number in (signal.SIGTERM, signal.SIGINT)}
  try:
    yield request
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
