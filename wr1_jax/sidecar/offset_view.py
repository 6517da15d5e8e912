"""Where to look at a scene from to judge it: where no frame was taken, behind the middle of the path and beside it.

What looks right from the path may be a pane of glass; from here billboards, floaters and stretched textures show.
World-R1 judges its scenes from a view "moved back and off the path"; how far is open there, so it is an option here.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from wr1_jax.config import ReconstructionConfig


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
