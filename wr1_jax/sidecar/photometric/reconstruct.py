"""The weight-free reconstructor: one rigid scene of Gaussians and a camera path, from the pixels of a clip alone.

Poses and a coarse depth map come from photometric bundle adjustment (`photometric.search`), dense depth from a plane
sweep and colours from least squares over the frames (`photometric.scene`). A clip that does not show one rigid scene is
reproduced badly, and that is what the reward measures. Scale cannot be seen: the median depth is made 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from wr1_jax.config import ReconstructionConfig
from wr1_jax.sidecar import geometry
from wr1_jax.sidecar.photometric import depth, pyramid, scene, search
from wr1_jax.sidecar.reconstruction import Reconstruction
from wr1_jax.sidecar.scorers import Unscored

MIN_TEXTURE = 0.01  # share of pixels that must differ from a neighbour, or there is nothing to track
PIXELS_AT_ONCE = {"cuda": 10**7}  # of all frames in use: fewer leave a GPU waiting for the next operation to start
LEAST_PIXELS = 2**13  # that a frame counts as: the search takes its points from small frames too


class PhotometricReconstructor:
  """Reconstructs clips. Deterministic for a given number of threads; on a CPU clips do not influence each other."""

  def __init__(self, config: ReconstructionConfig, device: str = "cpu"):
    self._config = config
    self._device = torch.device(device)

  def __call__(
    self, videos: UInt8[np.ndarray, "N T H W 3"], paths: Sequence[Float[np.ndarray, "T 4 4"] | None]
  ) -> list[Reconstruction | Unscored]:
    """Reconstructs every clip.

    Args:
      videos: any T >= 1 and any size from 64 pixels a side.
      paths: for each clip the camera-to-world path asked for, in scene depths, or None. It is one more start of the
        search; only the residual decides.
    """
    return [one for batch in self.batches(videos, paths) for one in batch]

  def batches(
    self, videos: UInt8[np.ndarray, "N T H W 3"], paths: Sequence[Float[np.ndarray, "T 4 4"] | None]
  ) -> Iterator[list[Reconstruction | Unscored]]:
    """The same, in lists of those that were reconstructed together."""
    at_once = self._at_once(*videos.shape)
    for i in range(0, len(videos), at_once):
      yield self._reconstruct(videos[i : i + at_once], paths[i : i + at_once])

  def _at_once(self, clips: int, frames: int, height: int, width: int, *_) -> int:
    """How many clips to work on together: one where it fills a CPU's cores, which then depends on no other."""
    pixels = max(LEAST_PIXELS, math.prod(geometry.processed_size(height, width, self._config)))
    most = max(1, PIXELS_AT_ONCE.get(self._device.type, 0) // (min(frames, self._config.max_frames) * pixels))
    return math.ceil(clips / math.ceil(clips / most)) if clips else 1

  @torch.no_grad()
  def _reconstruct(self, videos, paths) -> list[Reconstruction | Unscored]:
    frames, height, width = videos.shape[1:4]
    size = geometry.processed_size(height, width, self._config)
    camera = geometry.intrinsics(height, width, size, self._config.focal)
    inputs = torch.from_numpy(np.ascontiguousarray(videos))
    small = torch.stack([shrink(video.to(self._device), size) for video in inputs])
    keep = geometry.keep_frames(frames, self._config.max_frames)
    images = small[:, keep].permute(0, 1, 4, 2, 3).float() / 255
    k = torch.from_numpy(camera).to(self._device)
    found = search.recover(pyramid.brightness(images), k, _asked(paths, keep).to(self._device), self._config.iterations)

    reasons = [_hopeless(clip) for clip in images]
    poses, depths = found.world_to_camera, found.log_inverse_depth
    anchored = [_anchored(*one, k) for one in zip(poses, depths)]
    for i, (path, depth_map) in enumerate(anchored):
      if not (path.isfinite().all() and depth_map.isfinite().all()):
        reasons[i] = reasons[i] or "the search for a camera path diverged"
        anchored[i] = torch.eye(4).to(path).expand_as(path), torch.zeros_like(depth_map)  # for the others' sake
    poses, depths = (torch.stack(x) for x in zip(*anchored))
    scenes = scene.build(images, poses.float(), k, len(keep) // 2, depths)
    small, poses = small.cpu().numpy(), poses.cpu().numpy()
    return [
      Unscored(reason)
      if reason
      else Reconstruction(
        frames=small[i],
        poses=geometry.interpolate_poses(poses[i], keep, frames).astype(np.float32),
        intrinsics=np.tile(camera, (frames, 1, 1)),
        depth_unit=1.0,
        scene=scenes[i : i + 1],
      )
      for i, reason in enumerate(reasons)
    ]


def shrink(video: UInt8[Tensor, "T H W 3"], size: tuple[int, int]) -> UInt8[Tensor, "T h w 3"]:
  """Resizes frames with antialiasing and rounds to 8 bits."""
  if video.shape[1:3] == size:
    return video

  def shrunk(frames: UInt8[Tensor, "n H W 3"]) -> UInt8[Tensor, "n h w 3"]:
    images = frames.permute(0, 3, 1, 2).float()
    images = F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
    return images.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)

  return torch.cat([shrunk(frames) for frames in video.split(8)])  # a long clip in float32 would fill the memory


def _asked(paths: Sequence[np.ndarray | None], keep: np.ndarray) -> Float[Tensor, "n 1 T 4 4"]:
  """The paths asked for at the frames in use; a still camera where there is none, which is a start anyway."""
  still = np.tile(np.eye(4), (len(keep), 1, 1))
  chosen = [still if path is None else np.asarray(path, np.float64)[keep] for path in paths]
  return torch.from_numpy(np.stack(chosen))[:, None]


def _hopeless(images: Float[Tensor, "T 3 h w"]) -> str | None:
  """Why no camera path can be found, whatever the search says."""
  textured = (images.diff(dim=-1).abs().amax(1)[..., :-1, :] > 0) | (images.diff(dim=-2).abs().amax(1)[..., :-1] > 0)
  share = float(textured.float().mean())
  if share < MIN_TEXTURE:
    return f"the frames have no texture to follow: only {share:.2%} of their pixels differ from their neighbours"
  return None


def _anchored(
  world_to_camera: Float[Tensor, "T 4 4"], log_inverse: Float[Tensor, "h w"], camera: Float[Tensor, "3 3"]
) -> tuple[Float[Tensor, "T 4 4"], Float[Tensor, "h w"]]:
  """Camera-to-world poses anchored at the first frame, and depth, both scaled to median depth 1 in the first frame."""
  relative = world_to_camera[0]  # reference camera to first camera
  x = depth.rays(log_inverse.shape, camera).double()
  y = relative[:3, :3] @ (x / torch.exp(log_inverse.double()).flatten()) + relative[:3, 3:]
  u, v = camera[0, 0] * y[0] / y[2] + camera[0, 2], camera[1, 1] * y[1] / y[2] + camera[1, 2]
  seen = (y[2] > 0) & (u > 0) & (u < log_inverse.shape[1]) & (v > 0) & (v < log_inverse.shape[0])
  # A first frame that shares nothing with the reference says nothing about the scale; the reference itself does then.
  unit = y[2, seen].median() if seen.any() else torch.exp(-log_inverse.double()).median()
  poses = relative @ torch.linalg.inv(world_to_camera)
  poses[:, :3, 3] /= unit
  return poses, log_inverse + torch.log(unit).to(log_inverse)
