"""The scene from where no frame was taken: behind the middle of the path and beside it.

What looks right from the path may be a pane of glass; from here billboards, floaters and stretched textures show.
World-R1 judges its scenes from a view "moved back and off the path"; how far is open there, so it is an option here.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float

from wr1_jax.config import ReconstructionConfig
from wr1_jax.sidecar import gaussians
from wr1_jax.sidecar.reconstruct import Reconstruction


def offset_pose(
  poses: Float[np.ndarray, "T 4 4"], depth_unit: float, config: ReconstructionConfig
) -> Float[np.ndarray, "4 4"]:
  """The middle camera moved back, and to the side of the path that is further from all of its cameras."""
  middle = poses[len(poses) // 2]
  candidates = []
  for side in (1, -1):
    pose = middle.copy()
    pose[:3, 3] += depth_unit * (side * config.offset_side * middle[:3, 0] - config.offset_back * middle[:3, 2])
    candidates.append(pose)
  distance = [np.linalg.norm(poses[:, :3, 3] - pose[:3, 3], axis=-1).min() for pose in candidates]
  return candidates[int(distance[1] > distance[0])]


def offset_view(
  reconstruction: Reconstruction, config: ReconstructionConfig
) -> tuple[Float[np.ndarray, "h w 3"], Float[np.ndarray, "h w"]]:
  """RGB over black and alpha, both in [0, 1], at the size and intrinsics of the clip's frames."""
  device = reconstruction.scene.means.device
  pose = torch.from_numpy(offset_pose(reconstruction.poses, reconstruction.depth_unit, config)).to(device)
  camera = torch.from_numpy(reconstruction.intrinsics[0]).to(device)
  rgb, alpha = gaussians.render(reconstruction.scene, pose[None], camera[None], reconstruction.frames.shape[1:3])
  return rgb[0].cpu().numpy(), alpha[0].clamp(0, 1).cpu().numpy()
