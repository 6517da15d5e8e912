"""3D Gaussians and a splatting rasteriser in plain PyTorch, on any device.

The image formation is that of 3D Gaussian splatting ("3D Gaussian Splatting for Real-Time Radiance Field Rendering",
Kerbl et al. 2023, with the thresholds of the gsplat library): every Gaussian is projected to an ellipse on the screen,
widened by `SCREEN_BLUR`, and the ellipses over a pixel are blended front to back.

Many frames are drawn as one long list of fragments: a GPU would otherwise wait for the start of thousands of small
operations.
"""

from __future__ import annotations

import dataclasses
import functools
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
FRAMES_AT_ONCE = {"cpu": 1}  # frames that are drawn together; what a CPU works on should fit into its caches
MOST_FRAMES_AT_ONCE = 32  # everywhere else; bounds the memory


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
  """What T frames show of each Gaussian: pixel colour = sum of weight x colour over the pixel's fragments."""

  size: tuple[int, int, int]  # T, h, w
  pixel: Int[Tensor, "n"]  # of all frames, in row-major order; ascending
  gaussian: Int[Tensor, "n"]
  weight: Float[Tensor, "n"]  # alpha x transmittance
  depth: Float[Tensor, "T g"]  # of every Gaussian along the optical axis

  def blend(self, values: Float[Tensor, "g c"]) -> Float[Tensor, "T h w c"]:
    """The images of any per-Gaussian values, over zero."""
    return _weighted_sums(values, self.gaussian, self._pixel_starts, self.weight).unflatten(0, self.size)

  def alpha(self) -> Float[Tensor, "T h w"]:
    total = torch.bincount(self.pixel, self.weight, math.prod(self.size))
    return total.to(self.weight.dtype).unflatten(0, self.size)  # of nothing, bincount counts in integers

  def gather(self, images: Float[Tensor, "T h w c"]) -> Float[Tensor, "g c"]:
    """The transpose of `blend`: per Gaussian, the weighted sum of the pixels that show it."""
    order, starts = self._gaussian_order
    pixel, weight = self.pixel.index_select(0, order), self.weight.index_select(0, order)
    return _weighted_sums(images.flatten(0, 2), pixel, starts, weight)

  @functools.cached_property
  def _pixel_starts(self) -> Int[Tensor, "p"]:
    """Where each pixel's fragments begin."""
    return _starts(self.pixel, math.prod(self.size))

  @functools.cached_property
  def _gaussian_order(self) -> tuple[Int[Tensor, "n"], Int[Tensor, "g"]]:
    """The fragments in the order of their Gaussians, and where each one's begin. Adding up in place would be no slower,
    but on a GPU the sums would depend on chance."""
    return torch.argsort(self.gaussian, stable=True), _starts(self.gaussian, self.depth.shape[1])


def _starts(groups: Int[Tensor, "n"], count: int) -> Int[Tensor, "count"]:
  sizes = torch.bincount(groups, minlength=count)
  return sizes.cumsum(0) - sizes


def _weighted_sums(
  values: Float[Tensor, "m c"], index: Int[Tensor, "n"], starts: Int[Tensor, "k"], weight: Float[Tensor, "n"]
) -> Float[Tensor, "k c"]:
  """The weighted sums of rows of `values`, for groups of consecutive `index` that begin at `starts`."""
  return F.embedding_bag(index, values.contiguous(), starts, mode="sum", per_sample_weights=weight)


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
  scene: Gaussians, poses: Float[Tensor, "T 4 4"], camera: Float[Tensor, "T 3 3"]
) -> tuple[Float[Tensor, "T g 2"], Float[Tensor, "T g 3"], Float[Tensor, "T g"]]:
  """Screen positions [T, g, 2], covariances (xx, xy, yy) [T, g, 3] in squared pixels, and depths [T, g]."""
  turn = poses[:, :3, :3]  # camera to world
  x, y, z = ((scene.means - poses[:, None, :3, 3]) @ turn).unbind(-1)
  safe = z.clamp_min(NEAREST)
  fx, fy, cx, cy = (camera[:, row, column, None] for row, column in ((0, 0), (1, 1), (0, 2), (1, 2)))
  zero = torch.zeros_like(z)
  # Far off the axis the linearised projection explodes; as in the original, it is taken a little outside the view.
  slope_x = (x / safe).clamp(-1.3 * cx / fx, 1.3 * cx / fx)
  slope_y = (y / safe).clamp(-1.3 * cy / fy, 1.3 * cy / fy)
  jacobian = torch.stack([fx / safe, zero, -fx * slope_x / safe, zero, fy / safe, -fy * slope_y / safe], -1)
  in_world = jacobian.unflatten(-1, (2, 3)).flatten(1, 2) @ turn.mT
  axes = rotation_matrices(scene.quaternions) * scene.scales[:, None]
  a, b = (in_world.unflatten(1, (-1, 2)) @ axes).unbind(2)
  covariance = torch.stack([(a * a).sum(-1) + SCREEN_BLUR, (a * b).sum(-1), (b * b).sum(-1) + SCREEN_BLUR], -1)
  centre = torch.stack([fx * x / safe + cx, fy * y / safe + cy], -1)
  return centre, covariance, z


