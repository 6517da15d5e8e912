"""Draws prompts from the grammar.

    prompts = generate(seed=0, static=3000, dynamic=500)

The same seed gives the same prompts on every machine and Python: all that is drawn comes from `random.Random.random`,
the one method whose sequence Python promises to keep.
"""

from __future__ import annotations

import collections
import dataclasses
import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

from wr1_jax.camera import words
from wr1_jax.camera.words import Move
from wr1_jax.data.grammar import paths, sentences
from wr1_jax.data.grammar.paths import Tier
from wr1_jax.data.grammar.scenes import Family
from wr1_jax.data.grammar.sentences import Theme
from wr1_jax.errors import UserError

STATIC_TIERS = {Tier.IMPLICIT: 20, Tier.SINGLE: 19, Tier.COMPOSITE: 18, Tier.FIXED: 3}  # parts of 60
DYNAMIC_TIERS = {Tier.IMPLICIT: 19, Tier.SINGLE: 15, Tier.COMPOSITE: 11, Tier.FIXED: 5}  # parts of 50
WORDS = (12, 45)  # least and most words of a scene

_ALIKE = 0.4  # two scenes of a family whose content words overlap by this much (Jaccard) are one too many
_TRIES = 400  # draws for one prompt before the grammar counts as exhausted
_ALONG, _TAGGED = 0.35, 0.1  # shares of the prompts whose text goes along with their path, and that end in a tag

_NOT_AN = ("eu", "ewe", "one", "uni", "use", "usu", "uto", "uk")  # vowels that sound like consonants
_AN = ("heir", "honest", "honour", "hour")  # silent letters
_SMALL_WORDS = frozenset(
  "after against all along among and any are around back been before behind below beneath beside between beyond "
  "both but can could each every far few for from had half has have her his how into its itself just like long may "
  "more most much near next none nor not nothing now off once one only other our out over own same seem set she "
  "side since small some still than that the their them then there these they this through too towards two under "
  "until upon was were what when where which while who whole will with without would yet you".split()
)


@dataclasses.dataclass(frozen=True)
class Prompt:
  """One prompt and what it was meant to be.

  Attributes:
    camera: the sentence that asks for `moves`; empty if there are none.
    scene: the rest.
  """

  camera: str
  scene: str
  theme: str
  family: str
  tier: Tier
  moves: tuple[Move, ...]

  @property
  def text(self) -> str:
    """The line that goes into the prompt file."""
    return f"{self.camera} {self.scene}".strip()


def generate(seed: int, static: int, dynamic: int) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
  """Writes `static` prompts of the static themes and `dynamic` ones of the dynamic theme, each in shuffled order.

  Themes get equal shares, tiers those of `STATIC_TIERS` and `DYNAMIC_TIERS`, each rounded so that the total is exact.
  No scene occurs twice, nor do two scenes that are nearly the same. What a seed gives depends on both counts.

  Raises:
    UserError: the grammar cannot write so many that differ enough.
  """
  rng = _Draws(seed)
  counts = shares(static, dict.fromkeys(sentences.STATIC, 1))
  written = [prompt for theme, count in counts.items() for prompt in _Writer(theme, rng).write(count, STATIC_TIERS)]
  moving = _Writer(sentences.DYNAMIC, rng).write(dynamic, DYNAMIC_TIERS)
  return tuple(rng.shuffled(written)), tuple(rng.shuffled(moving))


_T = TypeVar("_T")


