"""3D Gaussians and a splatting rasteriser in plain PyTorch, on any device.

The image formation is that of 3D Gaussian splatting ("3D Gaussian Splatting for Real-Time Radiance Field Rendering",
Kerbl et al. 2023, with the thresholds of the gsplat library): every Gaussian is projected to an ellipse on the screen,
widened by `SCREEN_BLUR`, and the ellipses over a pixel are blended front to back.
"""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

NEAREST = 0.05  # Gaussians closer than this to the image plane, in units of the scene, are not drawn
SCREEN_BLUR = 0.3  # added to the variances on the screen, in squared pixels
MAX_ALPHA = 0.999
MIN_ALPHA = 1 / 255
MIN_TRANSMITTANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Gaussians:
  """A scene. Colours do not depend on the direction of view."""

  means: Float[Tensor, "g 3"]
  scales: Float[Tensor, "g 3"]  # standard deviations along the axes that the quaternion turns
  quaternions: Float[Tensor, "g 4"]  # w, x, y, z
  opacities: Float[Tensor, "g"]
  colours: Float[Tensor, "g 3"]  # RGB in [0, 1]

  def __len__(self) -> int:
    return len(self.means)

  def join(self, other: Gaussians) -> Gaussians:
    names = [field.name for field in dataclasses.fields(self)]
    return Gaussians(**{name: torch.cat([getattr(self, name), getattr(other, name)]) for name in names})


@dataclasses.dataclass(frozen=True)
class Fragments:
  """What a frame shows of each Gaussian: pixel colour = sum of weight x colour over the pixel's fragments."""

  size: tuple[int, int]
  pixel: Int[Tensor, "n"]  # row-major, ascending
  gaussian: Int[Tensor, "n"]
  weight: Float[Tensor, "n"]  # alpha x transmittance
  depth: Float[Tensor, "g"]  # of every Gaussian along the optical axis

  def blend(self, values: Float[Tensor, "g c"]) -> Float[Tensor, "h w c"]:
    """The image of any per-Gaussian values, over zero."""
    count = torch.bincount(self.pixel, minlength=self.size[0] * self.size[1])
    image = F.embedding_bag(
      self.gaussian, values.contiguous(), count.cumsum(0) - count, mode="sum", per_sample_weights=self.weight
    )
    return image.unflatten(0, self.size)

  def alpha(self) -> Float[Tensor, "h w"]:
    total = torch.bincount(self.pixel, self.weight, self.size[0] * self.size[1])
    return total.to(self.weight.dtype).unflatten(0, self.size)  # of nothing, bincount counts in integers

  def gather(self, image: Float[Tensor, "h w c"]) -> Float[Tensor, "g c"]:
    """The transpose of `blend`: per Gaussian, the weighted sum of the pixels that show it."""
    values = image.new_zeros(len(self.depth), image.shape[-1])
    seen = self.weight[:, None] * image.flatten(0, 1).index_select(0, self.pixel)
    return values.index_add_(0, self.gaussian, seen)


def rotation_matrices(quaternions: Float[Tensor, "g 4"]) -> Float[Tensor, "g 3 3"]:
  w, x, y, z = F.normalize(quaternions, dim=-1).unbind(-1)
  return torch.stack(
    [
      1 - 2 * (y * y + z * z),
      2 * (x * y - w * z),
      2 * (x * z + w * y),
      2 * (x * y + w * z),
      1 - 2 * (x * x + z * z),
      2 * (y * z - w * x),
      2 * (x * z - w * y),
      2 * (y * z + w * x),
      1 - 2 * (x * x + y * y),
    ],
    -1,
  ).unflatten(-1, (3, 3))


def _project(
  scene: Gaussians, pose: Float[Tensor, "4 4"], camera: Float[Tensor, "3 3"]
) -> tuple[Float[Tensor, "g 2"], Float[Tensor, "g 3"], Float[Tensor, "g"]]:
  """Screen positions [g, 2], covariances (xx, xy, yy) [g, 3] in squared pixels, and depths [g]."""
  rotation = pose[:3, :3].T  # world to camera
  x, y, z = ((scene.means - pose[:3, 3]) @ rotation.T).unbind(-1)
  safe = z.clamp_min(NEAREST)
  fx, fy = camera[0, 0], camera[1, 1]
  zero = torch.zeros_like(z)
  # Far off the axis the linearised projection explodes; as in the original, it is taken a little outside the view.
  slope_x = (x / safe).clamp(-1.3 * camera[0, 2] / fx, 1.3 * camera[0, 2] / fx)
  slope_y = (y / safe).clamp(-1.3 * camera[1, 2] / fy, 1.3 * camera[1, 2] / fy)
  jacobian = torch.stack([fx / safe, zero, -fx * slope_x / safe, zero, fy / safe, -fy * slope_y / safe], -1)
  half = jacobian.unflatten(-1, (2, 3)) @ rotation @ (rotation_matrices(scene.quaternions) * scene.scales[:, None])
  a, b = half.unbind(1)
  covariance = torch.stack([(a * a).sum(-1) + SCREEN_BLUR, (a * b).sum(-1), (b * b).sum(-1) + SCREEN_BLUR], -1)
  centre = torch.stack([fx * x / safe + camera[0, 2], fy * y / safe + camera[1, 2]], -1)
  return centre, covariance, z


