"""What moves in dynamic scenes of the toy world: objects that roll, bounce, swing or change their shape, and water."""

from __future__ import annotations

import dataclasses

import numpy as np

from wr1_jax.world.materials import textured
from wr1_jax.world.scene import Shape, Solid


def _moved(solids: list[Solid], **fields) -> list[Solid]:
  return [dataclasses.replace(solid, **fields) for solid in solids]


def _roll(rng, solids):
  side = rng.choice([-1, 1])
  return f" rolling to the {'right' if side > 0 else 'left'}", _moved(solids, drift=np.array([side * 0.3, 0, 0]))


def _bounce(rng, solids):
  swing = np.array([0, -rng.uniform(0.06, 0.1), 0])
  # Between sin = -1 and 1 from -1 on: it starts on the ground, and comes back to it.
  return " bouncing up and down", _moved(solids, swing=swing, cycles=2.0, phase=-np.pi / 2)


def _swing(rng, solids):
  return " swinging from side to side", _moved(solids, swing=np.array([rng.uniform(0.08, 0.12), 0, 0]), cycles=1.5)


def _pulse(rng, solids):
  return " growing and shrinking", _moved(solids, pulse=np.full(3, rng.uniform(0.25, 0.4)), cycles=1.5)


def _wobble(rng, solids):
  amount = rng.uniform(0.25, 0.4)
  return " wobbling like jelly", _moved(solids, pulse=np.array([amount, -amount, amount]), cycles=2.5)


def _burn(rng, solids):
  lively = _moved(solids, flow=np.array([0, -rng.uniform(0.3, 0.5), 0]), pulse=np.array([-0.1, 0.15, -0.1]), cycles=3.5)
  return " flickering like fire", lively


def move_object(rng: np.random.Generator, solids: list[Solid]) -> tuple[str, list[Solid]]:
  """A motion for all solids of an object, and the words for it."""
  return (_roll, _bounce, _swing, _pulse, _wobble, _burn)[rng.integers(6)](rng, solids)


def make_water(rng: np.random.Generator, floor: float) -> tuple[str, list[Solid]]:
  """A waterfall down a cliff in the distance, or a river that crosses the ground."""
  fall = rng.random() < 0.5
  size = np.array([0.14, 0.3, 0.05]) if fall else np.array([3.0, 0.012, 0.12])
  centre = [rng.uniform(-0.3, 0.3), floor - 0.28, 1.38] if fall else [0, floor - 0.008, rng.uniform(1.2, 1.3)]
  _, water = textured(rng, Shape.BOX, centre, size, ("blue", "marbled"), 0.12)
  flow = np.array([0, 0.5, 0]) if fall else np.array([rng.choice([-0.5, 0.5]), 0, 0])
  return (" with a waterfall" if fall else " and a flowing river"), _moved([water], flow=flow)
