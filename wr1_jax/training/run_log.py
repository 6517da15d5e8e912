"""What a run writes for people: metrics.jsonl, TensorBoard, videos and a picture of the camera paths."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from types import TracebackType

import numpy as np
import tensorboardX
from einops import rearrange
from PIL import Image
from tensorboardX.proto.summary_pb2 import Summary

from wr1_jax.data import video_files
from wr1_jax.errors import UserError


class RunLog:
  """Writes under `workdir`; on resumption, first drops what was written after the checkpoint."""

  def __init__(self, workdir: Path, resume_at: int):
    """`resume_at`: the first iteration of this start; records of it and later ones are written again."""
    self._workdir = workdir
    self._metrics = workdir / "metrics.jsonl"
    _drop_records(self._metrics, resume_at)
    self._tensorboard = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=resume_at)

  def __enter__(self) -> RunLog:
    return self

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
  ) -> None:
    self._tensorboard.close()

  def scalars(self, iteration: int, phase: str, values: dict[str, float]) -> None:
    """One line of metrics.jsonl (what is not finite becomes null) and the same in TensorBoard."""
    finite = {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
    record = json.dumps({"iteration": iteration, "phase": phase, **finite}, allow_nan=False)
    try:
      with self._metrics.open("a") as file:
        file.write(record + "\n")
    except OSError as error:
      raise UserError(
        f"{self._metrics} could not be written ({error.strerror}); make room and start the same command again to go "
        "on from the last checkpoint."
      ) from error
    for name, value in finite.items():
      if value is not None:
        self._tensorboard.add_scalar(name, value, iteration)

  def video(self, iteration: int, name: str, clips: np.ndarray, fps: int) -> Path:
    """Writes clips side by side, as mp4 and into TensorBoard.

    Args:
      clips: uint8 `[rows, columns, T, H, W, 3]`.
    """
    frames = rearrange(clips, "rows columns t h w c -> t (rows h) (columns w) c")
    path = self._workdir / "videos" / f"{iteration:06d}_{name}.mp4"
    video_files.write_mp4(path, frames, fps)
    gif = io.BytesIO()
    first, *rest = [Image.fromarray(frame) for frame in frames]
    first.save(gif, format="GIF", save_all=True, append_images=rest, duration=1000 // fps, loop=0)
    height, width = frames.shape[1:3]
    image = Summary.Image(encoded_image_string=gif.getvalue(), height=height, width=width, colorspace=3)
    summary = Summary(value=[Summary.Value(tag=name, image=image)])
    self._tensorboard.file_writer.add_summary(summary, iteration)
    return path

  def picture(self, iteration: int, name: str, pixels: np.ndarray) -> Path:
    """Writes an uint8 `[H, W, 3]` picture, as png and into TensorBoard."""
    path = self._workdir / "pictures" / f"{iteration:06d}_{name}.png"
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path)
    self._tensorboard.add_image(name, pixels, iteration, dataformats="HWC")
    return path


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
