"""The toy world: its geometry is exact, its captions are true, and clips depend on nothing but seed and index."""

from __future__ import annotations

import collections
import re

import jax
import numpy as np
import pytest
from scipy import ndimage

from wr1_jax.camera import words
from wr1_jax.camera.flow import intrinsics
from wr1_jax.camera.trajectory import trajectory
from wr1_jax.camera.words import Move
from wr1_jax.config import CameraConfig
from wr1_jax.data import prompts
from wr1_jax.rewards import clips as clip_files
from wr1_jax.world import Frames, Scene, WorldConfig, render, sample
from wr1_jax.world import __main__ as commands
from wr1_jax.world.materials import clouds
from wr1_jax.world.places import build
from wr1_jax.world.render import FAR
from wr1_jax.world.scene import GRAIN_WAVES, PATTERN_WAVES, SKY_WAVES, Shape, Solid, no_waves, stack

CAMERA = CameraConfig()
ONE_RAY = WorldConfig(height=40, width=64, frames=5, subrays=1)  # through the middle of each pixel
CLIPS = 8  # in every call, so that `render` is compiled once


def on_host(frames: Frames) -> Frames:
  return jax.device_get(frames)


@pytest.fixture(scope="module", params=[False, True], ids=["static", "dynamic"])
def seen(request):
  """Clips and what is seen of them, one ray a pixel."""
  clips = sample(3, range(CLIPS), ONE_RAY, CAMERA, dynamic=request.param)
  return clips, on_host(render(clips.scenes, clips.poses, ONE_RAY, CAMERA))


@pytest.fixture(scope="module")
def many():
  return sample(5, range(600), ONE_RAY, CAMERA)


# --- geometry ---------------------------------------------------------------------------------------------------------


def pixel_rays(config: WorldConfig) -> np.ndarray:
  """Directions [H, W, 3] through the middles of all pixels, float64."""
  y, x = np.mgrid[: config.height, : config.width]
  homogeneous = np.stack([x, y, np.ones_like(x)], -1)
  return homogeneous @ np.linalg.inv(intrinsics(config.height, config.width, CAMERA.focal)).T


