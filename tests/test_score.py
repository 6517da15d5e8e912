"""Scoring a folder of clips from the command line, with fake scorers and once with the real ones."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import scenes

from wr1_jax import score
from wr1_jax.config import Config, RewardsConfig
from wr1_jax.data.video_files import write_mp4
from wr1_jax.errors import UserError
from wr1_jax.rewards import clips
from wr1_jax.rewards.compose import METRICS

TESTS = Path(__file__).parent
FAKES = Config(
  rewards=RewardsConfig(
    reconstructor="fake_scorers:Reconstructor", meta="fake_scorers:Meta", general="fake_scorers:General"
  )
)


@pytest.fixture(autouse=True)
def fakes_can_be_imported(monkeypatch):
  monkeypatch.setenv("PYTHONPATH", str(TESTS))


def colour(red: int, frames=3, height=64, width=80) -> np.ndarray:
  return np.full((frames, height, width, 3), red, np.uint8)


def write_prompts(folder: Path, *lines: str) -> Path:
  file = folder / "prompts.txt"
  file.write_text("\n".join(lines) + "\n", encoding="utf-8")
  return file


def run(config: Config, folder: Path, prompts: Path, out: Path) -> list[dict]:
  score.score_folder(config, folder, prompts, out)

  def refuse(name):
    raise AssertionError(f"{name} is not JSON")

  return [json.loads(line, parse_constant=refuse) for line in out.read_text().splitlines()]


def test_clips_of_all_kinds_are_scored_in_name_order(tmp_path):
  videos = tmp_path / "videos"
  videos.mkdir()
  np.save(videos / "b.npy", colour(102))
  np.save(videos / "c.npy", colour(204, frames=1, height=70, width=65))
  write_mp4(videos / "a.mp4", colour(51, frames=5, height=96, width=128), fps=8)
  (videos / "notes.txt").write_text("no clip")
  prompts = write_prompts(tmp_path, "score 0.25", "score 0.5", "score 0.75")
  lines = run(FAKES, videos, prompts, tmp_path / "scores.jsonl")
  assert [line["clip"] for line in lines] == ["a.mp4", "b.npy", "c.npy"]
  assert [line["reward/general"] for line in lines] == [0.25, 0.5, 0.75]
  np.testing.assert_allclose([line["reward/meta"] for line in lines], [0.2, 0.4, 0.8], atol=0.02)
  assert [np.shape(line["poses"]) for line in lines] == [(5, 4, 4), (3, 4, 4), (1, 4, 4)]
  for line in lines:
    assert line.keys() == {"clip", *METRICS, "poses", "reasons"}
    assert line["reward/traj"] is None and line["reasons"] == {"reward/traj": "the prompt names no camera move"}
    assert line["reward/total"] == pytest.approx(line["reward/recon"] + line["reward/meta"] + line["reward/general"])


def test_the_path_of_the_prompt_is_the_target(tmp_path):
  """The fake reconstructor answers with the path that was asked for, so the trajectory score must be 1."""
  np.save(tmp_path / "a.npy", colour(100, frames=9))
  config = dataclasses.replace(FAKES, rewards=dataclasses.replace(FAKES.rewards, general="fake_scorers:indifferent"))
  prompts = write_prompts(tmp_path, "Camera push in, then orbit left.")
  (line,) = run(config, tmp_path, prompts, tmp_path / "scores.jsonl")
  assert line["reward/traj"] == pytest.approx(1, abs=1e-5) and line["reasons"] == {}
  poses = np.array(line["poses"])
  # In median scene depths: the fake's scene is 100 deep, the one that the target assumes 1000.
  np.testing.assert_allclose(poses[4, :3, 3], [0, 0, 0.6], atol=1e-6)


def test_clips_that_cannot_be_scored_get_nulls_and_reasons_and_harm_no_other(tmp_path):
  videos = tmp_path / "videos"
  videos.mkdir()
  (videos / "0.mp4").write_bytes(b"no video")
  (videos / "1.npy").write_bytes(b"no array")
  np.save(videos / "2.npy", colour(9).astype(np.float32))
  np.save(videos / "3.npy", colour(9)[0])
  np.save(videos / "4.npy", colour(9, height=63))
  np.save(videos / "5.npy", colour(9)[:0])
  np.save(videos / "6.npy", np.array([{"an": "object"}]), allow_pickle=True)
  np.save(videos / "7.npy", colour(51))
  np.save(videos / "8.npy", colour(0))
  np.save(videos / "9.npy", colour(51))
  prompts = write_prompts(tmp_path, *["score 0.5"] * 9, "fail")
  lines = run(FAKES, videos, prompts, tmp_path / "scores.jsonl")
  complaints = ["cannot be read", "cannot be read", "float32", "[64, 80, 3]", "80x63", "no frames", "cannot be read"]
  for line, complaint in zip(lines, complaints):
    assert all(line[name] is None and complaint in line["reasons"][name] for name in (*METRICS, "poses"))
  assert lines[7]["reward/total"] is not None
  # Without reconstruction only the general reward is left; with a failing judge only that is missing.
  assert lines[8]["reward/general"] == 0.5 and lines[8]["poses"] is None
  assert {name for name in lines[8] if lines[8][name] is None} == lines[8]["reasons"].keys()
  assert "black clip" in lines[8]["reasons"]["reward/recon"] and "black clip" in lines[8]["reasons"]["poses"]
  assert lines[9]["reward/meta"] == pytest.approx(0.2) and lines[9]["reward/recon"] is not None
  assert lines[9]["reward/total"] is None and "something broke" in lines[9]["reasons"]["reward/general"]


def test_wrong_input_is_said_before_any_work(tmp_path):
  videos = tmp_path / "videos"
  prompts, out = write_prompts(tmp_path, "one", "two"), tmp_path / "scores.jsonl"
  with pytest.raises(UserError, match="no such folder"):
    score.score_folder(FAKES, videos, prompts, out)
  videos.mkdir()
  with pytest.raises(UserError, match="no clips"):
    score.score_folder(FAKES, videos, prompts, out)
  np.save(videos / "a.npy", colour(9))
  with pytest.raises(UserError, match="2 prompts.*1 clips"):
    score.score_folder(FAKES, videos, prompts, out)
  with pytest.raises(UserError, match="no such file"):
    score.score_folder(FAKES, videos, tmp_path / "nothing.txt", out)
  prompts.write_bytes(b"caf\xe9")
  with pytest.raises(UserError, match="UTF-8"):
    score.score_folder(FAKES, videos, prompts, out)
  prompts.write_text("\n\n")
  with pytest.raises(UserError, match="empty"):
    score.score_folder(FAKES, videos, prompts, out)
  prompts.write_text("score 1")
  with pytest.raises(UserError, match="cannot be written"):
    score.score_folder(FAKES, videos, prompts, tmp_path / "nowhere" / "scores.jsonl")
  assert not out.exists()


def test_the_command_line_says_what_is_missing(capsys):
  config = TESTS.parent / "configs" / "tiny.py"
  with pytest.raises(SystemExit) as stop:
    score.main(["score", f"--config={config}", "--videos=somewhere"])
  assert stop.value.code == 2
  assert "--prompts, --out must be given" in capsys.readouterr().err


def test_arrays_are_read_as_they_are(tmp_path):
  video = np.random.default_rng(0).integers(0, 256, (4, 66, 71, 3), np.uint8)
  np.save(tmp_path / "a.npy", video)
  (tmp_path / "a.npy").rename(tmp_path / "b.NPY")
  np.save(tmp_path / "c.npy", video)
  assert [path.name for path in clips.find(tmp_path)] == ["b.NPY", "c.npy"]
  np.testing.assert_array_equal(clips.read(tmp_path / "b.NPY"), video)


def test_videos_are_read_frame_by_frame(tmp_path):
  """In order, at their size, and each once, whatever the frame rate."""
  shades = np.linspace(20, 230, 9).astype(np.uint8)
  video = np.broadcast_to(shades[:, None, None, None], (9, 66, 80, 3)) // np.array([1, 2, 4], np.uint8)
  write_mp4(tmp_path / "a.mp4", video, fps=30)
  read = clips.read(tmp_path / "a.mp4")
  assert read.shape == video.shape and read.dtype == np.uint8
  assert np.abs(read.astype(int) - video).max() <= 6  # what compression may cost flat colours


def test_the_real_scorers_tell_a_camera_that_obeys_from_one_that_does_not(tmp_path):
  """End to end, with clips of two sizes and lengths: everything but the wrong path gets a high score."""
  room = scenes.Room.make(0)
  np.save(tmp_path / "a.npy", scenes.render(room, scenes.move("push in", 9)))
  np.save(tmp_path / "b.npy", scenes.render(room, scenes.move("pull out", 7), height=80, width=112))
  prompts = write_prompts(tmp_path, "Camera push in. A room.", "Camera push in. A room.")
  good, bad = run(Config(), tmp_path, prompts, tmp_path / "scores.jsonl")
  assert good["reasons"] == {} and bad["reasons"] == {}
  assert good["reward/traj"] > 0.5 > 0.2 > bad["reward/traj"]
  assert min(good["reward/recon"], bad["reward/recon"]) > 0.7
  assert np.array(good["poses"])[-1, 2, 3] > 0.2 and np.array(bad["poses"])[-1, 2, 3] < -0.2
  for line in (good, bad):
    assert all(0 <= line[name] <= 1 for name in METRICS[1:])
    np.testing.assert_allclose(line["poses"][0], np.eye(4), atol=1e-5)


def test_ten_bit_videos_are_read(tmp_path):
  video = np.kron(np.random.default_rng(0).integers(0, 256, (5, 8, 10, 3)), np.ones((1, 8, 8, 1))).astype(np.uint8)
  source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "80x64", "-r", "8", "-i", "-"]
  target = ["-c:v", "libx264", "-qp", "10", "-pix_fmt", "yuv444p10le", str(tmp_path / "a.mp4")]
  command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", *source, *target]
  subprocess.run(command, input=video.tobytes(), check=True)
  read = clips.read(tmp_path / "a.mp4")
  assert read.shape == video.shape and read.dtype == np.uint8
  assert np.abs(read.astype(int) - video).mean() < 4
