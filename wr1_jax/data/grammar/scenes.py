"""The word lists of the grammar, `assets/grammar/*.txt`.

A file is a theme; a theme is a handful of families, each a small world of its own. Whatever the lists of a family hold
goes together, any subject with any detail, light and remark: that is what keeps a drawn prompt sensible, so a new line
must suit all others of its family, and a subject that does not belongs into another family.

    = trees and rocks (around)
    subjects:
      a lone [Scots pine|hawthorn] on a [bare hilltop|grassy mound]
      ...
    details:
    lights:
    skies:
    remarks:

In every line `[oak|birch] leaves` stands for both, and a line of two such choices for all their combinations. The
writer turns "a" into "an" and back where the chosen word asks for it.

A line that does not suit all subjects says so in braces: `pine cones {spruce|fir}` goes with subjects that have a word
starting with "spruce" or "fir", and `cobwebs {!mangrove}` with all others than mangroves. The words are looked for in
the light, too, so that a detail can depend on it: `dark lead lines {stained}` on "as a stained-glass window".
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from pathlib import Path

from wr1_jax.errors import UserError

FOLDER = Path(__file__).parents[2] / "assets" / "grammar"

_CHOICE = re.compile(r"\[([^][]*)\]")
_LINE = re.compile(r"(?P<text>(?:[^][{}|]|\[[^][{}]*\])+?)(?: \{(?P<condition>!?[^][{}]+)\})?")


@dataclasses.dataclass(frozen=True)
class Phrase:
  """One reading of a line.

  Attributes:
    text: the words, lower case, without choices and braces.
    condition: what stood in the braces; "" suits everything.
  """

  text: str
  condition: str = ""

  def suits(self, context: str) -> bool:
    """Whether the phrase may stand beside `context`, the subject and light that were drawn before it."""
    return not self.condition or bool(self._looked_for.search(context)) != self.condition.startswith("!")

  @functools.cached_property
  def _looked_for(self) -> re.Pattern[str]:
    starts = "|".join(map(re.escape, self.condition.removeprefix("!").split("|")))
    return re.compile(rf"\b(?:{starts})", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Family:
  """Scenes that share what can be said of them.

  Attributes:
    name: unique within its theme.
    around: whether the subject is a thing that a camera can circle, rather than a place to look into.
    subjects: noun phrases: what the prompt is about, without light, weather or hour.
    details: noun phrases that can follow "with", or stand on their own.
    lights: adverbial phrases ("under a low sun") that can open or end a sentence: light, weather and hour. In the theme
      of artistic styles they say what the picture is made of ("in soft pastel").
    skies: whole sentences that take the place of a light.
    remarks: whole sentences that agree with all of the above and name no light.
  """

  name: str
  around: bool
  subjects: tuple[Phrase, ...]
  details: tuple[Phrase, ...]
  lights: tuple[Phrase, ...]
  skies: tuple[Phrase, ...]
  remarks: tuple[Phrase, ...]


_LISTS = tuple(field.name for field in dataclasses.fields(Family))[2:]


def expand(line: str) -> tuple[Phrase, ...]:
  """All readings of a line with choices: "a [red|blue] [cup|jug]" has four.

  Raises:
    ValueError: its brackets or braces do not match.
  """
  found = _LINE.fullmatch(line)
  if not found:
    raise ValueError(line)
  parts = _CHOICE.split(found["text"])  # text, choice, text, choice, ..., text
  options = [[part] if i % 2 == 0 else part.split("|") for i, part in enumerate(parts)]
  readings = (" ".join("".join(chosen).split()) for chosen in itertools.product(*options))
  return tuple(Phrase(reading, found["condition"] or "") for reading in readings)


def load(file: Path) -> tuple[Family, ...]:
  """Reads the families of a theme.

  Raises:
    UserError: a line stands outside of a family or list, brackets do not match, or a family lacks one of its lists.
  """
  families: list[tuple[str, dict[str, list[Phrase]]]] = []
  current: list[Phrase] | None = None
  for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
    heading = line.removesuffix(":")
    if line.startswith("= "):
      families.append((line[2:].strip(), {}))
      current = None
    elif families and heading in _LISTS:
      current = families[-1][1].setdefault(heading, [])
    elif line.strip():
      if current is None:
        raise UserError(f"{file}, line {number}: '{line.strip()}' stands outside of the lists of a family.")
      try:
        current.extend(expand(line.strip()))
      except ValueError:
        raise UserError(f"{file}, line {number}: the brackets of '{line.strip()}' do not match.") from None
  return tuple(_family(file, title, lists) for title, lists in families)


def _family(file: Path, title: str, lists: dict[str, list[Phrase]]) -> Family:
  name = title.removesuffix("(around)").strip()
  missing = [key for key in _LISTS if not lists.get(key)]
  if missing:
    raise UserError(f"{file}: the family '{name}' has no {' and no '.join(missing)}.")
  return Family(name, title.endswith("(around)"), **{key: tuple(lists[key]) for key in _LISTS})
