"""Prompt files, and which prompts an iteration trains on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Key

from wr1_jax import randomness
from wr1_jax.config import DataConfig
from wr1_jax.errors import UserError

_SHIPPED = Path(__file__).parents[1] / "assets" / "prompts"


@dataclasses.dataclass(frozen=True)
class PromptSet:
  """The prompts of one phase."""

  texts: tuple[str, ...]

  def draw(self, key: Key[Array, ""], start: int, count: int) -> tuple[str, ...]:
    """The prompts `start .. start + count` of an endless sequence: one shuffled pass over the file after the other.

    Args:
      key: key of the sequence; each pass is shuffled by `fold_in(key, pass)`.
      start: how many prompts of the sequence were drawn before.
    """
    size = len(self.texts)
    places = np.arange(start, start + count)
    orders = {p: jax.device_get(jax.random.permutation(randomness.at(key, int(p)), size)) for p in set(places // size)}
    return tuple(self.texts[int(orders[place // size][place % size])] for place in places)


def load(name: str) -> PromptSet:
  """Reads a UTF-8 file of one prompt a line; blank lines are skipped.

  Args:
    name: a path, or the name of a file that is shipped with the package.

  Raises:
    UserError: the file is missing, empty or not UTF-8.
  """
  return PromptSet(tuple(read_lines(find(name))))


def load_static(config: DataConfig) -> PromptSet:
  """The main phase's prompts."""
  return load(config.static_prompts)


def load_dynamic(config: DataConfig) -> PromptSet:
  """The dynamic phase's prompts."""
  return load(config.dynamic_prompts)


def find(name: str) -> Path:
  """The file of a path, or of the name of a shipped file where there is no such path.

  Raises:
    UserError: it is neither.
  """
  for path in (Path(name), _SHIPPED / name):
    if path.is_file():
      return path
  shipped = ", ".join(sorted(path.name for path in _SHIPPED.glob("*.txt")))
  raise UserError(f"prompt file {name}: there is no such file, and none of that name in the package ({shipped}).")


def read_lines(path: Path) -> list[str]:
  """The non-blank lines of a UTF-8 file, stripped.

  Raises:
    UserError: the file is missing, empty or not UTF-8.
  """
  if not path.is_file():
    raise UserError(f"prompt file {path}: there is no such file.")
  try:
    lines = path.read_text(encoding="utf-8-sig").split("\n")
  except UnicodeDecodeError as error:
    raise UserError(
      f"prompt file {path} is not UTF-8 (byte {error.start} is {error.object[error.start]:#04x}); save it as UTF-8."
    ) from error
  lines = [line.strip() for line in lines if line.strip()]
  if not lines:
    raise UserError(f"prompt file {path} is empty; it must hold one prompt a line.")
  return lines
