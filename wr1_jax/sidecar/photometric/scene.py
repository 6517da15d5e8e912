"""One rigid scene of Gaussians from a few frames' depths, its colours fitted to all frames."""

from __future__ import annotations

import torch
from jaxtyping import Float
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
  image: Float[Tensor, "3 h w"],
  log_inverse: Float[Tensor, "h w"],
  pose: Float[Tensor, "4 4"],
  camera: Float[Tensor, "3 3"],
  keep: Tensor,
) -> Gaussians:
  """One Gaussian for each kept pixel of a frame."""
  z = torch.exp(-log_inverse).flatten()
  points = (dense.rays(log_inverse.shape, camera) * z).T[keep.flatten()]
  means = points @ pose[:3, :3].T + pose[:3, 3]
  scales = (SIZE * points[:, 2:] / camera[0, 0]).expand(-1, 3)
  count = len(means)
  return Gaussians(
    means,
    scales,
    means.new_tensor([1, 0, 0, 0]).expand(count, 4),
    means.new_full((count,), OPACITY),
    image.flatten(1).T[keep.flatten()],
  )


def _views(frames: int, key: int) -> list[int]:
  """Up to `VIEWS` other frames, near and far."""
  others = sorted((i for i in range(frames) if i != key), key=lambda i: abs(i - key))
  picks = torch.linspace(0, len(others) - 1, min(VIEWS, len(others))).round().long().unique()
  return [others[i] for i in picks]


def build(
  images: Float[Tensor, "T 3 h w"],
  poses: Float[Tensor, "T 4 4"],
  camera: Float[Tensor, "3 3"],
  reference: int,
  log_inverse: Float[Tensor, "h w"],
) -> Gaussians:
  """Gaussians on the surfaces that the keyframes see: the reference first, then what is new in the others."""
  frames, _, h, w = images.shape

  def refined(key, guess):
    views = _views(frames, key)
    if not views:
      return guess
    return dense.sweep(images[key], images[views], torch.linalg.inv(poses[views]) @ poses[key], camera, guess)

  everywhere = torch.ones(h, w, dtype=torch.bool, device=images.device)
  scene = _surface(images[reference], refined(reference, log_inverse), poses[reference], camera, everywhere)
  for key in dict.fromkeys([0, frames - 1, frames // 4, (3 * frames) // 4]):
    if key == reference:
      continue
    drawn = splat(scene, poses[key, None], camera[None], (h, w))
    alpha = drawn.alpha()[0]
    new = alpha < COVERED
    # A keyframe that shares nothing with the scene so far has no depth to start from.
    if not new.any() or new.all():
      continue
    known = drawn.blend(torch.log(drawn.depth[0].clamp_min(1e-3))[:, None])[0, ..., 0] / alpha.clamp_min(1e-3)
    guess = refined(key, dense.fill(-known, ~new))
    scene = scene.join(_surface(images[key], guess, poses[key], camera, new))
  return fit_colours(scene, images, poses, camera)


def fit_colours(
  scene: Gaussians, images: Float[Tensor, "T 3 h w"], poses: Float[Tensor, "T 4 4"], camera: Float[Tensor, "3 3"]
) -> Gaussians:
  """Colours that reproduce all frames best, in the sense of least squares (a few rounds of SIRT)."""
  picks = torch.linspace(0, len(images) - 1, min(COLOUR_FRAMES, len(images))).round().long().unique().to(images.device)
  wanted, poses, cameras = images[picks].permute(0, 2, 3, 1), poses[picks], camera.expand(len(picks), 3, 3)
  parts = frames_at_once(len(picks), images.device)
  fragments = [splat(scene, poses[part], cameras[part], images.shape[-2:]) for part in parts]
  ones = torch.ones_like(wanted[..., :1])
  seen = sum(fragment.gather(ones[part]) for fragment, part in zip(fragments, parts)).clamp_min(1e-2)
  colours = scene.colours
  for _ in range(COLOUR_ROUNDS):
    pull = sum(fragment.gather(wanted[part] - fragment.blend(colours)) for fragment, part in zip(fragments, parts))
    colours = colours + pull / seen
  return Gaussians(scene.means, scene.scales, scene.quaternions, scene.opacities, colours.clamp(0, 1))
