"""What the trainer asks of the reward sidecar, and what it gets back."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
import threading
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Float32, UInt8

from wr1_jax.config import ReconstructionConfig
from wr1_jax.sidecar import batch, geometry
from wr1_jax.sidecar.messages import BatchShape, ClipScores, Part, ScoreBatch, Scored

ALL_PARTS: frozenset[Part] = frozenset({"reconstruction", "meta", "general"})


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
  """A batch of clips of one shape, scored as one batch."""

  videos: UInt8[np.ndarray, "N T H W 3"]
  prompts: Sequence[str]  # one a clip
  # One a clip: the camera path asked for, camera-to-world and in scene depths (`in_scene_depths`); None: no path.
  paths: Sequence[Float[np.ndarray, "T 4 4"] | None]
  parts: frozenset[Part] = ALL_PARTS

  def __post_init__(self) -> None:
    if self.videos.dtype != np.uint8 or self.videos.ndim != 5 or self.videos.shape[-1] != 3 or not self.videos.size:
      raise ValueError(f"videos must be uint8 [N, T, H, W, 3], not {self.videos.dtype}{list(self.videos.shape)}")
    if not len(self.prompts) == len(self.paths) == len(self.videos):
      raise ValueError(f"{len(self.videos)} clips, {len(self.prompts)} prompts and {len(self.paths)} paths")
    frames = self.videos.shape[1]
    if any(path is not None and path.shape != (frames, 4, 4) for path in self.paths):
      raise ValueError(f"every path must be [{frames}, 4, 4]")
    if not self.parts or not self.parts <= ALL_PARTS:
      raise ValueError(f"parts must be some of {sorted(ALL_PARTS)}, not {sorted(self.parts)}")

  def request(self, job: int, config: ReconstructionConfig) -> ScoreBatch:
    """The message that goes with this job."""
    searched = batch.reconstructs(self.parts)
    return ScoreBatch(
      job=job,
      shape=batch_shape(self.videos.shape, config),
      parts=tuple(sorted(self.parts)),
      prompts=tuple(self.prompts),
      with_path=tuple(searched and path is not None for path in self.paths),
    )

  def split(self, parts: int) -> list[Job]:
    """At most `parts` jobs of this one's clips in order, about equally many in each."""
    edges = np.linspace(0, len(self.videos), min(parts, len(self.videos)) + 1).round().astype(int)
    return [
      Job(self.videos[a:b], self.prompts[a:b], self.paths[a:b], self.parts) for a, b in zip(edges[:-1], edges[1:])
    ]

  def inputs(self) -> dict[str, np.ndarray]:
    """Those of `batch.array_specs` that the sidecar is given; `videos` is not copied."""
    arrays = {"videos": self.videos}
    if batch.reconstructs(self.parts):
      arrays["paths"] = np.empty((*self.videos.shape[:2], 4, 4), np.float32)
      for row, path in zip(arrays["paths"], self.paths):
        row[...] = np.eye(4) if path is None else path
    return arrays


@dataclasses.dataclass(frozen=True, eq=False)
class ClipResult:
  """What the sidecar found out about one clip.

  Pictures are None and numbers NaN where the part was not asked for, or failed; `reasons` says why it failed.
  """

  frames: UInt8[np.ndarray, "T h w 3"] | None = None  # the clip at the processed size
  rendered: UInt8[np.ndarray, "T h w 3"] | None = None  # the reconstructed scene at the same frames' poses
  offset_view: UInt8[np.ndarray, "h w 3"] | None = None  # the scene from off the path
  poses: Float32[np.ndarray, "T 4 4"] | None = None  # recovered camera-to-world, anchored at the first frame
  depth_unit: float = math.nan  # median depth of the scene, in the units of `poses`
  meta: float = math.nan
  general: float = math.nan
  reasons: Mapping[Part, str] = dataclasses.field(default_factory=dict)
  seconds: Mapping[Part, float] = dataclasses.field(default_factory=dict)  # that the whole batch took


Results = concurrent.futures.Future[list[ClipResult]]


