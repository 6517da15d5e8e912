"""Exact ray casting of toy scenes: every pixel is the mean of a few rays whose first hit is found in closed form.

All solids are convex: a ray is inside one for an interval of its length, the intersection of simpler intervals (slabs,
a cylinder, a ball). Textures are functions of the place on the solid and shading of its orientation alone, never of
where the camera is, so a scene without motions obeys the pinhole model exactly. Waves too fine for a pixel are
filtered out in closed form, or distant ground would flicker.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from wr1_jax.camera.flow import intrinsics
from wr1_jax.config import CameraConfig
from wr1_jax.world.scene import SOLIDS, Scene, Shape, Solids, Waves

FAR = 40.0  # depth of the sky
_NEAREST = 1e-4
_AMBIENT = 0.62  # brightness of a face that is turned away from the light
_GRAIN = 0.5  # of the grain, in brightness
_FOOTPRINT = 0.2  # variance of what a ray sees of a texture, in squares of the distance to its neighbours' points


@dataclasses.dataclass(frozen=True)
class WorldConfig:
  """The clips that are rendered."""

  height: int = 96
  width: int = 160
  frames: int = 17
  subrays: int = 2  # a side: each pixel is the mean of its square


class Frames(NamedTuple):
  """Rendered clips and what is known of every pixel."""

  video: Float[Array, "n T H W 3"]  # float32 in [-1, 1]
  depth: Float[Array, "n T H W"]  # along the optical axis, of the nearest ray of the pixel
  moving: Bool[Array, "n T H W"]  # whether most rays of the pixel hit something that moves, deforms or flows


class _Hit(NamedTuple):
  distance: Float[Array, "*r"]  # in lengths of the ray's direction
  solid: Array  # int32 [*r], or -1


@functools.partial(jax.jit, static_argnames=("config", "camera"))
def render(scenes: Scene, poses: Float[Array, "n T 4 4"], config: WorldConfig, camera: CameraConfig) -> Frames:
  """The clips of n scenes along camera-to-world `poses` in scene depths; float32. One clip after the other.

  Compiled once for every shape, which takes some seconds.

  Frame t of T is at time t / (T - 1). Pixel (0, 0) is centred at (0, 0), the intrinsics are `camera.flow.intrinsics`.
  """
  rays = _rays(config, camera)

  def clip(scene_and_path: tuple[Scene, Float[Array, "T 4 4"]]) -> Frames:
    scene, path = scene_and_path
    times = jnp.linspace(0.0, 1.0, path.shape[0])
    return jax.vmap(lambda pose, time: _frame(scene, pose, time, rays, config))(path, times)

  return jax.lax.map(clip, (jax.tree.map(jnp.asarray, scenes), jnp.asarray(poses)))


def _rays(config: WorldConfig, camera: CameraConfig) -> Float[Array, "s H W 3"]:
  """Directions (z = 1) of every pixel's rays in the camera's axes."""
  matrix = intrinsics(config.height, config.width, camera.focal)
  offsets = (jnp.arange(config.subrays) + 0.5) / config.subrays - 0.5
  v, u, y, x = jnp.meshgrid(offsets, offsets, jnp.arange(config.height), jnp.arange(config.width), indexing="ij")
  directions = [(x + u - matrix[0, 2]) / matrix[0, 0], (y + v - matrix[1, 2]) / matrix[1, 1], jnp.ones_like(x + u)]
  return jnp.stack(directions, axis=-1).reshape(-1, config.height, config.width, 3).astype(jnp.float32)


def _frame(
  scene: Scene, pose: Float[Array, "4 4"], time: Float[Array, ""], rays: Float[Array, "s H W 3"], config: WorldConfig
) -> Frames:
  """One frame, without the axes of clips and frames."""
  solids, shift = _at(scene.solids, time)
  direction = _matvec(pose[:3, :3], rays)
  origin = pose[:3, 3]
  hit = _first_hit(solids, origin, direction)
  spacing = (rays[0, 0, 1, 0] - rays[0, 0, 0, 0]) / config.subrays  # of rays, at depth 1
  colour = jnp.where(
    (hit.solid < 0)[..., None],
    _sky(scene, direction),
    _surface(scene, solids, shift, origin, direction, spacing * pose[:3, :2].T, hit),
  )
  changes = jnp.stack([scene.solids.drift, scene.solids.swing, scene.solids.pulse, scene.solids.flow])
  moving = jnp.any(changes != 0, axis=(0, 2))
  hits_moving = jnp.where(hit.solid < 0, False, moving[hit.solid])
  return Frames(
    video=jnp.clip(2 * colour.mean(axis=0) - 1, -1, 1),
    depth=hit.distance.min(axis=0),
    moving=hits_moving.mean(axis=0) >= 0.5,
  )


def _at(solids: Solids, time: Float[Array, ""]) -> tuple[Solids, Float[Array, "n 3"]]:
  """The solids where they are at a time, and how far their textures have moved."""
  angle = 2 * jnp.pi * solids.cycles * time
  swung = jnp.sin(angle + solids.phase) - jnp.sin(solids.phase)
  centre = solids.centre + solids.drift * time + solids.swing * swung[:, None]
  size = solids.size * (1 + solids.pulse * jnp.sin(angle)[:, None])
  return solids._replace(centre=centre, size=size), solids.flow * time


def _matvec(matrix: Float[Array, "3 3"], vectors: Float[Array, "*r 3"]) -> Float[Array, "*r 3"]:
  """Element by element: accelerators multiply small matrices in fewer bits than a sub-pixel position needs."""
  return sum(matrix[:, i] * vectors[..., i : i + 1] for i in range(3))


def _turned(vectors: Float[Array, "*r 3"], cos: Array, sin: Array) -> Float[Array, "*r 3"]:
  """World axes to those of a solid whose yaw has this cosine and sine."""
  x, y, z = vectors[..., 0], vectors[..., 1], vectors[..., 2]
  return jnp.stack([cos * x + sin * z, y, cos * z - sin * x], axis=-1)


def _first_hit(solids: Solids, origin: Float[Array, "3"], direction: Float[Array, "*r 3"]) -> _Hit:
  def nearer(hit: _Hit, numbered: tuple[Array, Solids]) -> tuple[_Hit, None]:
    i, solid = numbered
    cos, sin = jnp.cos(solid.yaw), jnp.sin(solid.yaw)
    start = _turned(origin - solid.centre, cos, sin) / solid.size
    step = _turned(direction, cos, sin) / solid.size
    near, far = _interval(solid.shape, start, step)
    distance = jnp.where(solid.shape == Shape.ROOM, far, near)
    closer = (solid.shape != Shape.NONE) & (near < far) & (distance > _NEAREST) & (distance < hit.distance)
    return _Hit(jnp.where(closer, distance, hit.distance), jnp.where(closer, i, hit.solid)), None

  nothing = _Hit(jnp.full(direction.shape[:-1], FAR), jnp.full(direction.shape[:-1], -1, jnp.int32))
  hit, _ = jax.lax.scan(nearer, nothing, (jnp.arange(SOLIDS, dtype=jnp.int32), solids))
  return hit


def _interval(shape: Array, start: Float[Array, "3"], step: Float[Array, "*r 3"]) -> tuple[Array, Array]:
  """Where rays `start + t step` enter and leave a solid, in its own coordinates; it is missed where near >= far."""
  safe = jnp.where(jnp.abs(step) < 1e-9, 1e-9, step)
  a, b = (-1 - start) / safe, (1 - start) / safe
  near, far = jnp.minimum(a, b), jnp.maximum(a, b)
  # A ball, or a circle in the horizontal plane: the vertical axis takes no part in a cylinder's.
  vertical = jnp.where(shape == Shape.CYLINDER, 0.0, 1.0)
  flat_start = start * jnp.stack([jnp.ones(()), vertical, jnp.ones(())])
  flat_step = step * jnp.stack([jnp.ones(()), vertical, jnp.ones(())])
  square = jnp.maximum((flat_step**2).sum(-1), 1e-12)
  middle = -(flat_start * flat_step).sum(-1) / square
  # The nearest point's distance is found first: a difference of squares would lose what float32 has.
  nearest = flat_start + middle[..., None] * flat_step
  half = jnp.sqrt(jnp.maximum(1 - (nearest**2).sum(-1), 0) / square)
  missed = (nearest**2).sum(-1) >= 1
  round_near, round_far = jnp.where(missed, 1e9, middle - half), jnp.where(missed, -1e9, middle + half)
  boxed = (shape == Shape.BOX) | (shape == Shape.ROOM)
  box_near, box_far = near.max(-1), far.min(-1)
  tall_near, tall_far = jnp.maximum(round_near, near[..., 1]), jnp.minimum(round_far, far[..., 1])
  is_cylinder = shape == Shape.CYLINDER
  enter = jnp.where(boxed, box_near, jnp.where(is_cylinder, tall_near, round_near))
  leave = jnp.where(boxed, box_far, jnp.where(is_cylinder, tall_far, round_far))
  return enter, leave


def _surface(
  scene: Scene,
  solids: Solids,
  shift: Float[Array, "n 3"],
  origin: Float[Array, "3"],
  direction: Float[Array, "*r 3"],
  sides: Float[Array, "2 3"],
  hit: _Hit,
) -> Float[Array, "*r 3"]:
  """Colours in [0, 1] of the points that were hit; `sides`: from a ray's direction to that of its neighbours."""
  of = jax.tree.map(lambda x: x[jnp.maximum(hit.solid, 0)], solids)
  cos, sin = jnp.cos(of.yaw), jnp.sin(of.yaw)
  distance = hit.distance[..., None]
  place = _turned(origin + distance * direction - of.centre, cos, sin)
  normal = _turned(_normal(of, place / of.size), cos, -sin)
  normal = jnp.where((of.shape == Shape.ROOM)[..., None], -normal, normal)
  shade = _AMBIENT + (1 - _AMBIENT) * jnp.maximum((normal * scene.light).sum(-1), 0)

  # How far apart neighbouring rays meet the surface; it is larger where they graze it.
  facing = jnp.minimum((normal * direction).sum(-1, keepdims=True), -1e-3)
  apart = [distance * (side - direction * (normal * side).sum(-1, keepdims=True) / facing) for side in sides]
  footprint = [_turned(vector, cos, sin) for vector in apart]
  on_texture = place - shift[jnp.maximum(hit.solid, 0)]
  pattern = jnp.tanh(of.sharpness * (_wave_sum(of.pattern, on_texture, footprint) + of.bias))
  grain = 1 + _GRAIN * _wave_sum(of.grain, on_texture, footprint)
  mix = (0.5 + 0.5 * pattern)[..., None]
  colour = of.colours[..., 0, :] * (1 - mix) + of.colours[..., 1, :] * mix
  return jnp.clip(colour * (shade * grain)[..., None], 0, 1)


