"""How much moves in a clip, without a network: the length of its optical flow.

This is no stand-in for VBench's dynamic degree, which thresholds RAFT's flow: it is called flow here, never degree.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from scipy import ndimage

from wr1_jax.sidecar.geometry import LUMA

_WIDTH = 160  # pixels; wider clips are shrunk to this, which also bounds the work
_SMALLEST_SIDE = 16  # pixels, of the coarsest level
_LEVELS = 4
_ITERATIONS = 4  # a level
_SIGMA = 2.0  # pixels, of the window in which the flow is taken to be one
_DAMPING = 1e-4  # squared gradient, for brightness in [0, 1]: where there is less texture the flow tends to 0
_LONGEST_STEP = 1.0  # pixels, of one iteration


def flow_percent(video: UInt8[np.ndarray, "T H W 3"]) -> float:
  """Mean length of the optical flow from each frame to the next, over all pixels, in percent of the width.

  Brightness at most 160 pixels wide, and pyramidal, iterated Lucas-Kanade (1981): in a Gaussian window of sigma 2
  pixels, the displacement d with (G + damping I) d = -sum of gradient times brightness difference, G the sum of outer
  products of the gradient. Sees motions of up to about a tenth of the width; textureless surfaces count as still, and
  flicker without displacement counts little. 0 for a single frame.
  """
  if len(video) < 2:
    return 0.0
  brightness = _brightness(video)
  flow = _flow(brightness[:-1], brightness[1:])
  return float(100 * np.hypot(*flow).mean() / brightness.shape[2])


def _brightness(video: UInt8[np.ndarray, "T H W 3"]) -> Float[np.ndarray, "T h w"]:
  """In [0, 1], float32."""
  grey = video.astype(np.float32) @ np.float32(LUMA) / 255
  height, width = grey.shape[1:]
  if width <= _WIDTH:
    return grey
  size = (_WIDTH, max(1, round(height * _WIDTH / width)))
  return np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX)) for frame in grey])


def _flow(before: Float[np.ndarray, "n h w"], after: Float[np.ndarray, "n h w"]) -> Float[np.ndarray, "2 n h w"]:
  """Displacement (rows, columns) in pixels of what `before` shows until `after`."""
  flow = None
  for first, second in reversed(_pyramid(before, after)):
    flow = np.zeros((2, *first.shape), np.float32) if flow is None else _enlarged(flow, first.shape)
    flow = _refined(flow, first, second)
  return flow


def _pyramid(before: np.ndarray, after: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
  """Both clips, finest level first."""
  levels = [(before, after)]
  while len(levels) < _LEVELS and min(levels[-1][0].shape[1:]) >= 2 * _SMALLEST_SIDE:
    levels.append(tuple(ndimage.gaussian_filter(x, (0, 1, 1), mode="nearest")[:, ::2, ::2] for x in levels[-1]))
  return levels


def _enlarged(flow: Float[np.ndarray, "2 n h w"], shape: tuple[int, int, int]) -> Float[np.ndarray, "2 n h2 w2"]:
  """The flow of a level on the next finer one, whose pixel (2 y, 2 x) is this one's (y, x)."""
  _, height, width = shape
  flow = 2 * flow.repeat(2, axis=2)[:, :, :height].repeat(2, axis=3)[..., :width]
  return ndimage.uniform_filter(flow, (0, 0, 2, 2), mode="nearest", origin=(0, 0, -1, -1))


def _refined(
  flow: Float[np.ndarray, "2 n h w"], first: Float[np.ndarray, "n h w"], second: Float[np.ndarray, "n h w"]
) -> Float[np.ndarray, "2 n h w"]:
  """Lucas-Kanade steps from `flow`."""

  def window(x: Float[np.ndarray, "n h w"]) -> Float[np.ndarray, "n h w"]:
    return ndimage.gaussian_filter(x, (0, _SIGMA, _SIGMA), mode="nearest")

  dy, dx = np.gradient(first, axis=(1, 2))
  clip, row, column = np.indices(first.shape, np.float32)
  bottom, right = first.shape[1] - 1, first.shape[2] - 1
  for _ in range(_ITERATIONS):
    at = (row + flow[0], column + flow[1])
    inside = (at[0] >= 0) & (at[0] <= bottom) & (at[1] >= 0) & (at[1] <= right)  # what left the frame says nothing
    change = ndimage.map_coordinates(second, [clip, *at], order=1, mode="nearest") - first
    gy, gx = dy * inside, dx * inside
    yy, xx, xy = window(gy * gy) + _DAMPING, window(gx * gx) + _DAMPING, window(gx * gy)
    to_y, to_x = window(gy * change), window(gx * change)
    step = -np.stack([xx * to_y - xy * to_x, yy * to_x - xy * to_y]) / (yy * xx - xy * xy)
    flow = flow + step * np.minimum(1, _LONGEST_STEP / np.maximum(np.hypot(*step), 1e-9))
  return flow
