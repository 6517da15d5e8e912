"""The options: defaults, overrides, and what is said of wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs import toy
from wr1_jax import cli
from wr1_jax import config as config_lib
from wr1_jax.errors import UserError
from wr1_jax.sampling import window

_CONFIGS = Path(__file__).parents[1] / "configs"


def _parse(*arguments: str) -> config_lib.Config:
  return cli.parse(["program", *arguments], lambda values: None)[0]


@pytest.mark.parametrize(
  "name, steps, groups, strength",
  [
    ("small", 20, 48, 0.35),
    ("large", 20, 48, 0.40),
    ("tiny", 10, 2, 0.35),
  ],
)
def test_config_files_resolve(name, steps, groups, strength):
  config = _parse(f"--config={_CONFIGS / name}.py")
  assert (config.sampling.steps, config.train.groups, config.noise_warp.strength) == (steps, groups, strength)


def test_variants_of_the_toy_change_what_their_names_say():
  full = config_lib.to_dict(_parse(f"--config={_CONFIGS / 'toy.py'}"))
  for variant in toy.VARIANTS:
    config = _parse(f"--config={_CONFIGS / 'toy.py'}:{variant}")
    assert (config_lib.to_dict(config) == full) == (variant == "full"), variant
    window.check(config.sampling)
  with pytest.raises(UserError, match="^--config=.*:none could not be read: ValueError: there is no variant 'none'"):
    _parse(f"--config={_CONFIGS / 'toy.py'}:none")


def test_small_and_large_have_the_papers_numbers():
  small, large = (_parse(f"--config={_CONFIGS / name}.py") for name in ("small", "large"))
  for config in (small, large):
    assert (config.video.width, config.video.height, config.video.frames) == (832, 480, 81)
    assert (config.train.groups, config.train.group_size) == (48, 8)
    assert (config.sampling.window, config.sampling.window_start_min, config.sampling.window_start_max) == (1, 0, 9)
    assert (config.lora.rank, config.lora.alpha, config.objective.kl_weight) == (32, 64.0, 0.004)
  assert small.model.path != large.model.path


def test_command_line_overrides_are_typed():
  config = _parse(f"--config={_CONFIGS / 'tiny.py'}", "--config.lora.alpha=3", "--config.objective.step_weights=false")
  assert config.lora.alpha == 3.0 and isinstance(config.lora.alpha, float)
  assert config.objective.step_weights is False


@pytest.mark.parametrize(
  "argument, said",
  [
    ("--config.sampling.step=3", "sampling.steps"),
    ("--config.sampling.steps=3.5", "sampling.steps"),
    ("--config.model.dtype=float16", "'bfloat16', 'float32'"),
    ("--config=nowhere.py", "nowhere.py"),
    ("--confg=configs/tiny.py", "confg"),
    ("stray", "stray"),
  ],
)
def test_wrong_arguments_are_named(argument, said):
  with pytest.raises(UserError, match=said.replace(".", r"\.")):
    _parse(f"--config={_CONFIGS / 'tiny.py'}", argument)


@pytest.mark.parametrize(
  "argument, said",
  [
    ("train.iterations=0", "train.iterations is 0; it must be at least 1"),
    ("train.group_size=1", "train.group_size is 1; it must be at least 2"),
    ("model.vae_frames_per_chunk=0", "at least 1"),
    ("noise_warp.delta_steps=2.0", "noise_warp.delta_steps is 2.0; it must be between 0 and 1"),
    ("optimizer.ema_every=0", "optimizer.ema_every is 0"),
    ("objective.clip_range=-0.1", "above 0"),
    ("camera.scene_depth=0", "above 0"),
    ("rewards.translation_tolerance=nan", "translation_tolerance is nan"),
    ("optimizer.learning_rate=inf", "learning_rate is inf"),
    ("sampling.cps_eta=1.5", "cps_eta"),
    ("sampling.sqrt_scale=-1.0", "sqrt_scale"),
    ("sampling.sqrt_max_sigma=1.0", "strictly between 0 and 1"),
    ("rewards.max_scale=0.5", "at least 1"),
    ("rewards.retries=-1", "at least 0"),
    ("video.fps=0", "video.fps is 0"),
  ],
)
def test_values_out_of_range_are_named(argument, said):
  with pytest.raises(UserError, match=said.replace(".", r"\.")):
    _parse(f"--config={_CONFIGS / 'tiny.py'}", f"--config.{argument}")


@pytest.mark.parametrize(
  "program, said",
  [
    ("x = ", "SyntaxError"),
    ("import no_such_module", "no_such_module"),
    ("def get_config(): return 5", "returned 5"),
    (
      "from wr1_jax import config\ndef get_config():\n  c = config.default()\n  c.train.grups = 3\n  return c",
      "grups",
    ),
  ],
)
def test_broken_config_files_are_named(tmp_path, program, said):
  file = tmp_path / "broken.py"
  file.write_text(program)
  with pytest.raises(UserError, match=said):
    _parse(f"--config={file}")


def test_no_config_is_an_error():
  with pytest.raises(UserError, match="--config=FILE is missing"):
    _parse()


def test_resolve_rejects_unknown_and_missing_keys():
  values = config_lib.default()
  with values.unlocked():
    values.train.grups = 3
  with pytest.raises(UserError, match="train.grups.*train.groups"):
    config_lib.resolve(values)
  values = config_lib.default()
  with values.unlocked():
    del values.train.groups
  with pytest.raises(UserError, match="lacks train.groups"):
    config_lib.resolve(values)


def test_default_is_locked():
  with pytest.raises(AttributeError):
    config_lib.default().train.grups = 3
