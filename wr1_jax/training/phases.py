"""Periodic decoupled training: which phase an iteration belongs to, and where each phase stands in its prompts."""

from __future__ import annotations

import dataclasses
import enum

from wr1_jax.config import TrainConfig


class Phase(enum.StrEnum):
  """`MAIN`: R = R_3D + lambda R_gen on static scenes. `DYNAMIC`: R_gen alone on moving ones."""

  MAIN = "main"
  DYNAMIC = "dynamic"


@dataclasses.dataclass(frozen=True)
class Place:
  """Where an iteration stands: its phase, and how many iterations of that phase came before it."""

  phase: Phase
  earlier: int


def place(iteration: int, config: TrainConfig) -> Place:
  """`config.main_iterations` of the main phase, `config.dynamic_iterations` of the dynamic one, and again."""
  main, dynamic = config.main_iterations, config.dynamic_iterations
  cycle, offset = divmod(iteration, main + dynamic)
  if offset < main:
    return Place(Phase.MAIN, cycle * main + offset)
  return Place(Phase.DYNAMIC, cycle * dynamic + offset - main)
