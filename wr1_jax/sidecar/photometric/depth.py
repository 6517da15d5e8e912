"""Dense depth of one frame of every clip once all poses are known: a plane sweep around a first guess."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from wr1_jax.sidecar.photometric.bundle import NEAREST, sample

OFFSETS = 13  # candidates
OFFSETS_AT_ONCE = {"cpu": 1}  # all of them elsewhere; what a CPU works on should fit into its caches
REACH = 0.4  # largest change of the log inverse depth
WINDOW = 5  # pixels of a matching window
UNSEEN = 0.1  # matching cost of a point that a view does not see
FAITH = 0.01  # matching cost of a change by `REACH`: where nothing tells depths apart the guess stays


def rays(size: tuple[int, int], camera: Float[Tensor, "3 3"]) -> Float[Tensor, "3 p"]:
  """Rays through all pixel centres, third coordinate 1."""
  v, u = torch.meshgrid(torch.arange(size[0]) + 0.5, torch.arange(size[1]) + 0.5, indexing="ij")
  v, u = v.to(camera), u.to(camera)
  x, y = (u - camera[0, 2]) / camera[0, 0], (v - camera[1, 2]) / camera[1, 1]
  return torch.stack([x, y, torch.ones_like(x)]).flatten(1)


def fill(values: Float[Tensor, "n h w"], known: Bool[Tensor, "n h w"]) -> Float[Tensor, "n h w"]:
  """Unknown pixels take the mean of the known ones around them, from as near as there are any."""
  weight = known.to(values)[:, None]
  total = values[:, None] * weight
  levels = [(total, weight)]
  while max(levels[-1][0].shape[-2:]) > 1:
    levels.append(tuple(F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False) for x in levels[-1]))
  total, weight = levels[-1]
  result = total / weight.clamp_min(1e-12)
  for total, weight in reversed(levels[:-1]):
    result = F.interpolate(result, size=total.shape[-2:], mode="bilinear", align_corners=False)
    result = torch.where(weight > 1e-6, total / weight.clamp_min(1e-6), result)
  return result[:, 0]


def _window_mean(cost: Float[Tensor, "n k h w"], guide: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k h w"]:
  """The mean over a window, pixels of another colour counting less, so that windows respect the edges of things."""
  half = WINDOW // 2
  h, w = guide.shape[-2:]
  cost_pad = F.pad(cost, (half,) * 4, mode="replicate")
  guide_pad = F.pad(guide, (half,) * 4, mode="replicate")
  total, weights = torch.zeros_like(cost), torch.zeros_like(guide[:, :1])
  for i in range(WINDOW):
    for j in range(WINDOW):
      weight = torch.exp(-10 * (guide_pad[..., i : i + h, j : j + w] - guide).abs().sum(1, keepdim=True))
      total += weight * cost_pad[..., i : i + h, j : j + w]
      weights += weight
  return total / weights


def _matching_costs(
  image: Float[Tensor, "n 3 h w"],
  views: Float[Tensor, "n v 3 h w"],
  turned: Float[Tensor, "n v 3 p"],
  shift: Float[Tensor, "n v 3 1"],
  camera: Float[Tensor, "3 3"],
  log_inverse: Float[Tensor, "n k h w"],
) -> Float[Tensor, "n k h w"]:
  """How little the pixels of a frame look like what the other frames see at `k` candidate depths of each.

  Args:
    turned: the rays of the frame's pixels in the other cameras' axes.
    shift: of the frame's camera, there.
  """
  k, h, w = log_inverse.shape[1:]
  inverse = torch.exp(log_inverse).flatten(2)
  y = turned[:, :, None] + inverse[:, None, :, None] * shift[:, :, None]  # [n, v, k, 3, p]
  z = y[:, :, :, 2].clamp_min(NEAREST)
  u, v = camera[0, 0] * y[:, :, :, 0] / z + camera[0, 2], camera[1, 1] * y[:, :, :, 1] / z + camera[1, 2]
  seen = (y[:, :, :, 2] > NEAREST) & (u > 0) & (u < w) & (v > 0) & (v < h)
  samples = sample(views.flatten(0, 1), u.flatten(0, 1).flatten(1), v.flatten(0, 1).flatten(1))
  samples = samples.unflatten(-1, (k, h * w)).unflatten(0, views.shape[:2])  # [n, v, 3, k, p]
  difference = (samples - image.flatten(2)[:, None, :, None]).abs().mean(2).clamp_max(2 * UNSEEN)
  cost = torch.where(seen, difference, UNSEEN)
  # Half of the views may be occluded.
  return cost.sort(1).values[:, : (views.shape[1] + 1) // 2].mean(1).unflatten(-1, (h, w))


def sweep(
  image: Float[Tensor, "n 3 h w"],
  views: Float[Tensor, "n v 3 h w"],
  motions: Float[Tensor, "n v 4 4"],
  camera: Float[Tensor, "3 3"],
  guess: Float[Tensor, "n h w"],
) -> Float[Tensor, "n h w"]:
  """Refines the log inverse depth of a frame of each of n clips by comparing it with other frames.

  Args:
    image: the frames, RGB in [0, 1].
    views: the other frames; `motions` takes points from the frame's camera to theirs.
    camera: intrinsics in pixels, the same for all.
    guess: log inverse depth to start from.
  """
  offsets = torch.linspace(-REACH, REACH, OFFSETS, device=guess.device)[:, None, None]
  at_once = OFFSETS_AT_ONCE.get(guess.device.type, OFFSETS)
  turned = motions[..., :3, :3] @ rays(guess.shape[1:], camera)
  costs = [
    _matching_costs(image, views, turned, motions[..., :3, 3:], camera, guess[:, None] + part)
    for part in offsets.split(at_once)
  ]
  cost = _window_mean(torch.cat(costs, 1), image) + FAITH * (offsets / REACH).abs()
  best = cost.argmin(1, keepdim=True)
  # The bottom of the parabola through the three costs around the lowest.
  inner = best.clamp(1, OFFSETS - 2)
  left, mid, right = (cost.gather(1, inner + i) for i in (-1, 0, 1))
  shift = 0.5 * (left - right) / (left + right - 2 * mid).clamp_min(1e-6)
  shift = torch.where(best == inner, shift.clamp(-0.5, 0.5), 0)
  return guess + (offsets[best[:, 0], 0, 0] + shift[:, 0] * (offsets[1] - offsets[0]))
