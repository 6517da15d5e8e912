"""3D Gaussians and a splatting rasteriser in plain PyTorch, on any device.

The image formation is that of 3D Gaussian splatting ("3D Gaussian Splatting for Real-Time Radiance Field Rendering",
Kerbl et al. 2023, with the thresholds of the gsplat library): every Gaussian is projected to an ellipse on the screen,
widened by `SCREEN_BLUR`, and the ellipses over a pixel are blended front to back.

Many frames of many scenes are drawn as one long list of fragments: a GPU would otherwise wait for thousands of small
operations to start.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

NEAREST = 0.05  # Gaussians closer than this to the image plane, in units of the scene, are not drawn
SCREEN_BLUR = 0.3  # added to the variances on the screen, in squared pixels
MAX_ALPHA = 0.999
MIN_ALPHA = 1 / 255
MIN_TRANSMITTANCE = 1e-4
# Pixels of all scenes' frames that are drawn together, at least one frame: what a CPU works on should fit into its
# caches, and elsewhere the memory is the bound.
PIXELS_AT_ONCE = {"cpu": 1}
MOST_PIXELS_AT_ONCE = 2**21


@dataclasses.dataclass(frozen=True)
class Gaussians:
  """n scenes of g Gaussians each; those of opacity 0 only fill up. Colours do not depend on the direction of view."""

  means: Float[Tensor, "n g 3"]
  scales: Float[Tensor, "n g 3"]  # standard deviations along the axes that the quaternion turns
  quaternions: Float[Tensor, "n g 4"]  # w, x, y, z
  opacities: Float[Tensor, "n g"]
  colours: Float[Tensor, "n g 3"]  # RGB in [0, 1]

  @classmethod
  def stack(cls, scenes: Sequence[Gaussians]) -> Gaussians:
    """All these scenes, those with fewer Gaussians filled up."""
    most = max(scene.means.shape[1] for scene in scenes)

    def filled(x: Float[Tensor, "n g *c"]) -> Float[Tensor, "n most *c"]:
      return torch.cat([x, x.new_zeros(len(x), most - x.shape[1], *x.shape[2:])], 1)

    return cls(**{name: torch.cat([filled(getattr(scene, name)) for scene in scenes]) for name in _FIELDS})

  def __getitem__(self, index: slice) -> Gaussians:
    """Some of the scenes."""
    return Gaussians(**{name: getattr(self, name)[index] for name in _FIELDS})

  def join(self, other: Gaussians) -> Gaussians:
    """Each scene with the Gaussians of its counterpart as well."""
    return Gaussians(**{name: torch.cat([getattr(self, name), getattr(other, name)], 1) for name in _FIELDS})


_FIELDS = tuple(field.name for field in dataclasses.fields(Gaussians))


@dataclasses.dataclass(frozen=True)
class Fragments:
  """What T frames of each of n scenes show: pixel colour = sum of weight x colour over the pixel's fragments."""

  size: tuple[int, int, int, int]  # n, T, h, w
  pixel: Int[Tensor, "f"]  # of all scenes and frames, in row-major order; ascending
  gaussian: Int[Tensor, "f"]  # of all scenes
  weight: Float[Tensor, "f"]  # alpha x transmittance
  depth: Float[Tensor, "n T g"]  # of every Gaussian along the optical axis

  def blend(self, values: Float[Tensor, "n g c"]) -> Float[Tensor, "n T h w c"]:
    """The images of any per-Gaussian values, over zero."""
    return _weighted_sums(values.flatten(0, 1), self.gaussian, self._pixel_starts, self.weight).unflatten(0, self.size)

  def alpha(self) -> Float[Tensor, "n T h w"]:
    total = torch.bincount(self.pixel, self.weight, math.prod(self.size))
    return total.to(self.weight.dtype).unflatten(0, self.size)  # of nothing, bincount counts in integers

  def gather(self, images: Float[Tensor, "n T h w c"]) -> Float[Tensor, "n g c"]:
    """The transpose of `blend`: per Gaussian, the weighted sum of the pixels that show it."""
    order, starts = self._gaussian_order
    pixel, weight = self.pixel.index_select(0, order), self.weight.index_select(0, order)
    return _weighted_sums(images.flatten(0, 3), pixel, starts, weight).unflatten(0, (len(self.depth), -1))

  @functools.cached_property
  def _pixel_starts(self) -> Int[Tensor, "p"]:
    """Where each pixel's fragments begin."""
    return _starts(self.pixel, math.prod(self.size))

  @functools.cached_property
  def _gaussian_order(self) -> tuple[Int[Tensor, "f"], Int[Tensor, "ng"]]:
    """The fragments in the order of their Gaussians, and where each one's begin. Adding up in place would be no slower,
    but on a GPU the sums would depend on chance."""
    return torch.argsort(self.gaussian, stable=True), _starts(self.gaussian, self.depth[:, 0].numel())


