"""S_traj on paths whose score is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.spatial.transform

from wr1_jax.camera.trajectory import trajectory
from wr1_jax.camera.words import Move
from wr1_jax.config import CameraConfig, RewardsConfig
from wr1_jax.rewards.trajectory import anchored, trajectory_score

_CAMERA = CameraConfig()
_DEPTH = 0.37  # of a recovered scene, in its own units
_MOVING = [move for move in Move if move is not Move.FIXED]
_TRANSLATING = [move for move in _MOVING if not move.startswith("pan")]
_COMPOSITES = [
  (Move.PUSH_IN, Move.PAN_LEFT),
  (Move.ORBIT_LEFT, Move.PULL_OUT),
  (Move.MOVE_LEFT, Move.PULL_OUT, Move.PAN_RIGHT),
  (Move.MOVE_LEFT, Move.MOVE_RIGHT),  # ends where it began
]
_PATHS = [(move,) for move in _MOVING] + _COMPOSITES


def _path(*moves: Move, frames: int = 81) -> np.ndarray:
  return trajectory(moves, frames, _CAMERA).astype(np.float64)


def _recovered(path: np.ndarray, scale: float = _DEPTH / _CAMERA.scene_depth) -> np.ndarray:
  """The path as it comes out of a reconstruction: in other units, and seen from some world frame."""
  path = path.copy()
  path[:, :3, 3] *= scale
  world = np.eye(4)
  world[:3, :3] = scipy.spatial.transform.Rotation.from_rotvec([0.3, -1.2, 0.5]).as_matrix()
  world[:3, 3] = [1.0, -2.0, 0.5]
  return world @ path


def _score(recovered: np.ndarray, target: np.ndarray, depth_unit: float = _DEPTH, config=RewardsConfig()) -> float:
  return trajectory_score(recovered, depth_unit, target, _CAMERA.scene_depth, config).score


def _turned(path: np.ndarray, rotation_vectors: np.ndarray) -> np.ndarray:
  turns = np.tile(np.eye(4), (len(path), 1, 1))
  turns[:, :3, :3] = scipy.spatial.transform.Rotation.from_rotvec(rotation_vectors).as_matrix()
  return path @ turns


@pytest.mark.parametrize("moves", [*_PATHS, (Move.FIXED,)], ids=" + ".join)
def test_identical_path_scores_one(moves):
  path = _path(*moves)
  assert _score(path, path, depth_unit=_CAMERA.scene_depth) == 1.0
  np.testing.assert_allclose(_score(_recovered(path), path), 1.0, atol=1e-6)


@pytest.mark.parametrize("moves", [(move,) for move in _TRANSLATING], ids=" + ".join)
def test_scale_of_the_recovered_scene_does_not_matter_within_bounds(moves):
  path = _path(*moves)
  for factor in (0.4, 2.5):
    np.testing.assert_allclose(_score(_recovered(path, factor * _DEPTH / _CAMERA.scene_depth), path), 1.0, atol=1e-6)


@pytest.mark.parametrize("move", _MOVING)
def test_reversed_path_scores_low(move):
  path = _path(move)
  assert _score(_recovered(anchored(path[::-1])), path) < 0.2


@pytest.mark.parametrize(("left", "right"), [(m, Move(m.replace("left", "right"))) for m in _MOVING if "left" in m])
def test_wrong_side_scores_low(left, right):
  assert _score(_recovered(_path(right)), _path(left)) < 0.2


@pytest.mark.parametrize("moves", _PATHS, ids=" + ".join)
def test_static_camera_does_not_pass_for_a_moving_one(moves):
  path = _path(*moves)
  assert _score(_recovered(_path(Move.FIXED)), path) < 0.3


@pytest.mark.parametrize("moves", _PATHS, ids=" + ".join)
def test_two_percent_of_the_move_do_not_pass_for_it(moves):
  share = 0.02
  zoom = {name: share * getattr(_CAMERA, name) for name in ("zoom", "move", "pull_move", "pull_zoom")}
  turn = {name: share * getattr(_CAMERA, name) for name in ("pan_degrees", "orbit_degrees", "pull_yaw_degrees")}
  faint = trajectory(moves, 81, CameraConfig(**zoom, **turn)).astype(np.float64)
  assert _score(_recovered(faint), _path(*moves)) < 0.3


def test_jitter_of_a_fixed_camera_is_forgiven():
  rng = np.random.default_rng(0)
  vectors = rng.normal(size=(81, 3))
  vectors *= np.radians(0.1) / np.linalg.norm(vectors, axis=-1, keepdims=True)
  path = _path(Move.FIXED)
  assert 0.9 < _score(_recovered(_turned(path, vectors)), path) < 1.0


def test_drift_of_a_camera_that_should_turn_in_place_is_measured_in_scene_depths():
  path = _path(Move.PAN_LEFT)
  drifted = path.copy()
  drifted[:, 0, 3] = 100.0
  drifted[0, 0, 3] = 0.0
  np.testing.assert_allclose(_score(_recovered(drifted), path), math.exp(-0.1 * np.sqrt(80 / 81) / 0.25), rtol=1e-6)


@pytest.mark.parametrize("move", list(Move))
def test_score_falls_with_the_size_of_the_error(move):
  path = _path(move)
  rng = np.random.default_rng(1)
  bend, shift = rng.normal(size=(81, 3)), rng.normal(size=(81, 3))
  scores = []
  for size in (0.0, 0.01, 0.03, 0.1, 0.3, 1.0):
    worse = _turned(path, np.radians(10 * size) * bend)
    worse[:, :3, 3] += 300 * size * shift
    scores.append(_score(_recovered(worse), path))
  assert (np.diff(scores) < 0).all()


def test_rotation_error_is_exact():
  path = _path(Move.FIXED)
  for degrees in (1e-4, 1.0, 90.0, 179.0):
    vectors = np.zeros((81, 3))
    vectors[1:, 1] = np.radians(degrees)
    result = trajectory_score(_turned(path, vectors), 1.0, path, 1.0, RewardsConfig())
    np.testing.assert_allclose(result.rotation_error, degrees * np.sqrt(80 / 81), rtol=1e-7)


def test_errors_are_relative_to_the_tolerances():
  path = _path(Move.PUSH_IN)
  worse = path.copy()
  worse[:, 0, 3] = np.linspace(0, 60, 81)
  config = RewardsConfig(translation_tolerance=0.1, rotation_tolerance_degrees=1.0)
  result = trajectory_score(worse, _CAMERA.scene_depth, path, _CAMERA.scene_depth, config)
  np.testing.assert_allclose(result.score, math.exp(-result.translation_error / 0.1))
  np.testing.assert_allclose(result.scale, 600**2 / (600**2 + 60**2))
  assert result.reason == ""


def test_same_input_gives_the_same_number():
  rng = np.random.default_rng(2)
  path = _path(Move.ORBIT_LEFT)
  recovered = _recovered(_turned(path, 0.02 * rng.normal(size=(81, 3))))
  assert _score(recovered, path) == _score(recovered, path)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_gives_nan_and_a_reason(bad):
  path = _path(Move.PUSH_IN)
  broken = path.copy()
  broken[7, 0, 3] = bad
  for recovered, depth_unit in [(broken, 1.0), (path, bad), (path, 0.0), (path, -1.0)]:
    result = trajectory_score(recovered, depth_unit, path, _CAMERA.scene_depth, RewardsConfig())
    assert math.isnan(result.score) and result.reason


def test_paths_of_different_lengths_are_refused():
  with pytest.raises(ValueError, match="cannot be compared"):
    _score(_path(Move.PUSH_IN, frames=17), _path(Move.PUSH_IN))
