"""A picture of the camera path that was asked for beside the one that was recovered from the clip."""

from __future__ import annotations

import textwrap

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_TITLE_LENGTH = 180  # characters


def camera_paths(
  frames: UInt8[np.ndarray, "T h w 3"],
  rendered: UInt8[np.ndarray, "T h w 3"],
  offset_view: UInt8[np.ndarray, "h w 3"],
  target: Float[np.ndarray, "T 4 4"] | None,
  recovered: Float[np.ndarray, "T 4 4"],
  title: str,
) -> UInt8[np.ndarray, "H W 3"]:
  """Draws one clip for a person to judge.

  Args:
    frames: the clip as the reconstructor saw it.
    rendered: the recovered scene seen from the recovered cameras.
    offset_view: the recovered scene seen from off the path.
    target: camera-to-world path asked for, translations in scene depths; None: none was asked for.
    recovered: camera-to-world path found, translations in median depths.
    title: lines over the picture; long ones are cut.
  """
  figure = Figure(figsize=(14, 3.4), layout="constrained")
  canvas = FigureCanvasAgg(figure)
  figure.suptitle(
    "\n".join(textwrap.shorten(line, _TITLE_LENGTH) for line in title.splitlines()), fontsize=9, parse_math=False
  )
  grid = figure.add_gridspec(2, 6, width_ratios=(2, 2, 2, 2, 2.6, 2.6))
  shown = np.linspace(0, len(frames) - 1, 3).astype(int)
  for column, index in enumerate(shown):
    _show(figure.add_subplot(grid[0, column]), frames[index], f"frame {index}")
    _show(figure.add_subplot(grid[1, column]), rendered[index], f"render {index}")
  _show(figure.add_subplot(grid[1, len(shown)]), offset_view, "from off the path")

  positions = figure.add_subplot(grid[:, 4])
  turns = figure.add_subplot(grid[:, 5])
  for path, colour, label in ((target, "tab:green", "target"), (recovered, "tab:red", "recovered")):
    if path is None:
      continue
    positions.plot(path[:, 0, 3], path[:, 2, 3], "o-", color=colour, label=label, markersize=3)
    forward = path[:, :3, 2]
    turns.plot(np.degrees(np.arctan2(forward[:, 0], forward[:, 2])), "-", color=colour, label=f"{label} yaw")
    turns.plot(np.degrees(np.arcsin(np.clip(-forward[:, 1], -1, 1))), ":", color=colour, label=f"{label} pitch")
  positions.set(title="camera centre, from above", xlabel="right (scene depths)", ylabel="forward (scene depths)")
  positions.axis("equal")
  turns.set(title="viewing direction", xlabel="frame", ylabel="degrees")
  for axes in (positions, turns):
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)
  canvas.draw()
  return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _show(axes: Axes, image: UInt8[np.ndarray, "h w 3"], title: str) -> None:
  axes.imshow(image)
  axes.set_axis_off()
  axes.set_title(title, fontsize=8)
