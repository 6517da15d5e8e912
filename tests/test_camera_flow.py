"""Plane-induced flow against projecting points of the plane, and its cap."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial.transform

from wr1_jax.camera import flow
from wr1_jax.camera.trajectory import trajectory
from wr1_jax.camera.words import Move
from wr1_jax.config import CameraConfig

_HEIGHT, _WIDTH, _FOCAL, _DEPTH = 12, 20, 1.2, 1000.0


def _pose(rng: np.random.Generator) -> np.ndarray:
  pose = np.eye(4)
  pose[:3, :3] = scipy.spatial.transform.Rotation.from_rotvec(rng.normal(0, 0.1, 3)).as_matrix()
  pose[:3, 3] = rng.normal(0, 80, 3)
  return pose


def _steps(poses: np.ndarray) -> jnp.ndarray:
  return flow.plane_homographies(jnp.asarray(poses, jnp.float32), _HEIGHT, _WIDTH, _FOCAL, _DEPTH)


def test_homography_is_the_projection_of_a_plane_that_faces_the_first_camera():
  rng = np.random.default_rng(0)
  first, second = _pose(rng), _pose(rng)
  length = _FOCAL * _WIDTH
  centre = np.array([(_WIDTH - 1) / 2, (_HEIGHT - 1) / 2])
  pixels = np.asarray(flow.pixel_grid(_HEIGHT, _WIDTH), np.float64)
  in_first = np.concatenate([(pixels - centre) / length * _DEPTH, np.full((_HEIGHT, _WIDTH, 1), _DEPTH)], axis=-1)
  in_world = in_first @ first[:3, :3].T + first[:3, 3]
  in_second = (in_world - second[:3, 3]) @ second[:3, :3]
  expected = in_second[..., :2] / in_second[..., 2:] * length + centre
  step = _steps(np.stack([first, second]))[0]
  np.testing.assert_allclose(flow.project(step, jnp.asarray(pixels, jnp.float32)), expected, atol=1e-3)
  np.testing.assert_allclose(flow.flow(step, _HEIGHT, _WIDTH), expected - pixels, atol=1e-3)


@pytest.mark.parametrize(
  ("move", "direction"), [(Move.MOVE_LEFT, 1), (Move.MOVE_RIGHT, -1), (Move.PAN_LEFT, 1), (Move.PAN_RIGHT, -1)]
)
def test_the_picture_moves_against_the_camera(move, direction):
  moved = flow.flow(_steps(trajectory([move], 2, CameraConfig()))[0], _HEIGHT, _WIDTH)
  assert (direction * moved[..., 0] > 1).all()


def test_push_in_expands_the_picture_about_its_centre():
  moved = flow.flow(_steps(trajectory([Move.PUSH_IN], 81, CameraConfig()))[0], _HEIGHT, _WIDTH)
  outward = flow.pixel_grid(_HEIGHT, _WIDTH) - jnp.array([(_WIDTH - 1) / 2, (_HEIGHT - 1) / 2])
  np.testing.assert_allclose(moved, outward * (7.5 / 992.5), atol=1e-4)


def test_inverse_undoes_and_composition_chains():
  rng = np.random.default_rng(1)
  steps = _steps(np.stack([_pose(rng) for _ in range(4)]))
  points = flow.pixel_grid(_HEIGHT, _WIDTH)
  there = points
  for step in steps:
    there = flow.project(step, there)
  to_frames = flow.composed(steps)
  np.testing.assert_allclose(to_frames[0], np.eye(3))
  np.testing.assert_allclose(flow.project(to_frames[-1], points), there, atol=1e-3)
  np.testing.assert_allclose(flow.project(flow.inverse(to_frames[-1]), there), points, atol=1e-3)


@pytest.mark.parametrize("move", [Move.MOVE_LEFT, Move.PUSH_IN, Move.PULL_OUT, Move.ORBIT_LEFT, Move.PAN_RIGHT])
def test_flow_is_capped(move):
  camera = CameraConfig(move=3000.0, zoom=950.0, orbit_degrees=100.0, pan_degrees=80.0)
  step = _steps(trajectory([move], 2, camera))[0]
  capped = flow.flow(flow.limit_flow(step, _HEIGHT, _WIDTH, 5.0), _HEIGHT, _WIDTH)
  np.testing.assert_allclose(jnp.linalg.norm(capped, axis=-1).max(), 5.0, rtol=1e-3)
  small = _steps(trajectory([move], 161, camera))[0]
  np.testing.assert_array_equal(flow.limit_flow(small, _HEIGHT, _WIDTH, 5.0), jnp.eye(3) + (small - jnp.eye(3)))


def test_cap_holds_for_a_camera_that_flies_through_the_plane():
  camera = CameraConfig(zoom=1500.0)
  step = flow.limit_flow(_steps(trajectory([Move.PUSH_IN], 2, camera))[0], _HEIGHT, _WIDTH, 5.0)
  length = jnp.linalg.norm(flow.flow(step, _HEIGHT, _WIDTH), axis=-1)
  np.testing.assert_allclose(length.max(), 5.0, rtol=1e-3)
