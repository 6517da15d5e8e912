"""Scorers without substance for the tests of the sidecar: they do what the clips' prompts tell them.

The sidecar finds them as `fake_scorers:Reconstructor` and so on when this folder is on PYTHONPATH.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from wr1_jax.sidecar.geometry import processed_size
from wr1_jax.sidecar.scorers import Unscored, View


class Reconstructor:
  """Every picture is the clip's first pixel, the path is the one asked for, the depth unit is the first pixel's red."""

  def __init__(self, config):
    self._config = config.reconstruction

  def __call__(self, videos, paths):
    return [self._view(video, path) for video, path in zip(videos, paths)]

  def _view(self, video, path):
    frames, height, width, _ = video.shape
    depth = float(video[0, 0, 0, 0])
    h, w = processed_size(height, width, self._config)
    if depth == 0:
      return Unscored("a black clip")
    poses = np.tile(np.eye(4), (frames, 1, 1)) if path is None else path.astype(np.float64)
    poses[:, :3, 3] *= depth
    colours = np.broadcast_to(video[:, :1, :1], (frames, h, w, 3))
    return View(
      frames=colours,
      rendered=255 - colours,
      offset_view=colours[0],
      offset_alpha=np.ones((h, w), np.float32),
      poses=poses,
      depth_unit=depth,
    )


class General:
  """Obeys prompts: `score X`, or one of the misdeeds below."""

  def __init__(self, config):
    del config

  def __call__(self, frames, prompts):
    return [self._obey(*prompt.split()) for prompt in prompts]

  def _obey(self, command, *arguments):
    return getattr(self, command)(*arguments)

  def score(self, value):
    return float(value)  # "nan" too

  def mean(self):
    return 0.5

  def modules(self):
    """1 where jax has stayed out of the process."""
    return float(not {"jax", "jaxlib", "flax"} & sys.modules.keys())

  def refuse(self):
    return Unscored("no wish to")

  def fail(self):
    raise RuntimeError("something broke")

  def sleep(self, seconds, value):
    time.sleep(float(seconds))
    return float(value)

  def wait(self, mark, value):
    """Until the file `mark` is there; says by the file `mark`.waiting that it has begun."""
    Path(f"{mark}.waiting").touch()
    while not Path(mark).exists():
      time.sleep(0.01)
    return float(value)

  def hang(self, pid_file="/dev/null"):
    Path(pid_file).write_text(str(os.getpid()))
    while True:
      time.sleep(0.01)

  def stop(self, pid_file="/dev/null"):
    Path(pid_file).write_text(str(os.getpid()))
    os.kill(os.getpid(), signal.SIGSTOP)
    return 0.0

  def crash(self):
    print("about to crash", file=sys.stderr)
    os.kill(os.getpid(), signal.SIGKILL)

  def crash_once(self, mark):
    if not Path(mark).exists():
      Path(mark).touch()
      self.crash()
    return 0.25

  def where(self, folder):
    """Leaves a file in `folder` that is named after the node of the Ray cluster; the second it takes is for others."""
    import ray

    Path(folder, ray.get_runtime_context().get_node_id()).touch()
    time.sleep(1)
    return 0.5

  def forge(self):
    """From the next job on, has the Ray actor answer another one."""
    from wr1_jax.sidecar import ray_actor

    honest = ray_actor.answer
    ray_actor.answer = lambda *arguments: dataclasses.replace(honest(*arguments), job=999)
    return 0.5

  def write(self, data):
    """Writes hexadecimal `data` to the connection, past the protocol."""
    (number,) = [argument.partition("=")[2] for argument in sys.argv if argument.startswith("--socket=")]
    os.write(int(number), bytes.fromhex(data))
    time.sleep(1000)


class Meta:
  """The mean of the offset view, as a share of white; so it tells which clip it was shown."""

  def __init__(self, config):
    del config

  def __call__(self, views, prompts):
    return [float(view.offset_view.mean()) / 255 for view in views]


class Fragile(General):
  """A Ray actor with it can start until it has obeyed `spoil`, and again once the mark is removed."""

  def __init__(self, config):
    super().__init__(config)
    if self.mark().exists():
      raise OSError("the weights are gone")

  @staticmethod
  def mark():
    """A file of this client and its actors."""
    import ray

    context = ray.get_runtime_context()
    return Path(tempfile.gettempdir(), f"{context.gcs_address.rpartition(':')[2]}-{context.get_job_id()}")

  def spoil(self):
    self.mark().touch()
    self.crash()


class Redness:
  """How much more red than blue there is: what every policy can learn."""

  def __init__(self, config):
    del config

  def __call__(self, frames, prompts):
    return [float(clip[..., 0].mean() - clip[..., 2].mean()) / 255 for clip in frames]


def broken(config):
  """A factory that fails."""
  raise OSError("the weights are not there")


def indifferent(config):
  """A general judge that reads no prompts."""
  return lambda frames, prompts: [0.5] * len(frames)
