"""The photometric reconstructor against rooms with known cameras, and against everything that is no room at all."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scenes
import torch

from wr1_jax.config import ReconstructionConfig, RewardsConfig
from wr1_jax.sidecar import geometry
from wr1_jax.sidecar.offset_view import offset_pose
from wr1_jax.sidecar.photometric import bundle, pyramid, reconstruct
from wr1_jax.sidecar.photometric.lie import motion
from wr1_jax.sidecar.photometric.reconstruct import PhotometricReconstructor
from wr1_jax.sidecar.photometric.scorer import make
from wr1_jax.sidecar.reconstruction import rendered_back, views
from wr1_jax.sidecar.scorers import Unscored, View

SIZE = (64, 96)
CONFIG = ReconstructionConfig(max_pixels=SIZE[0] * SIZE[1])


def clip(name: str, seed: int = 1, frames: int = 9, size: tuple[int, int] = SIZE, **kwargs) -> np.ndarray:
  return scenes.render(scenes.Room.make(seed), scenes.move(name, frames), *size, **kwargs)


def recovered(video: np.ndarray, path=None, config: ReconstructionConfig = CONFIG):
  return PhotometricReconstructor(config)(video[None], [path])[0]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
  return float(-10 * np.log10(np.mean((a / 255.0 - b / 255.0) ** 2)))


@pytest.mark.parametrize("name", scenes.MOVES)
def test_recovers_the_path_of_each_move(name):
  found = recovered(clip(name))
  rotation, direction, size = scenes.path_errors(found.poses, found.depth_unit, scenes.move(name, 9))
  assert rotation < 2
  if name.startswith("pan") or name == "fixed":
    assert size < 0.06  # of a median depth
  else:
    assert direction < 10
    # Path and scene have one scale: the median depth of these rooms is 1 within a few percent.
    assert 0.8 < size < 1.25


@pytest.mark.parametrize(
  "first, second, amount",
  [("push in", "orbit left", 0.55), ("pull out", "orbit left", 1.0), ("orbit right", "push in", 1.0)],
)
def test_recovers_a_composite_path(first, second, amount):
  path = scenes.chain(scenes.move(first, 7, amount), scenes.move(second, 7, amount))
  found = recovered(scenes.render(scenes.Room.make(2), path, *SIZE))
  rotation, direction, _ = scenes.path_errors(found.poses, found.depth_unit, path)
  assert rotation < 2
  assert direction < 10


def test_the_path_asked_for_does_not_decide():
  found = recovered(clip("orbit left"), path=scenes.move("orbit right", 9))
  rotation, direction, _ = scenes.path_errors(found.poses, found.depth_unit, scenes.move("orbit left", 9))
  assert rotation < 2
  assert direction < 10


def test_frozen_clips_have_still_cameras():
  frozen = np.repeat(clip("fixed", frames=1), 9, 0)
  found = recovered(frozen, path=scenes.move("push in", 9))
  np.testing.assert_array_equal(found.poses, np.tile(np.eye(4, dtype=np.float32), (9, 1, 1)))
  noise = np.random.default_rng(0).normal(0, 8, frozen.shape)
  noisy = recovered(np.clip(frozen + noise, 0, 255).astype(np.uint8), path=scenes.move("push in", 9))
  np.testing.assert_array_equal(noisy.poses, found.poses)


def test_a_rigid_scene_is_rendered_back_frame_by_frame():
  video = clip("move right")
  (rendered,) = rendered_back([recovered(video)])
  quality = [[psnr(frame, image) for image in rendered] for frame in video]
  assert min(np.diag(quality)) > 28
  assert list(np.argmax(quality, 1)) == list(range(9))


def quality_of(spoiled: str) -> list[float]:
  """PSNR of three clips against their reconstructions."""
  clips = [clip(name, seed, 7, spoiled=spoiled) for seed, name in enumerate(("move left", "orbit right", "pull out"))]
  return [psnr(video, rendered_back([recovered(video)])[0]) for video in clips]


@pytest.fixture(scope="module")
def rigid_quality():
  return quality_of("")


@pytest.mark.parametrize("spoiled", scenes.INCONSISTENT)
def test_inconsistent_clips_are_rendered_back_badly(spoiled, rigid_quality):
  assert max(quality_of(spoiled)) < min(rigid_quality) - 1


@pytest.mark.parametrize("size, frames", [((64, 64), 5), ((96, 64), 5), ((70, 131), 2), ((64, 96), 3), ((120, 200), 5)])
def test_any_size_and_length(size, frames):
  found = recovered(clip("move left", frames=frames, size=size))
  h, w = geometry.processed_size(*size, CONFIG)
  assert found.frames.shape == (frames, h, w, 3)
  assert rendered_back([found]).shape == (1, frames, h, w, 3)
  assert scenes.path_errors(found.poses, found.depth_unit, scenes.move("move left", frames))[1] < 10


def test_one_frame_has_the_identity_as_its_path():
  video = clip("fixed", frames=1)
  found = recovered(video)
  np.testing.assert_array_equal(found.poses, np.eye(4)[None])
  assert psnr(rendered_back([found])[0], video) > 28


def test_long_clips_have_a_pose_for_every_frame():
  config = ReconstructionConfig(max_pixels=SIZE[0] * SIZE[1], max_frames=11)
  found = recovered(clip("pull left", frames=81), config=config)
  rotation, direction, _ = scenes.path_errors(found.poses, found.depth_unit, scenes.move("pull left", 81))
  assert found.poses.shape == (81, 4, 4)
  assert rotation < 2
  assert direction < 10


@pytest.mark.parametrize("value", [0, 128, 255])
def test_clips_without_texture_have_no_reconstruction(value):
  found = recovered(np.full((5, *SIZE, 3), value, np.uint8))
  assert isinstance(found, Unscored)
  assert "no texture" in found.reason


def test_clips_that_show_nothing_still_give_finite_numbers():
  rng = np.random.default_rng(0)
  clips = {
    "noise": rng.integers(0, 256, (5, *SIZE, 3), dtype=np.uint8),
    "two levels": (120 + clip("pan left", frames=5) // 128).astype(np.uint8),
    "a cut": np.concatenate([clip("fixed", 1, 3), clip("fixed", 2, 2)]),
    "saturated": np.clip(clip("pan left", frames=5) * 4.0, 0, 255).astype(np.uint8),
  }
  for name, video in clips.items():
    found = recovered(video)
    assert np.isfinite(found.poses).all(), name
    np.testing.assert_allclose(
      found.poses[:, :3, :3] @ found.poses[:, :3, :3].transpose(0, 2, 1),
      np.tile(np.eye(3), (5, 1, 1)),
      atol=1e-5,
      err_msg=name,
    )
    assert all(bool(field.isfinite().all()) for field in vars(found.scene).values()), name


def test_same_clip_same_bits_whatever_the_batch():
  videos = np.stack([clip("orbit left", 1, 5), clip("push in", 2, 5)])
  reconstructor = PhotometricReconstructor(CONFIG)
  both = reconstructor(videos, [None, None])
  alone = reconstructor(videos[1:], [None])[0]
  np.testing.assert_array_equal(both[1].poses, alone.poses)
  np.testing.assert_array_equal(rendered_back(both)[1], rendered_back([alone])[0])


def test_clips_in_one_batch_are_those_alone(monkeypatch):
  """As on a GPU, up to rounding; one of them has no reconstruction, and one a new surface in every frame."""
  videos = np.stack([clip("orbit left", 1, 5), np.zeros((5, *SIZE, 3), np.uint8), clip("pull out", 2, 5)])
  alone = [recovered(video) for video in videos]
  monkeypatch.setitem(reconstruct.PIXELS_AT_ONCE, "cpu", 2**23)
  together = PhotometricReconstructor(CONFIG)(videos, [None] * 3)
  assert alone[1] == together[1]
  for one, other in ((alone[0], together[0]), (alone[2], together[2])):
    np.testing.assert_allclose(one.poses, other.poses, atol=2e-3)
    assert psnr(rendered_back([one])[0], rendered_back([other])[0]) > 40


@pytest.mark.parametrize("size", [(480, 832), (832, 480), (64, 64), (64, 640), (720, 1280), (97, 161)])
def test_field_of_view_is_that_of_the_input(size):
  config = ReconstructionConfig()
  h, w = geometry.processed_size(*size, config)
  k = geometry.intrinsics(*size, (h, w), config.focal)
  assert h % 8 == w % 8 == 0
  assert h * w < 1.25 * min(config.max_pixels, size[0] * size[1])
  assert h / (2 * k[1, 1]) == pytest.approx(size[0] / (2 * config.focal * size[1]), rel=1e-6)
  assert w / (2 * k[0, 0]) == pytest.approx(1 / (2 * config.focal), rel=1e-6)


def test_offset_view_is_off_the_path():
  found = recovered(clip("move right"))
  pose = offset_pose(found.poses, found.depth_unit, CONFIG)
  from_middle = np.linalg.inv(found.poses[4]) @ pose
  np.testing.assert_allclose(np.abs(from_middle[:3, 3]), [0.15, 0, 0.15], atol=1e-5)
  assert from_middle[2, 3] < 0
  (view,) = views([found], CONFIG)
  rgb, alpha = view.offset_view, view.offset_alpha
  assert rgb.shape == (*SIZE, 3)
  # No frame shows this picture.
  assert max(psnr(rgb, frame) for frame in found.frames) < 20
  assert 0.5 < alpha.mean() < 0.95


def test_scorer_gives_views_and_reasons():
  videos = np.stack([clip("move left", frames=3), np.zeros((3, *SIZE, 3), np.uint8)])
  view, unscored = make(RewardsConfig(reconstruction=CONFIG))(videos, [scenes.move("move left", 3), None])
  assert isinstance(view, View)
  assert view.rendered.dtype == view.offset_view.dtype == np.uint8
  assert isinstance(unscored, Unscored)


def test_interpolated_poses_turn_evenly():
  poses = np.stack([np.eye(4), scenes.move("pan right", 2)[1]])
  poses[1, 0, 3] = 1
  path = geometry.interpolate_poses(poses, np.array([0, 4]), 5)
  np.testing.assert_allclose(path[:, 0, 3], [0, 0.25, 0.5, 0.75, 1])
  np.testing.assert_allclose(np.degrees(np.arctan2(path[:, 0, 2], path[:, 2, 2])), [0, 3.5, 7, 10.5, 14], atol=1e-9)


def test_motion_is_the_exponential_map():
  generator = torch.Generator().manual_seed(0)
  for size in (1e-5, 1e-2, 1.0):
    twist = size * torch.randn(6, generator=generator, dtype=torch.float64)
    generated = torch.zeros(4, 4, dtype=torch.float64)
    x, y, z = twist[:3]
    generated[:3, :3] = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    generated[:3, 3] = twist[3:]
    torch.testing.assert_close(motion(twist), torch.linalg.matrix_exp(generated), atol=1e-9, rtol=1e-6)


def test_gradient_of_the_bundle_adjustment_is_that_of_its_cost():
  # Waves many pixels long, so that interpolation has no kinks, and points well inside, so that none come and go.
  v, u = torch.meshgrid(torch.arange(64), torch.arange(96), indexing="ij")
  phase = torch.arange(3)[:, None, None]
  image = (0.5 + 0.2 * torch.sin(u / 9 + phase / 3) + 0.2 * torch.sin(v / 7 - u / 20 + phase / 5))[None]
  k = torch.from_numpy(geometry.intrinsics(*SIZE, SIZE, CONFIG.focal))
  level = pyramid.make_level(image, k, 1, (3, 4), outlier=0.5, stride=2)
  inner = (level.rays[:2].abs() < torch.tensor([[0.3], [0.2]])).all(0)
  level = dataclasses.replace(
    level, rays=level.rays[:, inner], values=level.values[:, inner], weights=level.weights[inner]
  )
  generator = torch.Generator().manual_seed(0)
  random = lambda size, *shape: size * torch.randn(*shape, generator=generator, dtype=torch.float64)
  unknowns = bundle.Unknowns(motion(random(0.03, 1, 3, 6)), random(0.03, 1, 3, 2), random(0.1, 1, 12))
  unknowns.poses[:, 1] = torch.eye(4)
  for priors in (bundle.Priors(0, 0, 0, 0, 0), bundle.Priors(smooth=1, rough=2e-2)):
    gradient = bundle.linearise(level, unknowns, priors).gradient
    frame = bundle.FRAME_UNKNOWNS
    for group in (slice(0, 3), slice(3, 6), slice(6, 8), slice(2 * frame, 3 * frame), slice(3 * frame, None)):
      delta = torch.zeros_like(gradient)
      delta[:, group] = random(0.01, *delta[:, group].shape)
      ahead, behind = (bundle.linearise(level, bundle.step(unknowns, s * delta), priors).cost for s in (1, -1))
      torch.testing.assert_close((ahead - behind) / 2, (gradient * delta).sum(1), rtol=0.1, atol=3e-6)
