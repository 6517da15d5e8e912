"""Draws scenes: with gsplat on an NVIDIA GPU, with this package's own rasteriser on a CPU. Both form images alike."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from wr1_jax.errors import UserError
from wr1_jax.sidecar import gaussians
from wr1_jax.sidecar.depth_anything import harmonics
from wr1_jax.sidecar.depth_anything.scene import HarmonicScene

# (scene, camera-to-world poses [k, 4, 4], intrinsics in pixels [k, 3, 3], size (h, w)) -> images over black from 0 to 1
# [k, h, w, 3], and alpha [k, h, w]; all float32 on the scene's device.
Renderer = Callable[[HarmonicScene, Tensor, Tensor, tuple[int, int]], tuple[Tensor, Tensor]]


def renderer(device: str) -> Renderer:
  """The renderer for scenes on `device`.

  Raises:
    UserError: there is no such device, or on "cuda" something that gsplat needs is missing: nothing else is taken then.
  """
  kind = device.partition(":")[0]
  if kind == "cpu":
    return on_cpu
  if kind != "cuda":
    raise UserError(f"config.rewards.device is '{device}'; Depth Anything 3 runs on 'cuda' and on 'cpu' only.")
  _check_cuda(device)
  return on_cuda


def on_cpu(
  scene: HarmonicScene, poses: Float[Tensor, "k 4 4"], intrinsics: Float[Tensor, "k 3 3"], size: tuple[int, int]
) -> tuple[Float[Tensor, "k h w 3"], Float[Tensor, "k h w"]]:
  """As `Renderer`."""
  images, alphas = [], []
  for pose, camera in zip(poses, intrinsics):
    image, alpha = gaussians.render(scene.seen_from(pose[:3, 3]), pose[None, None], camera[None, None], size)
    images.append(image[0])
    alphas.append(alpha[0])
  return torch.cat(images), torch.cat(alphas)


def on_cuda(
  scene: HarmonicScene, poses: Float[Tensor, "k 4 4"], intrinsics: Float[Tensor, "k 3 3"], size: tuple[int, int]
) -> tuple[Float[Tensor, "k h w 3"], Float[Tensor, "k h w"]]:
  """As `Renderer`."""
  import gsplat

  images, alphas = [], []
  for world_to_camera, camera in zip(torch.linalg.inv(poses), intrinsics):  # one at a time: millions of Gaussians each
    image, alpha, _ = gsplat.rasterization(
      means=scene.means,
      quats=scene.quaternions,
      scales=scene.scales,
      opacities=scene.opacities,
      colors=scene.harmonics,
      viewmats=world_to_camera[None],
      Ks=camera[None],
      width=size[1],
      height=size[0],
      near_plane=gaussians.NEAREST,
      eps2d=gaussians.SCREEN_BLUR,
      sh_degree=harmonics.DEGREE,
    )
    images.append(image.clamp(0, 1))
    alphas.append(alpha[..., 0])
  return torch.cat(images), torch.cat(alphas)


def _check_cuda(device: str) -> None:
  remedy = "run `bash launch/install_rewards.sh cuda` and set config.rewards.python to .venv-rewards/bin/python"
  place = f"config.rewards.device is '{device}'"
  try:
    torch.empty(0, device=device)
  except (RuntimeError, AssertionError) as error:
    raise UserError(
      f"{place}, which PyTorch {torch.__version__} of {sys.executable} cannot use here: {str(error).splitlines()[0]}. "
      f"On a machine with an NVIDIA GPU, {remedy}."
    ) from error
  try:
    from gsplat.cuda import _backend  # compiles the kernels if they are not there yet
  except Exception as error:  # no gsplat; or the compiler's complaint, which can be of any type
    raise UserError(
      f"{place}, where scenes are drawn with gsplat, and gsplat cannot be used ({type(error).__name__}: {error}). It "
      f"needs the package gsplat==1.5.3, a C++ compiler, and nvcc of CUDA {torch.version.cuda}: {remedy}."
    ) from error
  if _backend._C is None:
    raise UserError(
      f"{place}, where scenes are drawn with gsplat, whose kernels must be compiled once, and there is no nvcc. "
      f"Install the CUDA toolkit {torch.version.cuda} and put its bin folder on the PATH, or set CUDA_HOME."
    )
