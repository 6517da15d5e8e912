"""Rigid motions in PyTorch: the exponential map of small and large steps."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def cross_matrix(vector: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3 3"]:
  """The matrix [v] with [v] x = v x x."""
  x, y, z = vector.unbind(-1)
  zero = torch.zeros_like(x)
  return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))


def motion(step: Float[Tensor, "*n 6"]) -> Float[Tensor, "*n 4 4"]:
  """The rigid motion exp([rotation vector, velocity]) as a 4 x 4 matrix."""
  omega, velocity = step[..., :3], step[..., 3:]
  angle = omega.norm(dim=-1)[..., None, None].clamp_min(1e-6)
  k = cross_matrix(omega)
  kk = k @ k
  eye = torch.eye(3, dtype=step.dtype, device=step.device)
  sine, versine = torch.sin(angle) / angle, (1 - torch.cos(angle)) / angle**2
  # Below 1e-3 the third coefficient loses all its digits in float32; its limit is exact there.
  third = torch.where(angle < 1e-3, torch.full_like(angle, 1 / 6), (1 - sine) / angle**2)
  rotation = eye + sine * k + versine * kk
  left = eye + versine * k + third * kk
  top = torch.cat([rotation, left @ velocity[..., None]], -1)
  bottom = torch.zeros_like(top[..., :1, :])
  bottom[..., 3] = 1
  return torch.cat([top, bottom], -2)


def inverse(pose: Float[Tensor, "*n 4 4"]) -> Float[Tensor, "*n 4 4"]:
  """The inverse of rigid motions."""
  turn = pose[..., :3, :3].mT
  return torch.cat([torch.cat([turn, -turn @ pose[..., :3, 3:]], -1), pose[..., 3:, :]], -2)
