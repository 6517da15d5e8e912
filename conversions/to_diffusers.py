"""Writes a run's adapters as a LoRA that diffusers loads.

    python -m conversions.to_diffusers --src=RUN_DIR --dst=FOLDER [--step=N] [--ema]

    pipeline = diffusers.WanPipeline.from_pretrained(BASE_MODEL)
    pipeline.load_lora_weights(FOLDER)

The folder gets `pytorch_lora_weights.safetensors` and a `config.json` that says where it came from. The scale
alpha / rank is multiplied into the second factor, so that the adapters apply with a weight of 1 in every program.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from flax import nnx

from wr1_jax.errors import UserError, reported
from wr1_jax.evaluation import adapters
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
  trained = adapters.read(run, step=step, ema=ema, flag="--src")
  scale = trained.lora.alpha / trained.lora.rank
  scaled = [(path, nnx.Param(leaf * scale if path[-1] == "lora_b" else leaf)) for path, leaf in trained.weights.items()]
  provenance = {
    "base_model": trained.base_model,
    "iterations": trained.iterations,
    "running_average": ema,
    "rank": trained.lora.rank,
    "alpha": trained.lora.alpha,
  }
  weights.save(folder, nnx.from_flat_state(scaled), tensor_table(), provenance, stem=_FILE)
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