def splat(
  scene: Gaussians, pose: Float[Tensor, "4 4"], camera: Float[Tensor, "3 3"], size: tuple[int, int]
) -> Fragments:
  """Draws a scene from a camera-to-world pose with intrinsics in pixels of an image of `size` (h, w)."""
  h, w = size
  centre, covariance, depth = _project(scene, pose, camera)
  # The box of pixel centres around the ellipse where alpha falls to MIN_ALPHA.
  reach = torch.sqrt(2 * torch.log((scene.opacities / MIN_ALPHA).clamp_min(1)))
  extent = reach[:, None] * covariance[:, [0, 2]].sqrt()
  low = (centre - extent - 0.5).ceil().clamp_min(0)
  high = torch.minimum((centre + extent - 0.5).floor(), centre.new_tensor([w - 1, h - 1]))
  visible = torch.nonzero((depth > NEAREST) & (high >= low).all(-1))[:, 0]
  front_to_back = visible[torch.argsort(depth[visible], stable=True)]

  xx, xy, yy = covariance[front_to_back].unbind(-1)
  determinant = xx * yy - xy * xy
  ellipse = torch.stack([yy / determinant, -xy / determinant, xx / determinant], -1)
  low, high, centre = low[front_to_back], high[front_to_back], centre[front_to_back]
  opacity = scene.opacities[front_to_back]
  sides = (high - low).amax(-1) + 1
  parts, smallest = [], 0
  for side in _box_sides(max(size)):
    rank = torch.nonzero((sides > smallest) & (sides <= side))[:, 0]
    smallest = side
    if len(rank):
      parts.append(_box_fragments(side, w, rank, centre[rank], ellipse[rank], opacity[rank], low[rank], high[rank]))
  if not parts:
    nothing = visible.new_zeros(0)
    return Fragments(size, nothing, nothing, depth.new_zeros(0), depth)
  pixel, rank, alpha = (torch.cat(x) for x in zip(*parts))
  order = torch.argsort(pixel * len(front_to_back) + rank)
  pixel, rank, alpha = (x.index_select(0, order) for x in (pixel, rank, alpha))
  return Fragments(size, pixel, front_to_back.index_select(0, rank), _blending_weights(pixel, alpha), depth)


def _box_sides(largest: int) -> list[int]:
  """Box sizes into which Gaussians are sorted, so that each class is one dense array without much waste."""
  sides = [3, 5]
  while sides[-1] < largest:
    sides.append(math.ceil(1.4 * sides[-1]))
  return sides


def _box_fragments(
  side: int,
  width: int,
  rank: Int[Tensor, "m"],
  centre: Float[Tensor, "m 2"],
  ellipse: Float[Tensor, "m 3"],
  opacity: Float[Tensor, "m"],
  low: Float[Tensor, "m 2"],
  high: Float[Tensor, "m 2"],
) -> tuple[Int[Tensor, "n"], Int[Tensor, "n"], Float[Tensor, "n"]]:
  """Pixel, rank and alpha wherever Gaussians whose boxes have at most `side` pixels a side are drawn."""
  steps = torch.arange(side, device=low.device, dtype=low.dtype)
  column, row = low[:, :1] + steps, low[:, 1:] + steps  # [m, side]
  dx, dy = column + 0.5 - centre[:, :1], row + 0.5 - centre[:, 1:]
  a, b, c = ellipse.unbind(-1)
  power = (0.5 * a[:, None] * dx * dx)[:, None, :] + (0.5 * c[:, None] * dy * dy)[:, :, None]
  power = power + (b[:, None] * dy)[:, :, None] * dx[:, None, :]
  alpha = (opacity[:, None, None] * torch.exp(-power)).clamp_max(MAX_ALPHA)
  alpha = alpha * (column <= high[:, :1])[:, None, :] * (row <= high[:, 1:])[:, :, None]
  drawn = torch.nonzero(alpha.flatten() >= MIN_ALPHA)[:, 0]
  pixel = (row[:, :, None] * width + column[:, None, :]).long()
  return (
    pixel.flatten().index_select(0, drawn),
    rank.index_select(0, drawn // side**2),
    alpha.flatten().index_select(0, drawn),
  )


def _blending_weights(pixel: Int[Tensor, "n"], alpha: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
  """alpha x transmittance of fragments that are grouped by pixel and go from front to back within each."""
  absorbed = torch.log1p(-alpha)
  # Products within a pixel are differences of running sums; these are long, hence double precision.
  before = absorbed.cumsum(0, dtype=torch.float64) - absorbed
  first = torch.nonzero(pixel.diff(prepend=pixel[:1] - 1))[:, 0]
  count = first.diff(append=first.new_tensor([len(pixel)]))
  transmittance = torch.exp(before - before[first].repeat_interleave(count, output_size=len(pixel))).float()
  return torch.where(transmittance * (1 - alpha) > MIN_TRANSMITTANCE, transmittance * alpha, 0)


def render(
  scene: Gaussians, poses: Float[Tensor, "T 4 4"], cameras: Float[Tensor, "T 3 3"], size: tuple[int, int]
) -> tuple[Float[Tensor, "T h w 3"], Float[Tensor, "T h w"]]:
  """Images in [0, 1] over black, and their alpha, from camera-to-world poses and intrinsics in pixels of `size`."""
  images, alphas = [], []
  for pose, camera in zip(poses, cameras):
    fragments = splat(scene, pose, camera, size)
    images.append(fragments.blend(scene.colours).clamp(0, 1))
    alphas.append(fragments.alpha())
  return torch.stack(images), torch.stack(alphas)
