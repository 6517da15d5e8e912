"""What a run writes for people: metrics.jsonl, TensorBoard, videos and a picture of the camera paths."""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
from einops import rearrange
from jaxtyping import UInt8
from PIL import Image
from tensorboardX import summary
from tensorboardX.proto.summary_pb2 import Summary

from wr1_jax.data import video_files
from wr1_jax.errors import UserError
from wr1_jax.training.event_file import EventFile

_GIF_WIDTH = 1000  # pixels; TensorBoard shows videos as GIFs, which grow large


class RunLog:
  """Writes under `workdir`; on resumption, first drops what was written after the checkpoint.

  Every method raises `UserError` where the disk is full or the like.
  """

  def __init__(self, workdir: Path, resume_at: int):
    """`resume_at`: the first iteration of this start; records of it and later ones are written again."""
    self._workdir = workdir
    self._metrics = workdir / "metrics.jsonl"
    with _writing(workdir):
      _drop_records(self._metrics, resume_at)
      self._events = EventFile(workdir / "tensorboard", purge_step=resume_at)

  def __enter__(self) -> RunLog:
    return self

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
  ) -> None:
    with contextlib.suppress(OSError):  # all is written; a full disk has been complained about
      self._events.close()

  def scalars(self, iteration: int, phase: str, values: dict[str, float]) -> None:
    """One line of metrics.jsonl (what is not finite becomes null) and the same in TensorBoard."""
    finite = {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
    record = json.dumps({"iteration": iteration, "phase": phase, **finite}, allow_nan=False)
    with _writing(self._metrics):
      with self._metrics.open("a") as file:
        file.write(record + "\n")
      known = {name: value for name, value in finite.items() if value is not None}
      self._events.add(iteration, Summary(value=[summary.scalar(*pair).value[0] for pair in known.items()]))

  def video(self, iteration: int, name: str, clips: UInt8[np.ndarray, "rows columns T H W 3"], fps: int) -> Path:
    """Writes clips side by side, as mp4 and, smaller, into TensorBoard."""
    frames = rearrange(clips, "rows columns t h w c -> t (rows h) (columns w) c")
    path = self._workdir / "videos" / f"{iteration:06d}_{name}.mp4"
    with _writing(path):
      video_files.write_mp4(path, frames, fps)
      self._events.add(iteration, Summary(value=[Summary.Value(tag=name, image=_gif(frames, fps))]))
    return path

  def picture(self, iteration: int, name: str, pixels: UInt8[np.ndarray, "H W 3"]) -> Path:
    """Writes a picture, as png and into TensorBoard."""
    path = self._workdir / "pictures" / f"{iteration:06d}_{name}.png"
    with _writing(path):
      path.parent.mkdir(exist_ok=True)
      Image.fromarray(pixels).save(path)
      self._events.add(iteration, summary.image(name, pixels, dataformats="HWC"))
    return path


def _gif(frames: UInt8[np.ndarray, "T H W 3"], fps: int) -> Summary.Image:
  height, width = frames.shape[1:3]
  shrink = min(1.0, _GIF_WIDTH / width)
  size = (round(shrink * width), max(1, round(shrink * height)))
  first, *rest = [Image.fromarray(frame).resize(size) for frame in frames]
  gif = io.BytesIO()
  first.save(gif, format="GIF", save_all=True, append_images=rest, duration=1000 // fps, loop=0)
  return Summary.Image(encoded_image_string=gif.getvalue(), width=size[0], height=size[1], colorspace=3)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
  """Says what to do where the disk is full."""
  try:
    yield
  except (OSError, ValueError) as error:
    raise UserError(
      f"{path} could not be written ({error}); make room and start the same command again to go on from the last "
      "checkpoint."
    ) from error


def _drop_records(path: Path, resume_at: int) -> None:
  """Keeps the whole records before iteration `resume_at`: a kill may have left later ones, or half a line."""
  if not path.exists():
    return
  kept = []
  for line in path.read_text().splitlines():
    try:
      record = json.loads(line)
    except json.JSONDecodeError:
      break
    if record["iteration"] < resume_at:
      kept.append(line + "\n")
  draft = path.with_suffix(".tmp")
  draft.write_text("".join(kept))
  draft.replace(path)