def _new_results() -> Results:
  results: Results = concurrent.futures.Future()
  results.set_running_or_notify_cancel()  # a job on its way cannot be called back
  return results


@dataclasses.dataclass(eq=False)
class OpenJob:
  """A job on its way."""

  job: Job
  request: ScoreBatch
  results: Results = dataclasses.field(default_factory=_new_results)
  failures: int = 0  # sidecars that were lost over it

  def finish(self, results: list[ClipResult] | BaseException) -> None:
    """Ends the job with its results, or an error."""
    if isinstance(results, BaseException):
      self.results.set_exception(results)
    else:
      self.results.set_result(results)

  def blame(self, reason: str, retries: int) -> bool:
    """Counts a sidecar that was lost over it. Returns whether that was one too many, which ends the job."""
    self.failures += 1
    if self.failures <= retries:
      return False
    self.finish(failed(self.job, f"gave up after {self.failures} sidecars; the last: {reason}"))
    return True


def failed(job: Job, reason: str) -> list[ClipResult]:
  """The results of a job that came to nothing."""
  return [ClipResult(reasons=dict.fromkeys(sorted(job.parts), reason)) for _ in job.prompts]


def read(job: Job, answer: Scored, arrays: Mapping[str, np.ndarray]) -> list[ClipResult]:
  """The results of a job, copied out of the `arrays` of `batch.output_specs`.

  Raises:
    ValueError: the answer does not fit the job.
  """
  if len(answer.clips) != len(job.prompts):
    raise ValueError(f"an answer for {len(answer.clips)} clips to a job of {len(job.prompts)}")
  results = []
  for i, scores in enumerate(answer.clips):
    _check_complete(job, scores)
    names = ("frames", "rendered", "offset_view", "poses") if scores.depth_unit is not None else ()
    results.append(
      ClipResult(
        **{name: arrays[name][i].copy() for name in names},
        depth_unit=_or_nan(scores.depth_unit),
        meta=_or_nan(scores.meta),
        general=_or_nan(scores.general),
        reasons=scores.reasons,
        seconds=answer.seconds,
      )
    )
  return results


def joined(parts: Sequence[Results]) -> Results:
  """A future of all results in order, or of the first error."""
  whole = _new_results()
  lock, left = threading.Lock(), len(parts)

  def finished(_: Results) -> None:
    nonlocal left
    with lock:
      left -= 1
      if left:
        return
    error = next((part.exception() for part in parts if part.exception()), None)
    if error:
      whole.set_exception(error)
    else:
      whole.set_result([result for part in parts for result in part.result()])

  for part in parts:
    part.add_done_callback(finished)
  return whole


def in_scene_depths(path: Float[np.ndarray, "T 4 4"], scene_depth: float) -> Float32[np.ndarray, "T 4 4"]:
  """A camera path, whose scene is `scene_depth` away, in scene depths (the units of `Job.paths`)."""
  path = np.array(path, np.float32)
  path[:, :3, 3] /= scene_depth
  return path


def batch_shape(videos: Sequence[int], config: ReconstructionConfig) -> BatchShape:
  """The sizes of a batch of clips of shape `videos` (N, T, H, W, 3)."""
  clips, frames, height, width, _ = videos
  rows, columns = geometry.processed_size(height, width, config)
  return BatchShape(clips, frames, height, width, rows, columns)


def _check_complete(job: Job, scores: ClipScores) -> None:
  """Every part that was asked for must have either a value or a reason, and nothing else may have either."""
  values = {"meta": scores.meta, "general": scores.general, "reconstruction": scores.depth_unit}
  for part, value in values.items():
    has_value, has_reason = value is not None, part in scores.reasons
    wanted = part in job.parts
    # A meta score needs a reconstruction, so that part may come unasked.
    if has_value and has_reason or (wanted and not (has_value or has_reason)):
      raise ValueError(f"an answer with {'both' if has_value else 'neither'} a value and a reason for '{part}'")
    if not wanted and has_value and not (part == "reconstruction" and batch.reconstructs(job.parts)):
      raise ValueError(f"an answer with the part '{part}', which nobody asked for")


def _or_nan(value: float | None) -> float:
  return math.nan if value is None else value
