"""What is refused before work starts."""

from __future__ import annotations

import dataclasses

import jax
import pytest

from wr1_jax.config import CameraConfig, Config, MeshConfig, ModelConfig, SamplingConfig, TrainConfig, VideoConfig
from wr1_jax.errors import UserError
from wr1_jax.models import pipeline
from wr1_jax.parallel.mesh import make_mesh
from wr1_jax.training import preflight


def _check(devices: int = 1, **sections):
  config = dataclasses.replace(Config(), **sections)
  preflight.check(config, make_mesh(config.mesh, jax.devices()[:devices]))


def test_the_defaults_pass():
  _check()


@pytest.mark.parametrize(
  "sections, said",
  [
    ({"video": VideoConfig(height=481)}, "video.height = 481.*nearest is 480"),
    ({"video": VideoConfig(width=8)}, "video.width = 8"),
    ({"video": VideoConfig(frames=80)}, "video.frames = 80.*nearest is 81"),
    ({"train": TrainConfig(main_iterations=0, dynamic_iterations=0)}, "main_iterations"),
    ({"train": TrainConfig(groups=9, groups_per_rollout=2)}, "train.groups = 9"),
    ({"sampling": SamplingConfig(window_start_max=20)}, "window_start_max"),
    ({"sampling": SamplingConfig(steps=0)}, "sampling.steps = 0"),
    ({"camera": CameraConfig(moves="push in, pan lef")}, "'pan lef'.*Did you mean 'pan left'"),
  ],
)
def test_impossible_options_are_named(sections, said):
  with pytest.raises(UserError, match=said):
    _check(**sections)


def test_batches_must_divide_over_the_mesh():
  with pytest.raises(UserError, match="groups_per_rollout x config.train.group_size is 3.*multiple of 2"):
    _check(devices=2, mesh=MeshConfig(data=2), train=TrainConfig(group_size=3))
  _check(devices=2, mesh=MeshConfig(data=2), train=TrainConfig(group_size=4))


def test_model_folder_must_exist_and_be_whole(tmp_path):
  with pytest.raises(UserError, match="no such folder.*wan-tiny"):
    pipeline.find_folder(ModelConfig(path=str(tmp_path / "nothing")))
  (tmp_path / "model" / "transformer").mkdir(parents=True)
  with pytest.raises(UserError, match="lacks vae/, text_encoder/, tokenizer/"):
    pipeline.find_folder(ModelConfig(path=str(tmp_path / "model")))
