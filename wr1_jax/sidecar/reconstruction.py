"""What a reconstructor finds, and what the rewards look at: its scene from the frames' poses and from off the path."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

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
  scene: Gaussians  # one, in the frame of the first camera


def views(found: Sequence[Reconstruction], config: ReconstructionConfig) -> list[View]:
  """All that the rewards look at of each of these clips, which are of one size and length."""
  if not found:
    return []
  offsets = [offset_pose(one.poses, one.depth_unit, config)[np.newaxis] for one in found]
  offset_views, offset_alphas = _seen_from(found, offsets)
  return [
    View(
      frames=one.frames,
      rendered=rendered,
      offset_view=offset_view[0],
      offset_alpha=offset_alpha[0].clip(0, 1),
      poses=one.poses,
      depth_unit=one.depth_unit,
    )
    for one, rendered, offset_view, offset_alpha in zip(found, rendered_back(found), offset_views, offset_alphas)
  ]


def rendered_back(found: Sequence[Reconstruction]) -> UInt8[np.ndarray, "n T h w 3"]:
  """Each scene at the poses and intrinsics of its clip's own frames: image k belongs to frame k."""
  return _seen_from(found, [one.poses for one in found])[0]


def _seen_from(
  found: Sequence[Reconstruction], poses: Sequence[Float[np.ndarray, "k 4 4"]]
) -> tuple[UInt8[np.ndarray, "n k h w 3"], Float[np.ndarray, "n k h w"]]:
  """Images over black of each scene, with its clip's first k intrinsics, and their alpha."""
  scenes = Gaussians.stack([one.scene for one in found])
  count = len(poses[0])
  arrays = np.stack(poses), np.stack([one.intrinsics[:count] for one in found])
  cameras = (torch.from_numpy(x).to(scenes.means) for x in arrays)
  rgb, alpha = gaussians.render(scenes, *cameras, found[0].frames.shape[1:3])
  return (255 * rgb).round().to(torch.uint8).cpu().numpy(), alpha.cpu().numpy()
