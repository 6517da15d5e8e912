"""Loads Depth Anything 3 and asks it about a clip.

The networks are those of the package depth-anything-3 (Lin et al. 2025, github.com/ByteDance-Seed/Depth-Anything-3).
Its class `DepthAnything3` is not used: to import it takes moviepy 1.0, pycolmap, trimesh, torchvision and more for
exports that nobody asks for here, it fills weights that a checkpoint lacks with noise, and on a CPU it computes in
float16. What it does with pictures and weights is spelled out below instead.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from wr1_jax.config import DepthAnythingConfig
from wr1_jax.errors import UserError
from wr1_jax.sidecar.depth_anything import harmonics
from wr1_jax.sidecar.depth_anything.scene import HarmonicScene
from wr1_jax.sidecar.judges.checkpoints import Source, check_weights

FILES = ("config.json", "model.safetensors")
PATCH = 14  # sides of what the networks see are multiples of this
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels


class NoPrediction(Exception):
  """The networks could not say anything about a clip."""


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
  """What Depth Anything 3 says of n frames, in a world that lies near a frame of its own choice, to any scale."""

  size: tuple[int, int]  # (h, w) that the networks saw
  world_to_camera: Float[np.ndarray, "n 4 4"]  # float64
  intrinsics: Float[np.ndarray, "n 3 3"]  # float64, pixels of `size`
  scene: HarmonicScene  # n h w Gaussians: one for each pixel of each frame, in this order


def source_of(options: DepthAnythingConfig) -> Source:
  """Where the model is."""
  published = DepthAnythingConfig()
  return Source(
    option="rewards.depth_anything_3.path",
    path=options.path,
    revision=options.revision,
    published=(published.path, published.revision),
    files=FILES,
  )


class DepthAnything:
  """The networks of a model folder.

  Raises:
    UserError: the package is missing, there is no model at the path, it is not a model of this kind, or has no head for
      Gaussians.
  """

  def __init__(self, options: DepthAnythingConfig, device: str):
    source = source_of(options)
    with source.reading() as folder:
      network = _load(folder, source.option)
    self._network = network.to(device).eval()
    self._device, self._longest = torch.device(device), options.longest_side
    self._half = options.dtype == "bfloat16"

  @torch.inference_mode()
  def __call__(self, frames: UInt8[np.ndarray, "n H W 3"]) -> Prediction:
    """Asks about frames of one clip.

    Raises:
      NoPrediction: the networks gave up.
    """
    inputs = self.inputs(frames)
    try:
      # The heads switch this off for themselves, as they were trained.
      with torch.autocast(self._device.type, torch.bfloat16, enabled=self._half):
        output = self._network(inputs, infer_gs=True)
    except AssertionError as error:  # how the nested model says that it sees nothing but sky
      raise NoPrediction(f"Depth Anything 3 gave up: {error}") from error
    return read(output, inputs.shape[-2:])

  def inputs(self, frames: UInt8[np.ndarray, "n H W 3"]) -> Float[Tensor, "1 n 3 h w"]:
    """Frames as the networks take them, float32."""
    pictures = torch.from_numpy(np.stack([resized(frame, self._longest) for frame in frames])).to(self._device)
    mean, std = torch.tensor(_MEAN).to(self._device), torch.tensor(_STD).to(self._device)
    return ((pictures / 255 - mean) / std).permute(0, 3, 1, 2)[None]


def read(output: dict[str, Any], size: tuple[int, int]) -> Prediction:
  """What the networks gave for one clip, with poses and Gaussians in the same units.

  Args:
    output: extrinsics [1, n, 3 or 4, 4] (world to camera), intrinsics [1, n, 3, 3], and gaussians, which have means
      [1, g, 3], scales [1, g, 3], rotations [1, g, 4] (w, x, y, z), opacities [1, g] and harmonics [1, g, 3, 9]. A
      nested model, which knows metres, also has a scale_factor: extrinsics are in metres, but the Gaussians are not.
  """
  extrinsics = output["extrinsics"][0].double().cpu().numpy()
  world_to_camera = np.tile(np.eye(4), (len(extrinsics), 1, 1))
  world_to_camera[:, :3] = extrinsics[:, :3]
  # Nothing that is scored has units, so the poses follow the Gaussians; a factor of 0 makes them infinite, which shows.
  with np.errstate(divide="ignore", invalid="ignore"):
    world_to_camera[:, :3, 3] /= output.get("scale_factor", 1.0)
  found = output["gaussians"]
  return Prediction(
    size=tuple(size),
    world_to_camera=world_to_camera,
    intrinsics=output["intrinsics"][0].double().cpu().numpy(),
    scene=HarmonicScene(
      means=found.means[0].float(),
      scales=found.scales[0].float(),
      quaternions=found.rotations[0].float(),
      opacities=found.opacities[0].float(),
      harmonics=found.harmonics[0].float().transpose(-1, -2).contiguous(),
    ),
  )


def seen_size(height: int, width: int, longest: int) -> tuple[int, int]:
  """The size (h, w) at which the networks see frames: of about the same aspect, the longer side about `longest`."""
  scale = longest / max(height, width)
  return tuple(max(PATCH, _nearest_multiple(max(1, round(side * scale)))) for side in (height, width))


def resized(frame: UInt8[np.ndarray, "H W 3"], longest: int) -> UInt8[np.ndarray, "h w 3"]:
  """A frame as the networks see it: shrunk or enlarged to the longest side first, then to multiples of a patch."""
  import cv2

  height, width = frame.shape[:2]
  scale = longest / max(height, width)
  exact = tuple(max(1, round(side * scale)) for side in (height, width))
  for size in (exact, seen_size(height, width, longest)):
    before = frame.shape[:2]
    if size != before:
      larger = any(new > old for new, old in zip(size, before))
      frame = cv2.resize(frame, size[::-1], interpolation=cv2.INTER_CUBIC if larger else cv2.INTER_AREA)
  return frame


def _nearest_multiple(side: int) -> int:
  """Of `PATCH`; the larger of two that are as near."""
  return PATCH * ((side + PATCH // 2) // PATCH)


def _load(folder: Path, option: str) -> nn.Module:
  # The package says on the standard output what it computes, clip after clip.
  os.environ.setdefault("DA3_LOG_LEVEL", "ERROR")
  try:
    import cv2  # noqa: F401  (needed later)
    from depth_anything_3.cfg import create_object, load_config
    from depth_anything_3.registry import MODEL_REGISTRY
  except ImportError as error:
    raise UserError(_incomplete(error)) from error
  name = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_name")
  if name not in MODEL_REGISTRY:
    raise UserError(
      f"config.{option}: the config.json in {folder} names the model '{name}', which depth-anything-3 does not know; "
      f"it knows {', '.join(MODEL_REGISTRY)}."
    )
  try:
    network = create_object(load_config(MODEL_REGISTRY[name]))
  except ImportError as error:
    raise UserError(_incomplete(error)) from error
  check_gaussian_head(network, name, option)
  _fill(network, folder / "model.safetensors", option)
  return network


def check_gaussian_head(network: nn.Module, name: str, option: str) -> None:
  """Checks that the networks give Gaussians of the form that `read` takes; if not, they would say nothing of it.

  Raises:
    UserError: they do not.
  """
  views = getattr(network, "da3", network)  # a nested model has its Gaussians from this part of it
  adapter = getattr(views, "gs_adapter", None)
  if adapter is None or getattr(views, "gs_head", None) is None:
    raise UserError(
      f"config.{option}: the model '{name}' has no head for Gaussians, so it cannot make a scene; da3-giant and "
      f"da3nested-giant-large have one."
    )
  if adapter.pred_color or adapter.sh_degree != harmonics.DEGREE:
    raise UserError(
      f"config.{option}: the model '{name}' gives colours of another form than spherical harmonics of degree "
      f"{harmonics.DEGREE}; those of da3-giant and da3nested-giant-large can be read."
    )


def _fill(network: nn.Module, file: Path, option: str) -> None:
  """Loads weights, all of which must be there; what a file has beside them is left alone, as the package does.

  Raises:
    UserError: weights are missing.
  """
  published = nn.Module()
  published.model = network  # the names in checkpoints begin with "model."
  # Modules that the networks use in two places are in checkpoints once; `load_model` knows this.
  missing, _ = safetensors.torch.load_model(published, file, strict=False)
  check_weights(option, set(missing), set(), set())


def _incomplete(error: ImportError) -> str:
  return (
    f"config.rewards.reconstructor is 'depth_anything_3', which {sys.executable} cannot run: {error}. Its packages "
    f"need an environment of their own: run `bash launch/install_rewards.sh cpu` (or cuda) and set "
    f"config.rewards.python to .venv-rewards/bin/python."
  )
