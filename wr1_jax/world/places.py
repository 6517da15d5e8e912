"""Where things stand in the toy world: rooms and landscapes, the objects in them, and the words for all of it.

Objects keep out of the camera's way, so the path decides what may stand where.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from wr1_jax.world.materials import COLOURS, PATTERNS, clouds, textured
from wr1_jax.world.motions import make_water, move_object
from wr1_jax.world.scene import SKY_WAVES, Scene, Shape, Solid, Waves, stack

_CLEARANCE = 0.07  # of the camera from the nearest solid, in scene depths
_TRIES = 12


@dataclasses.dataclass(frozen=True)
class _Slot:
  """A place for an object, and the words for it."""

  words: str
  x: tuple[float, float]


_SLOTS = (
  _Slot("on the left", (-0.34, -0.2)),
  _Slot("in the middle", (-0.07, 0.07)),
  _Slot("on the right", (0.2, 0.34)),
)


def build(rng: np.random.Generator, poses: Float[np.ndarray, "T 4 4"], dynamic: bool) -> tuple[str, Scene]:
  """A scene that a camera on `poses` (scene depths) does not run into, and a phrase that describes it."""
  maker = (_room, _landscape)[rng.integers(2)]
  return maker(rng, poses, dynamic)


def _light(rng: np.random.Generator) -> Float[np.ndarray, "3"]:
  light = np.array([rng.uniform(-0.8, 0.8), -1.0, rng.uniform(-0.9, -0.2)])
  return (light / np.linalg.norm(light)).astype(np.float32)


def _pick(rng: np.random.Generator, options):
  return options[rng.integers(len(options))]


def _colour(rng: np.random.Generator) -> str:
  return _pick(rng, tuple(COLOURS))


def _pattern(rng: np.random.Generator) -> str:
  return PATTERNS[rng.choice(len(PATTERNS), p=[0.28, 0.2, 0.18, 0.16, 0.18])]


# --- objects: each stands on the ground at y = floor, around (x, z) ---------------------------------------------------

Things = tuple[str, list[Solid], float]  # words without article and place, solids, radius on the ground


def _ball(rng, x, z, floor) -> Things:
  r = rng.uniform(0.06, 0.12)
  skin, ball = textured(rng, Shape.ELLIPSOID, [x, floor - r, z], [r, r, r], (_colour(rng), _pattern(rng)), 0.09)
  return f"{skin.words} ball", [ball], r


def _egg(rng, x, z, floor) -> Things:
  r, tall = rng.uniform(0.05, 0.08), rng.uniform(0.1, 0.15)
  skin, egg = textured(rng, Shape.ELLIPSOID, [x, floor - tall, z], [r, tall, r], (_colour(rng), _pattern(rng)), 0.08)
  return f"{skin.words} egg", [egg], r


def _box(rng, x, z, floor) -> Things:
  w, h, d = rng.uniform(0.05, 0.1, 3)
  yaw = rng.uniform(-0.8, 0.8)
  skin, box = textured(rng, Shape.BOX, [x, floor - h, z], [w, h, d], (_colour(rng), _pattern(rng)), 0.09, yaw=yaw)
  return f"{skin.words} box", [box], np.hypot(w, d)


def _pillar(rng, x, z, floor) -> Things:
  r, h = rng.uniform(0.035, 0.06), rng.uniform(0.2, 0.3)
  skin, pillar = textured(rng, Shape.CYLINDER, [x, floor - h, z], [r, h, r], (_colour(rng), _pattern(rng)), 0.1)
  return f"{skin.words} pillar", [pillar], r


def _drum(rng, x, z, floor) -> Things:
  r, h = rng.uniform(0.06, 0.1), rng.uniform(0.04, 0.08)
  skin, drum = textured(rng, Shape.CYLINDER, [x, floor - h, z], [r, h, r], (_colour(rng), _pattern(rng)), 0.08)
  return f"{skin.words} drum", [drum], r


def _tree(rng, x, z, floor) -> Things:
  trunk, height, crown = rng.uniform(0.015, 0.025), rng.uniform(0.09, 0.14), rng.uniform(0.07, 0.11)
  leaves = _pick(rng, ("green", "orange", "yellow", "pink"))
  _, stem = textured(
    rng, Shape.CYLINDER, [x, floor - height / 2, z], [trunk, height / 2, trunk], ("brown", "plain"), 0.08
  )
  centre = [x, floor - height - 0.8 * crown, z]
  _, top = textured(rng, Shape.ELLIPSOID, centre, [crown, 1.1 * crown, crown], (leaves, "marbled"), 0.06)
  return f"{leaves} tree", [stem, top], crown


def _house(rng, x, z, floor) -> Things:
  w, h, d = rng.uniform(0.07, 0.12), rng.uniform(0.06, 0.1), rng.uniform(0.07, 0.1)
  yaw = rng.uniform(-0.5, 0.5)
  skin, walls = textured(rng, Shape.BOX, [x, floor - h, z], [w, h, d], (_colour(rng), _pattern(rng)), 0.07, yaw=yaw)
  roof_words = _pick(rng, ("red", "brown", "grey", "black"))
  slab = [1.15 * w, 0.018, 1.15 * d]
  _, roof = textured(rng, Shape.BOX, [x, floor - 2 * h - 0.018, z], slab, (roof_words, "striped"), 0.05, yaw=yaw)
  return f"{skin.words} house with a {roof_words} roof", [walls, roof], np.hypot(w, d)


def _tower(rng, x, z, floor) -> Things:
  r, h = rng.uniform(0.05, 0.08), rng.uniform(0.17, 0.25)
  skin, tower = textured(rng, Shape.BOX, [x, floor - h, z], [r, h, r], (_colour(rng), _pattern(rng)), 0.08, yaw=0.4)
  return f"{skin.words} tower", [tower], 1.4 * r


def _rock(rng, x, z, floor) -> Things:
  size = rng.uniform([0.07, 0.05, 0.07], [0.13, 0.09, 0.11])
  words = (_pick(rng, ("grey", "brown", "white", "black")), "marbled")
  _, rock = textured(rng, Shape.ELLIPSOID, [x, floor - 0.4 * size[1], z], size, words, 0.08, yaw=rng.uniform(-1, 1))
  return f"{words[0]} rock", [rock], size[0]


_INDOORS: tuple[Callable[..., Things], ...] = (_ball, _box, _pillar, _drum, _egg)
_OUTDOORS: tuple[Callable[..., Things], ...] = (_tree, _house, _tower, _rock, _ball, _box)


def _objects(
  rng: np.random.Generator, poses: np.ndarray, makers: tuple, floor: float, depths: tuple[float, float], dynamic: bool
) -> tuple[str, list[Solid]]:
  """One to three objects in different places, one of them moving where `dynamic`; words and solids."""
  count = rng.choice([1, 2, 3], p=[0.2, 0.45, 0.35])
  slots = sorted(rng.choice(len(_SLOTS), size=count, replace=False))
  mover = rng.integers(count) if dynamic else -1
  phrases, solids = [], []
  for i, slot in enumerate(slots):
    words, made = _placed(rng, poses, _pick(rng, makers), _SLOTS[slot], floor, depths)
    verb = ""
    if i == mover:
      verb, made = move_object(rng, made)
    phrases.append(f"{_article(words)} {words} {_SLOTS[slot].words}{verb}")
    solids += made
  return _listed(phrases), solids


def _placed(
  rng: np.random.Generator, poses: np.ndarray, maker: Callable[..., Things], slot: _Slot, floor: float, depths
) -> tuple[str, list[Solid]]:
  """An object in a slot; drawn again, each time further back, until the camera's path clears it."""
  low, high = depths
  for attempt in range(_TRIES):
    z = rng.uniform(low, high) + 0.04 * attempt
    # Places are as seen in the picture: at twice the depth, twice as far to the side.
    x = rng.uniform(*slot.x) * z
    words, solids, radius = maker(rng, x, z, floor)
    distance = np.hypot(poses[:, 0, 3] - x, poses[:, 2, 3] - z).min()
    if distance > radius + _CLEARANCE:
      break
  return words, solids


