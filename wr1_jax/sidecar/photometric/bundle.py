"""Photometric bundle adjustment: Levenberg-Marquardt over the poses of all frames and the depth of one of them.

The depth of the reference frame is a coarse grid of log inverse depths q, interpolated bilinearly. A reference pixel
with ray x is seen by frame t at the projection of y = R_t x + exp(q) t_t; its residual is the difference in brightness,
I_t(y) - I_ref(x), after frame t's gain and bias. Since y is the point scaled by its inverse depth, far points are
harmless. (Direct methods of this kind: "Direct Sparse Odometry", Engel et al. 2016.)

All work is batched over hypotheses b: different clips, or different starts for one clip. Hypotheses never mix.
"""

from __future__ import annotations

import dataclasses
import functools

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from wr1_jax.sidecar.photometric.lie import inverse, motion

FRAME_UNKNOWNS = 8  # rotation 3, translation 3, gain, bias
MISSING = 0.02  # a frame's cost is the mean over what it sees and this share of imagined points of the highest cost, 1
NEAREST = 0.05  # a point this close to a camera, as a share of its depth, counts as not seen


@dataclasses.dataclass(frozen=True)
class Unknowns:
  """What is estimated: `poses` are world-to-camera, the world being the reference camera; float64."""

  poses: Float[Tensor, "b T 4 4"]
  light: Float[Tensor, "b T 2"]  # log gain and bias that take frame t's brightness to the reference's
  depth: Float[Tensor, "b g"]  # log inverse depth at the grid's nodes

  def choose(self, index) -> Unknowns:
    return Unknowns(self.poses[index], self.light[index], self.depth[index])

  def where(self, mask: Bool[Tensor, "b"], other: Unknowns) -> Unknowns:
    """These unknowns where `mask` is set, `other` elsewhere."""
    pick = lambda a, b: torch.where(mask.reshape(-1, *[1] * (a.ndim - 1)), a, b)
    return Unknowns(pick(self.poses, other.poses), pick(self.light, other.light), pick(self.depth, other.depth))


@dataclasses.dataclass(frozen=True)
class Level:
  """One level of the image pyramid and what stays fixed while it is solved.

  `images` holds brightness and its two derivatives along columns and rows, [b, T, 3, h, w].
  """

  images: Float[Tensor, "b T 3 h w"]
  values: Float[Tensor, "b p"]  # brightness of the reference pixels
  reference: int  # index of the reference frame
  rays: Float[Tensor, "3 p"]  # of the reference pixels, third coordinate 1
  camera: Float[Tensor, "4"]  # fx, fy, cx, cy in pixels of this level
  weights: Float[Tensor, "p g"]  # bilinear weights of the grid's nodes at the reference pixels
  roughness: Float[Tensor, "g g"]  # quadratic form of the prior on the depth grid
  scale: Float[Tensor, "b"]  # residual at which a pixel starts to count as an outlier

  def choose(self, index) -> Level:
    return dataclasses.replace(self, images=self.images[index], values=self.values[index], scale=self.scale[index])


@dataclasses.dataclass(frozen=True)
class System:
  """The linearised problem at one point: cost, gradient and Gauss-Newton matrix.

  The unknowns are those of the frames, then those of the depth, or only the latter.
  """

  cost: Float[Tensor, "b"]  # mean over frames, in [0, 1], plus priors
  gradient: Float[Tensor, "b n"]
  matrix: Float[Tensor, "b n n"]

  def where(self, mask: Bool[Tensor, "b"], other: System) -> System:
    return System(
      torch.where(mask, self.cost, other.cost),
      torch.where(mask[:, None], self.gradient, other.gradient),
      torch.where(mask[:, None, None], self.matrix, other.matrix),
    )


