"""Camera words in prompts and options."""

from __future__ import annotations

import collections
import os
import pathlib

import pytest

from wr1_jax.camera.words import Move, moves_from_option, parse
from wr1_jax.errors import UserError

# The training prompts of World-R1's public release are not part of this project; laid beside the clone they are read.
_PUBLIC_PROMPTS = pathlib.Path(
  os.environ.get("WR1_PUBLIC_PROMPTS", pathlib.Path(__file__).parents[2] / "shared/data/world_r1_prompts/train.txt")
)


@pytest.mark.parametrize(
  ("prompt", "moves"),
  [
    ("A quiet street at dawn.", ()),
    ("Camera fixed. A glowing filament.", (Move.FIXED,)),
    ("CAMERA PUSH IN. A canyon.", (Move.PUSH_IN,)),
    ("Camera push in, then pan left. A street.", (Move.PUSH_IN, Move.PAN_LEFT)),
    ("Camera orbit right, pull out, then orbit right.", (Move.ORBIT_RIGHT, Move.PULL_OUT, Move.ORBIT_RIGHT)),
    ("Camera move left, pull out, then pan left.", (Move.MOVE_LEFT, Move.PULL_OUT, Move.PAN_LEFT)),
    ("Camera pull left. Camera\npull  right.", (Move.PULL_LEFT, Move.PULL_RIGHT)),
    ("Crowds push into a span leftover from prefixed times; remove left-overs.", ()),
  ],
)
def test_moves_are_found_in_order_as_whole_words(prompt, moves):
  assert parse(prompt) == moves


def test_every_move_is_found_by_its_own_words():
  for move in Move:
    assert parse(f"Camera {move}. A room.") == (move,)


@pytest.mark.skipif(not _PUBLIC_PROMPTS.is_file(), reason="the public training prompts are not here")
def test_public_prompts_have_the_known_numbers_of_moves():
  prompts = _PUBLIC_PROMPTS.read_text(encoding="utf-8").splitlines()
  found = collections.Counter("fixed" if parse(prompt) == (Move.FIXED,) else len(parse(prompt)) for prompt in prompts)
  assert found == {0: 839, "fixed": 54, 1: 760, 2: 734, 3: 81}


def test_option_names_moves():
  assert moves_from_option("push in, orbit left") == (Move.PUSH_IN, Move.ORBIT_LEFT)
  assert moves_from_option(" Push_In,PULL-RIGHT ") == (Move.PUSH_IN, Move.PULL_RIGHT)


def test_unknown_word_in_option_is_explained():
  with pytest.raises(UserError) as error:
    moves_from_option("push in, orbit lefft")
  message = str(error.value)
  assert "'orbit lefft'" in message and "Did you mean 'orbit left'" in message and "pan right" in message
  assert "\n" not in message


@pytest.mark.parametrize("option", ["", " , ", "push in,", "push in then pan left", "push"])
def test_malformed_option_is_refused(option):
  with pytest.raises(UserError, match="config.camera.moves"):
    moves_from_option(option)
