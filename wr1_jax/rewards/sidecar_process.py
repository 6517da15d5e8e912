"""Starts, talks to and ends one sidecar process."""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import wr1_jax
from wr1_jax.config import RewardsConfig
from wr1_jax.errors import UserError
from wr1_jax.sidecar.channel import Channel
from wr1_jax.sidecar.messages import Message, ProtocolError, Ready, ScoreBatch, Start

_TAIL_LINES = 12  # of output that error messages may quote
_TAIL_LENGTH = 1000  # characters
_LINE_BYTES = 4096
_MESSAGE_SECONDS = 10.0  # for a message that has begun to be written or read in whole
_GRACE_SECONDS = 2.0  # to end by itself

_logger = logging.getLogger(__name__)


class SidecarError(Exception):
  """The sidecar died, hung, or answered nonsense."""


def find_interpreter(python: str) -> str:
  """The sidecar's interpreter: the config's choice, or this one.

  Raises:
    UserError: there is no such program.
  """
  found = shutil.which(python or sys.executable)
  if not found:
    raise UserError(
      f"config.rewards.python is '{python}', which is no program that can be run; give the path of a Python "
      f"interpreter that has torch, or leave it empty to use the trainer's own."
    )
  return found


class SidecarProcess:
  """A running sidecar. The thread that makes it must outlive it: the kernel kills the sidecar when that thread ends."""

  def __init__(self, config: RewardsConfig):
    """Starts the process and waits until its scorers are made.

    Raises:
      SidecarError: it did not get ready within `config.start_seconds`.
      UserError: the interpreter cannot be run.
    """
    ours, theirs = socket.socketpair()
    self._channel = Channel(ours)
    python = find_interpreter(config.python)
    command = [python, "-m", "wr1_jax.sidecar", f"--socket={theirs.fileno()}", f"--parent={os.getpid()}"]
    with theirs:
      try:
        self._process = subprocess.Popen(
          command,
          pass_fds=[theirs.fileno()],
          stdin=subprocess.DEVNULL,
          stdout=subprocess.PIPE,
          stderr=subprocess.STDOUT,
          env=environment(config),
          start_new_session=True,  # Ctrl-C is for the trainer; and whatever the scorers start can be killed as one
        )
      except OSError as error:
        self._channel.close()
        raise UserError(f"config.rewards.python is '{python}', which cannot be run: {error}.") from error
    self._tail: collections.deque[str] = collections.deque(maxlen=_TAIL_LINES)
    self._reader = threading.Thread(target=self._read_output, name="sidecar output", daemon=True)
    self._reader.start()
    try:
      self._send(Start(config))
      ready = self.wait(config.start_seconds)
      if ready is None:
        raise SidecarError(f"it was not ready after {config.start_seconds:g} s")
      if not isinstance(ready, Ready):
        raise SidecarError(f"its first message was {type(ready).__name__}")
    except SidecarError as error:
      raise SidecarError(self.end(error)) from error
    self.versions = ready.versions

  def request(self, message: ScoreBatch, descriptor: int) -> None:
    """Hands over a batch, whose arrays lie in the shared memory `descriptor`.

    Raises:
      SidecarError: it does not take it.
    """
    self._send(message, descriptor)

  def wait(self, timeout: float | None, also: int | None = None) -> Message | None:
    """The next message; None after `timeout` seconds or once the descriptor `also` can be read.

    Raises:
      SidecarError: the sidecar died or wrote nonsense.
    """
    with selectors.DefaultSelector() as selector:
      selector.register(self._channel, selectors.EVENT_READ)
      if also is not None:
        selector.register(also, selectors.EVENT_READ)
      ready = {key.fd for key, _ in selector.select(timeout)}
    if self._channel.fileno() not in ready:
      return None
    try:
      message, descriptors = self._channel.receive(_MESSAGE_SECONDS)
    except EOFError as error:
      self._await_exit()  # its connection ends a moment before the process does
      raise SidecarError("it died") from error
    except TimeoutError as error:
      raise SidecarError("it stopped in the middle of a message") from error
    except (ProtocolError, OSError) as error:
      raise SidecarError(f"it answered nonsense ({error})") from error
    for descriptor in descriptors:  # none is ever due
      os.close(descriptor)
    return message

  def _send(self, message: Message, *descriptors: int) -> None:
    try:
      self._channel.send(message, descriptors, timeout=_MESSAGE_SECONDS)
    except OSError as error:
      self._await_exit()
      raise SidecarError(f"it took no message ({error})") from error

  def end(self, cause: object = "") -> str:
    """Ends the process and all that it started. Returns `cause` with its exit and its last output, for people."""
    exited = self._has_exited()
    self._channel.close()  # at which it exits by itself, unless it is stopped or has lost its watcher
    self._await_exit()
    with contextlib.suppress(ProcessLookupError, PermissionError):
      os.killpg(self._process.pid, signal.SIGKILL)
    status = self._process.wait()
    self._reader.join(_GRACE_SECONDS)
    end = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    output = " | ".join(self._tail)[-_TAIL_LENGTH:] or "none"
    return f"{cause} ({f'{end}; ' if exited else ''}its last output: {output})"

  def _has_exited(self) -> bool:
    """Whether the process is a zombie. It stays one, so that its id is not given to another before it is killed."""
    return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

  def _await_exit(self) -> None:
    deadline = time.monotonic() + _GRACE_SECONDS
    while not self._has_exited() and time.monotonic() < deadline:
      time.sleep(0.01)

  def _read_output(self) -> None:
    """Passes on what the sidecar prints, line by line."""
    with self._process.stdout as output:
      for line in iter(lambda: output.readline(_LINE_BYTES), b""):  # an endless line must not fill the memory
        text = line.decode(errors="replace").rstrip()[:_TAIL_LENGTH]
        if text:
          self._tail.append(text)
          _logger.warning("reward sidecar: %s", text)


def environment(config: RewardsConfig) -> dict[str, str]:
  """The trainer's environment, in which the sidecar also finds this package and uses as many threads as it may."""
  environment = dict(os.environ)
  root = Path(wr1_jax.__file__).resolve().parents[1]
  if root.name not in ("site-packages", "dist-packages"):  # an installed package must not drag its neighbours along
    paths = [path for path in (environment.get("PYTHONPATH"), str(root)) if path]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
  for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    environment[name] = str(config.threads)
  return environment | {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
