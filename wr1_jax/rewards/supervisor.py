"""Keeps one sidecar going through a queue of jobs, whatever happens to it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import logging
import queue
import select
import socket
import threading
import time

from wr1_jax.config import RewardsConfig
from wr1_jax.errors import UserError
from wr1_jax.rewards import jobs
from wr1_jax.rewards.jobs import ClipResult, OpenJob
from wr1_jax.rewards.sidecar_process import SidecarError, SidecarProcess
from wr1_jax.sidecar import batch
from wr1_jax.sidecar.messages import Message, Scored
from wr1_jax.sidecar.shared_arrays import SharedArrays

_JOBS_AHEAD = 2  # one at work, one waiting in the sidecar

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(eq=False)
class Entry(OpenJob):
  """A job on its way to a sidecar, or at it."""

  shared: SharedArrays | None = None  # from its first sending to its end
  sent: bool = False  # to the sidecar that runs now

  def share(self) -> SharedArrays:
    """The job's arrays in shared memory, made when they are first needed.

    Raises:
      UserError: there is too little shared memory.
    """
    if self.shared is None:
      self.shared = SharedArrays.allocate(batch.array_specs(self.request.shape, self.request.parts))
      for name, array in self.job.inputs().items():
        self.shared.arrays[name][...] = array
    return self.shared

  def finish(self, results: list[ClipResult] | BaseException) -> None:
    """Ends the job with its results, or an error."""
    if self.shared is not None:
      self.shared.close()
    super().finish(results)


class Supervisor:
  """`run` is one thread's work from beginning to end; the other methods may be called from any thread.

  The sidecar works through its jobs in the order in which it got them. So the oldest unfinished job has been at work
  since the later of its sending and the answer before it, and it alone is to blame when the sidecar is lost.
  """

  def __init__(self, config: RewardsConfig):
    self._config = config
    self._lock = threading.Lock()  # of _open, _inbox and _cord
    self._inbox: queue.SimpleQueue[Entry] = queue.SimpleQueue()
    self._open = True
    self._stopping = threading.Event()
    self._bell, self._cord = socket.socketpair()  # a byte wakes `run`
    self._bell.setblocking(False)
    self._cord.setblocking(False)
    # What only `run` touches:
    self._entries: dict[int, Entry] = {}  # unfinished, oldest first
    self._sidecar: SidecarProcess | None = None
    self._working_since = 0.0  # on the oldest job; monotonic seconds

  def add(self, entry: Entry) -> None:
    """Takes over a job.

    Raises:
      RuntimeError: the supervisor has ended.
    """
    with self._lock:
      if not self._open:
        raise RuntimeError("the reward client is closed")
      self._inbox.put(entry)
      self._ring()

  def stop(self) -> None:
    """Asks `run` to end."""
    with self._lock:
      self._stopping.set()
      if self._open:
        self._ring()

  def run(self, started: concurrent.futures.Future[dict[str, str]]) -> None:
    """Starts the sidecar, sets `started` to its versions or to a UserError, and serves until `stop`."""
    end: BaseException = RuntimeError("the reward client was closed before the job was done")
    try:
      self._sidecar = self._first_sidecar()
      started.set_result(self._sidecar.versions)
      while True:
        self._hear_bell()  # first: what is set before the bell is rung is seen below
        self._take_new()
        if self._stopping.is_set():
          break
        self._step()
    except BaseException as error:  # goes to whoever waits; nobody would see it in this thread
      end = error
    finally:
      if self._sidecar:
        self._sidecar.end()
      with self._lock:
        self._open = False
      self._take_new()
      self._bell.close()
      self._cord.close()
      for entry in self._entries.values():
        entry.finish(end)
      if not started.done():
        started.set_exception(end)

  def _first_sidecar(self) -> SidecarProcess:
    try:
      return SidecarProcess(self._config)
    except SidecarError as error:
      raise UserError(
        f"the reward sidecar did not start: {error}. Its interpreter "
        f"({self._config.python or 'that of the trainer'}) needs what the chosen scorers import: for those of this "
        f"package, torch, numpy, scipy, jaxtyping and ml-collections, and for its learned judges "
        f"transformers, safetensors, pillow and huggingface-hub; launch/install_rewards.sh makes one with all of these."
      ) from error

  def _step(self) -> None:
    """Sends what is new, then waits for an answer, the bell, or the oldest job's deadline."""
    if not self._entries and self._sidecar is None:  # it will be restarted for the next job
      select.select([self._bell], [], [])
      return
    try:
      if self._sidecar is None:
        self._sidecar = SidecarProcess(self._config)
      self._send_new(self._sidecar)
      message = self._sidecar.wait(self._seconds_left(), also=self._bell.fileno())
      if message is not None:
        self._finish(message)
      elif self._seconds_left() == 0:
        raise SidecarError(f"it took longer than {self._config.job_seconds:g} s")
    except (SidecarError, UserError) as error:
      self._recover(error)

  def _hear_bell(self) -> None:
    with contextlib.suppress(BlockingIOError):
      while self._bell.recv(4096):
        pass

  def _take_new(self) -> None:
    while not self._inbox.empty():
      entry = self._inbox.get()
      self._entries[entry.request.job] = entry

  def _send_new(self, sidecar: SidecarProcess) -> None:
    """Sees to it that the sidecar has a job, and the next one: more would only fill the shared memory."""
    for entry in list(self._entries.values()):
      sent = sum(other.sent for other in self._entries.values())
      if sent == _JOBS_AHEAD:
        return
      if entry.sent:
        continue
      try:
        shared = entry.share()
      except UserError as error:
        if sent:  # there will be more room when that is done
          return
        del self._entries[entry.request.job]
        entry.finish(jobs.failed(entry.job, str(error)))
        continue
      if not sent:
        self._working_since = time.monotonic()
      sidecar.request(entry.request, shared.descriptor)
      entry.sent = True

  def _seconds_left(self) -> float | None:
    """For the oldest job; None without one."""
    if not any(entry.sent for entry in self._entries.values()):
      return None
    return max(0.0, self._working_since + self._config.job_seconds - time.monotonic())

  def _finish(self, message: Message) -> None:
    """Hands on an answer.

    Raises:
      SidecarError: it is none, or does not fit the job.
    """
    entry = self._entries.get(message.job) if isinstance(message, Scored) else None
    if entry is None or not entry.sent:
      raise SidecarError(f"it answered nonsense ({type(message).__name__} to no open job)")
    try:
      results = jobs.read(entry.job, message, entry.shared.arrays)
    except ValueError as error:
      raise SidecarError(f"it answered nonsense ({error})") from error
    del self._entries[message.job]
    self._working_since = time.monotonic()
    entry.finish(results)

  def _recover(self, error: Exception) -> None:
    """Ends the sidecar and blames the oldest job; the others are as if they had never been sent."""
    reason = self._sidecar.end(error) if self._sidecar else str(error)
    self._sidecar = None
    for entry in self._entries.values():
      entry.sent = False
    _logger.warning("the reward sidecar is lost: %s", reason)
    if not self._entries:
      return
    oldest = next(iter(self._entries.values()))
    if oldest.blame(reason, self._config.retries):
      del self._entries[oldest.request.job]

  def _ring(self) -> None:
    with contextlib.suppress(BlockingIOError):  # it rings already
      self._cord.send(b"!")