def _starts(groups: Int[Tensor, "n"], count: int) -> Int[Tensor, "count"]:
  sizes = torch.bincount(groups, minlength=count)
  return sizes.cumsum(0) - sizes


def _weighted_sums(
  values: Float[Tensor, "m c"], index: Int[Tensor, "n"], starts: Int[Tensor, "k"], weight: Float[Tensor, "n"]
) -> Float[Tensor, "k c"]:
  """The weighted sums of rows of `values`, for groups of consecutive `index` that begin at `starts`."""
  return F.embedding_bag(index, values.contiguous(), starts, mode="sum", per_sample_weights=weight)


def rotation_matrices(quaternions: Float[Tensor, "*g 4"]) -> Float[Tensor, "*g 3 3"]:
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
  scenes: Gaussians, poses: Float[Tensor, "n T 4 4"], cameras: Float[Tensor, "n T 3 3"]
) -> tuple[Float[Tensor, "n T g 2"], Float[Tensor, "n T g 3"], Float[Tensor, "n T g"]]:
  """Screen positions [n, T, g, 2], covariances (xx, xy, yy) [n, T, g, 3] in squared pixels, and depths [n, T, g]."""
  turn = poses[..., :3, :3]  # camera to world
  x, y, z = ((scenes.means[:, None] - poses[:, :, None, :3, 3]) @ turn).unbind(-1)
  safe = z.clamp_min(NEAREST)
  fx, fy, cx, cy = (cameras[..., row, column, None] for row, column in ((0, 0), (1, 1), (0, 2), (1, 2)))
  zero = torch.zeros_like(z)
  # Far off the axis the linearised projection explodes; as in the original, it is taken a little outside the view.
  slope_x = (x / safe).clamp(-1.3 * cx / fx, 1.3 * cx / fx)
  slope_y = (y / safe).clamp(-1.3 * cy / fy, 1.3 * cy / fy)
  jacobian = torch.stack([fx / safe, zero, -fx * slope_x / safe, zero, fy / safe, -fy * slope_y / safe], -1)
  in_world = jacobian.unflatten(-1, (2, 3)).flatten(2, 3) @ turn.mT
  axes = rotation_matrices(scenes.quaternions) * scenes.scales[..., None, :]
  a, b = (in_world.unflatten(2, (-1, 2)) @ axes[:, None]).unbind(3)
  covariance = torch.stack([(a * a).sum(-1) + SCREEN_BLUR, (a * b).sum(-1), (b * b).sum(-1) + SCREEN_BLUR], -1)
  centre = torch.stack([fx * x / safe + cx, fy * y / safe + cy], -1)
  return centre, covariance, z


