"""Every draw has a name, and no two names share a draw."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp

from wr1_jax import randomness
from wr1_jax.randomness import Purpose


def _bits(key: jax.Array) -> tuple[int, ...]:
  return tuple(jax.random.key_data(key).tolist())


def test_every_part_of_a_name_counts():
  names = itertools.product((0, 1), (Purpose.START_NOISE, Purpose.TRANSITION), (0, 1), (0, 1), (0, 1), (0, 1))
  draws = [_bits(randomness.at(randomness.stream(seed, purpose), *place)) for seed, purpose, *place in names]
  assert len(set(draws)) == len(draws) == 64


def test_purposes_are_different_streams():
  assert len({_bits(randomness.stream(0, purpose)) for purpose in Purpose}) == len(Purpose)


def test_keys_at_once_are_those_one_by_one():
  key = randomness.stream(3, Purpose.WINDOW)
  together = randomness.at_each(key, jnp.array([4, 0, 9]))
  assert [_bits(one) for one in together] == [_bits(randomness.at(key, index)) for index in (4, 0, 9)]
