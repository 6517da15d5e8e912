"""Checkpoints, the run folder and the log: what survives a kill, a full disk and a second start."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from wr1_jax.config import Config, OptimizerConfig, TrainConfig
from wr1_jax.data import video_files
from wr1_jax.errors import UserError
from wr1_jax.training import checkpoint, pictures, run_folder, run_log, state


def _state(rank: int = 3, seed: int = 0) -> state.TrainState:
  lora = nnx.State({"a": nnx.Param(jax.random.normal(jax.random.key(seed), (40, rank)))})
  return state.init(lora, state.make_optimizer(OptimizerConfig()))._replace(updates=jnp.int32(seed))


def test_checkpoints_come_back_exactly_and_old_ones_go(tmp_path):
  with checkpoint.Checkpoints(tmp_path / "c", keep=2) as checkpoints:
    assert checkpoints.latest() is None
    for iterations in (1, 2, 3):
      checkpoints.save(iterations, _state(seed=iterations))
  assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["2", "3"]
  with checkpoint.Checkpoints(tmp_path / "c", keep=2) as checkpoints:
    assert checkpoints.latest() == 3
    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(3, _state()), _state(seed=3))


def test_half_written_checkpoint_is_ignored(tmp_path):
  with checkpoint.Checkpoints(tmp_path, keep=2) as checkpoints:
    checkpoints.save(4, _state(seed=4))
  (tmp_path / "5.orbax-checkpoint-tmp").mkdir()
  (tmp_path / "5.orbax-checkpoint-tmp" / "policy").write_text("half")
  with checkpoint.Checkpoints(tmp_path, keep=2) as checkpoints:
    assert checkpoints.latest() == 4


def test_checkpoint_of_another_model_is_an_error(tmp_path):
  with checkpoint.Checkpoints(tmp_path, keep=2) as checkpoints:
    checkpoints.save(1, _state(rank=3))
    checkpoints.wait()
    with pytest.raises(UserError, match="checkpoint .*1 could not be read"):
      checkpoints.restore(1, _state(rank=4))


def test_full_disk_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
  with checkpoint.Checkpoints(tmp_path, keep=2) as checkpoints:
    checkpoints.save(1, _state(seed=1))
    checkpoints.wait()
    usage = checkpoint.shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="checkpoint of iteration 1 is intact"):
      checkpoints.save(2, _state(seed=2))
    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(1, _state()), _state(seed=1))


def test_folder_admits_one_run_of_one_config(tmp_path):
  config = Config(train=TrainConfig(seed=1))
  with run_folder.opened(tmp_path, config):
    assert not (tmp_path / "config.json").exists()  # a run that never begins claims nothing
    run_folder.describe(tmp_path, config, {"torch": "2.0"})
    with pytest.raises(UserError, match="another run is working"):
      with run_folder.opened(tmp_path, config):
        pass
  assert json.loads((tmp_path / "config.json").read_text())["train"]["seed"] == 1
  versions = json.loads((tmp_path / "versions.json").read_text())
  assert versions["jax"] == jax.__version__ and versions["sidecar"] == {"torch": "2.0"}
  with pytest.raises(UserError, match="train.seed: 1 -> 2"):
    with run_folder.opened(tmp_path, Config(train=TrainConfig(seed=2))):
      pass
  with run_folder.opened(tmp_path, Config(train=TrainConfig(seed=1, iterations=999))):
    pass


def test_folder_that_is_a_file_is_an_error(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="cannot be used as a folder"):
    with run_folder.opened(tmp_path / "file", Config()):
      pass


def test_metrics_after_the_checkpoint_are_written_again(tmp_path):
  with run_log.RunLog(tmp_path, resume_at=0) as log:
    for iteration in range(4):
      log.scalars(iteration, "main", {"x": iteration, "y": float("nan")})
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"iteration": 4, "ph')  # killed in the middle of a line
  with run_log.RunLog(tmp_path, resume_at=2) as log:
    log.scalars(2, "dynamic", {"x": 7.5, "y": 1})
  records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert [r["iteration"] for r in records] == [0, 1, 2]
  assert records[1] == {"iteration": 1, "phase": "main", "x": 1.0, "y": None}
  assert records[2] == {"iteration": 2, "phase": "dynamic", "x": 7.5, "y": 1.0}


def test_video_and_picture_hold_what_was_logged(tmp_path):
  clips = np.zeros((1, 2, 5, 32, 48, 3), np.uint8)
  title = "A wad of $^_^$ on a table, " * 20
  clips[0, 1, :, :, :, 0] = 200  # the right clip is red
  with run_log.RunLog(tmp_path, resume_at=0) as log:
    video = video_files.read_mp4(log.video(0, "clips", clips, fps=8))
    path = np.tile(np.eye(4), (5, 1, 1))
    drawn = pictures.camera_paths(clips[0, 0], clips[0, 1], clips[0, 1, 0], None, path, title)
    picture = np.asarray(Image.open(log.picture(0, "paths", drawn)))
  assert video.shape == (5, 32, 96, 3)
  assert video[:, :, :40].max() < 30 and abs(int(video[2, 16, 72, 0]) - 200) < 20
  np.testing.assert_array_equal(picture, drawn)


def test_a_full_disk_is_said_and_does_not_hide_what_was_written(tmp_path):
  with pytest.raises(UserError, match="metrics.jsonl could not be written.*No space left"):
    with run_log.RunLog(tmp_path, resume_at=0) as log:
      (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
      log.scalars(0, "main", {"x": 1.0})


def test_tensorboard_gets_every_value(tmp_path):
  with run_log.RunLog(tmp_path, resume_at=3) as log:
    log.scalars(3, "main", {"x": 1.5, "y": float("nan")})
    log.scalars(4, "main", {"x": 2.5, "y": 0.25})
    log.picture(4, "drawing", np.zeros((4, 6, 3), np.uint8))
  (file,) = (tmp_path / "tensorboard").iterdir()
  events = []
  data = file.read_bytes()
  while data:  # length, its checksum, the event, its checksum
    size = int.from_bytes(data[:8], "little")
    events.append(Event.FromString(data[12 : 12 + size]))
    data = data[16 + size :]
  found = [(event.step, value.tag, value.simple_value) for event in events for value in event.summary.value]
  assert found == [(3, "x", 1.5), (4, "x", 2.5), (4, "y", 0.25), (4, "drawing", 0.0)]
  assert [event.step for event in events if event.HasField("session_log")] == [3]