def frames_at_once(scenes: int, frames: int, size: tuple[int, int], device: torch.device) -> list[slice]:
  """Which frames of so many scenes to hand to `splat` together, for images of `size` (h, w)."""
  most = max(1, PIXELS_AT_ONCE.get(device.type, MOST_PIXELS_AT_ONCE) // math.prod(size))
  step = math.ceil(frames / math.ceil(scenes * frames / most))
  return [slice(start, start + step) for start in range(0, frames, step)]


def splat(
  scenes: Gaussians, poses: Float[Tensor, "n T 4 4"], cameras: Float[Tensor, "n T 3 3"], size: tuple[int, int]
) -> Fragments:
  """Draws scenes from camera-to-world poses, with intrinsics in pixels of images of `size` (h, w)."""
  (count, frames), (h, w) = poses.shape[:2], size
  centre, covariance, depth = _project(scenes, poses, cameras)
  each = depth.shape[2]  # Gaussians a scene
  # The box of pixel centres around the ellipse where alpha falls to MIN_ALPHA.
  reach = torch.sqrt(2 * torch.log((scenes.opacities / MIN_ALPHA).clamp_min(1)))
  extent = reach[:, None, :, None] * covariance[..., [0, 2]].sqrt()
  low = (centre - extent - 0.5).ceil().clamp_min(0)
  high = torch.minimum((centre + extent - 0.5).floor(), centre.new_tensor([w - 1, h - 1]))
  drawn = (depth > NEAREST) & (high >= low).all(-1) & (scenes.opacities >= MIN_ALPHA)[:, None]
  visible = torch.nonzero(drawn.flatten())[:, 0]
  # Scenes and frames are mixed here and told apart by their pixels later.
  front_to_back = visible[torch.argsort(depth.flatten()[visible], stable=True)]
  frame = front_to_back // each  # of all scenes
  gaussian = frame // frames * each + front_to_back % each

  xx, xy, yy = covariance.flatten(0, 2)[front_to_back].unbind(-1)
  determinant = xx * yy - xy * xy
  ellipse = torch.stack([yy / determinant, -xy / determinant, xx / determinant], -1)
  low, high, centre = (x.flatten(0, 2)[front_to_back] for x in (low, high, centre))
  opacity = scenes.opacities.flatten()[gaussian]
  sides = (high - low).amax(-1) + 1
  parts, smallest = [], 0
  for side in _box_sides(int(sides.max()) if len(sides) else 0):
    rank = torch.nonzero((sides > smallest) & (sides <= side))[:, 0]
    smallest = side
    if len(rank):
      parts.append(_box_fragments(side, w, rank, centre[rank], ellipse[rank], opacity[rank], low[rank], high[rank]))
  if not parts:
    nothing = visible.new_zeros(0)
    return Fragments((count, frames, h, w), nothing, nothing, depth.new_zeros(0), depth)
  pixel, rank, alpha = (torch.cat(x) for x in zip(*parts))
  if count * frames > 1:
    pixel += h * w * frame.index_select(0, rank)
  order = torch.argsort(pixel * len(front_to_back) + rank)
  pixel, rank, alpha = (x.index_select(0, order) for x in (pixel, rank, alpha))
  weight = _blending_weights(pixel, alpha)
  return Fragments((count, frames, h, w), pixel, gaussian.index_select(0, rank), weight, depth)


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
  scenes: Gaussians, poses: Float[Tensor, "n T 4 4"], cameras: Float[Tensor, "n T 3 3"], size: tuple[int, int]
) -> tuple[Float[Tensor, "n T h w 3"], Float[Tensor, "n T h w"]]:
  """Images in [0, 1] over black, and their alpha, from camera-to-world poses and intrinsics in pixels of `size`."""
  images, alphas = [], []
  for part in frames_at_once(*poses.shape[:2], size, poses.device):
    fragments = splat(scenes, poses[:, part], cameras[:, part], size)
    images.append(fragments.blend(scenes.colours).clamp(0, 1))
    alphas.append(fragments.alpha())
  return torch.cat(images, 1), torch.cat(alphas, 1)
