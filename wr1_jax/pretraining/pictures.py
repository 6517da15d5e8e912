"""Contact sheets: a clip a row."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from einops import rearrange
from jaxtyping import UInt8
from PIL import Image, ImageDraw

_FRAMES = 5  # of a clip
_STRIP = 14  # pixels of height for a row's caption


def contact_sheet(clips: Sequence[UInt8[np.ndarray, "T H W 3"]], captions: Sequence[str]) -> UInt8[np.ndarray, "h w 3"]:
  """Evenly spaced frames of every clip from left to right, under its caption."""
  rows = []
  for clip, caption in zip(clips, captions, strict=True):
    shown = np.linspace(0, len(clip) - 1, min(_FRAMES, len(clip))).astype(int)
    row = rearrange(clip[shown], "t h w c -> h (t w) c")
    strip = Image.new("RGB", (row.shape[1], _STRIP))
    text = textwrap.shorten(caption, max(row.shape[1] // 6, 20), placeholder="...")
    ImageDraw.Draw(strip).text((2, 1), text.encode("ascii", "replace").decode(), fill="white")
    rows += [np.asarray(strip), row]
  return np.concatenate(rows)