def _normal(of: Solids, local: Float[Array, "*r 3"]) -> Float[Array, "*r 3"]:
  """The outward normal at points of solids, in their own axes; `local` in half sizes."""
  steepest = jnp.abs(local) == jnp.abs(local).max(-1, keepdims=True)
  box = jnp.where(steepest, jnp.sign(local), 0.0)
  ball = local / of.size
  cap = jnp.abs(local[..., 1]) >= 1 - 1e-4
  axes = jnp.where(cap[..., None], jnp.array([0.0, 1.0, 0.0]), jnp.array([1.0, 0.0, 1.0]))
  is_box = ((of.shape == Shape.BOX) | (of.shape == Shape.ROOM))[..., None]
  normal = jnp.where(is_box, box, jnp.where((of.shape == Shape.CYLINDER)[..., None], ball * axes, ball))
  return normal / jnp.maximum(jnp.linalg.norm(normal, axis=-1, keepdims=True), 1e-9)


def _wave_sum(
  waves: Waves, points: Float[Array, "*r 3"], footprint: Sequence[Float[Array, "*r 3"]]
) -> Float[Array, "*r"]:
  """The sum of waves at points, each weakened by the part of it that averages out over a ray's footprint: Gaussian,
  spanned by the vectors to the points of neighbouring rays."""
  total = jnp.zeros(points.shape[:-1])
  for k in range(waves.phase.shape[-1]):
    vector = waves.vector[..., k, :]
    angle = (vector * points).sum(-1) + waves.phase[..., k]
    change = sum((vector * side).sum(-1) ** 2 for side in footprint)
    total += waves.weight[..., k] * jnp.exp(-_FOOTPRINT * change / 2) * jnp.sin(angle)
  return total


def _sky(scene: Scene, direction: Float[Array, "*r 3"]) -> Float[Array, "*r 3"]:
  """Infinitely far away: a function of the direction alone."""
  direction = direction / jnp.linalg.norm(direction, axis=-1, keepdims=True)
  height = jnp.clip(-3 * direction[..., 1], 0, 1)[..., None]
  colour = scene.sky_colours[0] * (1 - height) + scene.sky_colours[1] * height
  clouds = _wave_sum(scene.sky_waves, direction, footprint=[])
  return jnp.clip(colour + (0.12 * clouds)[..., None], 0, 1)
