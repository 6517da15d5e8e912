"""Clips of the toy world: a scene, its caption and a camera path, all a function of (seed, index)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Bool, Float

from wr1_jax.camera.trajectory import trajectory
from wr1_jax.camera.words import Move
from wr1_jax.config import CameraConfig
from wr1_jax.world import places
from wr1_jax.world.render import WorldConfig
from wr1_jax.world.scene import Scene

HELD_OUT = 2**20  # clips from this one on, of any seed, are for validation: nothing may be trained on them
DYNAMIC_SHARE = 0.2
_TIERS = {"implicit": 0.1, "single": 0.5, "composite": 0.25, "fixed": 0.15}  # camera phrases, as the prompts have them
_SINGLE = tuple(move for move in Move if move is not Move.FIXED)
_FARTHEST = 0.45  # composites that would take the camera further to a side than this are drawn again
_NEAREST, _BACK = 0.75, -0.9  # and ones that go further ahead or back


@dataclasses.dataclass(frozen=True)
class Clips:
  """n clips before they are rendered, in host memory."""

  captions: tuple[str, ...]
  moves: tuple[
    tuple[Move, ...], ...
  ]  # that the caption names; a clip whose caption names none follows a path all the same
  dynamic: Bool[np.ndarray, "n"]
  poses: Float[np.ndarray, "n T 4 4"]  # camera-to-world, float32, in scene depths
  scenes: Scene  # NumPy arrays with a leading axis of n


def sample(
  seed: int, indices: Sequence[int], config: WorldConfig, camera: CameraConfig, dynamic: bool | None = None
) -> Clips:
  """The clips `indices` of the world of `seed`.

  Args:
    dynamic: whether something in the scene moves; None: in one of five clips.
  """
  clips = [_sample_one(seed, int(index), config, camera, dynamic) for index in indices]
  captions, moves, dynamics, poses, scenes = zip(*clips)
  return Clips(captions, moves, np.array(dynamics), np.stack(poses), jax.tree.map(lambda *x: np.stack(x), *scenes))


def _sample_one(
  seed: int, index: int, config: WorldConfig, camera: CameraConfig, dynamic: bool | None
) -> tuple[str, tuple[Move, ...], bool, Float[np.ndarray, "T 4 4"], Scene]:
  rng = np.random.default_rng([seed, index])
  is_dynamic = bool(rng.random() < DYNAMIC_SHARE) if dynamic is None else dynamic
  tier = str(rng.choice(list(_TIERS), p=list(_TIERS.values())))
  while True:
    moves = _draw_moves(rng, tier)
    poses = trajectory(moves, config.frames, camera)
    poses[:, :3, 3] /= camera.scene_depth
    x, z = poses[:, 0, 3], poses[:, 2, 3]
    if np.abs(x).max() <= _FARTHEST and _BACK <= z.min() and z.max() <= _NEAREST:
      break
  words, scene = places.build(rng, poses, is_dynamic)
  named = () if tier == "implicit" else moves
  return caption(named, words), named, is_dynamic, poses, scene


def _draw_moves(rng: np.random.Generator, tier: str) -> tuple[Move, ...]:
  match tier:
    case "fixed":
      return (Move.FIXED,)
    case "composite":
      return tuple(_SINGLE[i] for i in rng.choice(len(_SINGLE), size=2, replace=False))
  return (_SINGLE[rng.integers(len(_SINGLE))],)


def caption(moves: Sequence[Move], words: str) -> str:
  """The caption of a scene described by `words`, as the project's prompts are phrased."""
  scene = words[0].upper() + words[1:] + "."
  if not moves:
    return scene
  first, *rest = moves
  return f"Camera {first}{''.join(f', then {move}' for move in rest)}. {scene}"
