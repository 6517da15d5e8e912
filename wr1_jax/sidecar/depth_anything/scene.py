"""A Gaussian scene with colours that depend on the direction of view, and how to move it to other coordinates."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial.transform import Rotation
from torch import Tensor

from wr1_jax.sidecar.depth_anything import harmonics
from wr1_jax.sidecar.gaussians import Gaussians


@dataclasses.dataclass(frozen=True, eq=False)
class HarmonicScene:
  """g Gaussians, all float32 on one device."""

  means: Float[Tensor, "g 3"]
  scales: Float[Tensor, "g 3"]  # standard deviations along the axes that the quaternion turns
  quaternions: Float[Tensor, "g 4"]  # w, x, y, z
  opacities: Float[Tensor, "g"]
  harmonics: Float[Tensor, "g 9 3"]  # of R, G and B

  @property
  def is_finite(self) -> bool:
    return all(bool(field.isfinite().all()) for field in vars(self).values())

  def turned_and_moved(self, pose: Float[np.ndarray, "4 4"]) -> HarmonicScene:
    """The scene after the rigid motion `pose`."""
    rotation, shift = (torch.from_numpy(pose[:3, part]).to(self.means) for part in (slice(3), 3))
    x, y, z, w = Rotation.from_matrix(pose[:3, :3]).as_quat()
    return dataclasses.replace(
      self,
      means=self.means @ rotation.T + shift,
      quaternions=_product(torch.tensor([w, x, y, z]).to(self.quaternions), self.quaternions),
      harmonics=harmonics.turned(self.harmonics, torch.from_numpy(pose[:3, :3])),
    )

  def scaled(self, factor: float) -> HarmonicScene:
    """The scene `factor` times as large."""
    return dataclasses.replace(self, means=self.means * factor, scales=self.scales * factor)

  def seen_from(self, position: Float[Tensor, "3"]) -> Gaussians:
    """The same Gaussians in the colours that they have from `position`, as a batch of one scene."""
    fields = {name: getattr(self, name)[None] for name in ("means", "scales", "quaternions", "opacities")}
    return Gaussians(**fields, colours=harmonics.colours(self.harmonics, self.means - position)[None])


def _product(a: Float[Tensor, "4"], b: Float[Tensor, "g 4"]) -> Float[Tensor, "g 4"]:
  """The rotation `b`, then the rotation `a`, as quaternions (w, x, y, z)."""
  w, x, y, z = a.tolist()
  left = torch.tensor([[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]]).to(b)
  return b @ left.T
