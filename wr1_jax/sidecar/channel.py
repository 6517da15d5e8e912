"""Carries messages, and the descriptors of shared memory, over a socket pair that only the two processes hold."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Sequence

from wr1_jax.sidecar import messages
from wr1_jax.sidecar.messages import Message, ProtocolError

MAX_BYTES = 1 << 20  # of one message
_LENGTH = struct.Struct(">I")
_MAX_DESCRIPTORS = 4


class Channel:
  """One end of the connection. One thread may send while another receives."""

  def __init__(self, connection: socket.socket):
    """Takes over `connection`, a connected Unix stream socket."""
    self._socket = connection

  def fileno(self) -> int:
    """The socket's descriptor, so that `selectors` can wait for messages."""
    return self._socket.fileno()

  def send(self, message: Message, descriptors: Sequence[int] = (), timeout: float | None = None) -> None:
    """Sends one message; the receiver gets its own duplicates of `descriptors`.

    Raises:
      ProtocolError: the message is longer than `MAX_BYTES`.
      TimeoutError: the other side did not take it within `timeout` seconds.
      OSError: the other side is gone.
    """
    self._socket.settimeout(timeout)
    data = pack(message)
    sent = socket.send_fds(self._socket, [data], list(descriptors))
    if sent < len(data):  # writing nothing fails too once the other side, which has all it needs, is gone
      self._socket.sendall(data[sent:])

  def receive(self, timeout: float | None = None) -> tuple[Message, list[int]]:
    """The next message, and its descriptors, which are the caller's to close.

    Raises:
      EOFError: the other side closed the connection or died.
      ProtocolError: what came is no message, or longer than `MAX_BYTES`.
      TimeoutError: no whole message came within `timeout` seconds.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    descriptors: list[int] = []
    try:
      (length,) = _LENGTH.unpack(self._read(_LENGTH.size, descriptors, deadline))
      if length > MAX_BYTES:
        raise ProtocolError(f"a message of {length} bytes; at most {MAX_BYTES} are allowed")
      return messages.decode(self._read(length, descriptors, deadline)), descriptors
    except BaseException:
      for descriptor in descriptors:
        os.close(descriptor)
      raise

  def close(self) -> None:
    """Ends the connection; the other side sees its end of file."""
    self._socket.close()

  def _read(self, size: int, descriptors: list[int], deadline: float | None) -> bytes:
    """Exactly `size` bytes; descriptors that come with them are added to `descriptors`."""
    data = bytearray()
    while len(data) < size:
      if deadline is not None:
        self._socket.settimeout(max(deadline - time.monotonic(), 1e-3))
      else:
        self._socket.settimeout(None)
      try:
        piece, received, flags, _ = socket.recv_fds(self._socket, size - len(data), _MAX_DESCRIPTORS)
      except ConnectionResetError as error:
        raise EOFError("the connection was reset") from error
      descriptors += received
      if flags & socket.MSG_CTRUNC:
        raise ProtocolError("a message carries too many descriptors")
      if not piece:
        raise EOFError("the connection was closed")
      data += piece
    return bytes(data)


def pack(message: Message) -> bytes:
  """`message` as it goes over the wire.

  Raises:
    ProtocolError: it is longer than `MAX_BYTES`.
  """
  data = messages.encode(message)
  if len(data) > MAX_BYTES:
    raise ProtocolError(f"a message of {len(data)} bytes; at most {MAX_BYTES} are allowed")
  return _LENGTH.pack(len(data)) + data
