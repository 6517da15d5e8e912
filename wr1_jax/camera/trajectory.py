"""Camera paths: what each move does, and how moves follow each other.

Poses are camera-to-world in OpenCV axes (+x right, +y down, +z forward), in units in which the scene is
`CameraConfig.scene_depth` away. A path starts at the identity and goes on step by step, E_t = E_{t-1} T, where T is an
equal share of the current move: every move continues from the last pose, along the camera's own axes.

The directions are WorldScore's:
  push in / pull out   the camera moves forward / back;
  move left            it moves to its left;
  pan left             it turns to its left on the spot;
  orbit left           it moves to its left on a circle around a point `orbit_radius` in front of it, and keeps facing
                       that point (so it turns to the right);
  pull left            short for "move left, pull out, then pan left": those three in that order share the frames of the
                       one move, with magnitudes of their own;
and "right" is the mirror image. The magnitudes are those of World-R1's public release.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from wr1_jax.camera import words
from wr1_jax.camera.words import Move
from wr1_jax.config import CameraConfig


def shared_out(steps: int, segments: int) -> list[int]:
  """Shares `steps` out between `segments` in order: as equally as possible, the earlier ones taking what is left over.

  With fewer steps than segments the last segments get none.
  """
  share, rest = divmod(steps, segments)
  return [share + (index < rest) for index in range(segments)]


def trajectory(moves: Sequence[Move], frames: int, camera: CameraConfig) -> Float[np.ndarray, "T 4 4"]:
  """The camera path of `moves` over `frames` frames, float32.

  The `frames - 1` steps between frames are shared out by `shared_out`. A move that gets no step, because there are more
  moves than steps, is left out. Without moves the path is the identity throughout, as it is for `Move.FIXED`.
  """
  pose = np.eye(4)
  poses = [pose]
  for move, move_steps in zip(moves, shared_out(frames - 1, len(moves)) if moves else []):
    parts = _parts(move, camera)
    for (kind, amount), steps in zip(parts, shared_out(move_steps, len(parts))):
      for _ in range(steps):
        pose = pose @ _step(kind, amount / steps, camera)
        poses.append(pose)
  poses += [pose] * (frames - len(poses))
  return np.stack(poses).astype(np.float32)


def target_paths(
  prompts: Sequence[str], frames: int, camera: CameraConfig
) -> tuple[Float[np.ndarray, "P T 4 4"], Bool[np.ndarray, "P"]]:
  """The path that is asked of each prompt's clip, and whether one is; where none is, the path is the identity."""
  moves = [words.asked(prompt, camera.moves) for prompt in prompts]
  poses = np.stack([trajectory(of_prompt, frames, camera) for of_prompt in moves])
  return poses, np.array([bool(of_prompt) for of_prompt in moves])


def _parts(move: Move, camera: CameraConfig) -> list[tuple[str, float]]:
  """A move as (kind, signed amount) in sequence: lengths along +x and +z, angles in degrees to the left."""
  match move:
    case Move.FIXED:
      return [("still", 0.0)]
    case Move.PUSH_IN:
      return [("forward", camera.zoom)]
    case Move.PULL_OUT:
      return [("forward", -camera.zoom)]
  kind, side = move.split()
  left = 1.0 if side == "left" else -1.0
  match kind:
    case "move":
      return [("rightward", -left * camera.move)]
    case "pan":
      return [("turn", left * camera.pan_degrees)]
    case "orbit":
      return [("orbit", left * camera.orbit_degrees)]
    case "pull":
      return [
        ("rightward", -left * camera.pull_move),
        ("forward", -camera.pull_zoom),
        ("turn", left * camera.pull_yaw_degrees),
      ]
  raise ValueError(f"unknown camera move {move!r}")


def _step(kind: str, amount: float, camera: CameraConfig) -> Float[np.ndarray, "4 4"]:
  """T of one step, float64."""
  match kind:
    case "still":
      return np.eye(4)
    case "forward":
      return _translation(0.0, amount)
    case "rightward":
      return _translation(amount, 0.0)
    case "turn":
      return _turn_left(amount)
    case "orbit":
      # The camera goes round the pivot rigidly: to move left while facing it, everything turns to the right.
      return _translation(0.0, camera.orbit_radius) @ _turn_left(-amount) @ _translation(0.0, -camera.orbit_radius)
  raise ValueError(f"unknown kind of camera step {kind!r}")


def _translation(x: float, z: float) -> Float[np.ndarray, "4 4"]:
  matrix = np.eye(4)
  matrix[[0, 2], 3] = x, z
  return matrix


def _turn_left(degrees: float) -> Float[np.ndarray, "4 4"]:
  """Yaw that takes the forward axis +z towards -x."""
  sin, cos = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
  matrix = np.eye(4)
  matrix[0, [0, 2]] = cos, -sin
  matrix[2, [0, 2]] = sin, cos
  return matrix
