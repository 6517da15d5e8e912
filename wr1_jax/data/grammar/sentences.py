"""How the grammar makes prompts of a family's phrases: sentence patterns, theme by theme.

Slots: {S} subject, {d} and {e} two details, {L} light, {W} sky, {R} remark; {then} is what a camera path turns to.
Sentences get their capital letters later.
"""

from __future__ import annotations

import dataclasses
import functools

from wr1_jax.data.grammar import scenes
from wr1_jax.data.grammar.scenes import Family


@dataclasses.dataclass(frozen=True)
class Theme:
  """One file of word lists and the manner in which it is written.

  Attributes:
    name: as prompts are labelled.
    file: name of the file of word lists.
    patterns: for any prompt.
    along: for prompts whose text goes along with their camera path: {S} comes with a lead, "approaching a tower".
    tags: short last sentences, about the look of the picture, that some prompts get.
  """

  name: str
  file: str
  patterns: tuple[str, ...]
  along: tuple[str, ...]
  tags: tuple[str, ...]

  @functools.cached_property
  def families(self) -> tuple[Family, ...]:
    """The families of the theme; read when first asked for."""
    return scenes.load(scenes.FOLDER / f"{self.file}.txt")


_PATTERNS = (
  "{S} {L}, with {d}.",
  "{S} {L}, with {d} and {e}.",
  "{S} with {d}, {L}.",
  "{S}, {d}, {L}.",
  "{S}, {d} and {e}, {L}.",
  "{S}, {d}, {L}. {R}",
  "{S} {L}. {d}, {e}.",
  "{S} {L}, {d}. {R}",
  "{L}, {S}. {R}",
  "{L}, {S}, with {d}.",
  "{L}, {S}, {d} and {e}.",
  "{L}, {S} with {d}. {R}",
  "{S}. {W}",
  "{S}, with {d}. {W}",
  "{S}, {d} and {e}. {W}",
  "{S}, {d}. {W} {R}",
  "{W} {S}, with {d}.",
  "{S}, with {d} and {e}. {R}",
  "{S}. {R} {W}",
  "{S} {L}, with {d} and {e}. {R}",
  "{S}, {d}, {e}. {W} {R}",
  "{L}, {S}, with {d} and {e}. {R}",
  "{S} {L}. The eye goes first to {d}.",
  "{L}, {S}. Look closer: {d}, {e}.",
)
_ALONG = (
  "{S} {L}.",
  "{S} {L}, with {d}.",
  "{S} {L}. {R}",
  "{S}, with {d}. {W}",
  "{S}, {d} and {e}, {L}.",
)
_ALONG_TURNING = (
  "{S}, then {then}, {L}.",
  "{S} {L}, then {then}.",
  "{S}, then {then}. {R}",
  "{S}, then {then}. {W}",
)

STATIC = (
  Theme(
    "natural landscapes",
    "nature",
    _PATTERNS + ("a wide view of {S} {L}, with {d}.", "a view of {S}, {d} and {e}. {W}"),
    _ALONG + _ALONG_TURNING,
    ("Realistic, in natural colours.", "A wide view, sharp from front to back.", "Landscape photograph, fine detail."),
  ),
  Theme(
    "urban and architecture",
    "city",
    _PATTERNS + ("a quiet view of {S} {L}, with {d}.", "an eye-level view of {S}. {W} {R}"),
    _ALONG + _ALONG_TURNING,
    ("Realistic, finely detailed.", "Architectural photograph.", "Straight verticals, deep focus."),
  ),
  Theme(
    "micro and still life",
    "still_life",
    _PATTERNS + ("a close view of {S} {L}, with {d}.", "a study of {S}, {d} and {e}. {W}"),
    _ALONG + _ALONG_TURNING,
    ("Photorealistic close-up.", "Macro photograph, rich texture.", "Muted colours, fine grain."),
  ),
  Theme(
    "fantasy and surreal",
    "fantasy",
    _PATTERNS + ("a vision of {S} {L}, with {d}.", "a long look at {S}, {d} and {e}. {W}"),
    _ALONG + _ALONG_TURNING,
    ("Dreamlike, in great detail.", "Like a film set, but endless.", "Painterly realism.", "Cinematic fantasy."),
  ),
  Theme(
    "artistic styles",
    "art",
    (
      "{S}, {L}, with {d}.",
      "{S} {L}: {d}, {e}.",
      "{S}, {L}. {R}",
      "{S} {L}. {W}",
      "{S} {L}, with {d}. {R}",
      "{S}, {L}, with {d}. {W}",
      "{S} {L}, {d} and {e}.",
      "{S} {L}, with {d} and {e}. {R}",
      "{S}, {L}. {d}, {e}. {W}",
      "{L}, {S}, with {d}.",
      "{L}, {S}. {R}",
      "{L}, {S}. {W}",
      "{L}, {S}, {d} and {e}.",
      "{S}, {L}. {W} {R}",
      "{S}, {L}. {d}, {e}.",
      "{L}, {S}. Look closer: {d}, {e}.",
    ),
    ("{S}, {L}.", "{S}, {L}, with {d}.", "{S}, {L}. {R}", "{S} {L}: {d}, {e}.", "{S}, {L}. {W}"),
    (),
  ),
)

DYNAMIC = Theme(
  "dynamic",
  "motion",
  (
    "{S}, {d}.",
    "{S}, {d}, {L}.",
    "{S} {L}, {d}.",
    "{S} {L}, {d} and {e}.",
    "{S} {L}. {R}",
    "{S}, {d}. {R}",
    "{L}, {S}. {R}",
    "{L}, {S}, {d}.",
    "{S}. {W}",
    "{S}. {R} {W}",
    "{S}, {d}. {W}",
    "{W} {S}, {d}.",
    "{S} {L}. {d}, {e}.",
    "{S}, {d} and {e}. {R}",
    "{S} {L}, {d}. {R}",
    "{L}, {S}, {d}. {W} {R}",
  ),
  ("{S} {L}.", "{S}, {d}, {L}.", "{S} {L}. {R}", "{S}, {d}. {W}", "{S}, then {then}, {L}.", "{S}, then {then}. {R}"),
  (),
)