def _article(words: str) -> str:
  return "an" if words[0] in "aeiou" else "a"


def _listed(phrases: list[str]) -> str:
  return phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]


# --- places -----------------------------------------------------------------------------------------------------------


def _room(rng: np.random.Generator, poses: np.ndarray, dynamic: bool) -> tuple[str, Scene]:
  """The inside of a box with a floor of its own."""
  x, z = poses[:, 0, 3], poses[:, 2, 3]
  side = max(rng.uniform(0.5, 0.75), np.abs(x).max() + 0.25)
  floor, ceiling = rng.uniform(0.14, 0.2), -rng.uniform(0.24, 0.34)
  back, front = max(rng.uniform(1.1, 1.35), z.max() + 0.5), min(-1.0, z.min() - 0.3)
  bottom = floor + 0.05  # of the walls, within the floor's slab: two faces in one place would fight for it
  centre = [0, (bottom + ceiling) / 2, (back + front) / 2]
  half = [side, (bottom - ceiling) / 2, (back - front) / 2]
  wall_pattern = PATTERNS[rng.choice(len(PATTERNS), p=[0.3, 0.15, 0.1, 0.15, 0.3])]
  walls, shell = textured(rng, Shape.ROOM, centre, half, (_colour(rng), wall_pattern), 0.2)
  slab = [side + 0.1, 0.05, half[2] + 0.1]
  floor_skin, ground = textured(rng, Shape.BOX, [0, floor + 0.05, centre[2]], slab, (_colour(rng), _pattern(rng)), 0.22)
  things, solids = _objects(rng, poses, _INDOORS, floor, (0.7, 1.0), dynamic)
  words = f"{things}, in a room with {walls.words} walls and {_article(floor_skin.words)} {floor_skin.words} floor"
  return words, _scene(rng, [shell, ground, *solids], ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))


