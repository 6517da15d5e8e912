"""What a reconstructor finds, and what the rewards look at: its scene from the frames' poses and from off the path."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from jaxtyping import Float, UInt8

from wr1_jax.config import ReconstructionConfig
from wr1_jax.sidecar import gaussians
from wr1_jax.sidecar.gaussians import Gaussians
from wr1_jax.sidecar.offset_view import offset_pose
from wr1_jax.sidecar.scorers import View


@dataclasses.dataclass(frozen=True, eq=False)
class Reconstruction:
  """What was found in one clip of T frames, at the processed size (h, w)."""

  frames: UInt8[np.ndarray, "T h w 3"]  # the clip itself
  poses: Float[np.ndarray, "T 4 4"]  # camera-to-world, float32, anchored at the first frame
  intrinsics: Float[np.ndarray, "T 3 3"]  # pixels of the processed size
  depth_unit: float  # median depth of the scene as the first frame sees it, in the units of `poses`
  scene: Gaussians  # in the frame of the first camera

  def render(self) -> UInt8[np.ndarray, "T h w 3"]:
    """The scene at the poses and intrinsics of the clip's own frames: image k belongs to frame k."""
    rgb, _ = self._seen_from(self.poses, self.intrinsics)
    return _to_uint8(rgb)

  def offset_view(self, config: ReconstructionConfig) -> tuple[UInt8[np.ndarray, "h w 3"], Float[np.ndarray, "h w"]]:
    """RGB over black, and alpha in [0, 1], from off the path."""
    pose = offset_pose(self.poses, self.depth_unit, config)
    rgb, alpha = self._seen_from(pose[np.newaxis], self.intrinsics[:1])
    return _to_uint8(rgb[0]), alpha[0].clip(0, 1)

  def view(self, config: ReconstructionConfig) -> View:
    """All that the rewards look at."""
    offset_view, offset_alpha = self.offset_view(config)
    return View(
      frames=self.frames,
      rendered=self.render(),
      offset_view=offset_view,
      offset_alpha=offset_alpha,
      poses=self.poses,
      depth_unit=self.depth_unit,
    )

  def _seen_from(
    self, poses: Float[np.ndarray, "n 4 4"], intrinsics: Float[np.ndarray, "n 3 3"]
  ) -> tuple[Float[np.ndarray, "n h w 3"], Float[np.ndarray, "n h w"]]:
    """Images in [0, 1] at the clip's size, and their alpha."""
    device = self.scene.means.device
    poses, cameras = (torch.from_numpy(x).to(device) for x in (poses, intrinsics))
    rgb, alpha = gaussians.render(self.scene, poses, cameras, self.frames.shape[1:3])
    return rgb.cpu().numpy(), alpha.cpu().numpy()


def _to_uint8(image: Float[np.ndarray, "*dims"]) -> UInt8[np.ndarray, "*dims"]:
  return np.round(255 * image).astype(np.uint8)
