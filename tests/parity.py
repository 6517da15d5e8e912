"""How results are compared with those of diffusers and transformers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file


def error(found, expected) -> float:
  """||found - expected|| / ||expected||."""
  found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
  return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def channels_first(x: np.ndarray):
  """`[B, T, H, W, C]` as the torch tensor `[B, C, T, H, W]` that diffusers takes."""
  return pytest.importorskip("torch").from_numpy(x).permute(0, 4, 1, 2, 3)


def channels_last(x) -> np.ndarray:
  """The inverse of `channels_first`."""
  return x.permute(0, 2, 3, 4, 1).numpy()


def diffusers_transformer(folder: Path):
  """The `WanTransformer3DModel` of a folder that holds its config.json and one file of weights."""
  torch = pytest.importorskip("torch")
  config = json.loads((folder / "config.json").read_text())
  model = pytest.importorskip("diffusers").WanTransformer3DModel.from_config(config)
  tensors = load_file(folder / "diffusion_pytorch_model.safetensors")
  model.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in tensors.items()})
  return model.eval()
