"""One rigid scene of Gaussians for each clip, from a few frames' depths, its colours fitted to all frames."""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from wr1_jax.sidecar.gaussians import Gaussians, frames_at_once, splat
from wr1_jax.sidecar.photometric import depth as dense

OPACITY = 0.95
SIZE = 0.5  # standard deviation of a Gaussian, in pixels of the frame it comes from
COVERED = 0.7  # alpha from which a pixel needs no new Gaussian
VIEWS = 6  # frames that a keyframe's depth is compared with
COLOUR_ROUNDS = 5
COLOUR_FRAMES = 9


def _surface(
  images: Float[Tensor, "n 3 h w"],
  log_inverse: Float[Tensor, "n h w"],
  poses: Float[Tensor, "n 4 4"],
  camera: Float[Tensor, "3 3"],
  keep: Bool[Tensor, "n h w"],
) -> Gaussians:
  """One Gaussian for each kept pixel of a frame of each clip, filled up to the most that a clip has."""
  z = torch.exp(-log_inverse).flatten(1)[:, None]
  points = (dense.rays(log_inverse.shape[1:], camera) * z).mT
  keep, colours = keep.flatten(1), images.flatten(2).mT
  most = int(keep.sum(1).max())
  if most < keep.shape[1]:
    chosen = torch.argsort(~keep, dim=1, stable=True)[:, :most]
    three = chosen[..., None].expand(-1, -1, 3)
    keep, points, colours = keep.gather(1, chosen), points.gather(1, three), colours.gather(1, three)
  means = points @ poses[:, :3, :3].mT + poses[:, None, :3, 3]
  return Gaussians(
    means,
    (SIZE * points[..., 2:] / camera[0, 0]).expand(-1, -1, 3),
    means.new_tensor([1, 0, 0, 0]).expand(*keep.shape, 4),
    OPACITY * keep.to(means),
    colours,
  )


def _views(frames: int, key: int) -> list[int]:
  """Up to `VIEWS` other frames, near and far."""
  others = sorted((i for i in range(frames) if i != key), key=lambda i: abs(i - key))
  picks = torch.linspace(0, len(others) - 1, min(VIEWS, len(others))).round().long().unique()
  return [others[i] for i in picks]


def build(
  images: Float[Tensor, "n T 3 h w"],
  poses: Float[Tensor, "n T 4 4"],
  camera: Float[Tensor, "3 3"],
  reference: int,
  log_inverse: Float[Tensor, "n h w"],
) -> Gaussians:
  """Gaussians on the surfaces that each clip's keyframes see: the reference first, then what is new in the others.

  Args:
    camera: intrinsics in pixels, the same for all clips.
    reference: the frame whose log inverse depth is roughly known.
  """
  count, frames, _, h, w = images.shape

  def refined(key, guess):
    views = _views(frames, key)
    if not views:
      return guess
    motions = torch.linalg.inv(poses[:, views]) @ poses[:, key, None]
    return dense.sweep(images[:, key], images[:, views], motions, camera, guess)

  everywhere = torch.ones_like(log_inverse, dtype=torch.bool)
  start = refined(reference, log_inverse)
  scenes = _surface(images[:, reference], start, poses[:, reference], camera, everywhere)
  for key in dict.fromkeys([0, frames - 1, frames // 4, (3 * frames) // 4]):
    if key == reference:
      continue
    drawn = splat(scenes, poses[:, key, None], camera.expand(count, 1, 3, 3), (h, w))
    alpha = drawn.alpha()[:, 0]
    new = alpha < COVERED
    # A keyframe that shares nothing with the scene so far has no depth to start from.
    new &= ~new.all((1, 2), keepdim=True)
    if not new.any():
      continue
    log_depth = torch.log(drawn.depth[:, 0].clamp_min(1e-3))
    known = drawn.blend(log_depth[..., None])[:, 0, ..., 0] / alpha.clamp_min(1e-3)
    guess = refined(key, dense.fill(-known, ~new))
    scenes = scenes.join(_surface(images[:, key], guess, poses[:, key], camera, new))
  return fit_colours(scenes, images, poses, camera)


def fit_colours(
  scenes: Gaussians,
  images: Float[Tensor, "n T 3 h w"],
  poses: Float[Tensor, "n T 4 4"],
  camera: Float[Tensor, "3 3"],
) -> Gaussians:
  """Colours that reproduce all frames best, in the sense of least squares (a few rounds of SIRT)."""
  count, frames = poses.shape[:2]
  picks = torch.linspace(0, frames - 1, min(COLOUR_FRAMES, frames)).round().long().unique().to(images.device)
  wanted, poses = images[:, picks].permute(0, 1, 3, 4, 2), poses[:, picks]
  cameras = camera.expand(count, len(picks), 3, 3)
  parts = frames_at_once(count, len(picks), images.shape[-2:], images.device)
  fragments = [splat(scenes, poses[:, part], cameras[:, part], images.shape[-2:]) for part in parts]
  ones = torch.ones_like(wanted[..., :1])
  seen = sum(fragment.gather(ones[:, part]) for fragment, part in zip(fragments, parts)).clamp_min(1e-2)
  colours = scenes.colours
  for _ in range(COLOUR_ROUNDS):
    pull = sum(fragment.gather(wanted[:, part] - fragment.blend(colours)) for fragment, part in zip(fragments, parts))
    colours = colours + pull / seen
  return dataclasses.replace(scenes, colours=colours.clamp(0, 1))
