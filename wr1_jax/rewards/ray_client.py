"""The trainer's side of scorers that run as Ray actors on the nodes of a cluster: `RewardClient` over another way.

A job is cut into as many parts as there are actors (`config.replicas`). The frames of a part go into Ray's object store
once, and each actor reads them there without a copy. See `ray_dispatcher` for what happens when actors or nodes fail.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import logging
import signal
import socket
import threading

import ray

from wr1_jax.config import RewardsConfig
from wr1_jax.errors import UserError
from wr1_jax.rewards import jobs
from wr1_jax.rewards.jobs import Job, Results
from wr1_jax.rewards.ray_dispatcher import Dispatcher, Part
from wr1_jax.sidecar import batch, registry, shared_arrays

_CLOSE_SECONDS = 10.0
_PROBE_SECONDS = 10.0


class RayRewardClient:
  """Starts the actors on entering the `with` block and ends them on leaving. Any thread may submit.

  Connects this process to the cluster unless that has been done before, and disconnects it again if so.
  """

  def __init__(self, config: RewardsConfig):
    """Checks what can be checked before anything is started.

    Raises:
      UserError: a scorer name is unknown, or options contradict each other.
    """
    registry.check(config)
    _check(config)
    self._config = config
    self._ids = itertools.count()
    self._connected = False  # by this client
    self._started: concurrent.futures.Future[dict[str, str]] = concurrent.futures.Future()
    self._dispatcher = Dispatcher(config)
    # A daemon, so that a trainer that fails does not wait for jobs.
    self._thread = threading.Thread(
      target=self._dispatcher.run, args=(self._started,), name="reward dispatcher", daemon=True
    )

  def __enter__(self) -> RayRewardClient:
    """Starts the actors and waits until all are ready.

    Raises:
      UserError: there is no such cluster, or an actor cannot start, for example because its node has no torch.
    """
    try:
      if not ray.is_initialized():
        _connect(self._config.ray.address)
        self._connected = True
      self._thread.start()
      self._started.result()
    except BaseException:
      self.close()
      raise
    return self

  def __exit__(self, *_) -> None:
    self.close()

  @property
  def versions(self) -> dict[str, str]:
    """Versions of Python and of the libraries that an actor has loaded."""
    return self._started.result()

  def check_room(self, clips: int, frames: int, height: int, width: int) -> None:
    """Checks that the parts of a job of this shape fit into the object stores.

    Raises:
      UserError: they do not.
    """
    largest = -(-clips // min(clips, self._config.replicas))
    shape = jobs.batch_shape((largest, frames, height, width, 3), self._config.reconstruction)
    self._check_store(shared_arrays.total_bytes(batch.array_specs(shape, jobs.ALL_PARTS)))

  def submit(self, job: Job) -> Results:
    """Hands in a job and returns at once. The job's arrays must not be changed until it is done.

    Returns:
      A future of one `ClipResult` a clip, in the job's order. It does not fail when an actor does: then the results are
      NaN with reasons. Only if the client is closed first, it raises RuntimeError.

    Raises:
      RuntimeError: the client is closed.
    """
    split = job.split(self._config.replicas)
    parts = [Part(part, part.request(next(self._ids), self._config.reconstruction)) for part in split]
    for part in parts:
      self._dispatcher.add(part)
    return jobs.joined([part.results for part in parts])

  def close(self) -> None:
    """Ends the actors; the futures of unfinished jobs raise RuntimeError. Idempotent."""
    self._dispatcher.stop()
    if self._thread.is_alive():
      self._thread.join(_CLOSE_SECONDS)
    if self._connected:
      self._connected = False
      ray.shutdown()

  def _check_store(self, size: int) -> None:
    """Checks the object stores of this node and of those that could run an actor."""
    wanted = self._config.ray
    here = ray.get_runtime_context().get_node_id()
    for node in ray.nodes():
      has = node["Resources"]
      room = has.get("object_store_memory", 0)
      serves = has.get("CPU", 0) >= wanted.cpus and has.get("GPU", 0) >= wanted.gpus
      if node["Alive"] and (serves or node["NodeID"] == here) and size > room:
        raise UserError(
          f"a batch of clips needs {size / 2**20:.0f} MiB of Ray's object store on every node, but that of "
          f"{node['NodeManagerAddress']} has {room / 2**20:.0f}; start the node with ray start "
          f"--object-store-memory=BYTES, or score fewer clips at once."
        )


def _check(config: RewardsConfig) -> None:
  if config.python:
    raise UserError(
      f"config.rewards.python is '{config.python}', but with config.rewards.transport=ray the scorers run in the "
      f"interpreter that `ray start` was called with on their node; leave it empty."
    )
  if config.device.startswith("cuda") and not config.ray.gpus:
    raise UserError(
      f"config.rewards.device is '{config.device}', but config.rewards.ray.gpus is 0, so that Ray hides all GPUs from "
      f"the scorers; set config.rewards.ray.gpus=1, or a share of 1 for actors that are to share one."
    )
  if config.ray.gpus > 1 and config.ray.gpus % 1:
    raise UserError(f"config.rewards.ray.gpus is {config.ray.gpus:g}; above 1 it must be a whole number.")


def _connect(address: str) -> None:
  """Connects this process to the cluster, or starts one.

  Raises:
    UserError: there is none at `address`.
  """
  handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
  try:
    _probe(address)
    ray.init(address=address or None, include_dashboard=False, logging_level=logging.WARNING)
  except (OSError, RuntimeError, ValueError) as error:  # ConnectionError is an OSError
    raise UserError(
      f"config.rewards.ray.address is '{address}', but there is no Ray cluster to join: "
      f"{' '.join(str(error).split())[:300]}. Start its head with `ray start --head`, join it from this machine with "
      f"`ray start --address=HOST:PORT --num-cpus=0`, and give that HOST:PORT."
    ) from error
  finally:
    if threading.current_thread() is threading.main_thread():
      for number, handler in handlers.items():  # Ray puts its own in the place of the trainer's
        signal.signal(number, handler)


def _probe(address: str) -> None:
  """Raises OSError if nothing listens at HOST:PORT, which would take Ray minutes to notice."""
  host, colon, port = address.rpartition(":")
  if colon and port.isdigit() and "/" not in host:
    socket.create_connection((host.strip("[]"), int(port)), _PROBE_SECONDS).close()
