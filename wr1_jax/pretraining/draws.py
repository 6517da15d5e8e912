"""What pre-training draws random numbers for."""

from __future__ import annotations

import enum


class Draw(enum.IntEnum):
  """As `randomness.Purpose`, whose numbers end below these."""

  VAE_STEP = 100
  FLOW_STEP = 101
  VALIDATION = 102
  SAMPLES = 103
