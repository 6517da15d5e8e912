"""The camera path of a clip from its images alone: many starts at coarse levels, the best ones refined.

Photometric error has many minima: turning left looks like moving left, and a scene turned inside out looks like the
camera moving the other way. So every clip starts from many simple paths: each of `TWISTS` all the time, every two of
them one after the other, and the path asked for. A few iterations tell which deserve more. The hypotheses that converge
to the same path are merged, the best ones are also tried inside out, and what has the lowest residual at the end wins.
Ties go to the camera that stands still.
"""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from wr1_jax.sidecar.photometric import bundle, pyramid
from wr1_jax.sidecar.photometric.bundle import Level, Priors, Unknowns
from wr1_jax.sidecar.photometric.lie import motion

# Constant motions of the scene past the camera over a whole clip: rotation vector (radians) and velocity (depths).
TWISTS = (
  (0, 0, 0, 0, 0, 0),
  (0, 0, 0, 0, 0, -0.35),
  (0, 0, 0, 0, 0, 0.35),  # forward, backward
  (0, 0, 0, 0.15, 0, 0),
  (0, 0, 0, -0.15, 0, 0),  # sideways
  (0, 0.17, 0, 0, 0, 0),
  (0, -0.17, 0, 0, 0, 0),  # yaw
  (0, 0.3, 0, -0.18, 0, 0),
  (0, -0.3, 0, 0.18, 0, 0),  # orbits around a point 0.6 ahead
)
DEPTH_ITERATIONS = 5  # of the depths alone, before a start's path may change
SCREEN_ITERATIONS = 5  # after which most starts are given up
SAME_PATH = 0.03  # paths that differ less than this (radians, depths) are one hypothesis
STILL_MARGIN = 1.13  # a still camera is believed if its cost is at most this times the best, plus STILL_SLACK
STILL_SLACK = 2e-3


@dataclasses.dataclass(frozen=True)
class Stage:
  """One pass of bundle adjustment over all hypotheses that are still alive."""

  points: int  # reference pixels used, at most
  nodes: int  # of the depth grid
  iterations: int
  outlier: float  # residual that counts as an outlier, in standard deviations of the images
  smooth: float  # weight of smooth camera motion: strong where images say little
  keep: int  # hypotheses that go on; the last stage leaves one
  screen: int = 0  # starts that are taken further than `SCREEN_ITERATIONS`; 0: all
  mirrors: int = 0  # of the best hypotheses, tried inside out as well


# The first stage works on the coarsest level of the pyramid, each further one a level finer; the last is repeated.
STAGES = (
  Stage(points=600, nodes=60, iterations=20, outlier=1.0, smooth=60, keep=10, screen=12),
  Stage(points=1000, nodes=60, iterations=12, outlier=0.7, smooth=20, keep=5, mirrors=2),
  Stage(points=1000, nodes=240, iterations=8, outlier=0.5, smooth=2, keep=1),
  Stage(points=4000, nodes=240, iterations=6, outlier=0.5, smooth=0.2, keep=1),
)


@dataclasses.dataclass(frozen=True)
class Path:
  """What the search found for each of n clips, in the frame of the reference camera, whose median depth is near 1."""

  world_to_camera: Float[Tensor, "n T 4 4"]  # float64
  log_inverse_depth: Float[Tensor, "n h w"]  # of the reference frame


def _starts(frames: int, reference: int, asked: Float[Tensor, "n k T 4 4"]) -> Float[Tensor, "n s T 4 4"]:
  """World-to-camera paths through the reference camera: simple ones, then those asked for."""
  time = torch.arange(frames, dtype=torch.float64)
  twists = torch.tensor(TWISTS, dtype=torch.float64)
  simple = _along(twists, time / max(frames - 1, 1))
  if frames > 2:
    middle = (frames - 1) // 2
    first = _along(twists[1:], time.clamp(max=middle) / middle)
    second = _along(twists[1:], (time - middle).clamp(min=0) / (frames - 1 - middle))
    different = ~torch.eye(len(first), dtype=torch.bool)
    simple = torch.cat([simple, (second @ first[:, None])[different]])
  simple = simple @ torch.linalg.inv(simple[:, reference : reference + 1])
  asked = torch.linalg.inv(asked) @ asked[:, :, reference : reference + 1]
  return torch.cat([simple.to(asked).expand(len(asked), *simple.shape), asked], 1)


