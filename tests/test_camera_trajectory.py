"""Camera paths: directions, magnitudes, and how moves follow each other."""

from __future__ import annotations

import numpy as np
import pytest

from wr1_jax.camera.trajectory import shared_out, target_paths, trajectory
from wr1_jax.camera.words import Move
from wr1_jax.config import CameraConfig

_CAMERA = CameraConfig()
_FRAMES = 81
_SIDES = [
  (Move.MOVE_LEFT, Move.MOVE_RIGHT),
  (Move.PAN_LEFT, Move.PAN_RIGHT),
  (Move.ORBIT_LEFT, Move.ORBIT_RIGHT),
  (Move.PULL_LEFT, Move.PULL_RIGHT),
]


def _path(*moves: Move, frames: int = _FRAMES) -> np.ndarray:
  return trajectory(moves, frames, _CAMERA).astype(np.float64)


def _yaw_right(pose: np.ndarray) -> float:
  """Degrees by which the forward axis points to +x."""
  return np.degrees(np.arctan2(pose[0, 2], pose[2, 2]))


@pytest.mark.parametrize("move", list(Move))
def test_path_is_rigid_level_and_starts_at_the_identity(move):
  path = _path(move)
  assert path.shape == (_FRAMES, 4, 4)
  np.testing.assert_array_equal(path[0], np.eye(4))
  rotation = path[:, :3, :3]
  np.testing.assert_allclose(rotation @ rotation.mT, np.broadcast_to(np.eye(3), rotation.shape), atol=1e-6)
  np.testing.assert_allclose(np.linalg.det(rotation), 1, atol=1e-6)
  np.testing.assert_array_equal(path[:, 1, 3], 0)
  np.testing.assert_array_equal(path[:, 3], np.broadcast_to([0, 0, 0, 1], (_FRAMES, 4)))


@pytest.mark.parametrize(
  ("move", "position", "yaw"),
  [
    (Move.FIXED, (0, 0, 0), 0),
    (Move.PUSH_IN, (0, 0, 600), 0),
    (Move.PULL_OUT, (0, 0, -600), 0),
    (Move.MOVE_LEFT, (-220, 0, 0), 0),
    (Move.MOVE_RIGHT, (220, 0, 0), 0),
    (Move.PAN_LEFT, (0, 0, 0), -14),
    (Move.PAN_RIGHT, (0, 0, 0), 14),
    (Move.ORBIT_LEFT, (-600 * np.sin(np.radians(24)), 0, 600 * (1 - np.cos(np.radians(24)))), 24),
    (Move.PULL_LEFT, (-160, 0, -300), -8),
    (Move.PULL_RIGHT, (160, 0, -300), 8),
  ],
)
def test_final_pose(move, position, yaw):
  last = _path(move)[-1]
  np.testing.assert_allclose(last[:3, 3], position, atol=1e-3)
  np.testing.assert_allclose(_yaw_right(last), yaw, atol=1e-4)


@pytest.mark.parametrize(("left", "right"), _SIDES)
def test_right_mirrors_left(left, right):
  mirror = np.diag([-1.0, 1.0, 1.0, 1.0])
  np.testing.assert_allclose(mirror @ _path(left) @ mirror, _path(right), atol=1e-5)


@pytest.mark.parametrize(("move", "side"), [(Move.ORBIT_LEFT, -1), (Move.ORBIT_RIGHT, 1)])
def test_orbit_keeps_facing_a_point_in_front(move, side):
  path = _path(move)
  pivot = np.array([0, 0, _CAMERA.orbit_radius])
  position, forward = path[:, :3, 3], path[:, :3, 2]
  faced = position + _CAMERA.orbit_radius * forward
  np.testing.assert_allclose(faced, np.broadcast_to(pivot, faced.shape), atol=1e-3)
  assert (np.diff(side * position[:, 0]) > 0).all()


def test_moves_are_steady():
  for move in (Move.PUSH_IN, Move.MOVE_LEFT, Move.PAN_LEFT, Move.ORBIT_LEFT):
    path = _path(move)
    steps = np.linalg.inv(path[:-1]) @ path[1:]
    np.testing.assert_allclose(steps, np.broadcast_to(steps[0], steps.shape), atol=1e-3)


def test_composite_continues_from_the_last_pose():
  path = _path(Move.ORBIT_LEFT, Move.PUSH_IN)
  np.testing.assert_allclose(path[:41], _path(Move.ORBIT_LEFT, frames=41), atol=1e-4)
  np.testing.assert_allclose(path[40:], path[40] @ _path(Move.PUSH_IN, frames=41), atol=1e-3)


def test_pull_is_move_then_pull_out_then_pan():
  path = _path(Move.PULL_LEFT)
  x, z, yaw = path[:, 0, 3], path[:, 2, 3], _yaw_right(np.moveaxis(path, 0, -1))
  np.testing.assert_allclose([x[27], z[27], yaw[27]], [-160, 0, 0], atol=1e-3)
  np.testing.assert_allclose([x[54], z[54], yaw[54]], [-160, -300, 0], atol=1e-3)
  np.testing.assert_allclose([x[80], z[80], yaw[80]], [-160, -300, -8], atol=1e-3)


def test_frames_are_shared_out():
  assert shared_out(80, 3) == [27, 27, 26]
  assert shared_out(2, 4) == [1, 1, 0, 0]


def test_moves_without_frames_are_left_out():
  path = _path(Move.MOVE_LEFT, Move.PUSH_IN, Move.PAN_LEFT, frames=3)
  np.testing.assert_allclose(path[-1][:3, 3], [-220, 0, 600], atol=1e-3)
  np.testing.assert_array_equal(_path(Move.PULL_LEFT, frames=1), np.eye(4)[None])
  assert _path(Move.PULL_LEFT, Move.PUSH_IN, frames=2).shape == (2, 4, 4)


def test_only_prompts_with_camera_words_have_a_target():
  poses, has_path = target_paths(["A lake.", "Camera fixed. A lake.", "Camera push in. A lake."], 17, _CAMERA)
  assert poses.dtype == np.float32 and poses.shape == (3, 17, 4, 4)
  np.testing.assert_array_equal(has_path, [False, True, True])
  np.testing.assert_array_equal(poses[:2], np.broadcast_to(np.eye(4), (2, 17, 4, 4)))
  np.testing.assert_allclose(poses[2, -1, 2, 3], 600)
