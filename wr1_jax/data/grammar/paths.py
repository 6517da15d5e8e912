"""Camera tiers: which moves a prompt asks for, the phrase that asks, and words that go along with a path."""

from __future__ import annotations

import enum

from wr1_jax.camera.words import Move


class Tier(enum.StrEnum):
  """How a prompt treats the camera."""

  IMPLICIT = "implicit"  # not at all
  SINGLE = "single"  # one move
  COMPOSITE = "composite"  # two or three, one after the other
  FIXED = "fixed"  # it stands still


def _both_sides(paths: tuple[str, ...]) -> tuple[tuple[Move, ...], ...]:
  """The paths with S = left and O = right, and with S = right and O = left."""
  return tuple(
    tuple(Move(word.replace("S", side).replace("O", other)) for word in path.split(", "))
    for side, other in (("left", "right"), ("right", "left"))
    for path in paths
  )


# Places are looked into and walked along; only things can be circled.
_SINGLE = {
  False: _both_sides(("push in", "pull out", "move S", "pan S", "pull S")),
  True: _both_sides(("push in", "pull out", "orbit S", "orbit S", "move S")),
}
_COMPOSITE = {
  False: _both_sides(
    (
      "push in, pan S",
      "pan S, push in",
      "push in, move S",
      "move S, push in",
      "move S, pan O",
      "pull out, pan S",
      "pan S, pull out",
      "pull out, move S",
      "move S, pull out, pan S",
      "push in, move S, pan O",
    )
  ),
  True: _both_sides(
    (
      "push in, orbit S",
      "orbit S, push in",
      "pull out, orbit S",
      "orbit S, pull out",
      "move S, orbit O",
      "move S, push in",
      "push in, orbit S, pull out",
      "move S, push in, orbit S",
    )
  ),
}

# What a text may say of the path it goes along with. No word here is one that `camera.words` knows.
_LEADS = {
  "push in": ("approaching", "slowly approaching", "closing in on", "drawing near to", "a slow approach to"),
  "pull out": ("backing away from", "retreating from", "a slow retreat from", "a gradual reveal of"),
  "move": ("gliding past", "travelling past", "passing by", "drifting past"),
  "pan": ("looking across", "a slow look across"),
  "pull": ("edging away from", "sliding away from"),
  "orbit": ("circling", "slowly circling", "in a slow arc around"),
}
_TURNS = {
  "push in": ("closer to {d}", "in towards {d}", "nearer to {d}"),
  "pull out": ("back until the whole scene is in view", "back to take in everything around"),
  "move": ("along past {d}", "sideways past {d}"),
  "pan": ("across to {d}", "over to {d}"),
  "orbit": ("slowly around to the far side", "around to the other side"),
}


def choices(tier: Tier, around: bool) -> tuple[tuple[Move, ...], ...]:
  """The paths that suit a tier, for a thing that can be circled (`around`) or a place; some stand in it twice."""
  if tier == Tier.SINGLE:
    return _SINGLE[around]
  if tier == Tier.COMPOSITE:
    return _COMPOSITE[around]
  return ((Move.FIXED,),) if tier == Tier.FIXED else ((),)


def phrases(moves: tuple[Move, ...]) -> tuple[str, ...]:
  """The sentences that ask for `moves`, such as "Camera push in, then pan left."; one empty one for no moves."""
  if not moves:
    return ("",)
  spoken = {f"Camera {', then '.join(moves)}."}
  if len(moves) > 2:
    spoken.add(f"Camera {', '.join(moves[:-1])}, then {moves[-1]}.")
  return tuple(sorted(spoken))


def leads(move: Move) -> tuple[str, ...]:
  """Words that can stand before a subject when a path begins with `move`; none for `fixed`."""
  return _LEADS.get(_kind(move), ())


def turns(move: Move) -> tuple[str, ...]:
  """What may follow "then" when `move` comes second; {d} is a detail."""
  return _TURNS.get(_kind(move), ())


def _kind(move: Move) -> str:
  """The move without its side."""
  return move.removesuffix(" left").removesuffix(" right")
