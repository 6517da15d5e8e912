"""The sidecar's side of the connection: takes batches, answers scores, and never outlives the trainer."""

from __future__ import annotations

import os
import queue
import sys
import threading
import traceback

from wr1_jax.sidecar import batch
from wr1_jax.sidecar.answer import answer, versions
from wr1_jax.sidecar.channel import Channel
from wr1_jax.sidecar.messages import ProtocolError, Ready, ScoreBatch, Start
from wr1_jax.sidecar.scorers import Scorers
from wr1_jax.sidecar.shared_arrays import SharedArrays

_EXIT_PROTOCOL = 3

_Request = tuple[ScoreBatch, SharedArrays]


def serve(channel: Channel) -> None:
  """Makes the scorers, then answers batch after batch. Ends with the process, when the trainer closes the connection.

  Raises:
    UserError: the config names a scorer that does not exist or cannot work.
    ImportError: a library that a scorer needs is missing.
  """
  start, _ = channel.receive()
  if not isinstance(start, Start):
    raise ProtocolError(f"the first message is {type(start).__name__}, not Start")
  requests: queue.SimpleQueue[_Request] = queue.SimpleQueue()
  threading.Thread(target=_watch, args=(channel, requests), daemon=True).start()
  scorers = Scorers.make(start.config)
  channel.send(Ready(versions()))
  while True:
    request, shared = requests.get()
    channel.send(answer(scorers, request, shared.arrays))
    shared.close()


def _watch(channel: Channel, requests: queue.SimpleQueue[_Request]) -> None:
  """Reads the connection while the main thread computes, so that its end ends the process in the middle of anything."""
  status = _EXIT_PROTOCOL
  try:
    while True:
      message, descriptors = channel.receive()
      if not isinstance(message, ScoreBatch) or len(descriptors) != 1:
        raise ProtocolError(f"unexpected message {type(message).__name__} with {len(descriptors)} descriptors")
      requests.put((message, SharedArrays(descriptors[0], batch.array_specs(message.shape, message.parts))))
  except (EOFError, ConnectionError):
    status = 0
  except BaseException:
    traceback.print_exc()
  finally:
    sys.stderr.flush()
    os._exit(status)  # sys.exit would only end this thread
