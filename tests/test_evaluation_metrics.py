"""The evaluation's measures and statistics on cases whose answer is known."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest
import scenes
import scipy.linalg
from scipy import ndimage
from scipy.spatial.transform import Rotation

from wr1_jax.camera.trajectory import trajectory
from wr1_jax.camera.words import Move
from wr1_jax.config import CameraConfig, VideoConfig
from wr1_jax.data.video_files import write_mp4
from wr1_jax.errors import UserError
from wr1_jax.evaluation import frechet, latent_features, metrics, motion, paired
from wr1_jax.rewards.jobs import in_scene_depths


def noise(seed: int, *shape: int) -> np.ndarray:
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def smooth(seed: int, height: int, width: int, sigma: float = 3.0) -> np.ndarray:
  """A texture in [0, 255], periodic."""
  x = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(height, width)), sigma, mode="wrap")
  return 127.5 + 40 * x / x.std()


# --- renders against frames -------------------------------------------------------------------------------------------


def test_psnr_of_known_errors():
  black = np.zeros((2, 8, 8, 3), np.uint8)
  assert metrics.psnr(black, black + 255) == 0
  assert metrics.psnr(black, black + 1) == pytest.approx(20 * math.log10(255))
  other = black.copy()
  other[0] += 51  # one frame at 20 log10(5) dB, the other the same
  assert metrics.psnr(black, other) == pytest.approx((20 * math.log10(5) + metrics.HIGHEST_PSNR) / 2)


def test_equal_clips_are_finite():
  clip = noise(0, 3, 16, 20, 3)
  assert metrics.psnr(clip, clip) == metrics.HIGHEST_PSNR
  assert metrics.ssim(clip, clip) == pytest.approx(1, abs=1e-12)


def slow_ssim(x: np.ndarray, y: np.ndarray) -> float:
  """Wang et al.'s formula with every window written out."""
  at = np.arange(11) - 5
  weights = np.exp(-(at[:, None] ** 2 + at**2) / (2 * 1.5**2))
  weights /= weights.sum()
  found = []
  for row in range(x.shape[0] - 10):
    for column in range(x.shape[1] - 10):
      for channel in range(3):
        a, b = (z[row : row + 11, column : column + 11, channel] / 255 for z in (x, y))
        ma, mb = (weights * a).sum(), (weights * b).sum()
        va, vb = (weights * (a - ma) ** 2).sum(), (weights * (b - mb) ** 2).sum()
        cov = (weights * (a - ma) * (b - mb)).sum()
        c1, c2 = 0.01**2, 0.03**2
        found.append((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
  return float(np.mean(found))


def test_ssim_is_that_of_its_formula():
  clip, other = noise(0, 2, 17, 21, 3), noise(1, 2, 17, 21, 3) // 4
  mixed = (clip // 2 + other).astype(np.uint8)
  expected = np.mean([slow_ssim(*pair) for pair in zip(clip, mixed)])
  assert 0.2 < expected < 0.9
  assert metrics.ssim(clip, mixed) == pytest.approx(expected, abs=1e-10)


def test_ssim_is_that_of_scikit_image():
  theirs = pytest.importorskip("skimage.metrics").structural_similarity
  clip = scenes.render(scenes.Room.make(0), scenes.move("move left", 2))
  options = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=-1, data_range=255)
  expected = theirs(clip[0], clip[1], **options)
  assert metrics.ssim(clip[:1], clip[1:]) == pytest.approx(expected, abs=1e-7)


def test_clips_that_do_not_match_are_refused():
  for measure in (metrics.psnr, metrics.ssim):
    with pytest.raises(ValueError, match="cannot be compared"):
      measure(noise(0, 2, 16, 16, 3), noise(0, 3, 16, 16, 3))
  with pytest.raises(ValueError, match="smaller than a window"):
    metrics.ssim(noise(0, 2, 10, 16, 3), noise(0, 2, 10, 16, 3))


# --- cameras ----------------------------------------------------------------------------------------------------------


def path(*moves: Move, frames: int = 17) -> np.ndarray:
  return in_scene_depths(trajectory(moves, frames, CameraConfig()), 1000.0).astype(np.float64)


def moved(poses: np.ndarray, scale: float) -> np.ndarray:
  """The same path in other units and another world."""
  poses = poses.copy()
  poses[:, :3, 3] *= scale
  world = np.eye(4)
  world[:3, :3] = Rotation.from_rotvec([0.3, -1.2, 0.5]).as_matrix()
  world[:3, 3] = [1.0, -2.0, 0.5]
  return world @ poses


@pytest.mark.parametrize("move", [Move.PUSH_IN, Move.ORBIT_LEFT, Move.PULL_RIGHT])
def test_the_same_path_has_no_error_whatever_its_units(move):
  errors = metrics.camera_errors(moved(path(move), 0.37), path(move))
  np.testing.assert_allclose(dataclasses.astuple(errors), 0, atol=1e-5)


def test_camera_errors_are_sums_over_frames():
  """A camera that also turns by 1, 2, 3 ... degrees, and one that goes the other way."""
  target = path(Move.PUSH_IN, frames=5)
  turned = target.copy()
  angles = np.radians(np.arange(5))
  turned[:, :3, :3] = Rotation.from_rotvec(angles[:, None] * [0, 1, 0]).as_matrix()
  errors = metrics.camera_errors(turned, target)
  assert errors.rotation == pytest.approx(np.radians(10)) and errors.translation == pytest.approx(0, abs=1e-9)
  assert errors.pose == pytest.approx((2 * math.sqrt(2) * np.sin(angles / 2)).sum())

  errors = metrics.camera_errors(path(Move.PULL_OUT, frames=5), target)
  assert errors.rotation == 0
  assert errors.translation == errors.pose == pytest.approx(2 * (0 + 0.25 + 0.5 + 0.75 + 1))


@pytest.mark.parametrize("move", [Move.PAN_LEFT, Move.FIXED])
def test_where_nothing_should_translate_only_the_rotation_counts(move):
  drifting = path(move)
  drifting[:, 0, 3] += np.linspace(0, 1e-3, 17)
  errors = metrics.camera_errors(drifting, path(move))
  assert errors.rotation < 1e-5 and math.isnan(errors.translation) and math.isnan(errors.pose)


def test_a_camera_that_stands_still_is_not_scaled_up():
  errors = metrics.camera_errors(path(Move.FIXED, frames=5), path(Move.PUSH_IN, frames=5))
  assert errors.translation == pytest.approx(0.25 + 0.5 + 0.75 + 1)


def test_paths_that_cannot_be_compared_are_refused():
  broken = path(Move.PUSH_IN)
  broken[3, 0, 3] = np.nan
  with pytest.raises(ValueError, match="not finite"):
    metrics.camera_errors(broken, path(Move.PUSH_IN))
  with pytest.raises(ValueError, match="shapes"):
    metrics.camera_errors(path(Move.PUSH_IN, frames=5), path(Move.PUSH_IN))


# --- motion -----------------------------------------------------------------------------------------------------------


def shifted(height: int, width: int, dy: float, dx: float, frames: int = 3) -> np.ndarray:
  texture = smooth(0, height, width)
  stack = [ndimage.shift(texture, (t * dy, t * dx), order=3, mode="grid-wrap") for t in range(frames)]
  return np.round(np.clip(np.stack(stack), 0, 255)).astype(np.uint8)[..., None].repeat(3, axis=-1)


@pytest.mark.parametrize("dy, dx", [(0.0, 0.3), (-0.5, 1.2), (3.0, 4.0), (0.0, -10.0)])
def test_flow_of_a_shift_is_its_length(dy, dx):
  expected = 100 * math.hypot(dy, dx) / 160
  assert motion.flow_percent(shifted(96, 160, dy, dx)) == pytest.approx(expected, rel=0.05)


def test_flow_does_not_depend_on_the_resolution():
  small, large = shifted(96, 160, 0, 1.5), shifted(96, 160, 0, 1.5).repeat(3, axis=1).repeat(3, axis=2)
  assert motion.flow_percent(large) == pytest.approx(motion.flow_percent(small), rel=1e-3)


def test_what_stands_still_has_no_flow():
  still = np.broadcast_to(noise(0, 1, 64, 80, 3), (4, 64, 80, 3))
  assert motion.flow_percent(still) == 0 and motion.flow_percent(still[:1]) == 0
  flat = np.full((2, 64, 80, 3), 90, np.uint8)
  flat[1] = 140  # brighter, and nothing to follow
  assert motion.flow_percent(flat) == 0


def test_flow_of_a_camera_grows_with_its_move():
  room = scenes.Room.make(0)
  flows = [motion.flow_percent(scenes.render(room, scenes.move("move left", 5, amount))) for amount in (0, 0.3, 1)]
  assert flows[0] == 0 and 0.2 < flows[1] < 0.5 * flows[2]


# --- statistics -------------------------------------------------------------------------------------------------------


def test_pairs_are_compared_and_missing_values_left_out():
  base = np.array([1.0, 2.0, np.nan, 4.0, 5.0, np.nan])
  tuned = np.array([2.0, 2.5, 7.0, np.nan, 6.0, np.inf])
  row = paired.compare(base, tuned)
  assert (row.count, row.missing_base, row.missing_tuned) == (3, 2, 2)
  assert row.base == pytest.approx(8 / 3) and row.tuned == pytest.approx(10.5 / 3)
  differences = np.array([1.0, 0.5, 1.0])
  assert row.difference == pytest.approx(differences.mean())
  assert row.difference_error == pytest.approx(differences.std(ddof=1) / math.sqrt(3))
  assert row.z == pytest.approx(row.difference / row.difference_error)
  assert row.z > row.difference / math.hypot(row.base_error, row.tuned_error)  # which pairing is for


def test_what_cannot_be_known_is_nan():
  alone = paired.compare(np.array([1.0, np.nan, 3.0]), None)
  assert (alone.count, alone.base, alone.base_error, alone.missing_base) == (2, 2.0, 1.0, 1)
  assert math.isnan(alone.tuned) and math.isnan(alone.z)
  same = paired.compare(np.ones(4), np.ones(4))
  assert same.difference == same.difference_error == 0 and math.isnan(same.z)
  nothing = paired.compare(np.full(2, np.nan), np.ones(2))
  assert nothing.count == 0 and math.isnan(nothing.base) and math.isnan(nothing.difference)
  single = paired.compare(np.ones(1), np.zeros(1))
  assert single.difference == -1 and math.isnan(single.difference_error)


# --- Frechet distance -------------------------------------------------------------------------------------------------


def test_distance_of_gaussians_is_the_closed_form():
  rng = np.random.default_rng(0)
  a, b = (np.cov(rng.normal(size=(6, 40))) for _ in range(2))
  mean, other = rng.normal(size=(2, 6))
  root = scipy.linalg.sqrtm(a @ b).real
  expected = np.square(mean - other).sum() + np.trace(a + b - 2 * root)
  assert frechet.gaussian_distance(mean, a, other, b) == pytest.approx(expected, rel=1e-9)
  assert frechet.gaussian_distance(mean, a, mean, a) == pytest.approx(0, abs=1e-9)
  one = np.eye(6)
  assert frechet.gaussian_distance(0 * mean, 4 * one, 0 * mean, 9 * one) == pytest.approx(6)  # (2 - 3)^2 each


def test_distance_of_samples():
  """Of the same ones 0; of large samples about that of their Gaussians, in the real ones' standard deviations."""
  rng = np.random.default_rng(0)
  scale = np.array([1.0, 10.0, 0.1, 1.0])
  real = rng.normal(size=(20_000, 4)) * scale
  far = (2 * rng.normal(size=(20_000, 4)) + [1.0, 0, 0, 0]) * scale
  assert frechet.distance(real[:100], real[:100]) == pytest.approx(0, abs=1e-9)
  assert frechet.distance(far, real) == pytest.approx(1 + 4, rel=0.03)
  assert frechet.distance(rng.normal(size=(20_000, 4)) * scale, real) < 2e-3
  with pytest.raises(ValueError, match="at least 2"):
    frechet.distance(real[:1], real)


def test_covariance_is_shrunk_where_there_are_few_samples():
  rng = np.random.default_rng(0)
  true = np.diag(np.linspace(0.5, 2, 20))
  few, many = (rng.multivariate_normal(np.zeros(20), true, size) for size in (15, 50_000))
  off = lambda x: np.linalg.norm(x - true)
  assert off(frechet.covariance(few)) < 0.5 * off(np.cov(few.T))
  assert np.linalg.eigvalsh(frechet.covariance(few)).min() > 0.1  # the sample covariance is singular
  assert off(frechet.covariance(many)) < 0.15


def test_bootstrap_of_distances_is_paired():
  """Two models that always differ by the same: each distance is uncertain, their difference is much less so."""
  rng = np.random.default_rng(0)
  real, base = rng.normal(size=(60, 5)), rng.normal(size=(40, 5)) + 1.0
  row = frechet.compare(base, base + 0.5, real, seed=0)
  assert row.count == 40 and row.difference == pytest.approx(row.tuned - row.base) and row.difference > 3
  assert row.difference_error < 0.7 * row.tuned_error and row.z > 4
  assert row == frechet.compare(base, base + 0.5, real, seed=0)
  alone = frechet.compare(base, None, real, seed=0)
  assert (alone.base, alone.base_error) == (row.base, row.base_error) and math.isnan(alone.difference)


def test_latent_features_are_their_definition():
  latents = np.random.default_rng(0).normal(size=(3, 4, 6, 7, 16)).astype(np.float32) * 2 + 1
  latents[0] = np.cumsum(latents[0], axis=2)  # neighbours along columns are alike
  found = latent_features.latent_features(jnp.asarray(latents))
  assert found.shape == (3, 35)
  mean, std = latents.mean((1, 2, 3)), latents.std((1, 2, 3))
  np.testing.assert_allclose(found[:, :16], mean, rtol=1e-4)
  np.testing.assert_allclose(found[:, 16:32], np.log(std), atol=1e-4)
  centred = latents - mean[:, None, None, None]
  pairs = [(centred[:, 1:], centred[:, :-1]), (centred[:, :, 1:], centred[:, :, :-1])]
  pairs.append((centred[..., 1:, :], centred[..., :-1, :]))
  for column, (a, b) in zip(range(32, 35), pairs):
    expected = ((a * b).mean((1, 2, 3)) / std**2).mean(-1)
    np.testing.assert_allclose(found[:, column], expected, atol=1e-4)
  assert found[0, 34] > 0.5 > abs(found[1, 34])
  assert latent_features.latent_features(jnp.asarray(latents[:, :1]))[0, 32] == 0  # one latent frame


def test_real_clips_are_fitted_or_left_out_with_a_reason(tmp_path):
  wide = np.zeros((9, 96, 256, 3), np.uint8)
  wide[:, :, 64:192] = 200  # what is left when its sides are cut off
  write_mp4(tmp_path / "a.mp4", wide, fps=8)
  exact = noise(0, 5, 64, 80, 3)
  np.save(tmp_path / "b.npy", exact)
  np.save(tmp_path / "c.npy", exact[:3])
  (tmp_path / "d.mp4").write_bytes(b"no video")
  files = latent_features.find_real(tmp_path)
  cut, same, short, broken = latent_features.read_real(files, VideoConfig(width=80, height=64, frames=5))
  assert cut.shape == (5, 64, 80, 3) and abs(cut.astype(int) - 200).max() < 20
  np.testing.assert_array_equal(same, exact)
  assert "3 frames" in short and "cannot be read" in broken
  with pytest.raises(UserError, match="--real=.*no such folder"):
    latent_features.find_real(tmp_path / "nowhere")
