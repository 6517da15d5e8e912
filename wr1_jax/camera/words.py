"""Camera words: which moves a prompt, or an explicit option, asks for.

The vocabulary is WorldScore's, as World-R1 uses it. A prompt such as "Camera push in, then pan left. A quiet street."
asks for two moves, one after the other; a prompt without any of the words asks for no camera path at all, which is not
the same as `Move.FIXED`, a camera that stands still.
"""

from __future__ import annotations

import difflib
import enum
import re

from wr1_jax.errors import UserError


class Move(enum.StrEnum):
  """One camera move; the value is the wording that prompts use. `camera.trajectory` says what each means."""

  PUSH_IN = "push in"
  PULL_OUT = "pull out"
  MOVE_LEFT = "move left"
  MOVE_RIGHT = "move right"
  ORBIT_LEFT = "orbit left"
  ORBIT_RIGHT = "orbit right"
  PAN_LEFT = "pan left"
  PAN_RIGHT = "pan right"
  PULL_LEFT = "pull left"
  PULL_RIGHT = "pull right"
  FIXED = "fixed"


_ANY_MOVE = re.compile(r"\b(?:" + "|".join(move.replace(" ", r"\s+") for move in Move) + r")\b", re.IGNORECASE)


def _normalised(words: str) -> str:
  return " ".join(words.lower().split())


def parse(prompt: str) -> tuple[Move, ...]:
  """The moves that `prompt` names, in order of appearance; empty if it names none.

  A move counts wherever its words stand as whole words, in any case ("Push in" does, "push into" does not).
  """
  return tuple(Move(_normalised(found)) for found in _ANY_MOVE.findall(prompt))


def asked(prompt: str, option: str) -> tuple[Move, ...]:
  """The moves of `option` (`CameraConfig.moves`) or, where it is empty, those that `prompt` names."""
  return moves_from_option(option) if option else parse(prompt)


def moves_from_option(option: str) -> tuple[Move, ...]:
  """The moves of an explicit option such as "push in, orbit left" or "push_in,orbit_left".

  Unlike `parse`, which reads free text, every word here must be part of a move.

  Raises:
    UserError: the option is blank, or one of its parts is no move.
  """
  parts = [_normalised(re.sub("[_-]", " ", part)) for part in option.split(",")]
  if not any(parts):
    raise UserError(f"config.camera.moves = {option!r} names no move; give one or more of: {', '.join(Move)}.")
  return tuple(_move(part, option) for part in parts)


def _move(words: str, option: str) -> Move:
  try:
    return Move(words)
  except ValueError:
    close = difflib.get_close_matches(words, list(Move), n=2)
    hint = f" Did you mean {' or '.join(repr(str(word)) for word in close)}?" if close else ""
    raise UserError(
      f"config.camera.moves = {option!r} contains {words!r}, which is no camera move.{hint} Moves are separated by "
      f"commas and each is one of: {', '.join(Move)}."
    ) from None