def carried(frames: Frames, poses: np.ndarray, clip: int, i: int, j: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Where the pixels of frame i are in frame j: (row, column) [2, H, W], depth there, and what frame i's depth was."""
  depth = frames.depth[clip, i].astype(np.float64)
  points = pixel_rays(ONE_RAY) * depth[..., None] @ poses[clip, i, :3, :3].T + poses[clip, i, :3, 3]
  local = (points - poses[clip, j, :3, 3]) @ poses[clip, j, :3, :3]
  x, y, _ = np.moveaxis(local @ intrinsics(ONE_RAY.height, ONE_RAY.width, CAMERA.focal).T / local[..., 2:], -1, 0)
  return np.stack([y, x]), local[..., 2], depth


def looked_up(image: np.ndarray, position: np.ndarray) -> np.ndarray:
  return ndimage.map_coordinates(image, position, order=1, mode="nearest")


@pytest.mark.parametrize("i, j", [(0, 2), (4, 1), (2, 3)])
def test_pixels_are_where_poses_and_depth_take_them(seen, i, j):
  clips, frames = seen
  errors, in_view, explained, seen_through = [], 0, 0, 0
  for clip in range(CLIPS):
    position, depth, before = carried(frames, clips.poses, clip, i, j)
    there = 1 / looked_up(1 / frames.depth[clip, j], position)  # of a plane, the inverse depth is linear in the image
    inside = (before < FAR) & (depth > 0.05)
    inside &= (position > 0).all(0) & (position[0] < ONE_RAY.height - 1) & (position[1] < ONE_RAY.width - 1)
    # What moves, and what it hides or uncovers, follows no camera.
    inside &= ~frames.moving[clip, i] & (looked_up(frames.moving[clip, j].astype(float), position) == 0)
    same = inside & (np.abs(there / depth - 1) < 0.01)
    in_view, explained = in_view + inside.sum(), explained + (inside & (there < 1.01 * depth)).sum()
    seen_through += (inside & (there > 1.05 * depth)).sum()
    colours = [looked_up(frames.video[clip, j, ..., c], position) for c in range(3)]
    errors.append(np.abs(np.stack(colours, -1) - frames.video[clip, i]).mean(-1)[same])
  errors = np.concatenate(errors)
  # A point is seen at its depth, or something nearer hides it; the rest are pixels on edges.
  assert explained > 0.95 * in_view
  assert seen_through < 0.02 * in_view
  assert len(errors) > 0.88 * in_view
  # Interpolation between pixels of a grainy texture is what is left of the error; colours span 2.
  assert np.median(errors) < 0.01
  assert np.mean(errors > 0.2) < 0.015


def test_something_moves_in_dynamic_clips_only(seen):
  clips, frames = seen
  assert (frames.moving.any((1, 2, 3)) == clips.dynamic).all()
  assert clips.dynamic.all() or not clips.dynamic.any()


def nothing_but(solid: Solid) -> Scene:
  sky = np.zeros((2, 3), np.float32)
  waves = clouds(np.random.default_rng(0), SKY_WAVES)
  up = np.array([0, -1, 0], np.float32)
  return Scene(stack([solid]), sky, jax.tree.map(lambda x: x.astype(np.float32), waves), up)


def first_hits(solid: Solid, origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
  """Where rays [..., 3] from `origin` hit a solid first, or inf: by trying all of its surfaces."""
  cos, sin = np.cos(solid.yaw), np.sin(solid.yaw)
  to_local = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])  # yaw turns +z to the left, towards -x
  start, step = to_local @ (origin - solid.centre) / solid.size, rays @ to_local.T / solid.size
  inside_out = solid.shape == Shape.ROOM
  hits = []

  def add(distance, on_surface):
    hits.append(np.where(on_surface & (distance > 1e-6), distance, np.inf))

  def flat(axis, others):
    for side in (-1, 1):
      distance = (side - start[axis]) / step[..., axis]
      # A room shows the faces that the ray leaves through.
      outwards = step[..., axis] * side > 0
      add(distance, others(start + distance[..., None] * step) & (outwards == inside_out))

  def quadric(axes, others):
    a, b = (step[..., axes] ** 2).sum(-1), (step[..., axes] * start[axes]).sum(-1)
    root = b**2 - a * ((start[axes] ** 2).sum() - 1)
    distance = (-b - np.sqrt(np.maximum(root, 0))) / a
    add(distance, (root > 0) & others(start + distance[..., None] * step))

  with np.errstate(divide="ignore", invalid="ignore"):
    match solid.shape:
      case Shape.BOX | Shape.ROOM:
        for axis in range(3):
          rest = [i for i in range(3) if i != axis]
          flat(axis, lambda point, rest=rest: (np.abs(point[..., rest]) <= 1).all(-1))
      case Shape.ELLIPSOID:
        quadric([0, 1, 2], lambda point: True)
      case Shape.CYLINDER:
        quadric([0, 2], lambda point: np.abs(point[..., 1]) <= 1)
        flat(1, lambda point: np.hypot(point[..., 0], point[..., 2]) <= 1)
  return np.min(hits, 0)


def test_rays_meet_solids_where_algebra_says():
  rng = np.random.default_rng(0)
  solids = []
  for shape in (Shape.BOX, Shape.ELLIPSOID, Shape.CYLINDER, Shape.ROOM):
    for yaw in (0.0, 0.7):
      centre, size = ([0.1, 0, 0.3], [0.8, 0.4, 1.5]) if shape == Shape.ROOM else ([0.05, 0.03, 1], [0.2, 0.15, 0.3])
      waves = no_waves(PATTERN_WAVES), no_waves(GRAIN_WAVES)
      solids.append(Solid(shape, np.array(centre), np.array(size), np.full((2, 3), 0.5), *waves, yaw=yaw))
  poses = np.tile(np.eye(4, dtype=np.float32), (CLIPS, ONE_RAY.frames, 1, 1))
  for t in range(1, ONE_RAY.frames):
    turn, _ = np.linalg.qr(np.eye(3) + 0.15 * rng.normal(size=(3, 3)))
    poses[:, t, :3, :3] = turn * np.sign(np.diag(turn))
    poses[:, t, :3, 3] = rng.uniform(-0.15, 0.15, 3)
  scenes = jax.tree.map(lambda *x: np.stack(x), *[nothing_but(solid) for solid in solids])
  depth = on_host(render(scenes, poses, ONE_RAY, CAMERA)).depth
  for clip, solid in enumerate(solids):
    for t, pose in enumerate(poses[clip].astype(np.float64)):
      # Rays have z = 1 in the camera, so a hit's distance in rays is its depth.
      expected = np.minimum(first_hits(solid, pose[:3, 3], pixel_rays(ONE_RAY) @ pose[:3, :3].T), FAR)
      hit = expected < FAR
      assert hit.any()
      assert np.mean(hit != (depth[clip, t] < FAR)) < 0.002, solid.shape  # silhouettes, to rounding
      both = hit & (depth[clip, t] < FAR)
      error = np.abs(depth[clip, t] / np.where(both, expected, 1) - 1)[both]
      assert np.quantile(error, 0.98) < 1e-4, solid.shape
  # The far wall of a room, seen straight on, has one depth.
  np.testing.assert_allclose(depth[6, 0, 18:22, 24:40], 1.8, rtol=1e-5)


