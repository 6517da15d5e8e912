"""Colours that depend on the direction of view: spherical harmonics up to degree 2, as gsplat orders and signs them.

They are the usual real ones with the Condon-Shortley phase, by degree l and within it by order m = -l ... l.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

DEGREE = 2
COUNT = (DEGREE + 1) ** 2

_CONSTANT = math.sqrt(1 / (4 * math.pi))
_LINEAR = math.sqrt(3 / (4 * math.pi))
_MIXED = math.sqrt(15 / (4 * math.pi))  # of products of two axes; half of it for x^2 - y^2
_POLAR = math.sqrt(5 / (16 * math.pi))


def basis(directions: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 9"]:
  """The harmonics' values in directions of length 1."""
  x, y, z = directions.unbind(-1)
  values = [
    torch.full_like(x, _CONSTANT),
    -_LINEAR * y,
    _LINEAR * z,
    -_LINEAR * x,
    _MIXED * x * y,
    -_MIXED * y * z,
    _POLAR * (3 * z * z - 1),
    -_MIXED * x * z,
    _MIXED / 2 * (x * x - y * y),
  ]
  return torch.stack(values, -1)


def colours(harmonics: Float[Tensor, "*g 9 3"], directions: Float[Tensor, "*g 3"]) -> Float[Tensor, "*g 3"]:
  """RGB from 0 up of what is seen along `directions` (of any length): the harmonics' sum, with grey as their zero."""
  values = basis(F.normalize(directions, dim=-1))
  return (torch.einsum("...k,...kc->...c", values, harmonics) + 0.5).clamp_min(0)


def turned(harmonics: Float[Tensor, "*g 9 3"], rotation: Float[Tensor, "3 3"]) -> Float[Tensor, "*g 9 3"]:
  """The harmonics of a scene that was turned by `rotation`: in direction R d it now looks as it did in direction d.

  Harmonics of one degree go over into each other under rotation, so the change of the coefficients is linear. It
  follows from the values in more directions than there are harmonics.
  """
  directions = F.normalize(torch.randn(4 * COUNT, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
  before = basis(directions @ rotation.cpu().double())  # each row is R^T d
  change = torch.linalg.lstsq(basis(directions), before).solution.to(harmonics)
  return torch.einsum("ij,...jc->...ic", change, harmonics)
