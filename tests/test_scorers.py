"""Choosing scorers, and what they may get wrong."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from sidecar_helpers import FAKES

from wr1_jax.errors import UserError
from wr1_jax.rewards.client import RewardClient
from wr1_jax.sidecar import registry
from wr1_jax.sidecar.scorers import Scorers, Unscored, View


def test_the_registered_scorers_are_there():
  for kind, known in registry.SCORERS.items():
    for name in known:
      assert callable(registry.factory(kind, name))


@pytest.mark.parametrize("change", [{"meta": "ofset_view_proxy"}, {"general": "nothing"}, {"reconstructor": ":x"}])
def test_unknown_scorers_are_refused_before_anything_starts(change):
  (kind,) = change
  with pytest.raises(UserError, match=f"config.rewards.{kind}.*it can be {next(iter(registry.SCORERS[kind]))}"):
    RewardClient(dataclasses.replace(FAKES, **change))


def test_close_names_are_suggested():
  with pytest.raises(UserError, match="did you mean 'photometric'"):
    registry.location("reconstructor", "fotometric")


SOUND = View(
  frames=np.zeros((3, 32, 40, 3), np.uint8),
  rendered=np.zeros((3, 32, 40, 3), np.uint8),
  offset_view=np.zeros((32, 40, 3), np.uint8),
  offset_alpha=np.zeros((32, 40), np.float32),
  poses=np.tile(np.eye(4), (3, 1, 1)),
  depth_unit=1.0,
)


def run_scorers(views, metas=lambda views, prompts: [0.5] * len(views)):
  """Runs scorers that answer with `views` and `metas` over as many clips."""
  scorers = Scorers(lambda videos, paths: views, metas, lambda frames, prompts: [0.5] * len(frames), general_frames=2)
  videos, count = np.zeros((len(views), 3, 64, 80, 3), np.uint8), len(views)
  outcomes, _ = scorers(videos, [None] * count, ["prompt"] * count, ["reconstruction", "meta"], size=(32, 40))
  return outcomes


@pytest.mark.parametrize(
  "wrong",
  [
    None,
    dataclasses.replace(SOUND, frames=SOUND.frames[:2]),
    dataclasses.replace(SOUND, rendered=SOUND.rendered.astype(np.float32)),
    dataclasses.replace(SOUND, offset_view=None),
    dataclasses.replace(SOUND, poses=SOUND.poses * np.nan),
    dataclasses.replace(SOUND, offset_alpha=SOUND.offset_alpha + np.inf),
    dataclasses.replace(SOUND, depth_unit=0.0),
    dataclasses.replace(SOUND, depth_unit=math.nan),
  ],
)
def test_an_unsound_reconstruction_is_never_shown_to_a_judge(wrong):
  shown = []
  lost, fine = run_scorers([wrong, SOUND], lambda views, prompts: shown.extend(views) or [0.5])
  assert lost.reasons.keys() == {"reconstruction", "meta"} and not fine.reasons
  assert shown == [SOUND] and fine.meta == 0.5


@pytest.mark.parametrize("score", [None, "0.5", math.nan, 1.01, -0.01])
def test_an_unsound_judgement_is_a_reason(score):
  (outcome,) = run_scorers([SOUND], lambda views, prompts: [score])
  assert isinstance(outcome.meta, Unscored) and outcome.view is SOUND


def test_the_wrong_number_of_results_is_a_reason():
  (outcome,) = run_scorers([SOUND], lambda views, prompts: [0.5, 0.5])
  assert "2 results for 1 clips" in outcome.reasons["meta"]
