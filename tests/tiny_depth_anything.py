"""Depth Anything 3 in small, with random weights: the package's own classes, for its own environment.

`make` is a reconstructor's factory, so that a sidecar can be asked for it by `tiny_depth_anything:make`.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import types
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from scipy.spatial.transform import Rotation
from torch import nn

from wr1_jax.config import DepthAnythingConfig, RewardsConfig
from wr1_jax.errors import UserError
from wr1_jax.sidecar.depth_anything import model
from wr1_jax.sidecar.depth_anything.scorer import DepthAnythingReconstructor

_NETWORK = """
__object__: {path: depth_anything_3.model.da3, name: DepthAnything3Net, args: as_params}
net:
  __object__: {path: depth_anything_3.model.dinov2.dinov2, name: DinoV2, args: as_params}
  name: vits
  out_layers: [5, 7, 9, 11]
  alt_start: 4
  qknorm_start: 4
  rope_start: 4
  cat_token: True
head:
  __object__: {path: depth_anything_3.model.dualdpt, name: DualDPT, args: as_params}
  dim_in: 768
  output_dim: 2
  features: 32
  out_channels: [16, 16, 16, 16]
cam_enc:
  __object__: {path: depth_anything_3.model.cam_enc, name: CameraEnc, args: as_params}
  dim_out: 384
cam_dec:
  __object__: {path: depth_anything_3.model.cam_dec, name: CameraDec, args: as_params}
  dim_in: 768
"""
_GAUSSIANS = """
gs_head:
  __object__: {path: depth_anything_3.model.gsdpt, name: GSDPT, args: as_params}
  dim_in: 768
  output_dim: 38
  features: 32
  out_channels: [16, 16, 16, 16]
gs_adapter:
  __object__: {path: depth_anything_3.model.gs_adapter, name: GaussianAdapter, args: as_params}
  sh_degree: 2
  pred_color: false
  pred_offset_depth: true
  pred_offset_xy: true
  gaussian_scale_min: 1e-5
  gaussian_scale_max: 3.0
"""
_METRIC = """
__object__: {path: depth_anything_3.model.da3, name: DepthAnything3Net, args: as_params}
net:
  __object__: {path: depth_anything_3.model.dinov2.dinov2, name: DinoV2, args: as_params}
  name: vits
  out_layers: [2, 5, 8, 11]
  alt_start: -1
  qknorm_start: -1
  rope_start: -1
  cat_token: False
head:
  __object__: {path: depth_anything_3.model.dpt, name: DPT, args: as_params}
  dim_in: 384
  output_dim: 1
  features: 32
  out_channels: [16, 16, 16, 16]
