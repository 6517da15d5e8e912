"""Noise carried along camera paths: white in every frame, and moving as the flow says."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from wr1_jax.camera import flow
from wr1_jax.camera.noise_warp import blend, transport, warped_noise
from wr1_jax.camera.trajectory import trajectory
from wr1_jax.camera.words import Move
from wr1_jax.config import CameraConfig, NoiseWarpConfig

_CAMERA = CameraConfig()
_CLEAN = NoiseWarpConfig(degradation=0.0)
_REAL = (21, 60, 104, 16)  # of 81 frames of 480 x 832
_TINY = (5, 12, 20, 16)  # of 17 frames of 96 x 160
_PATHS = [(move,) for move in Move] + [
  (Move.PUSH_IN, Move.PAN_LEFT),
  (Move.MOVE_LEFT, Move.PULL_OUT, Move.PAN_RIGHT),
  (Move.PUSH_IN, Move.PUSH_IN, Move.PUSH_IN),
]


@functools.partial(jax.jit, static_argnames=("shape", "warp"))
def _clips(keys, poses, shape, warp):
  return jax.vmap(lambda key: warped_noise(key, poses, shape, _CAMERA, warp))(keys)


def _noise(moves, shape, path_camera=_CAMERA, warp=_CLEAN) -> np.ndarray:
  """Clips that differ in their seed, [clips, T', H', W', C]: as many as make some 100,000 numbers a frame."""
  poses = trajectory(moves, 4 * (shape[0] - 1) + 1, path_camera)
  keys = jax.random.split(jax.random.key(0), 1 if shape == _REAL else 32)
  return np.asarray(_clips(keys, jnp.asarray(poses), shape, warp))


def _assert_white(frame: np.ndarray) -> None:
  """N(0, 1) and uncorrelated between neighbours and channels, all within 5 standard errors. frame: [clips, H, W, C]"""
  limit = 5 / np.sqrt(frame.size)
  assert abs(frame.mean()) < limit
  assert abs(frame.var() - 1) < np.sqrt(2) * limit
  assert abs(scipy.stats.skew(frame, axis=None)) < np.sqrt(6) * limit
  assert abs(scipy.stats.kurtosis(frame, axis=None)) < np.sqrt(24) * limit
  assert scipy.stats.kstest(frame.ravel()[:: max(frame.size // 20_000, 1)], "norm").pvalue > 1e-5
  height, width = frame.shape[1:3]
  for dy, dx in [(0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (0, 3), (3, 0)]:
    assert abs(np.mean(frame[:, dy:, dx:] * frame[:, : height - dy, : width - dx])) < 1.2 * limit, (dy, dx)
  assert abs(np.mean(frame[..., 1:] * frame[..., :-1])) < 1.2 * limit


@pytest.mark.parametrize("moves", _PATHS, ids=" + ".join)
def test_every_frame_is_white_at_real_size(moves):
  for frame in np.moveaxis(_noise(moves, _REAL), 1, 0):
    _assert_white(frame)


@pytest.mark.parametrize("moves", _PATHS, ids=" + ".join)
def test_every_frame_is_white_at_tiny_size(moves):
  noise = _noise(moves, _TINY)
  for frame in np.moveaxis(noise, 1, 0):
    _assert_white(frame)
  samples = noise.shape[0] * noise.shape[-1]
  assert abs(noise.var(axis=(0, -1)) - 1).max() < 6 * np.sqrt(2 / samples)  # at every pixel: edges and new ones too


@pytest.mark.parametrize("canvas_size", [(3, 4), (4, 13), (12, 11)])
def test_transport_is_exactly_orthonormal(canvas_size):
  """The frame is A (canvas, detail, beyond) with A A^T = I, for any homography: stretched, squeezed, partly outside."""
  size = (5, 6)
  pixels, values = size[0] * size[1], canvas_size[0] * canvas_size[1]
  canvas, detail, beyond = jnp.split(jnp.eye(values + 2 * pixels), [values, values + pixels])  # channels: a basis
  matrix_of = jax.jit(lambda homography: transport(canvas, canvas_size, homography, size, detail, beyond))
  covering = np.diag([size[1] / canvas_size[1], size[0] / canvas_size[0], 1])
  rng = np.random.default_rng(0)
  for _ in range(20):
    homography = (np.eye(3) + rng.normal(0, 0.3, (3, 3)) * [[1, 1, 3], [1, 1, 3], [0.05, 0.05, 0]]) @ covering
    matrix = np.asarray(matrix_of(jnp.asarray(homography, jnp.float32)), np.float64).reshape(pixels, -1)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(pixels), atol=1e-5)


def test_stretched_values_keep_their_sum():
  """Four children of one value: z / 2 each plus noise that sums to zero."""
  canvas, detail = jnp.full((1, 1), 3.0), jax.random.normal(jax.random.key(0), (4, 1))
  stretch = jnp.array([[2.0, 0, 0.5], [0, 2.0, 0.5], [0, 0, 1]])
  pixels = transport(canvas, (1, 1), stretch, (2, 2), detail, jnp.full((4, 1), jnp.nan))
  np.testing.assert_allclose(pixels.sum(), 4 * 3.0 / 2, rtol=1e-5)
  assert pixels.std() > 0.1


@pytest.mark.parametrize("moves", [(), (Move.FIXED,)])
def test_still_camera_repeats_the_same_noise(moves):
  for shape in (_REAL, _TINY):
    noise = _noise(moves, shape)[0]
    np.testing.assert_array_equal(noise, np.broadcast_to(noise[0], noise.shape))


def test_standing_still_after_a_move_repeats_the_same_noise():
  noise = _noise((Move.PUSH_IN, Move.FIXED), _REAL)[0]
  changed = np.abs(noise[11:] - noise[10]).max(axis=-1) > 1e-4
  assert changed.mean() < 1e-3


def _displacement(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
  """The (dx, dy) that takes `first` to `second`, from the peak of their cross-correlation; [clips, H, W, C]."""
  spectrum = np.conj(np.fft.rfft2(first, axes=(1, 2))) * np.fft.rfft2(second, axes=(1, 2))
  height, width = first.shape[1:3]
  surface = np.fft.irfft2(spectrum.sum(axis=(0, 3)), s=(height, width)) / first.size
  y, x = np.unravel_index(surface.argmax(), surface.shape)
  assert surface[y, x] > 0.1
  dy, dx = (y + height // 2) % height - height // 2, (x + width // 2) % width - width // 2
  # Boxes that overlap by a share of a pixel: the correlation falls off linearly to either side of the peak.
  before, peak, after = surface[y, (x - 1) % width], surface[y, x], surface[y, (x + 1) % width]
  fraction = after / (after + peak) if after > before else -before / (before + peak)
  return dx + fraction, dy


def _flow_between(moves, shape, first, second, path_camera=_CAMERA) -> np.ndarray:
  """The composed homography from latent frame `first` to latent frame `second`."""
  poses = jnp.asarray(trajectory(moves, 4 * (shape[0] - 1) + 1, path_camera))
  steps = flow.plane_homographies(poses, *shape[1:3], _CAMERA.focal, _CAMERA.scene_depth)
  to_frame = flow.composed(steps)[::4]
  return flow.multiply(to_frame[second], flow.inverse(to_frame[first]))


@pytest.mark.parametrize("shape", [_REAL, _TINY])
@pytest.mark.parametrize("move", [Move.MOVE_LEFT, Move.MOVE_RIGHT, Move.PAN_LEFT, Move.PAN_RIGHT])
def test_noise_moves_as_the_flow_says(shape, move):
  """Over one latent frame and over many."""
  noise = _noise((move,), shape)
  for first, second in [(0, 1), (shape[0] // 2, shape[0] // 2 + 1), (0, 3)]:
    expected = np.median(flow.flow(_flow_between((move,), shape, first, second), *shape[1:3]), axis=(0, 1))
    np.testing.assert_allclose(_displacement(noise[:, first], noise[:, second]), expected, atol=0.2)


def test_motion_far_below_a_canvas_pixel_a_frame_adds_up():
  camera = CameraConfig(move=10.0)
  expected = camera.focal * _REAL[2] * camera.move / camera.scene_depth  # latent pixels
  assert expected / 80 * _CLEAN.upscale < 0.13
  noise = _noise((Move.MOVE_LEFT,), _REAL, camera)
  dx, dy = _displacement(noise[:, 0], noise[:, -1])
  np.testing.assert_allclose(dx, expected, atol=0.15)
  assert dy == 0


@pytest.mark.parametrize("move", [Move.PUSH_IN, Move.PULL_OUT, Move.ORBIT_LEFT, Move.PULL_RIGHT])
def test_whole_paths_keep_all_the_noise_that_pixels_share(move):
  """A last pixel p and the first pixel q that it mostly covers correlate by area(p & q) / sqrt(area(p) area(q))."""
  noise = _noise((move,), _REAL)[0]
  back = flow.inverse(_flow_between((move,), _REAL, 0, _REAL[0] - 1))
  grid = flow.pixel_grid(*_REAL[1:3])

  def source(dx: float, dy: float) -> np.ndarray:
    return np.asarray(flow.project(back, grid + jnp.array([dx, dy])))

  centre = np.round(source(0, 0)).astype(int)
  inside = ((centre >= 1) & (centre < [_REAL[2] - 1, _REAL[1] - 1])).all(axis=-1)
  offsets = (np.arange(8) + 0.5) / 8 - 0.5
  shared = np.mean([(np.round(source(dx, dy)) == centre).all(axis=-1) for dx in offsets for dy in offsets], axis=0)
  across, down = source(0.5, 0) - source(-0.5, 0), source(0, 0.5) - source(0, -0.5)
  area = np.abs(across[..., 0] * down[..., 1] - across[..., 1] * down[..., 0])  # of p, in first pixels
  x, y = np.moveaxis(centre[inside], -1, 0)
  measured = np.mean(noise[0, y, x] * noise[-1][inside])
  np.testing.assert_allclose(measured, (shared * np.sqrt(area))[inside].mean(), rtol=0.1)


def test_leaving_and_returning_brings_the_same_noise_back():
  noise = _noise((Move.PAN_LEFT, Move.PAN_RIGHT), _REAL)[0]
  assert np.mean(noise[0] * noise[-1]) > 0.95


def test_degradation_mixes_in_fresh_noise():
  noise = _noise((Move.FIXED,), _REAL, warp=NoiseWarpConfig(degradation=0.35))[0]
  for frame in noise:
    _assert_white(frame[None])
  np.testing.assert_allclose(np.mean(noise[0] * noise[1]), 0.65**2 / (0.65**2 + 0.35**2), atol=0.02)


@pytest.mark.parametrize("share", [0.0, 0.35, 1.0])
def test_blend_keeps_the_variance(share):
  a, b = jax.random.normal(jax.random.key(0), (2, 100_000))
  np.testing.assert_allclose(blend(a, b, share).var(), 1, atol=0.03)


def test_path_that_turns_away_stays_white():
  camera = CameraConfig(pan_degrees=170.0)
  for frame in np.moveaxis(_noise((Move.PAN_LEFT,), _TINY, camera), 1, 0):
    _assert_white(frame)


def test_clips_and_keys_are_independent():
  noise = _noise((Move.PUSH_IN,), _TINY)
  assert abs(np.mean(noise[1:] * noise[:-1])) < 0.01
  np.testing.assert_array_equal(noise, _noise((Move.PUSH_IN,), _TINY))


def test_a_single_frame_is_white():
  keys = jax.random.split(jax.random.key(0), 32)
  _assert_white(np.asarray(_clips(keys, jnp.eye(4)[None], (1, *_TINY[1:]), _CLEAN))[:, 0])


def test_frames_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match="16 video frames"):
    warped_noise(jax.random.key(0), jnp.zeros((16, 4, 4)), _TINY, _CAMERA, _CLEAN)
