"""The program that tries a config's scorers before a run."""

from __future__ import annotations

import dataclasses

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from sidecar_helpers import TESTS

from wr1_jax.config import Config, RewardsConfig, VideoConfig
from wr1_jax.sidecar import check
from wr1_jax.sidecar.judges.checkpoints import Source

CONFIG = Config(
  video=VideoConfig(height=64, width=96, frames=5), rewards=RewardsConfig(reconstructor="fake_scorers:Reconstructor")
)


def with_rewards(**changes) -> Config:
  return dataclasses.replace(CONFIG, rewards=dataclasses.replace(CONFIG.rewards, **changes))


def test_scorers_that_work_are_timed(capsys):
  assert check.check(CONFIG)
  said = capsys.readouterr().out
  assert "random, 96x64, 5 frames" in said and said.count("ready    after") == 3 == said.count("one clip")
  assert "meta: offset_view_proxy" in said and ", score " in said and "GiB of RAM" in said


def test_missing_weights_are_named_with_their_download_and_not_fetched(capsys, monkeypatch):
  asked = []

  def not_there(name, **options):
    asked.append((name, options["local_files_only"]))
    raise LocalEntryNotFoundError("not in the cache")

  monkeypatch.setattr(huggingface_hub, "snapshot_download", not_there)
  assert not check.check(with_rewards(reconstructor="depth_anything_3", general="hpsv3"))
  said = capsys.readouterr().out
  assert (
    "missing  config.rewards.depth_anything_3.path; run: hf download depth-anything/DA3-GIANT-1.1 config.json" in said
  )
  assert "run: hf download MizzenAI/HPSv3 HPSv3.safetensors --revision" in said
  assert asked == [
    (name, True) for name in ("depth-anything/DA3-GIANT-1.1", "MizzenAI/HPSv3", "Qwen/Qwen2-VL-7B-Instruct")
  ]
  assert said.count("ready    after") == 1  # the one scorer that has no weights


def test_a_scorer_that_fails_hides_no_other(capsys):
  assert not check.check(with_rewards(reconstructor="fake_scorers:nothing", meta="no_such_module:make"))
  said = capsys.readouterr().out
  assert "fails    UserError: config.rewards.reconstructor is 'fake_scorers:nothing'" in said
  assert "fails    ModuleNotFoundError: No module named 'no_such_module'" in said
  assert said.count("ready    after") == 1


def test_a_folder_is_at_hand_when_all_files_are(tmp_path):
  source = Source("rewards.x.path", str(tmp_path), "", published=("a/b", "0" * 40), files=("one", "two"))
  (tmp_path / "one").touch()
  assert source.at_hand() is None
  (tmp_path / "two").touch()
  assert source.at_hand() == tmp_path


@pytest.mark.parametrize("status", [0, 1])
def test_it_runs_in_the_sidecars_interpreter(tmp_path, status):
  python, arguments = tmp_path / "python", tmp_path / "arguments"
  python.write_text(f'#!/bin/sh\necho "$@" > {arguments}\nexit {status}\n')
  python.chmod(0o755)
  options = [f"--config={TESTS.parent}/configs/tiny.py", f"--config.rewards.python={python}"]
  assert check.main(["check", *options]) == status
  assert arguments.read_text().split() == ["-m", "wr1_jax.sidecar.check", *options, "--config.rewards.python="]
