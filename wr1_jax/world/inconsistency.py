"""Clips of the toy world with the faults that generated videos have: what no rigid scene and camera can explain.

Each is the clip that the scene and the path would give, spoiled in one way:
  warped    every frame is bent a little, each in its own way
  morphing  the objects grow, shrink and wander, and walls and hills breathe
  swimming  textures slide along the surfaces that carry them
  melting   what is seen runs down in streaks, one after the other

Morphing and swimming are changes of the scene, which the renderer then shows; the other two are done to the pictures.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import jax
import numpy as np
from jaxtyping import Float, UInt8
from scipy import ndimage

from wr1_jax.config import CameraConfig
from wr1_jax.world.render import WorldConfig, render
from wr1_jax.world.scene import Scene, Shape

Kind = Literal["warped", "morphing", "swimming", "melting"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_UNSOUND = 2  # names the draws of `some_unsound`

_LARGE = 0.45  # half size, in scene depths: hills, grounds and rooms are larger, objects smaller
_SWELL, _BREATHE, _WANDER = 0.4, 0.07, 0.06  # of objects' sizes, of hills' and rooms', and of objects' places
_SWIM = 0.12  # scene depths over the clip
_WARP = 0.01  # standard deviation of a displacement, in widths
_MELT = 0.16  # longest run, in heights
_MELT_TIME = 0.3  # that a streak takes for it, in clips


def spoiled(
  kind: Kind,
  scenes: Scene,
  poses: Float[np.ndarray, "n T 4 4"],
  config: WorldConfig,
  camera: CameraConfig,
  seeds: np.ndarray,
) -> UInt8[np.ndarray, "n T H W 3"]:
  """The clips of n scenes along camera-to-world `poses` (scene depths), spoiled by `kind`; one seed a clip."""
  generators = [np.random.default_rng([int(seed), KINDS.index(kind)]) for seed in seeds]
  if kind in _EDITS:
    scenes = _each(scenes, [functools.partial(_EDITS[kind], rng=rng) for rng in generators])
  videos = videos_of(scenes, poses, config, camera)
  match kind:
    case "warped":
      return np.stack([np.stack([_bent(f, _warp(rng, *f.shape[:2])) for f in v]) for v, rng in zip(videos, generators)])
    case "melting":
      times = np.linspace(0, 1, poses.shape[1])
      return np.stack([np.stack([_bent(f, _melt(t, *f.shape[:2])) for f, t in zip(v, times)]) for v in videos])
  return videos


def some_unsound(scenes: Scene, seed: int, indices: Sequence[int], share: float) -> Scene:
  """The scenes of the clips `indices` of the world of `seed`, about a `share` of which morph or swim.

  Which ones do, and how, is a function of (seed, index).
  """
  edits = []
  for index in indices:
    rng = np.random.default_rng([seed, index, _UNSOUND])
    kind = ("morphing", "swimming")[rng.integers(2)]
    edits.append(functools.partial(_EDITS[kind], rng=rng) if rng.random() < share else lambda scene: scene)
  return _each(scenes, edits)


def videos_of(
  scenes: Scene, poses: Float[np.ndarray, "n T 4 4"], config: WorldConfig, camera: CameraConfig
) -> UInt8[np.ndarray, "n T H W 3"]:
  """The rigid clips, in 256 levels."""
  video = jax.device_get(render(scenes, poses, config, camera).video)
  return np.round((video + 1) * 127.5).astype(np.uint8)


def _each(scenes: Scene, edits: Sequence[Callable[[Scene], Scene]]) -> Scene:
  parts = [edit(jax.tree.map(lambda x: x[i], scenes)) for i, edit in enumerate(edits)]
  return jax.tree.map(lambda *x: np.stack(x), *parts)


def _morphing(scene: Scene, rng: np.random.Generator) -> Scene:
  solids = scene.solids
  count = len(solids.shape)
  small = solids.size.max(-1) < _LARGE
  # The ground stays: all that stands on it would sink or float.
  breathes = ~small & np.isin(solids.shape, (Shape.ROOM, Shape.ELLIPSOID))
  signs = rng.choice([-1.0, 1.0], (count, 1)) * [1, -1, 1]
  pulse = signs * np.where(small, _SWELL, np.where(breathes, _BREATHE, 0))[:, None]
  swing = rng.choice([-1.0, 1.0], (count, 3)) * [1, 0.5, 0.5] * np.where(small, _WANDER, 0)[:, None]
  changed = solids._replace(
    pulse=pulse.astype(np.float32),
    swing=swing.astype(np.float32),
    cycles=rng.uniform(0.8, 1.5, count).astype(np.float32),
    phase=rng.uniform(-np.pi, np.pi, count).astype(np.float32),
  )
  return scene._replace(solids=changed)


def _swimming(scene: Scene, rng: np.random.Generator) -> Scene:
  """Each surface at its own pace: one for all would look like a moving camera."""
  direction = rng.normal(size=scene.solids.flow.shape)
  flow = _SWIM * direction / np.linalg.norm(direction, axis=-1, keepdims=True)
  return scene._replace(solids=scene.solids._replace(flow=flow.astype(np.float32)))


_EDITS = {"morphing": _morphing, "swimming": _swimming}


def _bent(image: UInt8[np.ndarray, "H W 3"], offset: Float[np.ndarray, "2 H W"]) -> UInt8[np.ndarray, "H W 3"]:
  """The image resampled at positions moved by `offset` pixels (rows, columns)."""
  position = np.mgrid[: image.shape[0], : image.shape[1]] + offset
  channels = [ndimage.map_coordinates(image[..., c].astype(float), position, order=1, mode="nearest") for c in range(3)]
  return np.round(np.stack(channels, -1)).astype(np.uint8)


def _warp(rng: np.random.Generator, height: int, width: int) -> Float[np.ndarray, "2 H W"]:
  """A smooth random displacement."""
  offset = ndimage.gaussian_filter(rng.normal(size=(2, height, width)), (0, width / 12, width / 12), mode="wrap")
  return offset / offset.std() * _WARP * width


def _melt(time: float, height: int, width: int) -> Float[np.ndarray, "2 H W"]:
  """Streaks run down, each at its own time: if all ran together, a camera that rises before a wavy wall would see the
  same."""
  v, u = np.mgrid[:height, :width]
  start = 0.35 + 0.2 * np.sin(31 * u / width) + 0.15 * np.sin(13 * u / width + 1)
  share = np.clip((time - start) / _MELT_TIME, 0, 1)
  run = share**2 * (3 - 2 * share) * (0.6 + 0.4 * np.sin(47 * u / width + 2))
  return np.stack([-_MELT * run * height * (0.3 + 0.7 * v / height), np.zeros(u.shape)])
