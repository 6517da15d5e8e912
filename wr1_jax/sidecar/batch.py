"""Which arrays a batch of clips needs in shared memory: the one place where both processes look it up."""

from __future__ import annotations

from collections.abc import Collection

from wr1_jax.sidecar.messages import BatchShape, Part
from wr1_jax.sidecar.shared_arrays import Spec


def reconstructs(parts: Collection[Part]) -> bool:
  """Whether `parts` need a reconstruction."""
  return "reconstruction" in parts or "meta" in parts


def array_specs(shape: BatchShape, parts: Collection[Part]) -> dict[str, Spec]:
  """The arrays of a batch.

  From the trainer: `videos` uint8 [N, T, H, W, 3] and `paths` float32 [N, T, 4, 4] (camera-to-world, in scene depths;
  only the rows that `ScoreBatch.with_path` marks count). From the sidecar, where `parts` need a reconstruction, at the
  processed size: `frames` and `rendered` uint8 [N, T, h, w, 3], `offset_view` uint8 [N, h, w, 3] and `poses` float32
  [N, T, 4, 4].
  """
  n, t = shape.clips, shape.frames
  specs = {"videos": Spec("uint8", (n, t, shape.height, shape.width, 3))}
  if reconstructs(parts):
    specs["paths"] = Spec("float32", (n, t, 4, 4))
  return specs | output_specs(shape, parts)


def output_specs(shape: BatchShape, parts: Collection[Part]) -> dict[str, Spec]:
  """Those of `array_specs` that the sidecar fills."""
  if not reconstructs(parts):
    return {}
  n, t, size = shape.clips, shape.frames, (shape.rows, shape.columns)
  pictures = Spec("uint8", (n, t, *size, 3))
  return {
    "frames": pictures,
    "rendered": pictures,
    "offset_view": Spec("uint8", (n, *size, 3)),
    "poses": Spec("float32", (n, t, 4, 4)),
  }
