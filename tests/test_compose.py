"""How the parts of a clip's reward go together."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from wr1_jax.camera.trajectory import trajectory
from wr1_jax.camera.words import Move
from wr1_jax.config import CameraConfig, RewardsConfig
from wr1_jax.rewards.compose import DYNAMIC, METRICS, NO_TARGET, Composer
from wr1_jax.rewards.jobs import ClipResult, in_scene_depths

CAMERA = CameraConfig()
TARGET = trajectory([Move.PUSH_IN], 5, CAMERA)
FRAMES = np.kron(np.random.default_rng(0).integers(0, 256, (5, 5, 6, 3)), np.ones((1, 8, 8, 1))).astype(np.uint8)
# The clip does exactly what was asked for; its scene is 2 deep.
PERFECT = ClipResult(
  frames=FRAMES,
  rendered=FRAMES,
  offset_view=FRAMES[0],
  depth_unit=2.0,
  meta=0.5,
  general=0.25,
  poses=in_scene_depths(TARGET, CAMERA.scene_depth / 2),
)


@pytest.fixture(scope="module")
def compose():
  return Composer(RewardsConfig(general_weight=2.0), CAMERA)


def one(compose, result=PERFECT, target=TARGET, static=True):
  (reward,) = compose([result], [target], [static])
  return reward


def change(**changes):
  return dataclasses.replace(PERFECT, **changes)


def test_all_parts_make_the_total(compose):
  reward = one(compose)
  assert reward.recon == pytest.approx(1, abs=1e-6) and reward.traj == pytest.approx(1, abs=1e-6)
  assert reward.total == pytest.approx(1 + 1 + 0.5 + 2 * 0.25, abs=1e-5)
  assert reward.valid and not reward.reasons
  assert reward.metrics().keys() == set(METRICS) and reward.metrics()["reward/meta"] == 0.5


def test_failures_are_what_should_be_there_and_is_not(compose):
  reward = one(compose, change(meta=math.nan, reasons={"meta": "no wish to"}), target=None)
  assert reward.failures == ["reward/meta: no wish to"] and not reward.valid
  assert one(compose, static=False).failures == []


def test_a_single_frame_has_no_path(compose):
  reward = one(compose, change(frames=FRAMES[:1], rendered=FRAMES[:1], poses=PERFECT.poses[:1]), target=TARGET[:1])
  assert reward.valid and math.isnan(reward.traj) and "single frame" in reward.reasons["reward/traj"]


def test_frame_k_is_compared_with_frame_k(compose):
  assert one(compose, change(rendered=np.roll(FRAMES, 1, 0))).recon < 0.85


def test_recon_stays_within_its_bounds(compose):
  black, white = np.zeros_like(FRAMES), np.random.default_rng(1).integers(0, 2, FRAMES.shape, np.uint8) * 255
  assert 0 <= one(compose, change(frames=black, rendered=white)).recon < 0.3


def test_without_a_target_the_trajectory_is_left_out_and_the_clip_stays_valid(compose):
  reward = one(compose, target=None)
  assert math.isnan(reward.traj) and reward.reasons == {"reward/traj": NO_TARGET}
  assert reward.total == pytest.approx(1 + 0.5 + 2 * 0.25, abs=1e-5) and reward.valid


def test_a_dynamic_clip_does_not_switch_off_the_others(compose):
  dynamic, static = compose([PERFECT, PERFECT], [TARGET, TARGET], [False, True])
  assert dynamic.total == pytest.approx(2 * 0.25) and dynamic.valid
  assert math.isnan(dynamic.meta) and math.isnan(dynamic.recon) and math.isnan(dynamic.traj)
  assert set(dynamic.reasons.values()) == {DYNAMIC}
  assert static == one(compose)


@pytest.mark.parametrize(
  "lost, missing",
  [
    ({"meta": math.nan, "reasons": {"meta": "why"}}, {"reward/meta"}),
    ({"general": math.nan, "reasons": {"general": "why"}}, {"reward/general"}),
    (
      {"frames": None, "rendered": None, "poses": None, "reasons": {"reconstruction": "why"}},
      {"reward/recon", "reward/traj"},
    ),
  ],
)
def test_a_part_that_failed_makes_the_clip_invalid_and_says_why(compose, lost, missing):
  reward = one(compose, change(**lost))
  assert math.isnan(reward.total) and not reward.valid
  assert reward.reasons.keys() == missing | {"reward/total"}
  assert all(reward.reasons[name] == "why" for name in missing)
  assert {name for name, value in reward.metrics().items() if math.isnan(value)} == reward.reasons.keys()


def test_poses_that_are_not_finite_are_never_scored(compose):
  poses = PERFECT.poses.copy()
  poses[3, 0, 3] = np.nan
  reward = one(compose, change(poses=poses))
  assert math.isnan(reward.traj) and math.isnan(reward.total) and reward.reasons["reward/traj"]
  assert reward.recon == pytest.approx(1, abs=1e-6)


def test_the_lists_must_go_together(compose):
  with pytest.raises(ValueError):
    compose([PERFECT], [TARGET, TARGET], [True])


def test_a_term_without_weight_is_known_but_neither_counted_nor_needed():
  compose = Composer(RewardsConfig(recon_weight=0.0, meta_weight=0.0, traj_weight=3.0), CAMERA)
  reward = one(compose, change(meta=math.nan, reasons={"meta": "why"}))
  assert reward.valid and reward.total == pytest.approx(3 * 1 + 0.25, abs=1e-5)
  assert reward.recon == pytest.approx(1, abs=1e-6) and math.isnan(reward.meta)
  assert reward.reasons == {"reward/meta": "why"}


def test_a_clip_whose_terms_have_no_weight_has_no_reward():
  reward = one(Composer(RewardsConfig(general_weight=0.0), CAMERA), static=False)
  assert not reward.valid and "no term" in reward.reasons["reward/total"]
