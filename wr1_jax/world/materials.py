"""Colours and textures of the toy world, by the words that captions use for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from wr1_jax.world.scene import GRAIN_WAVES, PATTERN_WAVES, Shape, Solid, Waves, pad_waves

COLOURS = {
  "red": (0.78, 0.16, 0.14),
  "orange": (0.9, 0.5, 0.12),
  "yellow": (0.9, 0.8, 0.2),
  "green": (0.2, 0.58, 0.24),
  "blue": (0.18, 0.36, 0.8),
  "purple": (0.52, 0.26, 0.66),
  "pink": (0.92, 0.55, 0.68),
  "brown": (0.48, 0.31, 0.18),
  "white": (0.9, 0.9, 0.87),
  "grey": (0.52, 0.53, 0.55),
  "black": (0.16, 0.16, 0.18),
}
PATTERNS = ("plain", "striped", "checkered", "dotted", "marbled")

_GRAIN_LENGTHS = np.geomspace(0.05, 0.2, GRAIN_WAVES)
_MARBLE_LENGTHS = np.geomspace(0.7, 2.0, PATTERN_WAVES)


@dataclasses.dataclass(frozen=True)
class Material:
  """A texture, with the words for it."""

  words: str  # "striped red"; plain colours go without "plain"
  colours: Float[np.ndarray, "2 3"]
  pattern: Waves
  bias: float
  sharpness: float
  grain: Waves


def material(rng: np.random.Generator, colour: str, pattern: str, scale: float, half_size: np.ndarray) -> Material:
  """A texture.

  Args:
    scale: typical length of the pattern, in scene depths.
    half_size: of the solid it is for: checks fit a whole number of times.
  """
  base = np.array(COLOURS[colour]) + rng.uniform(-0.04, 0.04, 3)
  dark = base.mean() > 0.42
  # The pattern's second colour is a darker or lighter one of the same hue, so that the colour's word stays true.
  other = base * 0.45 if dark else base + 0.55 * (1 - base) * (0.6 + 0.4 * base / base.max())
  if pattern == "plain":
    other = base * 0.8 if dark else base + 0.15
  waves, bias, sharpness = _PATTERNS[pattern](rng, scale, half_size)
  words = colour if pattern == "plain" else f"{pattern} {colour}"
  return Material(words, np.clip([base, other], 0, 1), pad_waves(waves, PATTERN_WAVES), bias, sharpness, _grain(rng))


def textured(
  rng: np.random.Generator,
  shape: Shape,
  centre: Sequence[float],
  size: Sequence[float],
  words: tuple[str, str],
  scale: float,
  **fields: Any,
) -> tuple[Material, Solid]:
  """A solid of a (colour, pattern), and its texture for the words; `fields` are others of `Solid`, `scale` as above."""
  size = np.asarray(size, float)
  skin = material(rng, *words, scale, size)
  made = Solid(
    shape, np.asarray(centre, float), size, skin.colours, skin.pattern, skin.grain, skin.bias, skin.sharpness, **fields
  )
  return skin, made


def _directions(rng: np.random.Generator, count: int) -> Float[np.ndarray, "k 3"]:
  vectors = rng.normal(size=(count, 3))
  return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _grain(rng: np.random.Generator) -> Waves:
  """Fine brightness noise, 0.05 to 0.2 scene depths long: every surface has something to track."""
  length = _GRAIN_LENGTHS * rng.uniform(0.85, 1.15, GRAIN_WAVES)
  vector = _directions(rng, GRAIN_WAVES) * (2 * np.pi / length)[:, None]
  return Waves(vector, rng.uniform(0, 2 * np.pi, GRAIN_WAVES), np.full(GRAIN_WAVES, 0.14))


def _plain(rng: np.random.Generator, scale: float, half_size: np.ndarray) -> tuple[Waves, float, float]:
  vector = _directions(rng, 4) * (2 * np.pi / (scale * rng.uniform(1.5, 3.0, 4)))[:, None]
  return Waves(vector, rng.uniform(0, 2 * np.pi, 4), np.full(4, 0.5)), -0.3, 1.0


def _striped(rng: np.random.Generator, scale: float, half_size: np.ndarray) -> tuple[Waves, float, float]:
  direction = np.array([[0.0, 1.0, 0.0], [0.7, 0.0, 0.7], [0.5, 0.7, 0.5]][rng.integers(3)])
  return Waves((direction * 2 * np.pi / scale)[None], rng.uniform(0, 2 * np.pi, 1), np.ones(1)), 0.0, 3.0


def _checkered(rng: np.random.Generator, scale: float, half_size: np.ndarray) -> tuple[Waves, float, float]:
  """cos x cos y cos z as a sum of four waves; faces lie where a factor is 1 or -1."""
  wanted = 2 * half_size / (scale / 2)  # half a period is a check
  frequency = np.pi * np.maximum(np.round(wanted / 2), 1) / half_size
  signs = np.array([[1, 1, 1], [1, 1, -1], [1, -1, 1], [1, -1, -1]])
  return Waves(signs * frequency, np.full(4, np.pi / 2), np.full(4, 0.5)), 0.0, 4.0


def _dotted(rng: np.random.Generator, scale: float, half_size: np.ndarray) -> tuple[Waves, float, float]:
  vector = np.eye(3) * 2 * np.pi / scale
  return Waves(vector, rng.uniform(0, 2 * np.pi, 3), np.full(3, 0.7)), -0.75, 4.0


def _marbled(rng: np.random.Generator, scale: float, half_size: np.ndarray) -> tuple[Waves, float, float]:
  length = scale * _MARBLE_LENGTHS
  vector = _directions(rng, PATTERN_WAVES) * (2 * np.pi / length)[:, None]
  return Waves(vector, rng.uniform(0, 2 * np.pi, PATTERN_WAVES), np.full(PATTERN_WAVES, 0.5)), 0.0, 2.0


_PATTERNS = dict(zip(PATTERNS, (_plain, _striped, _checkered, _dotted, _marbled)))


def clouds(rng: np.random.Generator, count: int) -> Waves:
  """Waves of the sky's direction."""
  vector = _directions(rng, count) * rng.uniform(6, 16, count)[:, None] * [1, 2.5, 1]
  return Waves(vector, rng.uniform(0, 2 * np.pi, count), np.full(count, 0.5))
