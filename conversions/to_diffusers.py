"""Writes a run's adapters as a LoRA that diffusers loads.

    python -m conversions.to_diffusers --src=RUN_DIR --dst=FOLDER [--step=N] [--ema]

    pipeline = diffusers.WanPipeline.from_pretrained(BASE_MODEL)
    pipeline.load_lora_weights(FOLDER)

The folder gets `pytorch_lora_weights.safetensors` and a `config.json` that says where it came from. The scale
alpha / rank is multiplied into the second factor, so that the adapters apply with a weight of 1 in every program.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import nnx

from wr1_jax.errors import UserError, reported
from wr1_jax.models import weights

_FILE = "pytorch_lora_weights"
_PROJECTIONS = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out": "to_out.0"}  # ours: theirs


def convert(run: Path, folder: Path, *, step: int | None = None, ema: bool = False) -> Path:
  """Exports a checkpoint of the run in `run` to `folder`.

  Args:
    step: the number of iterations of the checkpoint; None: the newest.
    ema: the running average of the adapters instead of the adapters themselves.

  Returns:
    the file that was written.

  Raises:
    UserError: `run` is no run's folder, or has no such checkpoint.
  """
  config = _read_config(run)
  lora, step = _restore(run / "checkpoints", step, "ema" if ema else "lora")
  scale = config["lora"]["alpha"] / config["lora"]["rank"]
  scaled = jax.tree.map_with_path(
    lambda path, leaf: leaf * scale if "lora_b" in jax.tree_util.keystr(path) else leaf, lora
  )
  provenance = {
    "base_model": config["model"]["path"],
    "iterations": step,
    "running_average": ema,
    "rank": config["lora"]["rank"],
    "alpha": config["lora"]["alpha"],
  }
  weights.save(folder, scaled, tensor_table(), provenance, stem=_FILE)
  return folder / f"{_FILE}.safetensors"


def tensor_table() -> dict[str, weights.Tensor]:
  """Where diffusers' LoRA format keeps each factor of each adapter."""
  factors = {"lora_a": "lora_A", "lora_b": "lora_B"}
  return {
    f"blocks/{attention}/{ours}/{factor}": weights.Tensor(
      f"transformer.blocks.{{layer}}.{attention}.{theirs}.{name}.weight", weights.LINEAR
    )
    for attention in ("attn1", "attn2")
    for ours, theirs in _PROJECTIONS.items()
    for factor, name in factors.items()
  }


def _read_config(run: Path) -> dict[str, Any]:
  try:
    return json.loads((run / "config.json").read_text())
  except (OSError, ValueError) as error:
    raise UserError(f"--src={run} is no run's folder: its config.json cannot be read ({error}).") from error


def _restore(folder: Path, step: int | None, item: str) -> tuple[nnx.State, int]:
  """The adapters of a checkpoint, on the host, and its step."""
  names = sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())
  if not names:
    raise UserError(f"there are no checkpoints in {folder}.")
  if step is not None and step not in names:
    raise UserError(f"{folder} has no checkpoint {step}; it has {', '.join(map(str, names))}.")
  step = names[-1] if step is None else step
  path = (folder / str(step) / "policy").absolute()
  device = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
  with ocp.StandardCheckpointer() as checkpointer:
    try:
      shapes = checkpointer.metadata(path).item_metadata.tree
      like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes)
      tree = checkpointer.restore(path, like)[item]
    except Exception as error:  # damaged files make Orbax raise whatever it likes
      raise UserError(f"the checkpoint {path} is damaged ({str(error)[:200]}); --step=N chooses another.") from error
  flat = jax.tree_util.tree_leaves_with_path(tree)
  keys = [tuple(str(key.key) for key in path if str(key.key) != "value") for path, _ in flat]
  return nnx.from_flat_state([(key, nnx.Param(leaf)) for key, (_, leaf) in zip(keys, flat)]), step


def main() -> None:
  parser = argparse.ArgumentParser(prog="python -m conversions.to_diffusers", description=__doc__.splitlines()[0])
  parser.add_argument("--src", type=Path, required=True, help="a run's folder (--workdir of the training)")
  parser.add_argument("--dst", type=Path, required=True, help="folder to write")
  parser.add_argument("--step", type=int, help="which checkpoint; default: the newest")
  parser.add_argument("--ema", action="store_true", help="the running average of the adapters")
  arguments = parser.parse_args()
  with reported():
    try:
      print(convert(arguments.src, arguments.dst, step=arguments.step, ema=arguments.ema))
    except OSError as error:
      raise UserError(f"--dst={arguments.dst} cannot be written: {error}.") from error


if __name__ == "__main__":
  main()