def _along(twists: Float[Tensor, "s 6"], share: Float[Tensor, "T"]) -> Float[Tensor, "s T 4 4"]:
  """The motions from the first frame on when `share` of each twist is done by every frame."""
  return motion(twists[:, None] * share[:, None])


def _grid(size: tuple[int, int], nodes: int) -> tuple[int, int]:
  """About `nodes` nodes with the aspect of the image."""
  rows = max(2, round(math.sqrt(nodes * size[0] / size[1])))
  return rows, max(2, round(nodes / rows))


def _regrid(depth: Float[Tensor, "b g"], old: tuple[int, int], new: tuple[int, int]) -> Float[Tensor, "b g2"]:
  resized = F.interpolate(depth.unflatten(1, old)[:, None], size=new, mode="bilinear", align_corners=False)
  return resized.flatten(1)


def _mirror(unknowns: Unknowns) -> Unknowns:
  """The scene turned inside out: near and far exchanged, and the camera moving the other way across.

  The rotation is changed so that a point at mean depth keeps its place on the screen.
  """
  x, y, z = unknowns.poses[..., :3, 3].unbind(-1)
  inverse_depth = torch.exp(unknowns.depth.mean(1, keepdim=True))
  zero = torch.zeros_like(x)
  turn = motion(torch.stack([-2 * inverse_depth * y, 2 * inverse_depth * x, zero, zero, zero, zero], -1))
  poses = torch.zeros_like(unknowns.poses)
  poses[..., :3, :3] = turn[..., :3, :3] @ unknowns.poses[..., :3, :3]
  poses[..., :3, 3] = torch.stack([-x, -y, z], -1)
  poses[..., 3, 3] = 1
  return Unknowns(poses, unknowns.light, 2 * unknowns.depth.mean(1, keepdim=True) - unknowns.depth)


def _best(unknowns: Unknowns, cost: Float[Tensor, "b"], clips: int, keep: int) -> tuple[Unknowns, Float[Tensor, "b"]]:
  """The `keep` best hypotheses of each clip, best first, a path that was found twice counting once."""
  unknowns, cost = _reordered(unknowns, cost, cost.reshape(clips, -1).argsort(dim=1, stable=True))
  paths = unknowns.poses[..., :3, :].reshape(clips, -1, unknowns.poses.shape[1] * 12)
  distance = (paths[:, :, None] - paths[:, None]).abs().amax(-1)
  repeated = (distance < SAME_PATH).tril(-1).any(-1)
  # Repeated ones go behind all others.
  return _reordered(unknowns, cost, repeated.long().argsort(dim=1, stable=True)[:, :keep])


