"""Asynchronous Orbax checkpoints of what training changes, and exact resumption from them."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import TracebackType

import jax
import orbax.checkpoint as ocp

from wr1_jax.errors import UserError
from wr1_jax.training.state import TrainState

_HEADROOM = 1.2  # a checkpoint's files are a little larger than its arrays


class Checkpoints:
  """The folder `directory`: one checkpoint a saved step, written in the background.

  A checkpoint named N holds the state after N iterations, in two items: "policy" (adapters and their running average)
  and "optimizer" (moments and the number of updates). It appears under its name only when it is complete, so a run
  that is killed while it writes finds the one before.
  """

  def __init__(self, directory: Path, keep: int):
    directory.mkdir(parents=True, exist_ok=True)
    self._directory = directory
    self._manager = ocp.CheckpointManager(
      directory.absolute(),
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep, cleanup_tmp_directories=True, enable_async_checkpointing=True
      ),
    )

  def __enter__(self) -> Checkpoints:
    return self

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
  ) -> None:
    self._manager.close()

  def latest(self) -> int | None:
    """How many iterations the newest complete checkpoint has seen; None: there is none."""
    return self._manager.latest_step()

  def save(self, iterations: int, state: TrainState) -> None:
    """Starts to write `state`; returns once it is copied off the device.

    Raises:
      UserError: there is no room on the disk, or the save before this one failed. Earlier checkpoints are intact.
    """
    self.wait()
    self.check_room(state)
    try:
      self._manager.save(
        iterations,
        args=ocp.args.Composite(
          policy=ocp.args.StandardSave({"lora": state.lora, "ema": state.ema}),
          optimizer=ocp.args.StandardSave({"moments": state.optimizer, "updates": state.updates}),
        ),
      )
    except (OSError, ValueError) as error:
      raise self._failed(error) from error

  def wait(self) -> None:
    """Returns when what was saved is on the disk.

    Raises:
      UserError: it could not be written.
    """
    try:
      self._manager.wait_until_finished()
      self._manager.check_for_errors()
    except (OSError, ValueError) as error:
      raise self._failed(error) from error

  def restore(self, iterations: int, like: TrainState) -> TrainState:
    """Reads the checkpoint named `iterations` into the shapes, dtypes and shardings of `like`.

    Raises:
      UserError: its arrays do not have the shapes of `like` (another model or LoRA rank), or it is damaged.
    """
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
    try:
      items = self._manager.restore(
        iterations,
        args=ocp.args.Composite(
          policy=ocp.args.StandardRestore({"lora": abstract.lora, "ema": abstract.ema}),
          optimizer=ocp.args.StandardRestore({"moments": abstract.optimizer, "updates": abstract.updates}),
        ),
      )
    except Exception as error:  # damaged files make Orbax raise whatever it likes
      raise UserError(
        f"checkpoint {self._directory / str(iterations)} could not be read into this run's model "
        f"({str(error)[:300]}). Where it is damaged, remove that folder to go on from the checkpoint before it."
      ) from error
    policy, optimizer = items["policy"], items["optimizer"]
    return TrainState(policy["lora"], optimizer["moments"], policy["ema"], optimizer["updates"])

  def check_room(self, state: TrainState) -> None:
    """Raises `UserError` where the disk has no room for one more checkpoint of `state`."""
    needed = int(_HEADROOM * sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
    free = shutil.disk_usage(self._directory).free
    if free < needed:
      raise self._failed(OSError(f"it needs {needed / 2**20:.1f} MiB and {free / 2**20:.1f} MiB are free"))

  def _failed(self, error: Exception) -> UserError:
    newest = self.latest()
    kept = "There is no earlier checkpoint" if newest is None else f"The checkpoint of iteration {newest} is intact"
    return UserError(
      f"a checkpoint could not be written to {self._directory}: {str(error)[-200:]}. {kept}; make room and start the "
      "same command again to go on from there."
    )
