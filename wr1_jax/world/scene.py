"""What a scene of the toy world is made of: a fixed number of convex solids, each with a solid texture and a motion.

Axes and units are those of camera paths (`camera.trajectory`): +x right, +y down, +z forward, the first camera at the
origin, and 1 is the depth that scenes are assumed to have (`CameraConfig.scene_depth`). Solids stand upright and may be
turned about the vertical. A solid that is not used has the shape NONE.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

SOLIDS = 12  # in every scene
PATTERN_WAVES = 6
GRAIN_WAVES = 6
SKY_WAVES = 4


class Shape(enum.IntEnum):
  """A solid within |x|, |y|, |z| <= 1 of its own coordinates, in half sizes."""

  NONE = 0
  BOX = 1
  ELLIPSOID = 2
  CYLINDER = 3  # upright
  ROOM = 4  # a box seen from inside


class Waves(NamedTuple):
  """A sum of plane waves, sum_k weight_k sin(vector_k . p + phase_k): textures that are smooth and band-limited."""

  vector: Float[Array, "*n k 3"]  # radians per unit of length
  phase: Float[Array, "*n k"]
  weight: Float[Array, "*n k"]


class Solids(NamedTuple):
  """All solids of a scene; time runs from 0 to 1 over a clip."""

  shape: Int[Array, "n"]
  centre: Float[Array, "n 3"]
  size: Float[Array, "n 3"]  # half sizes
  yaw: Float[Array, "n"]  # radians to the left
  drift: Float[Array, "n 3"]  # the centre moves by this over the clip,
  swing: Float[Array, "n 3"]  # and by this times sin(2 pi cycles t + phase), less its value at the start
  pulse: Float[Array, "n 3"]  # sizes are multiplied by 1 + this times sin(2 pi cycles t)
  flow: Float[Array, "n 3"]  # the texture moves by this over the clip
  cycles: Float[Array, "n"]
  phase: Float[Array, "n"]
  colours: Float[Array, "n 2 3"]  # that the pattern goes between, in [0, 1]
  pattern: Waves  # [n, PATTERN_WAVES]
  bias: Float[Array, "n"]  # colour = mix(tanh(sharpness (pattern + bias)))
  sharpness: Float[Array, "n"]
  grain: Waves  # [n, GRAIN_WAVES]; changes brightness


class Scene(NamedTuple):
  """A scene, or with leading axes a batch of them."""

  solids: Solids
  sky_colours: Float[Array, "2 3"]  # at the horizon and overhead
  sky_waves: Waves  # [SKY_WAVES], of the direction: clouds
  light: Float[Array, "3"]  # unit vector towards the light


@dataclasses.dataclass
class Solid:
  """One solid while a scene is put together; the fields are those of `Solids`."""

  shape: Shape
  centre: np.ndarray
  size: np.ndarray
  colours: np.ndarray
  pattern: Waves
  grain: Waves
  bias: float = 0.0
  sharpness: float = 1.0
  yaw: float = 0.0
  drift: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(3))
  swing: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(3))
  pulse: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(3))
  flow: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(3))
  cycles: float = 1.0
  phase: float = 0.0


def no_waves(count: int) -> Waves:
  """`count` terms that are zero."""
  return Waves(np.zeros((count, 3)), np.zeros(count), np.zeros(count))


_NOTHING = Solid(Shape.NONE, np.zeros(3), np.ones(3), np.zeros((2, 3)), no_waves(PATTERN_WAVES), no_waves(GRAIN_WAVES))


def pad_waves(waves: Waves, count: int) -> Waves:
  """The same sum with `count` terms."""
  padding = no_waves(count - len(waves.phase))
  return Waves(*(np.concatenate(pair) for pair in zip(waves, padding)))


def stack(solids: Sequence[Solid]) -> Solids:
  """The arrays (float32, int32) of up to `SOLIDS` solids.

  Raises:
    ValueError: there are more.
  """
  if len(solids) > SOLIDS:
    raise ValueError(f"{len(solids)} solids in a scene; {SOLIDS} fit")
  padded = [*solids, *[_NOTHING] * (SOLIDS - len(solids))]
  arrays = {}
  for name in Solids._fields:
    values = [getattr(solid, name) for solid in padded]
    if isinstance(values[0], Waves):
      arrays[name] = Waves(*(np.stack(x).astype(np.float32) for x in zip(*values)))
    else:
      arrays[name] = np.array(values, np.int32 if name == "shape" else np.float32)
  return Solids(**arrays)