def shares(total: int, weights: Mapping[_T, int]) -> dict[_T, int]:
  """Splits `total` in proportion to `weights`; what rounding leaves goes to the largest remainders."""
  whole = sum(weights.values())
  counts = {key: total * weight // whole for key, weight in weights.items()}
  by_remainder = sorted(weights, key=lambda key: -(total * weights[key] % whole))
  for key in by_remainder[: total - sum(counts.values())]:
    counts[key] += 1
  return counts


class _Draws:
  """Random choices that are the same on every Python."""

  def __init__(self, seed: int):
    self._random = random.Random(seed)

  def below(self, count: int) -> int:
    return int(self._random.random() * count)

  def happens(self, chance: float) -> bool:
    return self._random.random() < chance

  def one_of(self, options: Sequence[_T]) -> _T:
    return options[self.below(len(options))]

  def shuffled(self, items: Sequence[_T]) -> list[_T]:
    items = list(items)
    for last in range(len(items) - 1, 0, -1):
      other = self.below(last + 1)
      items[last], items[other] = items[other], items[last]
    return items


class _Deck(Generic[_T]):
  """Deals its cards in random order, all of them before any comes again (save those that nobody wanted)."""

  def __init__(self, cards: Sequence[_T], draws: _Draws):
    self._cards, self._draws, self._left = cards, draws, []

  def deal(self, wanted: Callable[[_T], bool] = lambda card: True) -> _T | None:
    """The next card that is `wanted`; None if there is no such card."""
    for _ in range(2):
      for place, card in enumerate(self._left):
        if wanted(card):
          return self._left.pop(place)
      self._left += self._draws.shuffled(self._cards)
    return None


class _Writer:
  """Writes the prompts of one theme."""

  def __init__(self, theme: Theme, draws: _Draws):
    self._theme, self._draws = theme, draws
    self._families = _Deck(theme.families, draws)
    self._decks: dict[tuple, _Deck] = {}
    self._seen: dict[str, list[frozenset[str]]] = collections.defaultdict(list)  # content words, by family

  def write(self, count: int, tiers: Mapping[Tier, int]) -> list[Prompt]:
    """`count` prompts, shared out among `tiers` by weight and evenly among the families."""
    order = [tier for tier, share in shares(count, tiers).items() for _ in range(share)]
    return [self._prompt(self._families.deal(), tier) for tier in self._draws.shuffled(order)]

  def _prompt(self, family: Family, tier: Tier) -> Prompt:
    moves = self._deal(("moves", tier, family.around), paths.choices(tier, family.around))
    for _ in range(_TRIES):
      scene = self._scene(family, moves)
      content = _content(scene)
      alike = any(len(content & other) >= _ALIKE * len(content | other) for other in self._seen[family.name])
      if not alike and not flaws(scene):
        self._seen[family.name].append(content)
        camera = self._draws.one_of(paths.phrases(moves))
        return Prompt(camera, scene, self._theme.name, family.name, tier, moves)
    raise UserError(
      f"the grammar cannot write so many prompts that differ enough: the family '{family.name}' of "
      f"'{self._theme.name}' ended at {len(self._seen[family.name])}. Ask for fewer, or add lines to "
      f"assets/grammar/{self._theme.file}.txt."
    )

  def _scene(self, family: Family, moves: tuple[Move, ...]) -> str:
    """A scene that may still have flaws."""
    subject = self._deal((family.name, "subjects"), family.subjects).text
    light = self._phrase(family, "lights", subject)
    context = f"{subject} {light}"
    slots = {"S": subject, "L": light}
    for slot, name in (("W", "skies"), ("R", "remarks"), ("d", "details"), ("e", "details")):
      slots[slot] = self._phrase(family, name, context)
    leads = paths.leads(moves[0]) if moves else ()
    if leads and self._draws.happens(_ALONG):
      slots["S"] = f"{self._draws.one_of(leads)} {slots['S']}"
      turns = paths.turns(moves[1]) if len(moves) == 2 else ()
      if turns:
        slots["then"] = self._draws.one_of(turns).format(**slots)
      patterns = [pattern for pattern in self._theme.along if "{then}" not in pattern or turns]
      pattern = self._draws.one_of(patterns)
    else:
      pattern = self._deal(("patterns",), self._theme.patterns)
    if any(not text for slot, text in slots.items() if f"{{{slot}}}" in pattern):
      return ""
    scene = pattern.format(**slots)
    if self._theme.tags and self._draws.happens(_TAGGED):
      scene += f" {self._draws.one_of(self._theme.tags)}"
    return _polished(scene)

  def _phrase(self, family: Family, name: str, context: str) -> str:
    """A phrase of that list which suits `context`; empty if none does."""
    phrase = self._deal((family.name, name), getattr(family, name), lambda phrase: phrase.suits(context))
    return phrase.text if phrase else ""

  def _deal(self, name: tuple, cards: Sequence[_T], wanted: Callable[[_T], bool] = lambda card: True) -> _T | None:
    """The next card of the deck of that name, which is made of `cards` when it is first asked for."""
    if name not in self._decks:
      self._decks[name] = _Deck(cards, self._draws)
    return self._decks[name].deal(wanted)


def _polished(text: str) -> str:
  """Articles and capital letters."""

  def article(found: re.Match) -> str:
    word = found[2].lower()
    vowel = word.startswith(_AN) or (word[0] in "aeiou" and not word.startswith(_NOT_AN))
    return found[1] + ("n" if vowel else "")

  text = re.sub(r"\b([Aa])n?\b(?= (\w+))", article, text)
  return re.sub(r"(^|\. )(\w)", lambda found: found[1] + found[2].upper(), text)


def _content(text: str) -> frozenset[str]:
  return frozenset(_content_words(text))


def _content_words(text: str) -> list[str]:
  """The words that say something, without a plural's s."""
  found = re.findall(r"[^\W\d_]{3,}", text.lower())
  return [word.removesuffix("s") for word in found if word not in _SMALL_WORDS]


def flaws(scene: str) -> list[str]:
  """What is wrong with a scene's text, as short words; empty if nothing is."""
  found = []
  if not WORDS[0] <= len(scene.split()) <= WORDS[1]:
    found.append("length")
  if words.parse(scene) or "camera" in scene.lower():
    found.append("camera words")
  content = _content_words(scene)
  if len(set(content)) < len(content) or re.search(r"\b(\w+)\W+\1\b", scene, re.IGNORECASE):
    found.append("a word twice")
  parts = [f" {part} ".lower() for part in re.split(r"[.!?:]", scene)]
  if any(part.count(" with ") > 1 or part.count(" and ") > 2 for part in parts):
    found.append("with and with")
  return found
