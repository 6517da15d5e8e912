"""A picture of the camera path that was asked for beside the one that was recovered from the clip."""

from __future__ import annotations

import textwrap

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_TITLE_LENGTH = 180  # characters


def camera_paths(
  frames: np.ndarray, rendered: np.ndarray, target: np.ndarray | None, recovered: np.ndarray, title: str
) -> np.ndarray:
  """Draws one clip for a person to judge.

  Args:
    frames: uint8 `[T, h, w, 3]`, the clip as the reconstructor saw it.
    rendered: uint8 `[T, h, w, 3]`, the recovered scene seen from the recovered cameras.
    target: `[T, 4, 4]` camera-to-world path asked for, translations in scene depths; None: none was asked for.
    recovered: `[T, 4, 4]` camera-to-world path found, translations in median depths.
    title: lines over the picture; long ones are cut.

  Returns:
    uint8 `[H, W, 3]`.
  """
  figure = Figure(figsize=(14, 3.8), layout="constrained")
  canvas = FigureCanvasAgg(figure)
  figure.suptitle("\n".join(textwrap.shorten(line, _TITLE_LENGTH) for line in title.splitlines()), fontsize=9)
  grid = figure.add_gridspec(2, 6, width_ratios=(2, 2, 2, 2, 2.6, 2.6))
  for column, index in enumerate(np.linspace(0, len(frames) - 1, 4).astype(int)):
    for row, clip in enumerate((frames, rendered)):
      axes = figure.add_subplot(grid[row, column])
      axes.imshow(clip[index])
      axes.set_axis_off()
      axes.set_title(f"{('frame', 'render')[row]} {index}", fontsize=8)

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