def at_times(solids, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Centres and half sizes [n, solids, T, 3]."""
  angle = 2 * np.pi * solids.cycles[..., None] * times
  swung = np.sin(angle + solids.phase[..., None]) - np.sin(solids.phase)[..., None]
  drift = solids.drift[:, :, None] * times[:, None]
  centre = solids.centre[:, :, None] + drift + solids.swing[:, :, None] * swung[..., None]
  return centre, solids.size[:, :, None] * (1 + solids.pulse[:, :, None] * np.sin(angle)[..., None])


def test_cameras_stay_out_of_solids_and_within_rooms(many):
  solids = many.scenes.solids
  centre, size = at_times(solids, np.linspace(0, 1, ONE_RAY.frames))
  away = many.poses[:, None, :, :3, 3] - centre
  cos, sin = np.cos(solids.yaw)[..., None], np.sin(solids.yaw)[..., None]
  x, y, z = np.moveaxis(away, -1, 0)
  local = np.abs(np.stack([cos * x + sin * z, y, cos * z - sin * x], -1) / size)
  shape = solids.shape[..., None]
  within = {
    Shape.BOX: local.max(-1) < 1,
    Shape.ELLIPSOID: np.linalg.norm(local, axis=-1) < 1,
    Shape.CYLINDER: (np.hypot(local[..., 0], local[..., 2]) < 1) & (local[..., 1] < 1),
  }
  for kind, inside in within.items():
    assert not (inside & (shape == kind)).any(), kind
  assert (local.max(-1) < 1)[np.broadcast_to(shape == Shape.ROOM, local.shape[:-1])].all()


def test_more_rays_change_little():
  clips = sample(3, range(2), ONE_RAY, CAMERA, dynamic=False)
  poses = clips.poses[:, [0, -1]]
  few, many = (on_host(render(clips.scenes, poses, WorldConfig(64, 104, 2, subrays=n), CAMERA)).video for n in (2, 8))
  difference = np.abs(few - many).mean(-1)
  assert difference.mean() < 0.008  # colours span 2
  assert np.quantile(difference, 0.99) < 0.12


# --- clips and captions -----------------------------------------------------------------------------------------------


def test_a_clip_is_a_function_of_seed_and_index():
  together = sample(11, [4, 5, 6], ONE_RAY, CAMERA)
  alone = sample(11, [5], ONE_RAY, CAMERA)
  assert together.captions[1] == alone.captions[0]
  assert together.moves[1] == alone.moves[0]
  assert together.dynamic[1] == alone.dynamic[0]
  np.testing.assert_array_equal(together.poses[1], alone.poses[0])
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1], b[0]), together.scenes, alone.scenes)
  assert len(set(together.captions)) == 3
  assert sample(12, [5], ONE_RAY, CAMERA).captions != alone.captions


def test_a_frame_does_not_depend_on_its_batch(seen):
  clips, frames = seen
  order = np.roll(np.arange(CLIPS), 3)
  shuffled = jax.tree.map(lambda x: x[order], clips.scenes)
  again = on_host(render(shuffled, clips.poses[order], ONE_RAY, CAMERA))
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[order], b), frames, again)


def test_a_clip_alone_is_the_clip_in_a_batch(seen):
  clips, frames = seen
  alone = on_host(render(jax.tree.map(lambda x: x[2:3], clips.scenes), clips.poses[2:3], ONE_RAY, CAMERA))
  np.testing.assert_allclose(alone.video[0], frames.video[2], atol=1e-5)
  np.testing.assert_allclose(alone.depth[0], frames.depth[2], rtol=1e-5)


def test_captions_name_the_moves(many):
  for caption, moves in zip(many.captions, many.moves):
    assert words.parse(caption) == moves
    scene = caption.split(". ", 1)[1] if moves else caption
    assert not words.parse(scene)
    assert "camera" not in scene.lower()
    assert caption.startswith("Camera ") == bool(moves)
    assert caption.endswith(".") and "  " not in caption and scene[0].isupper()


def test_articles_fit_their_words(many):
  for caption in many.captions:
    for article, letter in re.findall(r"\b(an?) (\w)", caption, re.IGNORECASE):
      assert (article.lower() == "an") == (letter in "aeiou"), caption


def test_paths_are_those_of_the_moves(many):
  def path(moves):
    poses = trajectory(moves, ONE_RAY.frames, CAMERA)
    poses[:, :3, 3] /= CAMERA.scene_depth
    return poses

  single = [path((move,)) for move in Move]
  for moves, poses in zip(many.moves, many.poses):
    if moves:
      np.testing.assert_allclose(poses, path(moves), atol=1e-6)
    else:
      assert min(np.abs(poses - other).max() for other in single) < 1e-6
  assert many.poses.dtype == np.float32


def test_shares_of_kinds(many):
  count = len(many.captions)
  kinds = collections.Counter(
    "fixed" if moves == (Move.FIXED,) else ("implicit", "single", "composite")[len(moves)] for moves in many.moves
  )
  for kind, share in {"implicit": 0.1, "single": 0.5, "composite": 0.25, "fixed": 0.15}.items():
    assert kinds[kind] / count == pytest.approx(share, abs=0.06), kind
  assert many.dynamic.mean() == pytest.approx(0.2, abs=0.06)
  assert np.mean([" room " in caption for caption in many.captions]) == pytest.approx(0.5, abs=0.08)
  # Every single move comes up, and no caption is common.
  assert {moves[0] for moves in many.moves if len(moves) == 1} == set(Move)
  assert len(set(many.captions)) > 0.98 * count


def test_dynamic_on_request():
  for dynamic in (False, True):
    clips = sample(1, range(20), ONE_RAY, CAMERA, dynamic=dynamic)
    assert (clips.dynamic == dynamic).all()
    changes = [getattr(clips.scenes.solids, name).any((1, 2)) for name in ("drift", "swing", "pulse", "flow")]
    assert (np.any(changes, 0) == dynamic).all()


def test_too_many_solids_are_an_error():
  solid = Solid(Shape.BOX, np.zeros(3), np.ones(3), np.zeros((2, 3)), no_waves(PATTERN_WAVES), no_waves(GRAIN_WAVES))
  with pytest.raises(ValueError, match="13 solids"):
    stack([solid] * 13)


def test_all_scenes_fit():
  poses = np.tile(np.eye(4), (5, 1, 1))
  for seed in range(300):
    build(np.random.default_rng(seed), poses, bool(seed % 2))


@pytest.mark.parametrize("name", ["world_static.txt", "world_dynamic.txt", "world_heldout.txt"])
def test_shipped_prompts_are_what_the_command_writes(name):
  lines = commands.prompts(name)
  assert prompts.load(name).texts == tuple(lines) and len(set(lines)) == len(lines)


def test_clips_and_their_ground_truth_are_written(tmp_path):
  commands.write_clips(tmp_path, 1, seed=0, dynamic=True)
  (video,) = clip_files.find(tmp_path)
  truth = np.load(tmp_path / "00000.npz")
  assert clip_files.read(video).shape == truth["video"].shape == (17, 96, 160, 3)
  assert truth["depth"].shape == truth["moving"].shape == (17, 96, 160) and truth["moving"].any()
  assert truth["poses"].shape == (17, 4, 4) and truth["intrinsics"].shape == (3, 3)
  assert len(prompts.read_lines(tmp_path / "prompts.txt")) == 1