def frames_at_once(frames: int, device: torch.device) -> list[slice]:
  """Which frames to hand to `splat` together."""
  step = FRAMES_AT_ONCE.get(device.type, MOST_FRAMES_AT_ONCE)
  return [slice(start, start + step) for start in range(0, frames, step)]


def splat(
  scene: Gaussians, poses: Float[Tensor, "T 4 4"], cameras: Float[Tensor, "T 3 3"], size: tuple[int, int]
) -> Fragments:
  """Draws a scene from camera-to-world poses, with intrinsics in pixels of images of `size` (h, w)."""
  h, w = size
  centre, covariance, depth = _project(scene, poses, cameras)
  # The box of pixel centres around the ellipse where alpha falls to MIN_ALPHA.
  reach = torch.sqrt(2 * torch.log((scene.opacities / MIN_ALPHA).clamp_min(1)))
  extent = reach[:, None] * covariance[..., [0, 2]].sqrt()
  low = (centre - extent - 0.5).ceil().clamp_min(0)
  high = torch.minimum((centre + extent - 0.5).floor(), centre.new_tensor([w - 1, h - 1]))
  visible = torch.nonzero(((depth > NEAREST) & (high >= low).all(-1)).flatten())[:, 0]
  # Frames are mixed here and told apart by their pixels later.
  front_to_back = visible[torch.argsort(depth.flatten()[visible], stable=True)]
  frame, gaussian = front_to_back // len(scene), front_to_back % len(scene)

  xx, xy, yy = covariance.flatten(0, 1)[front_to_back].unbind(-1)
  determinant = xx * yy - xy * xy
  ellipse = torch.stack([yy / determinant, -xy / determinant, xx / determinant], -1)
  low, high, centre = (x.flatten(0, 1)[front_to_back] for x in (low, high, centre))
  opacity = scene.opacities[gaussian]
  sides = (high - low).amax(-1) + 1
  parts, smallest = [], 0
  for side in _box_sides(int(sides.max()) if len(sides) else 0):
    rank = torch.nonzero((sides > smallest) & (sides <= side))[:, 0]
    smallest = side
    if len(rank):
      parts.append(_box_fragments(side, w, rank, centre[rank], ellipse[rank], opacity[rank], low[rank], high[rank]))
  if not parts:
    nothing = visible.new_zeros(0)
    return Fragments((len(poses), h, w), nothing, nothing, depth.new_zeros(0), depth)
  pixel, rank, alpha = (torch.cat(x) for x in zip(*parts))
  if len(poses) > 1:
    pixel += h * w * frame.index_select(0, rank)
  order = torch.argsort(pixel * len(front_to_back) + rank)
  pixel, rank, alpha = (x.index_select(0, order) for x in (pixel, rank, alpha))
  weight = _blending_weights(pixel, alpha)
  return Fragments((len(poses), h, w), pixel, gaussian.index_select(0, rank), weight, depth)


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
  for part in frames_at_once(len(poses), poses.device):
    fragments = splat(scene, poses[part], cameras[part], size)
    images.append(fragments.blend(scene.colours).clamp(0, 1))
    alphas.append(fragments.alpha())
  return torch.cat(images), torch.cat(alphas)
