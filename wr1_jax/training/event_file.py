"""TensorBoard's event file, written at once.

tensorboardX's own `SummaryWriter` writes from a thread, which does not survive a full disk and then blocks the trainer.
"""

from __future__ import annotations

import time
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary


class EventFile:
  """A new event file in `folder`. TensorBoard drops what earlier files there say of `purge_step` and later steps.

  Every method raises OSError where the file cannot be written.
  """

  def __init__(self, folder: Path, purge_step: int):
    folder.mkdir(exist_ok=True)
    self._writer = EventsWriter(str(folder / "events"))
    self._write(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))

  def add(self, step: int, summary: Summary) -> None:
    """Appends the values of `summary`."""
    self._write(Event(step=step, summary=summary))

  def close(self) -> None:
    """Closes the file."""
    self._writer.close()

  def _write(self, event: Event) -> None:
    event.wall_time = time.time()
    self._writer.write_event(event)
    self._writer.flush()
