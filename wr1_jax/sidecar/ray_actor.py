"""The scorers as a Ray actor, for trainers whose own machine cannot run them. Never imports jax, like all the sidecar.

Requests and answers are those of `messages`, in the same strict JSON, so that a node with another version of this
package is found out. Arrays travel in Ray's object store.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np

from wr1_jax.sidecar import batch, messages
from wr1_jax.sidecar.answer import answer, versions
from wr1_jax.sidecar.messages import Message, ProtocolError, Ready, ScoreBatch, Start
from wr1_jax.sidecar.scorers import Scorers


class ScoringActor:
  """Made by Ray from this class as it stands on the node."""

  def __init__(self, start: bytes):
    """Makes the scorers of the encoded `Start`.

    Raises:
      ProtocolError: `start` is no such message.
      UserError, ImportError: as `Scorers.make`.
    """
    # Arrays in the object store cannot be written to; the scorers only read.
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    self._scorers = Scorers.make(_decoded(start, Start).config)

  def ready(self) -> bytes:
    """The encoded `Ready`."""
    return messages.encode(Ready(versions()))

  def score(self, request: bytes, inputs: Mapping[str, np.ndarray]) -> tuple[bytes, dict[str, np.ndarray]]:
    """Scores a batch.

    Args:
      request: the encoded `ScoreBatch`.
      inputs: the arrays of `batch.array_specs` that come from the trainer.

    Returns:
      The encoded `Scored`, and the arrays of `batch.output_specs`.

    Raises:
      ProtocolError: `request` is no such message.
    """
    asked = _decoded(request, ScoreBatch)
    specs = batch.output_specs(asked.shape, asked.parts)
    outputs = {name: np.zeros(spec.shape, spec.dtype) for name, spec in specs.items()}
    scored = answer(self._scorers, asked, {**inputs, **outputs})
    return messages.encode(scored), outputs


def _decoded(data: bytes, kind: type[Message]) -> Message:
  message = messages.decode(data)
  if not isinstance(message, kind):
    raise ProtocolError(f"the message is {type(message).__name__}, not {kind.__name__}")
  return message
