"""The trainer's side of the reward sidecar: submits jobs, goes on, and collects the results later.

    with RewardClient(config.rewards) as client:
      future = client.submit(Job(videos, prompts, paths))
      ...  # the next rollout
      results = future.result()  # one ClipResult a clip

When a sidecar dies, hangs (a job takes longer than `job_seconds`) or answers nonsense, it is killed and a fresh one
gets all its unfinished jobs again. A job over which this happens more than `retries` times is given up: its results are
NaN with a reason.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import threading

from wr1_jax.config import RewardsConfig
from wr1_jax.errors import UserError
from wr1_jax.rewards import jobs
from wr1_jax.rewards.jobs import Job, Results
from wr1_jax.rewards.sidecar_process import find_interpreter
from wr1_jax.rewards.supervisor import Entry, Supervisor
from wr1_jax.sidecar import batch, channel, registry, shared_arrays
from wr1_jax.sidecar.messages import ProtocolError

_CLOSE_SECONDS = 10.0


class RewardClient:
  """Starts the sidecars on entering the `with` block and ends them on leaving. Any thread may submit.

  Every job is cut into as many parts as there are sidecars (`config.replicas`), which work side by side.
  """

  def __init__(self, config: RewardsConfig):
    """Checks what can be checked before anything is started.

    Raises:
      UserError: a scorer name is unknown, or the sidecar's interpreter does not exist.
    """
    registry.check(config)
    find_interpreter(config.python)
    self._config = config
    self._ids = itertools.count()
    self._replicas = [_Replica(config) for _ in range(config.replicas)]

  def __enter__(self) -> RewardClient:
    """Starts the sidecars and waits until all are ready.

    Raises:
      UserError: one cannot start, for example because its interpreter has no torch.
    """
    try:
      for replica in self._replicas:
        replica.thread.start()
      for replica in self._replicas:
        replica.started.result()
    except BaseException:
      self.close()
      raise
    return self

  def __exit__(self, *_) -> None:
    self.close()

  @property
  def versions(self) -> dict[str, str]:
    """Versions of Python and of the libraries that a sidecar has loaded."""
    return self._replicas[0].started.result()

  def check_room(self, clips: int, frames: int, height: int, width: int) -> None:
    """Checks that a job of this shape fits into shared memory.

    Raises:
      UserError: it does not.
    """
    shape = jobs.batch_shape((clips, frames, height, width, 3), self._config.reconstruction)
    shared_arrays.check_room(batch.array_specs(shape, jobs.ALL_PARTS))

  def submit(self, job: Job) -> Results:
    """Hands in a job and returns at once. The job's arrays must not be changed until it is done.

    Returns:
      A future of one `ClipResult` a clip, in the job's order. It does not fail when a sidecar does: then the results
      are NaN with reasons. Only if the client is closed first, it raises RuntimeError.

    Raises:
      UserError: the job can never fit into shared memory, or its prompts are longer than a message may be.
      RuntimeError: the client is closed.
    """
    entries = [self._entry(part) for part in job.split(len(self._replicas))]
    for entry in entries:
      self._replicas[entry.request.job % len(self._replicas)].supervisor.add(entry)
    return jobs.joined([entry.results for entry in entries])

  def close(self) -> None:
    """Ends the sidecars; the futures of unfinished jobs raise RuntimeError. Idempotent."""
    for replica in self._replicas:
      replica.supervisor.stop()
    for replica in self._replicas:
      if replica.thread.is_alive():
        replica.thread.join(_CLOSE_SECONDS)

  def _entry(self, job: Job) -> Entry:
    request = job.request(next(self._ids), self._config.reconstruction)
    try:
      channel.pack(request)
    except ProtocolError as error:
      raise UserError(f"the prompts of {len(job.prompts)} clips are too long for one job: {error}.") from error
    shared_arrays.check_room(batch.array_specs(request.shape, request.parts))
    return Entry(job, request)


class _Replica:
  """One sidecar with what keeps it going."""

  def __init__(self, config: RewardsConfig):
    self.started: concurrent.futures.Future[dict[str, str]] = concurrent.futures.Future()
    self.supervisor = Supervisor(config)
    # It spawns the sidecar and outlives it. A daemon, so that a trainer that fails does not wait for jobs.
    self.thread = threading.Thread(
      target=self.supervisor.run, args=(self.started,), name="reward supervisor", daemon=True
    )
