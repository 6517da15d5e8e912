"""Video files, by calling ffmpeg itself: imageio evens out frame rates, and forks, which JAX does not survive."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from jaxtyping import UInt8


def read_mp4(path: Path) -> UInt8[np.ndarray, "T H W 3"]:
  """The frames of a video as they are in the file: none dropped, none doubled to even out their rate.

  Raises:
    ValueError: ffmpeg finds no video in the file, or only a part of it.
  """
  frames = "-map 0:v:0 -fps_mode passthrough -pix_fmt rgb24 -f image2pipe -c:v ppm -"
  ppm = _run("-xerror", "-i", str(path.resolve()), *frames.split())
  header = re.match(rb"P6\n(\d+) (\d+)\n255\n", ppm)
  if not header:
    raise ValueError("ffmpeg found no frames")
  width, height = map(int, header.groups())
  frames = np.frombuffer(ppm, np.uint8).reshape(-1, len(header[0]) + height * width * 3)
  return frames[:, len(header[0]) :].reshape(-1, height, width, 3)


def write_mp4(path: Path, frames: UInt8[np.ndarray, "T H W 3"], fps: int) -> None:
  """Writes H.264; sides are padded to the even numbers that it needs.

  Raises:
    ValueError: ffmpeg could not write the file.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  height, width = frames.shape[1:3]
  frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
  size = f"{frames.shape[2]}x{frames.shape[1]}"
  source = f"-f rawvideo -pix_fmt rgb24 -s {size} -r {fps} -i -"
  target = "-c:v libx264 -pix_fmt yuv420p"
  _run("-y", *source.split(), *target.split(), str(path.resolve()), stdin=frames.tobytes())


def _run(*arguments: str, stdin: bytes | None = None) -> bytes:
  """What ffmpeg writes to its standard output."""
  command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", *arguments]
  source = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
  run = subprocess.run(command, capture_output=True, check=False, **source)
  if run.returncode != 0:
    complaint = run.stderr.decode(errors="replace").strip().split("\n")[0]
    raise ValueError(re.sub(r"^\[.*?\] ", "", complaint) or "ffmpeg failed")
  return run.stdout
