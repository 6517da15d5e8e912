"""Image pyramids and the depth grids that go with their levels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from wr1_jax.sidecar.geometry import LUMA
from wr1_jax.sidecar.photometric.bundle import Level

COARSEST_SIDE = 24  # pixels of the shorter side


def brightness(images: Float[Tensor, "b T 3 h w"]) -> Float[Tensor, "b T h w"]:
  """Luma of RGB images."""
  red, green, blue = images.unbind(2)
  return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def pyramid(image: Float[Tensor, "b T h w"]) -> list[Float[Tensor, "b T h w"]]:
  """Halved again and again down to `COARSEST_SIDE` and then blurred a little; coarsest first, the full size last.

  Without the blur, interpolation between pixels would average noise away, and a still but noisy clip would be explained
  best by cameras half a pixel off.
  """
  levels = [image]
  while min(levels[-1].shape[-2:]) // 2 >= COARSEST_SIDE:
    levels.append(F.avg_pool2d(levels[-1], 2))
  return [_blurred(level) for level in levels[::-1]]


def _blurred(image: Float[Tensor, "b T h w"]) -> Float[Tensor, "b T h w"]:
  """Smoothed by (1, 2, 1) / 4 along both axes."""
  padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
  rows = (padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]) / 4
  return (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]) / 4


def with_slopes(image: Float[Tensor, "b T h w"]) -> Float[Tensor, "b T 3 h w"]:
  """The image and its central differences along columns and rows."""
  padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
  along_u = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
  along_v = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
  return torch.stack([image, along_u, along_v], 2)


def _hat_weights(points: int, nodes: int) -> Float[Tensor, "points nodes"]:
  """Linear interpolation weights of `nodes` evenly spread nodes at `points` pixel centres of one axis."""
  position = ((torch.arange(points) + 0.5) / points * nodes - 0.5).clamp(0, nodes - 1)
  return (1 - (position[:, None] - torch.arange(nodes)).abs()).clamp_min(0)


def grid_weights(size: tuple[int, int], grid: tuple[int, int]) -> Float[Tensor, "p g"]:
  """Bilinear weights of a grid of nodes at every pixel of an image, both in row-major order."""
  return torch.kron(_hat_weights(size[0], grid[0]), _hat_weights(size[1], grid[1]))


def roughness(grid: tuple[int, int]) -> Float[Tensor, "g g"]:
  """The quadratic form that sums the squared differences between neighbouring nodes."""

  def path(n):
    difference = torch.eye(n)[1:] - torch.eye(n)[:-1]
    return difference.T @ difference

  return torch.kron(path(grid[0]), torch.eye(grid[1])) + torch.kron(torch.eye(grid[0]), path(grid[1]))


def make_level(
  image: Float[Tensor, "b T h w"],
  camera: Float[Tensor, "3 3"],
  reference: int,
  grid: tuple[int, int],
  outlier: float,
  stride: int,
) -> Level:
  """The bundle adjustment of one level.

  Args:
    camera: intrinsics in pixels of this level; its last row is not read, so scaling the whole matrix is fine.
    outlier: residual at which a pixel starts to count as an outlier, in standard deviations of the image.
    stride: every how many columns and rows a reference pixel is used.
  """
  h, w = image.shape[-2:]
  rows, columns = (slice(stride // 2, None, stride),) * 2
  v, u = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
  fx, fy, cx, cy = camera[0, 0], camera[1, 1], camera[0, 2], camera[1, 2]
  u, v = u[rows, columns].to(image), v[rows, columns].to(image)
  weights = grid_weights((h, w), grid).unflatten(0, (h, w))[rows, columns].flatten(0, 1)
  return Level(
    images=with_slopes(image),
    values=image[:, reference, rows, columns].flatten(1),
    reference=reference,
    rays=torch.stack([(u - cx) / fx, (v - cy) / fy, torch.ones_like(u)]).flatten(1),
    camera=torch.stack([fx, fy, cx, cy]).to(image),
    weights=weights.to(image),
    roughness=roughness(grid).to(image),
    scale=outlier * image.std((2, 3)).mean(1).clamp_min(1e-3),
  )
