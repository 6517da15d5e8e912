"""The whole loop as its users run it: a process that is killed, stopped and started again."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from wr1_jax.data import video_files
from wr1_jax.errors import UserError
from wr1_jax.rewards.compose import ClipReward
from wr1_jax.sampling.rollout import Rollout
from wr1_jax.training import reports
from wr1_jax.training.iteration import Batch, Scored

_REPO = Path(__file__).parents[1]
_ITERATIONS = 5
_OPTIONS = (
  f"--config={_REPO / 'configs' / 'tiny.py'}",
  "--config.video.height=64",
  "--config.video.width=64",
  "--config.video.frames=5",
  "--config.sampling.steps=4",
  "--config.sampling.window_start_max=2",
  f"--config.train.iterations={_ITERATIONS}",
  "--config.train.main_iterations=2",
  "--config.train.dynamic_iterations=1",
  "--config.train.groups=2",
  "--config.train.group_size=2",
  "--config.train.decode_batch=2",
  "--config.train.update_batch=2",
  "--config.train.checkpoint_every=2",
  "--config.train.compare=2",
)
_NEEDED = (
  "iteration",
  "phase",
  "reward/total",
  "reward/recon",
  "reward/traj",
  "reward/meta",
  "reward/general",
  "reward/valid_fraction",
  "policy/ratio_mean",
  "policy/clip_fraction",
  "policy/kl",
  "policy/grad_norm",
  "policy/advantage_abs",
  "time/rollout",
  "time/decode",
  "time/reward_wait",
  "time/update",
  "time/total",
)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
  """Starts a run in a folder; runs share a compilation cache, and none outlives the module."""
  cache = tmp_path_factory.mktemp("cache")
  environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache), "XLA_FLAGS": ""}
  environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
  environment["PYTHONPATH"] = str(Path(__file__).parent)  # for `fake_scorers`
  started = []

  def start(workdir: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "wr1_jax.train", *_OPTIONS, *options, f"--workdir={workdir}"]
    process = subprocess.Popen(
      command, cwd=_REPO, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    started.append(process)
    return process

  yield start
  for process in started:
    process.kill()


def _records(workdir: Path) -> list[dict]:
  path = workdir / "metrics.jsonl"
  return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _wait_for_iterations(process: subprocess.Popen, workdir: Path, count: int) -> None:
  deadline = time.monotonic() + 400
  while len(_records(workdir)) < count:
    assert process.poll() is None, process.stdout.read()
    assert time.monotonic() < deadline, "the run makes no progress"
    time.sleep(0.05)


def _without_times(records: list[dict]) -> list[dict]:
  return [{name: value for name, value in record.items() if not name.startswith("time/")} for record in records]


@pytest.fixture(scope="module")
def finished(start, tmp_path_factory) -> Path:
  """The folder of a run that was never disturbed."""
  workdir = tmp_path_factory.mktemp("finished")
  process = start(workdir)
  output, _ = process.communicate(timeout=400)
  assert process.returncode == 0, output
  return workdir


def test_metrics_are_complete(finished):
  records = _records(finished)
  assert [record["iteration"] for record in records] == list(range(_ITERATIONS))
  assert [record["phase"] for record in records] == ["main", "main", "dynamic", "main", "main"]
  for record in records:
    assert not set(_NEEDED) - set(record)
    assert abs(record["policy/ratio_mean"] - 1) < 1e-3  # one update an iteration: each is the first on its rollouts
    assert record["reward/valid_fraction"] == 1
    dynamic = record["phase"] == "dynamic"
    for part in ("recon", "traj", "meta"):
      assert (record[f"reward/{part}"] is None) == dynamic
  assert records[0]["policy/kl"] == 0 and records[-1]["policy/kl"] > 0


def test_run_folder_is_complete(finished):
  assert {path.name for path in finished.iterdir()} >= {
    "metrics.jsonl",
    "tensorboard",
    "videos",
    "pictures",
    "checkpoints",
    "config.json",
    "versions.json",
  }
  assert sorted(path.name for path in (finished / "checkpoints").iterdir()) == ["2", "4", "5"]
  assert list((finished / "videos").glob("*_rollouts.mp4")) and list((finished / "pictures").glob("*_camera_path.png"))


def test_what_changed_is_shown(finished):
  """Clips before and after, from the same noise: alike, as five small steps change little, but not the same."""
  frames = video_files.read_mp4(finished / "videos" / f"{_ITERATIONS:06d}_before_after.mp4").astype(float)
  assert frames.shape == (5, 2 * 64, 2 * 64, 3)  # before above after, two prompts
  before, after = frames[:, :64], frames[:, 64:]
  assert 0 < np.abs(before - after).mean() < 0.5 * before.std()
  assert (finished / "pictures" / f"{_ITERATIONS:06d}_rewards.png").stat().st_size > 10_000


def test_killed_and_stopped_runs_go_on_exactly(start, finished, tmp_path):
  process = start(tmp_path)
  _wait_for_iterations(process, tmp_path, 3)  # one past the checkpoint
  process.send_signal(signal.SIGKILL)
  process.wait()

  process = start(tmp_path)
  output = ""
  while "\niteration 2 dynamic" not in output:
    line = process.stdout.readline()
    assert line, output
    output += line
  assert "going on after iteration 1" in output
  process.send_signal(signal.SIGTERM)
  output, _ = process.communicate(timeout=200)
  assert process.returncode == 0, output
  assert "SIGTERM" in output

  process = start(tmp_path)
  output, _ = process.communicate(timeout=400)
  assert process.returncode == 0, output
  assert _without_times(_records(tmp_path)) == _without_times(_records(finished))


def test_the_loop_learns(start, tmp_path):
  """A reward that is a matter of colour alone, of single pictures, goes all the way up."""
  prompts = tmp_path / "prompts.txt"
  prompts.write_text(
    "A red ball in a blue room.\nA grey rock on grass.\nA white box and a green egg.\nA pillar on sand.\n"
  )
  process = start(
    tmp_path / "run",
    "--config.video.frames=1",
    "--config.video.height=32",
    "--config.video.width=48",
    "--config.noise_warp.mode=none",
    "--config.sampling.guidance=1",
    "--config.rewards.general=fake_scorers:Redness",
    f"--config.data.dynamic_prompts={prompts}",
    "--config.optimizer.learning_rate=1e-3",
    "--config.train.iterations=20",
    "--config.train.main_iterations=0",
    "--config.train.groups=4",
    "--config.train.groups_per_rollout=4",
    "--config.train.group_size=8",
    "--config.train.decode_batch=32",
    "--config.train.update_batch=32",
    "--config.train.video_every=100",
    "--config.train.compare=0",
  )
  output, _ = process.communicate(timeout=400)
  assert process.returncode == 0, output
  redness = [record["reward/general"] for record in _records(tmp_path / "run")]
  assert len(redness) == 20
  # Every iteration sees all four prompts. Measured: from 0.2 to 0.9.
  assert np.mean(redness[-4:]) - np.mean(redness[:4]) > 0.4, redness


def test_wrong_input_is_said_before_work_starts(start, tmp_path):
  process = start(tmp_path, "--config.data.static_prompts=nowhere.txt")
  output, _ = process.communicate(timeout=100)
  assert process.returncode == 2 and "error: prompt file nowhere.txt" in output and "Traceback" not in output


def test_numbers_that_are_not_finite_stop_the_run(start, tmp_path):
  process = start(tmp_path, "--config.optimizer.learning_rate=1e38", "--config.train.checkpoint_every=1")
  output, _ = process.communicate(timeout=400)
  assert process.returncode == 2, output
  assert "is not finite" in output and "Camera" in output and "Traceback" not in output
  saved = [int(path.name) for path in (tmp_path / "checkpoints").iterdir()]
  assert len(_records(tmp_path)) == max(saved, default=0)  # what was saved is what was logged, and finite


@pytest.mark.parametrize("broken", ["policy/loss", "policy/grad_norm", "policy/lora_norm", "log_prob"])
def test_every_kind_of_number_is_looked_at(broken, tmp_path):
  log_prob = np.array([[0.1, math.nan if broken == "log_prob" else 0.2]])
  rollout = Rollout(None, None, np.array([4]), log_prob, None)
  batch = Batch(("Camera push in. A jug.",), [None, None], None, rollout, None, None)
  scored = Scored([], [_reward(0.5), _reward(1.5)], group_size=2)
  values = {"policy/samples": 2.0, "policy/loss": 0.1, "policy/grad_norm": 1.0, "policy/lora_norm": 2.0}
  reports.check_finite(
    values, 7, [dataclasses.replace(batch, rollout=rollout._replace(log_prob=np.zeros((1, 2))))], scored, tmp_path
  )
  with pytest.raises(UserError, match="iteration 7 is not finite.*0.5, 1.5.*A jug.*last good"):
    reports.check_finite({**values, broken: math.nan}, 7, [batch], scored, tmp_path)


def test_videos_without_rewards_are_no_reason_to_stop(tmp_path):
  batch = Batch((), [], None, Rollout(None, None, np.array([4]), np.zeros((1, 2)), None), None, None)
  scored = Scored([], [_reward(math.nan)] * 2, group_size=2)
  values = {"policy/samples": 0.0, "policy/loss": math.nan, "policy/grad_norm": math.nan, "policy/lora_norm": 2.0}
  reports.check_finite(values, 7, [batch], scored, tmp_path)


def _reward(total: float) -> ClipReward:
  return ClipReward(total=total, recon=math.nan, traj=math.nan, meta=math.nan, general=total, reasons={})
