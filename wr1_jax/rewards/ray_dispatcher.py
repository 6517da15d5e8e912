"""Deals jobs out to Ray actors, whatever happens to these."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import ray
from ray.exceptions import ActorDiedError, RayActorError, RayError, RayTaskError

from wr1_jax.config import RewardsConfig
from wr1_jax.errors import UserError
from wr1_jax.rewards import jobs
from wr1_jax.rewards.jobs import ClipResult, OpenJob
from wr1_jax.sidecar import batch, messages
from wr1_jax.sidecar.messages import Message, ProtocolError, Ready, Scored, Start
from wr1_jax.sidecar.ray_actor import ScoringActor
from wr1_jax.sidecar.shared_arrays import Spec

_LONGEST_WAIT = 3600.0  # seconds between two looks at the deadlines
_START_PAUSE = 10.0  # seconds until a start that failed is tried again while other actors work
_MAX_REASON = 500  # characters

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(eq=False)
class Part(OpenJob):
  """A job, or the part of one, that a single actor scores."""

  inputs: ray.ObjectRef | None = None  # its arrays in the object store, from its first sending to its end

  def share(self) -> ray.ObjectRef:
    """The job's arrays in the object store, put there when they are first needed.

    Raises:
      RayError: the store takes no more.
    """
    if self.inputs is None:
      self.inputs = ray.put(self.job.inputs())
    return self.inputs

  def finish(self, results: list[ClipResult] | BaseException) -> None:
    self.inputs = None
    super().finish(results)


@dataclasses.dataclass(eq=False)
class _Replica:
  """One actor, and what it is doing: down (no actor), starting (a call, no part), idle (no call), or at work."""

  actor: Any = None
  call: concurrent.futures.Future | None = None  # that is waited for
  deadline: float = 0.0  # of the call; monotonic seconds
  part: Part | None = None
  start_after: float = 0.0  # while it is down
  retired: bool = False  # down for good
  versions: dict[str, str] = dataclasses.field(default_factory=dict)

  @property
  def idle(self) -> bool:
    return self.actor is not None and self.call is None

  def end(self) -> None:
    """Kills the actor, wherever it is and even if it hangs; Ray will not restart it."""
    if self.actor is not None:
      with contextlib.suppress(RayError):
        ray.kill(self.actor)
    self.actor = self.call = self.part = None


class Dispatcher:
  """`run` is one thread's work from beginning to end; the other methods may be called from any thread.

  Jobs wait in one queue, from which every idle actor takes the oldest: so when a node is lost, the others go on. An
  actor has one job at a time, which alone is to blame when the actor is lost. Ray restarts an actor whose process or
  node died. One that hangs, or answers nonsense, is killed and another one made: a restarted one could not be told from
  the old one that has not died yet. Ray does not retry jobs by itself, as every attempt has a deadline of its own,
  which must not run while an actor restarts.
  """

  def __init__(self, config: RewardsConfig):
    self._config = config
    self._start = messages.encode(Start(config))
    self._lock = threading.Lock()  # of _open
    self._open = True
    self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()  # `run` calls them one after the other
    # What only `run` touches:
    self._stopping = False
    self._waiting: collections.deque[Part] = collections.deque()
    self._replicas = [_Replica() for _ in range(config.replicas)]
    self._starting: concurrent.futures.Future[dict[str, str]] | None = None
    self._last_words = ""  # of an actor that could not start

  def add(self, part: Part) -> None:
    """Takes over a job.

    Raises:
      RuntimeError: the dispatcher has ended.
    """
    with self._lock:
      if not self._open:
        raise RuntimeError("the reward client is closed")
      self._events.put(functools.partial(self._waiting.append, part))

  def stop(self) -> None:
    """Asks `run` to end."""
    self._events.put(self._stop)

  def run(self, started: concurrent.futures.Future[dict[str, str]]) -> None:
    """Starts the actors, sets `started` to the versions of the first or to a UserError, and serves until `stop`."""
    end: BaseException = RuntimeError("the reward client was closed before the job was done")
    self._starting = started
    try:
      for replica in self._replicas:
        self._make_actor(replica)
      while not self._stopping:
        with contextlib.suppress(queue.Empty):
          self._events.get(timeout=self._seconds_left())()
        self._check_deadlines()
        self._deal()
    except BaseException as error:  # goes to whoever waits; nobody would see it in this thread
      end = error
    finally:
      self._finish(end)

  def _finish(self, end: BaseException) -> None:
    with self._lock:
      self._open = False
    working = [replica.part for replica in self._replicas if replica.part]
    for replica in self._replicas:
      replica.end()
    while not self._events.empty():  # jobs may be among them, and answers to calls that `end` has forgotten
      self._events.get()()
    for part in [*working, *self._waiting]:
      part.finish(end)
    if not self._starting.done():
      self._starting.set_exception(end)

  def _stop(self) -> None:
    self._stopping = True

  def _make_actor(self, replica: _Replica) -> None:
    config = self._config
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    replica.actor = (
      ray.remote(ScoringActor)
      .options(
        num_cpus=config.ray.cpus,
        num_gpus=config.ray.gpus,
        max_restarts=config.ray.restarts,
        max_task_retries=0,
        scheduling_strategy="SPREAD",
        runtime_env={"env_vars": dict.fromkeys(threads, str(config.threads)) | {"PYTHONFAULTHANDLER": "1"}},
      )
      .remote(self._start)
    )
    self._await_start(replica, restarts=0)

  def _await_start(self, replica: _Replica, restarts: int) -> None:
    """Waits for the actor to be ready, through so many restarts (-1: any number)."""
    reference = replica.actor.ready.options(max_task_retries=restarts).remote()
    self._call(replica, reference, self._config.start_seconds)

  def _call(self, replica: _Replica, reference: ray.ObjectRef, seconds: float) -> None:
    call = reference.future()
    replica.call, replica.deadline = call, time.monotonic() + seconds
    call.add_done_callback(lambda done: self._events.put(functools.partial(self._ended, replica, done)))

  def _deal(self) -> None:
    """Gives waiting jobs to idle actors, and replaces lost actors while jobs wait."""
    if all(replica.retired for replica in self._replicas):
      while self._waiting:
        part = self._waiting.popleft()
        part.finish(jobs.failed(part.job, f"no scoring actor is left; the last: {self._last_words}"))
    for replica in self._replicas:
      if not self._waiting:
        return
      if replica.idle:
        self._send(replica, self._waiting.popleft())
      elif self._may_start(replica) and time.monotonic() >= replica.start_after:
        self._make_actor(replica)

  @staticmethod
  def _may_start(replica: _Replica) -> bool:
    return replica.actor is None and not replica.retired

  def _send(self, replica: _Replica, part: Part) -> None:
    try:
      inputs = part.share()
    except RayError as error:
      part.finish(jobs.failed(part.job, f"Ray's object store does not take the clips: {_words(error)}"))
      return
    replica.part = part
    self._call(replica, replica.actor.score.remote(messages.encode(part.request), inputs), self._config.job_seconds)

  def _seconds_left(self) -> float:
    """Until the next look at the deadlines."""
    times = [replica.deadline for replica in self._replicas if replica.call]
    if self._waiting:
      times += [replica.start_after for replica in self._replicas if self._may_start(replica)]
    return min(_LONGEST_WAIT, max(0.0, min(times, default=np.inf) - time.monotonic()))

  def _check_deadlines(self) -> None:
    for replica in self._replicas:
      if replica.call is None or time.monotonic() < replica.deadline:
        continue
      if replica.part is not None:
        self._lost(replica, f"it took longer than {self._config.job_seconds:g} s")
      else:
        self._lost(replica, f"it was not ready after {self._config.start_seconds:g} s; {self._resources()}")

  def _ended(self, replica: _Replica, call: concurrent.futures.Future) -> None:
    """A call has an answer, or failed."""
    if call is not replica.call:
      return  # it was given up before
    try:
      if replica.part is None:
        replica.versions = _decoded(call.result(), Ready).versions
      else:
        replica.part.finish(_read(replica.part, *call.result()))
      replica.call = replica.part = None
      self._report_start()
    except Exception as error:  # also whatever an actor that runs other code may raise or answer
      self._lost(replica, _words(error), error)

  def _report_start(self) -> None:
    if not self._starting.done() and all(replica.idle for replica in self._replicas):
      self._starting.set_result(self._replicas[0].versions)

  def _lost(self, replica: _Replica, reason: str, error: Exception | None = None) -> None:
    """An actor died, hung or answered nonsense: sees to its replacement and blames the job for it."""
    _logger.warning("a scoring actor is lost: %s", reason)
    part, replica.part, replica.call = replica.part, None, None
    if part is None:
      self._start_failed(replica, reason, error)
      return
    if isinstance(error, RayActorError):
      self._await_start(replica, restarts=-1)  # Ray restarts it
    else:
      replica.end()
      self._make_actor(replica)
    self._blame(part, reason)

  def _start_failed(self, replica: _Replica, reason: str, error: Exception | None) -> None:
    # Dead though its scorers did not fail: it has used up its restarts. Scorers that failed may succeed elsewhere.
    replica.retired = isinstance(error, ActorDiedError) and not error.actor_init_failed
    replica.end()
    self._last_words = reason
    if not self._starting.done():
      self._starting.set_exception(_start_error(reason))
      return
    if any(other.actor is not None for other in self._replicas):
      replica.start_after = time.monotonic() + _START_PAUSE
    elif self._waiting:
      self._blame(self._waiting.popleft(), reason)

  def _blame(self, part: Part, reason: str) -> None:
    if not part.blame(reason, self._config.retries):
      self._waiting.appendleft(part)

  def _resources(self) -> str:
    """What an actor asks for, and what there is; for people."""
    wanted = f"{self._config.ray.cpus} CPUs and {self._config.ray.gpus:g} GPUs on one node"
    free = ray.available_resources()
    return f"an actor needs {wanted}, the cluster has {free.get('CPU', 0):g} and {free.get('GPU', 0):g} free in all"


def _start_error(reason: str) -> UserError:
  return UserError(
    f"a scoring actor did not start: {reason}. The nodes of the Ray cluster need wr1_jax in the same version as here, "
    f"ray, and what the chosen scorers import: for those of this package, torch, numpy, scipy, jaxtyping and "
    f"ml-collections, and for its learned judges transformers, safetensors, pillow and huggingface-hub. "
    f"config.rewards.ray says how many CPUs and GPUs each actor reserves."
  )


def _read(part: Part, answer: bytes, arrays: dict[str, np.ndarray]) -> list[ClipResult]:
  """The results in an actor's answer.

  Raises:
    ProtocolError, ValueError: it is none, or none to this job.
  """
  scored = _decoded(answer, Scored)
  if scored.job != part.request.job:
    raise ValueError(f"it answered job {scored.job} when asked for {part.request.job}")
  found = {name: Spec(str(array.dtype), array.shape) for name, array in arrays.items()}
  if found != batch.output_specs(part.request.shape, part.request.parts):
    raise ValueError(f"it answered with the arrays {found}")
  return jobs.read(part.job, scored, arrays)


def _decoded(data: bytes, kind: type[Message]) -> Message:
  message = messages.decode(data)
  if not isinstance(message, kind):
    raise ProtocolError(f"it answered {type(message).__name__}, not {kind.__name__}")
  return message


def _words(error: Exception) -> str:
  """The gist of an error, which Ray wraps into tracebacks and advice."""
  if isinstance(error, RayTaskError):
    return f"{type(error.cause).__name__}: {error.cause}"[:_MAX_REASON]
  text = str(error).strip()
  if isinstance(error, RayActorError) and error.actor_init_failed:
    return text.splitlines()[-1][-_MAX_REASON:]
  return f"{type(error).__name__}: {' '.join(text.split())}"[:_MAX_REASON]