def _reordered(
  unknowns: Unknowns, cost: Float[Tensor, "b"], order: Int[Tensor, "n k"]
) -> tuple[Unknowns, Float[Tensor, "nk"]]:
  """Picks from each clip's hypotheses by their index."""
  clips = len(order)
  index = (order + torch.arange(clips, device=order.device)[:, None] * (len(cost) // clips)).flatten()
  return unknowns.choose(index), cost[index]


def recover(
  image: Float[Tensor, "n T h w"], camera: Float[Tensor, "3 3"], asked: Float[Tensor, "n k T 4 4"], effort: int = 1
) -> Path:
  """Recovers the paths of n clips.

  Args:
    image: brightness in [0, 1].
    camera: intrinsics in pixels, the same for all clips.
    asked: camera-to-world paths to start from besides the simple ones, in units of the scene's depth.
    effort: multiplies the optimiser's iterations.
  """
  clips, frames, height, width = image.shape
  reference = frames // 2
  starts = _starts(frames, reference, asked).flatten(0, 1)
  levels = pyramid.pyramid(image)
  stages = [*STAGES, *[STAGES[-1]] * (len(levels) - len(STAGES))]
  grid = _grid((height, width), stages[0].nodes)
  count = len(starts)
  unknowns = Unknowns(starts, starts.new_zeros(count, frames, 2), starts.new_zeros(count, grid[0] * grid[1]))
  for number, stage in enumerate(stages):
    old, grid = grid, _grid((height, width), stage.nodes)
    unknowns = dataclasses.replace(unknowns, depth=_regrid(unknowns.depth, old, grid))
    finer = max(0, len(levels) - 1 - number)  # levels that are finer than this stage's
    image = levels[len(levels) - 1 - finer]
    stride = math.ceil(math.sqrt(image.shape[-2] * image.shape[-1] / stage.points))
    level = pyramid.make_level(image, camera / 2**finer, reference, grid, stage.outlier, stride)
    priors = Priors(smooth=stage.smooth)
    if stage.screen:
      # Depths first: flat ones would drive even the true path away.
      unknowns, _ = _solve(level, unknowns, clips, effort * DEPTH_ITERATIONS, priors, depth_only=True)
      unknowns, cost = _solve(level, unknowns, clips, effort * SCREEN_ITERATIONS, priors)
      unknowns, _ = _best(unknowns, cost, clips, stage.screen)
    unknowns, cost = _solve(level, unknowns, clips, effort * stage.iterations, priors)
    if stage.mirrors:
      mirrors, mirror_cost = _solve(
        level, _mirror(_best(unknowns, cost, clips, stage.mirrors)[0]), clips, effort * stage.iterations, priors
      )
      unknowns, cost = _merge(unknowns, cost, mirrors, mirror_cost, clips)
    unknowns, cost = _best(unknowns, cost, clips, stage.keep)
  unknowns = _prefer_still(level, unknowns, cost, priors)
  depth = _regrid(unknowns.depth, grid, (height, width)).reshape(clips, height, width)
  return Path(unknowns.poses, depth.float())


def _solve(
  level: Level, unknowns: Unknowns, clips: int, iterations: int, priors: Priors, *, depth_only: bool = False
) -> tuple[Unknowns, Float[Tensor, "b"]]:
  """Bundle adjustment of each clip's hypotheses, all against that clip."""
  each = len(unknowns.poses) // clips
  index = torch.arange(clips, device=unknowns.poses.device).repeat_interleave(each)
  return bundle.solve(level.choose(index), unknowns, iterations, priors, depth_only=depth_only)


def _merge(
  a: Unknowns, a_cost: Float[Tensor, "a"], b: Unknowns, b_cost: Float[Tensor, "b"], clips: int
) -> tuple[Unknowns, Float[Tensor, "a+b"]]:
  """Puts each clip's hypotheses of both sets side by side."""
  join = lambda x, y: torch.cat([x.unflatten(0, (clips, -1)), y.unflatten(0, (clips, -1))], 1).flatten(0, 1)
  merged = Unknowns(join(a.poses, b.poses), join(a.light, b.light), join(a.depth, b.depth))
  return merged, join(a_cost, b_cost)


def _prefer_still(level: Level, unknowns: Unknowns, cost: Float[Tensor, "n"], priors: Priors) -> Unknowns:
  """A camera that stands still, where that explains the clip as well."""
  eye = torch.eye(4, dtype=torch.float64, device=cost.device).expand_as(unknowns.poses)
  still = Unknowns(eye, unknowns.light, torch.zeros_like(unknowns.depth))
  still_cost = bundle.linearise(level, still, priors).cost
  good = still_cost <= STILL_MARGIN * cost + STILL_SLACK
  return still.where(good, unknowns)
