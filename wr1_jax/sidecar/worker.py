"""The sidecar's side of the connection: takes batches, answers scores, and never outlives the trainer."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import queue
import sys
import threading
import traceback

import numpy as np

from wr1_jax.sidecar import batch
from wr1_jax.sidecar.channel import Channel
from wr1_jax.sidecar.messages import ClipScores, ProtocolError, Ready, ScoreBatch, Scored, Start
from wr1_jax.sidecar.scorers import Outcome, Scorers, Unscored, View
from wr1_jax.sidecar.shared_arrays import SharedArrays

_REPORTED_LIBRARIES = ("numpy", "scipy", "torch", "transformers", "gsplat", "depth-anything-3")
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
  channel.send(Ready(_versions()))
  while True:
    request, shared = requests.get()
    channel.send(_answer(scorers, request, shared.arrays))
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


def _answer(scorers: Scorers, request: ScoreBatch, arrays: dict[str, np.ndarray]) -> Scored:
  """Scores a batch; leaves its pictures and poses in `arrays`."""
  shape = request.shape
  paths = [arrays["paths"][i] if given else None for i, given in enumerate(request.with_path)]
  outcomes, seconds = scorers(arrays["videos"], paths, request.prompts, request.parts, size=(shape.rows, shape.columns))
  for i, outcome in enumerate(outcomes):
    if isinstance(outcome.view, View):
      for name in ("frames", "rendered", "offset_view", "poses"):
        arrays[name][i] = getattr(outcome.view, name)
  return Scored(request.job, tuple(_scores(outcome) for outcome in outcomes), seconds)


def _scores(outcome: Outcome) -> ClipScores:
  def number(value: float | Unscored | None) -> float | None:
    return value if isinstance(value, float) else None

  depth_unit = float(outcome.view.depth_unit) if isinstance(outcome.view, View) else None
  return ClipScores(depth_unit, number(outcome.meta), number(outcome.general), outcome.reasons)


def _versions() -> dict[str, str]:
  """Versions of Python and of what the scorers have imported."""
  versions = {"python": platform.python_version()}
  for library in _REPORTED_LIBRARIES:
    if library.replace("-", "_") in sys.modules:
      versions[library] = importlib.metadata.version(library)
  return versions