@dataclasses.dataclass(frozen=True)
class Priors:
  """Weights of what is believed before looking, beside an image cost of at most 1."""

  depth: float = 2e-4  # keeps the mean log depth near 0: translations are in depth units
  rough: float = 2e-3  # differences between neighbouring nodes
  light: float = 0.2  # log gains and biases near 0
  still: float = 2e-4  # translations near 0: a camera moves only if that explains something
  smooth: float = 0.0  # accelerations near 0 (radians and median depths, per frame and frame)


@dataclasses.dataclass(frozen=True)
class Observation:
  """What the frames see of the reference pixels."""

  points: Float[Tensor, "b T 3 p"]  # in the frames' cameras, divided by their depth in the reference
  inverse_depth: Float[Tensor, "b p"]
  slope: Float[Tensor, "b T 2 p"]  # of the frame's brightness there, per pixel along columns and rows
  value: Float[Tensor, "b T p"]  # brightness there, times the frame's gain
  residual: Float[Tensor, "b T p"]
  seen: Bool[Tensor, "b T p"]


def sample(
  images: Float[Tensor, "n c h w"], u: Float[Tensor, "n p"], v: Float[Tensor, "n p"]
) -> Float[Tensor, "n c p"]:
  """Bilinear samples at pixel positions; the first pixel's centre is (0.5, 0.5)."""
  h, w = images.shape[-2:]
  grid = torch.stack([2 * u / w - 1, 2 * v / h - 1], -1)[:, None]
  return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)[:, :, 0]


def observe(level: Level, unknowns: Unknowns) -> Observation:
  """Projects the reference pixels into all frames and compares."""
  b, frames, _, h, w = level.images.shape
  inverse_depth = torch.exp(unknowns.depth.float() @ level.weights.T)
  pose = unknowns.poses.float()
  y = pose[..., :3, :3] @ level.rays + inverse_depth[:, None, None] * pose[..., :3, 3:]
  fx, fy, cx, cy = level.camera
  z = y[:, :, 2].clamp_min(NEAREST)
  u, v = fx * y[:, :, 0] / z + cx, fy * y[:, :, 1] / z + cy
  seen = (y[:, :, 2] > NEAREST) & (u > 0) & (u < w) & (v > 0) & (v < h)
  samples = sample(level.images.flatten(0, 1), u.flatten(0, 1), v.flatten(0, 1)).unflatten(0, (b, frames))
  gain, bias = torch.exp(unknowns.light[..., :1].float()), unknowns.light[..., 1:].float()
  value = gain * samples[:, :, 0]
  slope = gain[:, :, None] * samples[:, :, 1:]
  return Observation(y, inverse_depth, slope, value, value + bias - level.values[:, None], seen)


def linearise(level: Level, unknowns: Unknowns, priors: Priors, *, depth_only: bool = False) -> System:
  """The robust cost (Geman-McClure) and its Gauss-Newton system by iteratively reweighted least squares.

  Args:
    depth_only: the system is that of the depth alone, and so are the priors in its cost.
  """
  seen = observe(level, unknowns)
  cost, weight = _robust(level, seen)
  by_point = _by_point(level, seen)
  rho = seen.inverse_depth[:, None]
  by_depth = rho * (by_point * unknowns.poses[..., :3, 3:].float()).sum(2)
  depth_weight = (weight * by_depth**2).sum(1)
  depth_block = (level.weights.T * depth_weight[:, None]) @ level.weights
  depth_gradient = (weight * seen.residual * by_depth).sum(1) @ level.weights
  if depth_only:
    system = System(cost, depth_gradient.double(), depth_block.double())
    return _add_depth_prior(level, unknowns, priors, system)

  b, frames, _ = weight.shape
  ones = torch.ones_like(seen.value)[:, :, None]
  by_frame = torch.cat(
    [torch.linalg.cross(seen.points, by_point, dim=2), rho[:, :, None] * by_point, seen.value[:, :, None], ones], 2
  )
  weighted = by_frame * weight[:, :, None]
  n, nodes = frames * FRAME_UNKNOWNS, level.weights.shape[1]
  matrix = weight.new_zeros(b, n + nodes, n + nodes, dtype=torch.float64)
  blocks = matrix[:, :n, :n].unflatten(1, (frames, -1)).unflatten(3, (frames, -1))
  blocks.diagonal(dim1=1, dim2=3).copy_((weighted @ by_frame.transpose(-1, -2)).permute(0, 2, 3, 1))
  matrix[:, :n, n:] = (weighted * by_depth[:, :, None]).flatten(1, 2) @ level.weights
  matrix[:, n:, :n] = matrix[:, :n, n:].transpose(1, 2)
  matrix[:, n:, n:] = depth_block
  gradient = torch.cat([(weighted @ seen.residual[..., None])[..., 0].flatten(1), depth_gradient], 1).double()
  system = _add_depth_prior(level, unknowns, priors, System(cost, gradient, matrix))
  return _add_frame_priors(level, unknowns, priors, system)