"""


def _indented(text: str) -> str:
  return "".join(f"  {line}\n" for line in text.strip().splitlines())


ARCHITECTURES = {
  "tiny": _NETWORK + _GAUSSIANS,
  "headless": _NETWORK,
  "nested": "__object__: {path: depth_anything_3.model.da3, name: NestedDepthAnything3Net, args: as_params}\n"
  f"anyview:\n{_indented(_NETWORK + _GAUSSIANS)}metric:\n{_indented(_METRIC)}",
}


def register(folder: Path) -> None:
  """Makes the package know the tiny models, whose architectures are written to a folder."""
  from depth_anything_3.registry import MODEL_REGISTRY

  for name, text in ARCHITECTURES.items():
    file = folder / f"{name}.yaml"
    if not file.exists():
      file.write_text(text, encoding="utf-8")
    MODEL_REGISTRY[name] = str(file)


def write(folder: Path, name: str) -> None:
  """Writes a model into `folder`/`name`, with cameras that look ahead: random weights alone would scatter them."""
  from depth_anything_3.cfg import create_object, load_config
  from depth_anything_3.registry import MODEL_REGISTRY

  register(folder)
  torch.manual_seed(0)
  published = nn.Module()
  published.model = create_object(load_config(MODEL_REGISTRY[name]))
  cameras = getattr(published.model, "da3", published.model).cam_dec
  with torch.no_grad():
    for layer, bias in ((cameras.fc_t, [0, 0, 0]), (cameras.fc_qvec, [0, 0, 0, 1]), (cameras.fc_fov[0], [0.6, 1.0])):
      layer.weight *= 0.2
      layer.bias.copy_(torch.tensor(bias, dtype=torch.float32))
  (folder / name).mkdir()
  (folder / name / "config.json").write_text(json.dumps({"model_name": name}), encoding="utf-8")
  safetensors.torch.save_model(published, str(folder / name / "model.safetensors"))


def make(config: RewardsConfig) -> DepthAnythingReconstructor:
  register(Path(config.depth_anything_3.path).parent)
  return DepthAnythingReconstructor(config)


def examine(folder: Path) -> dict[str, np.ndarray]:
  """What the models say of a random clip, and what the package does where this project does it by itself."""
  options = DepthAnythingConfig(dtype="float32", longest_side=56)
  rng = np.random.default_rng(0)
  frames = rng.integers(0, 256, (4, 64, 96, 3)).astype(np.uint8)
  found = {}
  for name in ("tiny", "nested"):
    predict = model.DepthAnything(dataclasses.replace(options, path=str(folder / name)), "cpu")
    prediction = predict(frames)
    found |= {f"{name}_cameras": prediction.world_to_camera, f"{name}_means": prediction.scene.means.numpy()}
  with torch.inference_mode():
    output = predict._network(torch.from_numpy(package_inputs(frames, 56))[None], infer_gs=True)
  found["scale_factor"] = np.array(output["scale_factor"])

  for i, (height, width) in enumerate([(64, 96), (30, 50), (96, 50)]):  # shrunk, enlarged, upright
    pictures = rng.integers(0, 256, (2, height, width, 3)).astype(np.uint8)
    found |= {f"inputs_{i}": predict.inputs(pictures)[0].numpy(), f"package_inputs_{i}": package_inputs(pictures, 56)}

  from depth_anything_3.utils.sh_helpers import rotate_sh

  rotation = Rotation.random(random_state=0).as_matrix().astype(np.float32)
  coefficients = rng.normal(size=(5, 9, 3)).astype(np.float32)
  turned = rotate_sh(torch.from_numpy(coefficients).transpose(1, 2), torch.from_numpy(rotation)[None, None])
  found |= {"rotation": rotation, "harmonics": coefficients, "package_turned": turned.numpy()}
  missing = complaint(folder / "torn", options, "tiny", without="model.gs_head.scratch.output_conv2.2.weight")
  return found | {"missing": np.array(missing), "unknown": np.array(complaint(folder / "alien", options, "da4"))}


def package_inputs(frames: np.ndarray, longest: int) -> np.ndarray:
  """Frames as the package's own processor prepares them; the little that it takes of torchvision is written out."""

  class Normalize:
    def __init__(self, mean, std):
      self._mean, self._std = (torch.tensor(x)[:, None, None] for x in (mean, std))

    def __call__(self, image):
      return (image - self._mean) / self._std

  to_tensor = lambda: lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
  transforms = types.SimpleNamespace(Normalize=Normalize, ToTensor=to_tensor)
  sys.modules |= {
    "torchvision": types.SimpleNamespace(transforms=transforms),
    "torchvision.transforms": transforms,
    "imageio": types.SimpleNamespace(),  # for reading files, which is not asked for
  }
  from depth_anything_3.utils.io.input_processor import InputProcessor

  return InputProcessor()(list(frames), process_res=longest, sequential=True)[0].numpy()


def complaint(copy: Path, options: DepthAnythingConfig, name: str, without: str = "") -> str:
  """What is said of a copy of the tiny model that calls itself `name` and lacks the weight `without`."""
  copy.mkdir()
  (copy / "config.json").write_text(json.dumps({"model_name": name}), encoding="utf-8")
  state = safetensors.torch.load_file(copy.parent / "tiny" / "model.safetensors")
  state.pop(without, None)
  safetensors.torch.save_file(state, copy / "model.safetensors")
  try:
    model.DepthAnything(dataclasses.replace(options, path=str(copy)), "cpu")
  except UserError as error:
    return str(error)
  return "nothing"


if __name__ == "__main__":
  place = Path(sys.argv[1])
  for architecture in ARCHITECTURES:
    write(place, architecture)
  np.savez(place / "found.npz", **examine(place))
