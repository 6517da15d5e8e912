"""Reads video clips from files that any program may have made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from wr1_jax.data import video_files
from wr1_jax.errors import UserError

SUFFIXES = (".mp4", ".npy")
MIN_SIDE = 64  # pixels
_MAX_REASON = 200  # characters


class ClipError(Exception):
  """A file holds no clip that can be scored; the message says why."""


def find(folder: Path) -> list[Path]:
  """The clips of a folder, by name.

  Raises:
    UserError: there is no such folder, or no clip in it.
  """
  if not folder.is_dir():
    raise UserError(f"--videos={folder}: there is no such folder.")
  clips = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
  if not clips:
    raise UserError(f"--videos={folder}: there are no clips in it; a clip's name ends in {' or '.join(SUFFIXES)}.")
  return clips


def read(path: Path) -> UInt8[np.ndarray, "T H W 3"]:
  """All frames of a clip, RGB.

  Raises:
    ClipError: the file is broken, or is not a uint8 video whose sides are at least `MIN_SIDE` pixels.
  """
  try:
    # Never unpickles: an .npy file of objects is an error.
    clip = np.load(path, allow_pickle=False) if path.suffix.lower() == ".npy" else video_files.read_mp4(path)
  except Exception as error:  # a decoder may fail on a broken file in any way
    raise ClipError(f"{path.name} cannot be read: {str(error)[:_MAX_REASON]}") from error
  if not isinstance(clip, np.ndarray) or clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[-1] != 3:
    found = f"{clip.dtype}{list(clip.shape)}" if isinstance(clip, np.ndarray) else "no array"
    raise ClipError(f"{path.name} holds {found}; a clip is uint8 [T, H, W, 3]")
  if not len(clip):
    raise ClipError(f"{path.name} holds no frames")
  if min(clip.shape[1:3]) < MIN_SIDE:
    raise ClipError(f"{path.name} is {clip.shape[2]}x{clip.shape[1]}; its sides must be at least {MIN_SIDE} pixels")
  return clip