def _robust(level: Level, seen: Observation) -> tuple[Float[Tensor, "b"], Float[Tensor, "b T p"]]:
  """The cost of the residuals, float64, and the weights of their squares in its quadratic approximation."""
  frames, points = seen.residual.shape[1:]
  scale = level.scale[:, None, None]
  ratio = (seen.residual / scale) ** 2
  # Normalised by frame: neither seeing more nor seeing less of the reference may pay in itself.
  count = seen.seen.sum(2, keepdim=True) + MISSING * points
  cost = ((seen.seen * ratio / (1 + ratio)).sum(2, keepdim=True) + MISSING * points) / count
  weight = 2 * seen.seen / (1 + ratio) ** 2 / (scale**2 * count * frames)
  return cost.mean((1, 2)).double(), weight


def _by_point(level: Level, seen: Observation) -> Float[Tensor, "b T 3 p"]:
  """Derivatives of the residuals by the points in the frames' cameras."""
  fx, fy, _, _ = level.camera
  y = seen.points
  z = y[:, :, 2].clamp_min(NEAREST)
  gx, gy = seen.slope[:, :, 0] * fx / z, seen.slope[:, :, 1] * fy / z
  return torch.stack([gx, gy, -(gx * y[:, :, 0] + gy * y[:, :, 1]) / z], 2)


def _accelerations(poses: Float[Tensor, "b T 4 4"]) -> Float[Tensor, "b T-2 6"]:
  """Changes of the motion from frame to frame: rotation vectors (small-angle form) and translations."""
  relative = poses[:, 1:] @ inverse(poses[:, :-1])
  skew = (relative[..., :3, :3] - relative[..., :3, :3].transpose(-1, -2)) / 2
  velocity = torch.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0], *relative[..., :3, 3].unbind(-1)], -1)
  return velocity[:, 1:] - velocity[:, :-1]


# Priors are quadratic forms, each divided by the number of its terms as the image evidence is.


def _add_depth_prior(level: Level, unknowns: Unknowns, priors: Priors, system: System) -> System:
  nodes = level.weights.shape[1]
  eye = torch.eye(nodes, dtype=torch.float64, device=system.matrix.device)
  shape = (priors.rough * level.roughness.double() + priors.depth * eye) / nodes
  pull = unknowns.depth @ shape
  system.matrix[:, -nodes:, -nodes:] += shape
  system.gradient[:, -nodes:] += pull
  return dataclasses.replace(system, cost=system.cost + 0.5 * (pull * unknowns.depth).sum(1))


@functools.cache
def _frame_forms(
  priors: Priors, frames: int, device: torch.device
) -> tuple[Float[Tensor, "8"], Float[Tensor, "8"], Float[Tensor, "T-2 T"]]:
  """Weights on a frame's unknowns and on their accelerations, and the second difference over frames; float64.

  Kept, because a GPU would have to wait for each copy from the host.
  """
  strength = torch.tensor([0, 0, 0, *[priors.still] * 3, priors.light, priors.light], dtype=torch.float64) / frames
  kinds = torch.tensor([1] * 6 + [0] * 2, dtype=torch.float64) * priors.smooth / frames
  second = torch.eye(frames, dtype=torch.float64).diff(n=2, dim=0)
  return strength.to(device), kinds.to(device), second.to(device)