_GROUNDS = {"grass": "green", "sand": "yellow", "snow": "white", "stone": "grey", "earth": "brown", "flowers": "pink"}
_SKIES = {
  "blue": ((0.75, 0.85, 0.95), (0.3, 0.52, 0.88)),
  "grey": ((0.78, 0.79, 0.8), (0.55, 0.57, 0.6)),
  "orange": ((0.98, 0.75, 0.45), (0.75, 0.4, 0.45)),
  "purple": ((0.8, 0.65, 0.85), (0.35, 0.25, 0.55)),
}


def _landscape(rng: np.random.Generator, poses: np.ndarray, dynamic: bool) -> tuple[str, Scene]:
  """Ground, hills behind it, sky above, things on the ground, and sometimes water between the hills."""
  floor = rng.uniform(0.14, 0.2)
  ground_name = _pick(rng, tuple(_GROUNDS))
  _, ground = textured(rng, Shape.BOX, [0, floor + 0.5, 0], [30, 0.5, 30], (_GROUNDS[ground_name], "marbled"), 0.3)
  hill_name = _pick(rng, ("green", "brown", "grey", "purple", "white", "orange"))
  hill_pattern = _pick(rng, ("plain", "marbled", "striped"))
  hills = []
  for place in rng.permutation([-1.1, -0.1, 0.9])[: rng.integers(2, 4)]:
    size = rng.uniform([0.7, 0.4, 0.35], [1.1, 0.65, 0.55])
    centre = [place + rng.uniform(-0.25, 0.25), floor, rng.uniform(1.5, 1.9)]
    hills.append(textured(rng, Shape.ELLIPSOID, centre, size, (hill_name, hill_pattern), 0.25)[1])
  sky_name = _pick(rng, tuple(_SKIES))
  water_words, water = "", []
  if dynamic and rng.random() < 0.5:
    water_words, water = make_water(rng, floor)
  things, solids = _objects(rng, poses, _OUTDOORS, floor, (0.7, 1.1), dynamic and not water)
  hill_words = hill_name if hill_pattern == "plain" else f"{hill_pattern} {hill_name}"
  words = f"{things}, on {ground_name} before {hill_words} hills{water_words} under {_article(sky_name)} {sky_name} sky"
  return words, _scene(rng, [ground, *hills, *water, *solids], _SKIES[sky_name])


def _scene(rng: np.random.Generator, solids: list[Solid], sky) -> Scene:
  waves = Waves(*(x.astype(np.float32) for x in clouds(rng, SKY_WAVES)))
  return Scene(stack(solids), np.array(sky, np.float32), waves, _light(rng))
