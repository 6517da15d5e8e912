"""The stand-ins for the learned judges notice the faults that they are meant to notice."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scenes
from scipy import ndimage

from wr1_jax.config import ReconstructionConfig, RewardsConfig
from wr1_jax.sidecar import proxies
from wr1_jax.sidecar.photometric.scorer import make

CONFIG = ReconstructionConfig(max_pixels=64 * 96)


def view(name: str, seed: int = 1, **kwargs):
  clip = scenes.render(scenes.Room.make(seed), scenes.move(name, 9), 64, 96, **kwargs)
  return make(RewardsConfig(reconstruction=CONFIG))(clip[None], [None])[0]


@pytest.fixture(scope="module")
def photograph():
  return scenes.render(scenes.Room.make(0), scenes.move("fixed", 1))


def changed(frames, function):
  return np.clip(np.stack([function(frame.astype(np.float64)) for frame in frames]), 0, 255).round().astype(np.uint8)


def test_frame_quality_prefers_good_frames(photograph):
  rng = np.random.default_rng(0)
  good = proxies.frame_quality_proxy(photograph)
  faults = {
    "blurred": lambda x: ndimage.gaussian_filter(x, (2, 2, 0)),
    "noisy": lambda x: x + rng.normal(0, 25, x.shape),
    "dark": lambda x: 0.2 * x,
    "overexposed": lambda x: 2.5 * x,
    "flat": lambda x: 120 + 0.1 * x,
  }
  for name, fault in faults.items():
    assert proxies.frame_quality_proxy(changed(photograph, fault)) < good - 0.1, name
  assert 0.7 < good <= 1


def test_noise_does_not_make_up_for_blur(photograph):
  rng = np.random.default_rng(0)
  blurred = changed(photograph, lambda x: ndimage.gaussian_filter(x, (2, 2, 0)))
  sharp = proxies.frame_quality_proxy(photograph)
  for strength in (1, 3, 6, 12, 25):
    noisy = changed(blurred, lambda x: x + rng.normal(0, strength, x.shape))
    assert proxies.frame_quality_proxy(noisy) <= sharp + 0.02, strength


@pytest.mark.parametrize("value", [0, 128, 255])
def test_frame_quality_of_an_empty_picture_is_zero(value):
  assert proxies.frame_quality_proxy(np.full((2, 64, 64, 3), value, np.uint8)) == 0


def test_offset_view_prefers_whole_scenes():
  whole = view("move right")
  good = proxies.offset_view_proxy(whole, CONFIG)
  rng = np.random.default_rng(0)
  floaters = rng.uniform(size=whole.offset_alpha.shape) < 0.05
  spotted = np.where(floaters[..., None], 255 - whole.offset_view, whole.offset_view)
  half_gone = whole.offset_alpha * (np.arange(96) < 48)
  smeared = ndimage.gaussian_filter(whole.offset_view.astype(float), (1, 5, 0)).astype(np.uint8)
  assert proxies.offset_view_proxy(dataclasses.replace(whole, offset_view=spotted), CONFIG) < 0.6 * good
  assert proxies.offset_view_proxy(dataclasses.replace(whole, offset_alpha=half_gone), CONFIG) < 0.8 * good
  assert proxies.offset_view_proxy(dataclasses.replace(whole, offset_view=smeared), CONFIG) < 0.9 * good


def test_offset_view_favours_neither_frozen_clips_nor_orbits():
  frozen = proxies.offset_view_proxy(view("fixed"), CONFIG)
  scores = {name: proxies.offset_view_proxy(view(name), CONFIG) for name in ("move left", "orbit left", "pull out")}
  assert frozen < min(scores.values())
  assert scores["orbit left"] <= max(scores["move left"], scores["pull out"])
  assert all(0 <= score <= 1 for score in scores.values())


def test_a_wall_fills_the_share_of_the_offset_view_that_geometry_says():
  flat = view("fixed")  # a clip without motion is reconstructed as a wall
  assert flat.offset_alpha.mean() == pytest.approx(proxies.wall_coverage(CONFIG), abs=0.03)