def _add_frame_priors(level: Level, unknowns: Unknowns, priors: Priors, system: System) -> System:
  cost, gradient, matrix = system.cost, system.gradient, system.matrix
  frames = unknowns.poses.shape[1]
  n = frames * FRAME_UNKNOWNS
  strength, kinds, second = _frame_forms(priors, frames, matrix.device)
  state = torch.cat([torch.zeros_like(unknowns.poses[..., :3, 3]), unknowns.poses[..., :3, 3], unknowns.light], -1)
  gradient[:, :n] += (strength * state).flatten(1)
  matrix.diagonal(dim1=1, dim2=2)[:, :n] += strength.repeat(frames)
  cost = cost + 0.5 * (strength * state**2).sum((1, 2))

  if frames > 2 and priors.smooth > 0:
    # The acceleration changes by the second difference of the steps, to first order in the motion between frames.
    acceleration = _accelerations(unknowns.poses)
    matrix[:, :n, :n] += torch.kron(second.T @ second, torch.diag(kinds))
    gradient[:, :n].unflatten(1, (frames, -1))[..., :6] += kinds[:6] * (second.T @ acceleration)
    cost = cost + 0.5 * (kinds[:6] * acceleration**2).sum((1, 2))

  # The reference camera is the world: it does not move, nor does its light change. It pulls at nothing else.
  held = slice(level.reference * FRAME_UNKNOWNS, (level.reference + 1) * FRAME_UNKNOWNS)
  matrix[:, held], matrix[:, :, held], gradient[:, held] = 0, 0, 0
  matrix[:, held, held] = torch.eye(FRAME_UNKNOWNS, dtype=matrix.dtype, device=matrix.device)
  return System(cost, gradient, matrix)


def step(unknowns: Unknowns, delta: Float[Tensor, "b n"]) -> Unknowns:
  """Moves the unknowns, or the depth alone, by one solution of the linear system."""
  b, frames = unknowns.poses.shape[:2]
  nodes = unknowns.depth.shape[1]
  depth = unknowns.depth + delta[:, -nodes:].clamp(-1, 1)
  if delta.shape[1] == nodes:
    return dataclasses.replace(unknowns, depth=depth)
  per_frame = delta[:, :-nodes].reshape(b, frames, FRAME_UNKNOWNS)
  return Unknowns(motion(per_frame[..., :6]) @ unknowns.poses, unknowns.light + per_frame[..., 6:], depth)


def solve(
  level: Level, unknowns: Unknowns, iterations: int, priors: Priors, *, depth_only: bool = False
) -> tuple[Unknowns, Float[Tensor, "b"]]:
  """Levenberg-Marquardt for a fixed number of iterations: a step is kept only where it lowers the cost.

  Args:
    depth_only: the frames' unknowns stay as they are.

  Returns:
    The unknowns and their final cost.
  """
  system = linearise(level, unknowns, priors, depth_only=depth_only)
  damping = torch.full_like(system.cost, 1e-3)
  for _ in range(iterations):
    matrix = system.matrix.clone()
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    diagonal += damping[:, None] * diagonal + 1e-12
    factor, info = torch.linalg.cholesky_ex(matrix)
    delta = -torch.cholesky_solve(system.gradient[..., None], factor)[..., 0]
    trial = step(unknowns, torch.nan_to_num(delta).clamp(-1, 1))
    trial_system = linearise(level, trial, priors, depth_only=depth_only)
    better = (trial_system.cost < system.cost) & (info == 0)
    unknowns = trial.where(better, unknowns)
    system = trial_system.where(better, system)
    damping = torch.where(better, damping / 4, damping * 6).clamp(1e-6, 1e4)
  return unknowns, system.cost
