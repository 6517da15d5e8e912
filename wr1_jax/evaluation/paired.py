"""Statistics of a comparison in which every prompt, with the same start noise, is its own control."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jaxtyping import Float


@dataclasses.dataclass(frozen=True)
class Row:
  """One measure under the base model and under the tuned one. NaN: there is no such number.

  The means run over the same `count` videos. A standard error is that of a mean: standard deviation / sqrt(count).
  """

  count: int
  missing_base: int  # videos without this measure, which take no part
  missing_tuned: int
  base: float
  base_error: float  # standard error
  tuned: float = math.nan
  tuned_error: float = math.nan
  difference: float = math.nan  # mean of tuned - base
  difference_error: float = math.nan  # its standard error

  @property
  def z(self) -> float:
    """The difference in its standard errors; NaN where that is 0 or unknown."""
    return self.difference / self.difference_error if self.difference_error > 0 else math.nan


def compare(base: Float[np.ndarray, "N"], tuned: Float[np.ndarray, "N"] | None) -> Row:
  """Compares a measure of N videos of the base model with that of the tuned one's, prompt by prompt.

  A value that is not finite is missing; its prompt takes no part, under neither model.

  Args:
    tuned: None: there is only the base model.

  Raises:
    ValueError: the two differ in length.
  """
  base = np.asarray(base, np.float64)
  known = np.isfinite(base)
  if tuned is None:
    return Row(int(known.sum()), int((~known).sum()), 0, *_mean_and_error(base[known]))
  tuned = np.asarray(tuned, np.float64)
  if base.shape != tuned.shape:
    raise ValueError(f"measures of {base.shape} and {tuned.shape} videos cannot be paired")
  both = known & np.isfinite(tuned)
  return Row(
    int(both.sum()),
    int((~known).sum()),
    int((~np.isfinite(tuned)).sum()),
    *_mean_and_error(base[both]),
    *_mean_and_error(tuned[both]),
    *_mean_and_error(tuned[both] - base[both]),
  )


def _mean_and_error(values: Float[np.ndarray, "n"]) -> tuple[float, float]:
  """The mean and its standard error; NaN without, or with too few, values."""
  mean = float(values.mean()) if len(values) else math.nan
  return mean, float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
