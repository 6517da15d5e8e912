"""What the two processes say to each other, and the memory that they share."""

from __future__ import annotations

import json
import math
import os
import socket
import struct
import sys

import numpy as np
import pytest
from sidecar_helpers import names_in_shm, shm_free

from wr1_jax.config import ReconstructionConfig, RewardsConfig
from wr1_jax.errors import UserError
from wr1_jax.sidecar import messages
from wr1_jax.sidecar.channel import MAX_BYTES, Channel
from wr1_jax.sidecar.messages import BatchShape, ClipScores, ProtocolError, Ready, ScoreBatch, Scored, Start
from wr1_jax.sidecar.shared_arrays import SharedArrays, Spec

SHAPE = BatchShape(2, 3, 64, 96, 64, 96)
MESSAGES = [
  Start(RewardsConfig(meta="some:thing", reconstruction=ReconstructionConfig(max_pixels=77))),
  Ready({"python": "3.12"}),
  ScoreBatch(7, SHAPE, ("general", "meta"), ('a "quoted" prompt', "naïve ☃ \ud800"), (True, False)),
  Scored(7, (ClipScores(1.5, None, 0.25, {"meta": "no"}),), {"meta": 0.5}),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_messages_survive_the_wire(message):
  assert messages.decode(messages.encode(message)) == message


def scored(**changes) -> bytes:
  clip = {"depth_unit": 1.0, "meta": 0.5, "general": None, "reasons": {"general": "no"}}
  clip.update(changes.pop("clip", {}))
  return json.dumps({"kind": "Scored", "job": 1, "clips": [clip], "seconds": {}} | changes).encode()


def test_the_template_of_the_bad_messages_is_good():
  assert messages.decode(scored()).clips[0].meta == 0.5


@pytest.mark.parametrize(
  "data",
  [
    b"",
    b"\xff\xfe",
    b"[]",
    b'{"kind": "Nonsense"}',
    b'{"kind": ["Ready"]}',
    b'{"kind": "Ready"}',
    b'{"kind": "Ready", "versions": {}, "extra": 1}',
    b'{"kind": "Ready", "versions": {}, "versions": {}}',
    b'{"kind": "Ready", "versions": {"a": 1}}',
    b"[" * 100_000,
    scored(job=True),
    scored(job=1.0),
    scored(job="1"),
    scored(clips={}),
    scored(clip={"meta": True}),
    scored(clip={"meta": "0.5"}),
    scored(clip={"reasons": {"weather": "bad"}}),
    scored(clip={"meta": math.nan}),
    scored(clip={"meta": 10**400}),
    scored().replace(b"0.5", b"1e999"),
    scored().replace(b"0.5", b"-Infinity"),
  ],
)
def test_malformed_messages_are_refused(data):
  with pytest.raises(ProtocolError):
    messages.decode(data)


def test_sizes_must_be_positive():
  data = messages.encode(MESSAGES[2]).replace(b'"clips": 2', b'"clips": 0')
  with pytest.raises(ProtocolError, match="positive"):
    messages.decode(data)


def test_a_number_that_is_not_finite_is_never_sent():
  with pytest.raises(ValueError):
    messages.encode(Scored(1, (ClipScores(math.nan, None, None, {}),), {}))


def pair() -> tuple[Channel, socket.socket]:
  ours, theirs = socket.socketpair()
  return Channel(ours), theirs


def test_long_messages_are_neither_sent_nor_read():
  channel, other = pair()
  with pytest.raises(ProtocolError, match="at most"):
    channel.send(Ready({"x": "y" * MAX_BYTES}))
  other.sendall(struct.pack(">I", MAX_BYTES + 1))
  with pytest.raises(ProtocolError, match="at most"):
    channel.receive()


def test_half_a_message_is_a_timeout_and_then_an_end():
  channel, other = pair()
  other.sendall(struct.pack(">I", 100) + b"{")
  with pytest.raises(TimeoutError):
    channel.receive(timeout=0.1)
  other.close()
  with pytest.raises(EOFError):
    channel.receive()


def test_messages_keep_their_order_and_their_descriptors():
  ours, theirs = socket.socketpair()
  sender, receiver = Channel(ours), Channel(theirs)
  with open(__file__, "rb") as first, open(sys.executable, "rb") as second:
    for message, files in zip(MESSAGES, ([], [first], [], [second])):
      sender.send(message, [file.fileno() for file in files])
    for message, files in zip(MESSAGES, ([], [first], [], [second])):
      received, descriptors = receiver.receive()
      assert received == message
      assert [os.fstat(d).st_ino for d in descriptors] == [os.fstat(file.fileno()).st_ino for file in files]
      for descriptor in descriptors:
        os.close(descriptor)


SPECS = {"bytes": Spec("uint8", (3, 5)), "numbers": Spec("float32", (2, 4, 4))}


def test_shared_arrays_are_one_memory_without_a_name():
  ours = SharedArrays.allocate(SPECS)
  assert names_in_shm() == []
  theirs = SharedArrays(os.dup(ours.descriptor), SPECS)
  ours.arrays["numbers"][:] = np.arange(32).reshape(2, 4, 4)
  theirs.arrays["bytes"][:] = 7
  kept = theirs.arrays["numbers"]
  ours.close()
  theirs.close()
  theirs.close()
  np.testing.assert_array_equal(kept.ravel(), np.arange(32))


def test_a_segment_that_is_too_small_is_refused():
  ours = SharedArrays.allocate({"bytes": Spec("uint8", (100,))})
  with pytest.raises(ValueError, match="cannot hold"):
    SharedArrays(ours.descriptor, {"bytes": Spec("uint8", (10_000,))})
  ours.close()


def test_too_little_shared_memory_is_said_plainly():
  size = shm_free() + 2**30
  with pytest.raises(UserError, match="--shm-size"):
    SharedArrays.allocate({"bytes": Spec("uint8", (size,))})
