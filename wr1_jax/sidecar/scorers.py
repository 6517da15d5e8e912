"""Runs the chosen scorers over a batch of clips; knows nothing of processes and transports.

A scorer that raises, or returns something else than it should, costs its clips that one part: the part is missing and a
reason says why. A failure is never turned into a number.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import numbers
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float, UInt8

from wr1_jax.config import RewardsConfig
from wr1_jax.sidecar import batch, registry
from wr1_jax.sidecar.messages import Part

_MAX_REASON = 300  # characters


@dataclasses.dataclass(frozen=True, eq=False)
class View:
  """A reconstructed clip, at the processed size (h, w)."""

  frames: UInt8[np.ndarray, "T h w 3"]  # the clip itself
  rendered: UInt8[np.ndarray, "T h w 3"]  # the scene at the same frames' poses and intrinsics
  offset_view: UInt8[np.ndarray, "h w 3"]  # the scene from off the path
  offset_alpha: Float[np.ndarray, "h w"]  # how much of each pixel of the offset view the scene covers, 0 to 1
  poses: Float[np.ndarray, "T 4 4"]  # camera-to-world, anchored at the first frame
  depth_unit: float  # median depth of the scene, in the units of `poses`


@dataclasses.dataclass(frozen=True)
class Unscored:
  """Stands in for what could not be computed."""

  reason: str


class Reconstructor(Protocol):
  """`paths[i]`: the camera path asked for, in scene depths, or None. It may guide the search, never decide it."""

  def __call__(
    self, videos: UInt8[np.ndarray, "N T H W 3"], paths: Sequence[Float[np.ndarray, "T 4 4"] | None]
  ) -> Sequence[View | Unscored]: ...


class Meta(Protocol):
  """Judges the offset view: in [0, 1]."""

  def __call__(self, views: Sequence[View], prompts: Sequence[str]) -> Sequence[float | Unscored]: ...


class General(Protocol):
  """Judges the first frames of the clips, at their own size."""

  def __call__(self, frames: UInt8[np.ndarray, "N K H W 3"], prompts: Sequence[str]) -> Sequence[float | Unscored]: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
  """What is known of one clip."""

  view: View | Unscored | None  # None: not asked for; and so below
  meta: float | Unscored | None
  general: float | Unscored | None

  @property
  def reasons(self) -> dict[Part, str]:
    """Why parts that were asked for are missing."""
    parts = {"reconstruction": self.view, "meta": self.meta, "general": self.general}
    return {part: value.reason for part, value in parts.items() if isinstance(value, Unscored)}


class Scorers:
  """The scorers of one config, ready for use."""

  def __init__(self, reconstructor: Reconstructor, meta: Meta, general: General, general_frames: int):
    self._reconstructor, self._meta, self._general = reconstructor, meta, general
    self._general_frames = general_frames

  @classmethod
  def make(cls, config: RewardsConfig) -> Scorers:
    """Imports and makes the scorers that `config` names.

    Raises:
      UserError: a scorer does not exist, or says that it cannot work with this config.
      ImportError: a library that one of them needs is missing.
    """
    scorers = {kind: registry.factory(kind, name)(config) for kind, name in registry.chosen(config).items()}
    return cls(**scorers, general_frames=config.general_frames)

  def __call__(
    self,
    videos: UInt8[np.ndarray, "N T H W 3"],
    paths: Sequence[Float[np.ndarray, "T 4 4"] | None],
    prompts: Sequence[str],
    parts: Collection[Part],
    size: tuple[int, int],
  ) -> tuple[list[Outcome], dict[Part, float]]:
    """Scores a batch.

    Args:
      size: (h, w) that a reconstruction is to have.

    Returns:
      One outcome a clip, and the seconds that each part took.
    """
    count = len(videos)
    views, metas, generals = [None] * count, [None] * count, [None] * count
    seconds: dict[Part, float] = {}
    if batch.reconstructs(parts):
      with _timed(seconds, "reconstruction"):
        found = _guarded("reconstructor", count, lambda: self._reconstructor(videos, paths))
        views = [_checked_view(view, (videos.shape[1], *size)) for view in found]
    if "meta" in parts:
      with _timed(seconds, "meta"):
        metas = self._judge_views(views, prompts)
    if "general" in parts:
      with _timed(seconds, "general"):
        scores = _guarded("general", count, lambda: self._general(videos[:, : self._general_frames], prompts))
        generals = [_checked_score("general", score) for score in scores]
    return [Outcome(*values) for values in zip(views, metas, generals)], seconds

  def _judge_views(self, views: Sequence[View | Unscored], prompts: Sequence[str]) -> list[float | Unscored]:
    """Meta scores; only clips that have a view are shown to the judge."""
    seen = [i for i, view in enumerate(views) if isinstance(view, View)]
    result: list[float | Unscored] = [Unscored("there is no reconstruction to judge")] * len(views)
    if seen:
      scores = _guarded("meta", len(seen), lambda: self._meta([views[i] for i in seen], [prompts[i] for i in seen]))
      for i, score in zip(seen, scores):
        result[i] = _checked_score("meta", score, low=0.0, high=1.0)
    return result


@contextlib.contextmanager
def _timed(seconds: dict[Part, float], part: Part) -> Iterator[None]:
  started = time.perf_counter()
  yield
  seconds[part] = time.perf_counter() - started


def _guarded(name: str, count: int, scorer: Callable[[], Sequence]) -> list:
  """`scorer()`, or `count` reasons why not."""
  try:
    result = list(scorer())
  except Exception as error:  # whatever a scorer does wrong must not cost the other parts
    traceback.print_exc()
    return [Unscored(f"the {name} scorer failed: {type(error).__name__}: {error}"[:_MAX_REASON])] * count
  if len(result) != count:
    return [Unscored(f"the {name} scorer gave {len(result)} results for {count} clips")] * count
  return result


def _checked_view(view: View | Unscored, size: tuple[int, int, int]) -> View | Unscored:
  """`view`, if it is sound: its arrays are of the right type and shape for `size` (T, h, w), its numbers finite."""
  if isinstance(view, Unscored):
    return Unscored(view.reason[:_MAX_REASON])
  if not isinstance(view, View):
    return Unscored(f"the reconstructor gave a {type(view).__name__}, not a View")
  t, h, w = size
  expected = {
    "frames": (np.uint8, (t, h, w, 3)),
    "rendered": (np.uint8, (t, h, w, 3)),
    "offset_view": (np.uint8, (h, w, 3)),
    "offset_alpha": (np.floating, (h, w)),
    "poses": (np.floating, (t, 4, 4)),
  }
  for name, (dtype, shape) in expected.items():
    array = getattr(view, name)
    if not isinstance(array, np.ndarray) or array.shape != shape or not np.issubdtype(array.dtype, dtype):
      found = f"{getattr(array, 'dtype', type(array).__name__)}{list(np.shape(array))}"
      return Unscored(f"the reconstructor's {name} are {found}, not {dtype.__name__}{list(shape)}")
  if not (np.isfinite(view.poses).all() and np.isfinite(view.offset_alpha).all()):
    return Unscored("the reconstructor found no finite camera path or scene")
  if not (math.isfinite(view.depth_unit) and view.depth_unit > 0):
    return Unscored(f"the reconstructed scene has the median depth {view.depth_unit}")
  return view


def _checked_score(
  name: str, score: float | Unscored, low: float = -math.inf, high: float = math.inf
) -> float | Unscored:
  if isinstance(score, Unscored):
    return Unscored(score.reason[:_MAX_REASON])
  if not isinstance(score, numbers.Real) or not math.isfinite(score) or not low <= score <= high:
    return Unscored(f"the {name} scorer gave {score}"[:_MAX_REASON])
  return float(score)
