"""Prompt files and the order in which they are used."""

from __future__ import annotations

import jax
import pytest

from wr1_jax.camera import words
from wr1_jax.config import DataConfig
from wr1_jax.data import prompts
from wr1_jax.errors import UserError


def test_shipped_prompts_are_many_and_different():
  static, dynamic = prompts.load_static(DataConfig()), prompts.load_dynamic(DataConfig())
  for prompt_set, least in ((static, 40), (dynamic, 16)):
    assert len(prompt_set.texts) >= least and len(set(prompt_set.texts)) == len(prompt_set.texts)
  moves = [words.parse(text) for text in static.texts]
  assert {move for named in moves for move in named} == set(words.Move)
  assert () in moves  # some leave the camera to the model


def test_every_pass_uses_each_prompt_once_in_a_new_order(tmp_path):
  file = tmp_path / "p.txt"
  file.write_text("\n\n".join(f"prompt {i}" for i in range(7)))
  prompt_set = prompts.load(file)
  key = jax.random.key(3)
  sequence = prompt_set.draw(key, 0, 21)
  passes = [sequence[i : i + 7] for i in (0, 7, 14)]
  assert all(sorted(one) == [f"prompt {i}" for i in range(7)] for one in passes)
  assert passes[0] != passes[1]


def test_draws_depend_on_the_place_only(tmp_path):
  file = tmp_path / "p.txt"
  file.write_text("\n".join(f"prompt {i}" for i in range(5)))
  prompt_set, key = prompts.load(file), jax.random.key(0)
  whole = prompt_set.draw(key, 0, 12)
  assert prompt_set.draw(key, 3, 6) == whole[3:9]
  assert prompt_set.draw(jax.random.key(1), 0, 12) != whole


@pytest.mark.parametrize("content, said", [(b"", "is empty"), (b" \n\n", "is empty"), (b"a\xff\xfe\n", "not UTF-8")])
def test_bad_files_are_named(tmp_path, content, said):
  file = tmp_path / "p.txt"
  file.write_bytes(content)
  with pytest.raises(UserError, match=f"p.txt.*{said}"):
    prompts.load(file)


def test_missing_file_is_named(tmp_path):
  with pytest.raises(UserError, match="nowhere.txt.*no such file"):
    prompts.load_static(DataConfig(static_prompts=str(tmp_path / "nowhere.txt")))
