"""3D Gaussians and a splatting rasteriser in plain PyTorch, on any device.

The image formation is that of 3D Gaussian splatting ("3D Gaussian Splatting for Real-Time Radiance Field Rendering",
Kerbl et al. 2023, with the thresholds of the gsplat library): every Gaussian is projected to an ellipse on the screen,
widened by `SCREEN_BLUR`, and the ellipses over a pixel are blended front to back.
"""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Float, Int
from torch import Tensor

NEAREST = 0.01  # Gaussians closer than this to the image plane, in units of the scene, are not drawn
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
    image = values.new_zeros(self.size[0] * self.size[1], values.shape[1])
    image.index_add_(0, self.pixel, self.weight[:, None] * values[self.gaussian])
    return image.unflatten(0, self.size)

  def alpha(self) -> Float[Tensor, "h w"]:
    image = self.weight.new_zeros(self.size[0] * self.size[1])
    return image.index_add_(0, self.pixel, self.weight).unflatten(0, self.size)

  def gather(self, image: Float[Tensor, "h w c"], count: int) -> Float[Tensor, "g c"]:
    """The transpose of `blend`: per Gaussian, the weighted sum of the pixels that show it."""
    values = image.new_zeros(count, image.shape[-1])
    return values.index_add_(0, self.gaussian, self.weight[:, None] * image.flatten(0, 1)[self.pixel])


def rotation_matrices(quaternions: Float[Tensor, "g 4"]) -> Float[Tensor, "g 3 3"]:
  w, x, y, z = torch.nn.functional.normalize(quaternions, dim=-1).unbind(-1)
  return torch.stack([
    1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
    2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
    2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
  ], -1).unflatten(-1, (3, 3))


def _project(scene: Gaussians, pose: Float[Tensor, "4 4"], camera: Float[Tensor, "3 3"]):
  """Screen positions [g, 2], covariances (xx, xy, yy) [g, 3] in squared pixels, and depths [g]."""
  rotation = pose[:3, :3].T  # world to camera
  x, y, z = ((scene.means - pose[:3, 3]) @ rotation.T).unbind(-1)
  safe = z.clamp_min(NEAREST)
  fx, fy = camera[0, 0], camera[1, 1]
  zero = torch.zeros_like(z)
  # Far off the axis the linearised projection explodes; as in the original, it is taken at the edge of the view.
  slope_x = (x / safe).clamp(-1.3 * camera[0, 2] / fx, 1.3 * camera[0, 2] / fx)
  slope_y = (y / safe).clamp(-1.3 * camera[1, 2] / fy, 1.3 * camera[1, 2] / fy)
  jacobian = torch.stack([fx / safe, zero, -fx * slope_x / safe, zero, fy / safe, -fy * slope_y / safe], -1)
  half = jacobian.unflatten(-1, (2, 3)) @ rotation @ (rotation_matrices(scene.quaternions) * scene.scales[:, None])
  a, b = half.unbind(1)
  covariance = torch.stack([(a * a).sum(-1) + SCREEN_BLUR, (a * b).sum(-1), (b * b).sum(-1) + SCREEN_BLUR], -1)
  centre = torch.stack([fx * x / safe + camera[0, 2], fy * y / safe + camera[1, 2]], -1)
  return centre, covariance, z


def splat(scene: Gaussians, pose: Float[Tensor, "4 4"], camera: Float[Tensor, "3 3"], size: tuple[int, int]) -> Fragments:
  """Draws a scene from a camera-to-world pose with intrinsics in pixels of an image of `size` (h, w)."""
  h, w = size
  centre, covariance, depth = _project(scene, pose, camera)
  xx, xy, yy = covariance.unbind(-1)
  # The ellipse where alpha falls to MIN_ALPHA, and the box of pixel centres inside it.
  reach = torch.sqrt(2 * torch.log((scene.opacities / MIN_ALPHA).clamp_min(1)))
  extent = reach[:, None] * torch.stack([xx, yy], -1).sqrt()
  limit = torch.tensor([w, h], device=centre.device)
  low = (centre - extent - 0.5).ceil().clamp_min(0)
  high = torch.minimum((centre + extent - 0.5).floor(), limit - 1.0)
  visible = (depth > NEAREST) & (high >= low).all(-1)
  order = torch.nonzero(visible)[:, 0]
  order = order[torch.argsort(depth[order], stable=True)]

  low, high = low[order].long(), high[order].long()
  columns = high[:, 0] - low[:, 0] + 1
  count = columns * (high[:, 1] - low[:, 1] + 1)
  owner = torch.repeat_interleave(count)
  within = torch.arange(len(owner), device=owner.device) - (count.cumsum(0) - count)[owner]
  row = within // columns[owner]
  column = within - row * columns[owner] + low[owner, 0]
  row += low[owner, 1]

  determinant = (xx * yy - xy * xy).clamp_min(1e-12)
  conic = torch.stack([yy / determinant, xy / determinant, xx / determinant], -1)[order][owner]
  gaussian = order[owner]
  dx = column + 0.5 - centre[gaussian, 0]
  dy = row + 0.5 - centre[gaussian, 1]
  power = 0.5 * (conic[:, 0] * dx * dx + conic[:, 2] * dy * dy) - conic[:, 1] * dx * dy
  alpha = (scene.opacities[gaussian] * torch.exp(-power)).clamp_max(MAX_ALPHA)
  drawn = alpha >= MIN_ALPHA
  return _blend_order(size, (row * w + column)[drawn], gaussian[drawn], alpha[drawn], depth)


def _blend_order(size, pixel, gaussian, alpha, depth) -> Fragments:
  """Groups fragments, given front to back, by pixel and turns their alphas into blending weights."""
  order = torch.argsort(pixel, stable=True)
  pixel, gaussian, alpha = pixel[order], gaussian[order], alpha[order]
  # Transmittance before each fragment: products within a pixel are differences of running sums of logarithms.
  passed = torch.log1p(-alpha.double()).cumsum(0)
  before = passed - torch.log1p(-alpha.double())
  first = torch.ones_like(pixel, dtype=torch.bool)
  first[1:] = pixel[1:] != pixel[:-1]
  start = torch.nonzero(first)[:, 0][first.cumsum(0) - 1]
  transmittance = torch.exp(before - before[start])
  lit = transmittance * (1 - alpha) > MIN_TRANSMITTANCE
  weight = torch.where(lit, transmittance * alpha, 0).float()
  return Fragments(size, pixel, gaussian, weight, depth)


def render(scene: Gaussians, poses: Float[Tensor, "T 4 4"], cameras: Float[Tensor, "T 3 3"],
           size: tuple[int, int]) -> tuple[Float[Tensor, "T h w 3"], Float[Tensor, "T h w"]]:
  """Images in [0, 1] over black, and their alpha, from camera-to-world poses and intrinsics in pixels of `size`."""
  images, alphas = [], []
  for pose, camera in zip(poses, cameras):
    fragments = splat(scene, pose, camera, size)
    images.append(fragments.blend(scene.colours).clamp(0, 1))
    alphas.append(fragments.alpha())
  return torch.stack(images), torch.stack(alphas)
