"""The validation of the rewards: its paths, its measures, and the report on verdicts that are made up."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from wr1_jax import config as config_lib
from wr1_jax.camera.trajectory import trajectory
from wr1_jax.camera.words import Move
from wr1_jax.config import CameraConfig, RewardsConfig
from wr1_jax.rewards.trajectory import trajectory_score
from wr1_jax.validation import paths, report, trials
from wr1_jax.validation.measures import auroc, path_error, rank_correlation
from wr1_jax.validation.trials import Verdict
from wr1_jax.world import WorldConfig, inconsistency, sample

CAMERA = CameraConfig(scene_depth=1.0, zoom=0.6, move=0.22, orbit_radius=0.6, pull_move=0.16, pull_zoom=0.3)


def path(*moves: Move, frames: int = 9) -> np.ndarray:
  return trajectory(moves, frames, CAMERA)


def test_wrong_paths():
  np.testing.assert_allclose(paths.mirrored(path(Move.ORBIT_LEFT)), path(Move.ORBIT_RIGHT), atol=1e-6)
  np.testing.assert_allclose(paths.reversed_path(path(Move.PUSH_IN)), path(Move.PULL_OUT), atol=1e-6)
  np.testing.assert_allclose(paths.reversed_path(path(Move.PAN_LEFT)), path(Move.PAN_RIGHT), atol=1e-6)
  assert not paths.differ(paths.mirrored(path(Move.PUSH_IN)), path(Move.PUSH_IN))


def test_perturbed_paths_are_wrong_by_their_amount():
  true = path(Move.ORBIT_LEFT)
  made = paths.perturbed(true, np.random.default_rng(0))
  np.testing.assert_allclose(made[:3], [true] * 3, atol=1e-6)  # of the amount 0
  scores = np.array([trajectory_score(true, 1, other, 1, RewardsConfig()).score for other in made]).reshape(-1, 3)
  assert (np.diff(scores[:, 1:], axis=0) < 1e-6).all()
  for other in made:
    np.testing.assert_allclose(other[0], np.eye(4), atol=1e-6)
    np.testing.assert_allclose(other[:, :3, :3] @ other[:, :3, :3].mT, np.tile(np.eye(3), (9, 1, 1)), atol=1e-5)


def test_path_errors():
  true = path(Move.MOVE_LEFT)
  error = path_error(true * np.array([1, 1, 1, 2.0]), true)
  assert (error.rotation, error.direction) == pytest.approx((0, 0), abs=1e-5)
  assert error.size == pytest.approx(2)
  assert path_error(path(Move.PUSH_IN), true).direction == pytest.approx(90)
  assert np.isnan(path_error(true, path(Move.PAN_LEFT)).direction)
  turned = path_error(path(Move.PAN_RIGHT), path(Move.PAN_LEFT))
  assert turned.rotation == pytest.approx(14, abs=0.01)  # 28 degrees at the end, half of that on the way


def test_auroc_and_rank_correlation():
  assert auroc([2, 3], [0, 1]) == 1
  assert auroc([1, 1], [1]) == 0.5
  assert auroc([0, np.nan], [1]) == 0
  assert np.isnan(auroc([], [1]))
  assert rank_correlation([1, 2, 3], [10, 20, 1000]) == pytest.approx(1)


@pytest.mark.parametrize("kind", inconsistency.KINDS)
def test_spoiled_clips_differ_from_rigid_ones_and_start_like_them(kind):
  world = WorldConfig(40, 64, 5)
  clips = sample(0, range(2), world, CameraConfig(), dynamic=False)
  arguments = clips.scenes, clips.poses, world, CameraConfig()
  rigid = inconsistency.videos_of(*arguments).astype(float)
  spoiled = inconsistency.spoiled(kind, *arguments, seeds=np.arange(2))
  assert spoiled.dtype == np.uint8
  change = np.abs(spoiled - rigid).mean((0, 2, 3, 4))
  assert change.max() > 3  # of 255
  if kind != "warped":
    assert change[0] < 0.5
  np.testing.assert_array_equal(spoiled, inconsistency.spoiled(kind, *arguments, seeds=np.arange(2)))


def test_a_share_of_the_world_is_not_rigid():
  """Which clips, and how, is a matter of their numbers alone."""
  clips = sample(0, range(40), WorldConfig(40, 64, 5), CameraConfig(), dynamic=False)

  def changed(share: float, chosen: slice = slice(0, 40)) -> tuple[np.ndarray, np.ndarray]:
    scenes = jax.tree.map(lambda x: x[chosen], clips.scenes)
    spoiled = inconsistency.some_unsound(scenes, 0, range(40)[chosen], share)
    differ = lambda name: (getattr(spoiled.solids, name) != getattr(scenes.solids, name)).any((1, 2))
    return differ("pulse") | differ("swing"), differ("flow")

  assert not np.any(changed(0.0))
  morphing, swimming = changed(1.0)
  assert (morphing ^ swimming).all() and 8 < morphing.sum() < 32
  half = np.any(changed(0.5), axis=0)
  assert 8 < half.sum() < 32
  np.testing.assert_array_equal(np.any(changed(0.5, slice(20, 40)), axis=0), half[20:])


def test_a_perfect_judge_meets_all_targets():
  config = config_lib.resolve(config_lib.default())
  clips = trials.held_out(12, 0, config)
  verdicts = []
  for i, true in enumerate(clips.poses):
    asked = trials.asked(clips, i)
    found = {kind: (true, 0.3) for kind in inconsistency.KINDS}
    found |= {"rigid": (true, 0.9), "frozen": (np.tile(np.eye(4), (len(true), 1, 1)), 0.95)}
    for kind, (poses, recon) in found.items():
      if kind == "frozen" and i not in trials.moving(clips):
        continue
      traj = np.nan if asked is None else trajectory_score(poses, 1, asked, 1, config.rewards).score
      scores = {"recon": recon, "traj": traj, "meta": 0.5, "general": 0.5, "total": recon + np.nan_to_num(traj) + 1}
      verdicts.append(Verdict(kind, i, poses, scores, []))
  made = report.Report(clips, verdicts, {"reconstruction": 1.0}, config.rewards)
  lines = made.lines()
  assert all(line.holds is not False for line in lines), [line for line in lines if line.holds is False]
  assert sum(line.holds is True for line in lines) == 12  # all that have targets
  table = report.markdown(lines, made.groups())
  assert "**no**" not in table and "| room |" in table
  json.dumps(made.rows(), allow_nan=False)
