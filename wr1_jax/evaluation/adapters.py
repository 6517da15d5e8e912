"""Reads trained adapters from a run's folder, without disturbing a training that goes on in it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from jaxtyping import Float32

from wr1_jax.config import LoRAConfig
from wr1_jax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Adapters:
  """The adapters of one checkpoint, on the host, and where they came from."""

  weights: Mapping[tuple[str, ...], Float32[np.ndarray, "..."]]  # by path in the network's state
  iterations: int  # that the checkpoint has seen
  lora: LoRAConfig  # of the run
  base_model: str  # config.model.path of the run

  def check(self, lora: LoRAConfig) -> None:
    """Raises `UserError` where the run was made with another rank or alpha than `lora`."""
    if (self.lora.rank, self.lora.alpha) != (lora.rank, lora.alpha):
      raise UserError(
        f"the run was made with rank {self.lora.rank} and alpha {self.lora.alpha}, and the config has rank "
        f"{lora.rank} and alpha {lora.alpha}; give the run's --config, or --config.lora.rank={self.lora.rank} "
        f"--config.lora.alpha={self.lora.alpha}."
      )

  def placed(self, like: nnx.State) -> nnx.State:
    """The adapters in the structure and with the shardings of `like` (`WanModel.lora`).

    Raises:
      UserError: they belong to another network.
    """
    expected = {tuple(map(str, path)): variable for path, variable in nnx.to_flat_state(like)}
    shapes = lambda tree: {path: tuple(leaf.shape) for path, leaf in tree.items()}
    if shapes(expected) != shapes(self.weights):
      raise UserError(
        "the run's adapters do not fit config.model.path: their layers or sizes are others. The run was made with "
        f"config.model.path = {self.base_model}."
      )
    return nnx.from_flat_state(
      [
        (path, variable.replace(jax.device_put(self.weights[tuple(map(str, path))], variable.get_value().sharding)))
        for path, variable in nnx.to_flat_state(like)
      ]
    )


def read(run: Path, *, step: int | None = None, ema: bool = False, flag: str = "--run") -> Adapters:
  """Reads a checkpoint of the run in the folder `run`.

  Args:
    step: the number of iterations of the checkpoint; None: the newest.
    ema: the running average of the adapters instead of the adapters themselves.
    flag: what the command line calls `run`, for messages.

  Raises:
    UserError: `run` is no run's folder, or has no such checkpoint, or a damaged one.
  """
  try:
    config = json.loads((run / "config.json").read_text())
    lora, base_model = LoRAConfig(config["lora"]["rank"], config["lora"]["alpha"]), config["model"]["path"]
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(f"{flag}={run} is no run's folder: its config.json cannot be read ({error}).") from error
  step = _choose(run / "checkpoints", step)
  return Adapters(_restore(run / "checkpoints" / str(step), "ema" if ema else "lora"), step, lora, base_model)


def _choose(folder: Path, step: int | None) -> int:
  steps = sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())
  if not steps:
    raise UserError(f"there are no checkpoints in {folder}.")
  if step is not None and step not in steps:
    raise UserError(f"{folder} has no checkpoint {step}; it has {', '.join(map(str, steps))}.")
  return steps[-1] if step is None else step


def _restore(checkpoint: Path, item: str) -> dict[tuple[str, ...], np.ndarray]:
  path = (checkpoint / "policy").absolute()
  device = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
  with ocp.StandardCheckpointer() as checkpointer:
    try:
      shapes = ocp.StandardCheckpointHandler().metadata(path).tree  # the checkpointer's own would warn of other items
      like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes)
      tree = checkpointer.restore(path, like)[item]
    except Exception as error:  # damaged files make Orbax raise whatever it likes
      reason = " ".join(str(error).split())[:200]
      raise UserError(f"the checkpoint {path} is damaged ({reason}); --step=N chooses another.") from error
  return {
    tuple(str(key.key) for key in path if str(key.key) != "value"): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }
