"""How long each part of the reward takes, by the number of clips in a batch, and where the reconstructor spends it.

    python tests/benchmarks/rewards_speed.py --device=cuda

Clips are rigid ones of the toy world. Two tables come out, in milliseconds a clip:

  parts   one column a batch size: the reconstruction, the two judges, and what the trainer adds (LPIPS, trajectory);
          below them the whole and the peak of the device's memory. Medians of `--repeats` runs after one that warms up.
  stages  the same reconstruction once more with every stage waiting for the device, so that each pays for its own work:
          the search by size of image and number of paths, the scene, the renders. A stage's line holds what its inner
          stages (indented) take too. Waiting costs something: compare the top lines with the first table.

`--profile` adds PyTorch's own table of the largest batch: calls and time of every operation, the most expensive first.
Expected: about 4 to 5 s a clip on one CPU core; on a GPU, batches of 16 well below 0.3 s a clip. A run takes about a
minute on a GPU; on a CPU choose `--batches=1 --repeats=1`.
"""

from __future__ import annotations

import os

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # two libraries share the device

import argparse
import collections
import contextlib
import functools
import time

import jax
import numpy as np
import torch

from wr1_jax.config import CameraConfig, RewardsConfig
from wr1_jax.rewards.compose import Composer
from wr1_jax.rewards.jobs import ClipResult
from wr1_jax.sidecar import gaussians, geometry, registry
from wr1_jax.sidecar.photometric import bundle, depth, scene, search
from wr1_jax.sidecar.scorers import View
from wr1_jax.world import WorldConfig, render, sample

CAMERA = CameraConfig()


def make_clips(count: int, config: WorldConfig) -> tuple[np.ndarray, np.ndarray]:
  """uint8 videos [n, T, H, W, 3] and their paths [n, T, 4, 4] in scene depths."""
  made = sample(1, range(count), config, CAMERA, dynamic=False)
  videos = []
  for start in range(0, count, 8):
    part = jax.tree.map(lambda x: x[start : start + 8], made.scenes)
    video = jax.device_get(render(part, made.poses[start : start + 8], config, CAMERA).video)
    videos.append(np.round((video + 1) * 127.5).astype(np.uint8))
  return np.concatenate(videos), made.poses


class Stages:
  """Seconds of nested stages, each of which waits for the device at both ends."""

  def __init__(self, device: str):
    self._wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    self._open: list[str] = []
    self.seconds: dict[tuple[str, ...], float] = collections.defaultdict(float)
    self.calls: dict[tuple[str, ...], int] = collections.defaultdict(int)

  @contextlib.contextmanager
  def measured(self):
    """Measures the stages of the reconstructor inside the block, by standing in for its functions."""
    places = [(search, "recover"), (search, "_solve"), (bundle, "linearise"), (scene, "build"), (depth, "sweep")]
    places += [(depth, "fill"), (scene, "fit_colours"), (scene, "splat"), (gaussians, "render"), (gaussians, "splat")]
    originals = [(module, name, getattr(module, name)) for module, name in places]
    for module, name, function in originals:
      setattr(module, name, self._timed(f"{module.__name__.rpartition('.')[2]}.{name}", function))
    try:
      yield
    finally:
      for module, name, function in originals:
        setattr(module, name, function)

  def _timed(self, name, function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
      self._open.append(_solve_name(*args, **kwargs) if name == "search._solve" else name)
      self._wait()
      started = time.perf_counter()
      result = function(*args, **kwargs)
      self._wait()
      key = tuple(self._open)
      self.seconds[key] += time.perf_counter() - started
      self.calls[key] += 1
      self._open.pop()
      return result

    return wrapper

  def print(self, clips: int) -> None:
    for key in sorted(self.seconds, key=lambda key: [self._first(key[:i]) for i in range(1, len(key) + 1)]):
      line = f"{'  ' * (len(key) - 1)}{key[-1]}"
      print(f"  {line:66s} {1e3 * self.seconds[key] / clips:9.2f} ms a clip {self.calls[key]:6d} calls")

  def _first(self, key: tuple[str, ...]) -> int:
    """When a stage was first done, so that stages are printed in order."""
    return next(i for i, other in enumerate(self.seconds) if other[: len(key)] == key)


def _solve_name(level, unknowns, clips, iterations, priors, *, depth_only=False) -> str:
  h, w = level.images.shape[-2:]
  paths, nodes = len(unknowns.poses) // clips, level.weights.shape[1]
  what = "depths only, " if depth_only else ""
  return f"search {h}x{w}: {what}{paths} paths a clip, {iterations} iterations, {nodes} nodes"


class Parts:
  """The parts of the reward, one after the other."""

  def __init__(self, config: RewardsConfig):
    self._config = config
    self._scorers = {kind: registry.factory(kind, name)(config) for kind, name in registry.chosen(config).items()}
    self._compose = Composer(config, CAMERA)

  def reconstruct(self, videos, paths) -> list[View]:
    return self._scorers["reconstructor"](videos, list(paths))

  def __call__(self, videos: np.ndarray, paths: np.ndarray) -> dict[str, float]:
    """Seconds of each part."""
    seconds, prompts = {}, [""] * len(videos)
    with _timed(seconds, "reconstruction, rendered back"):
      views = self.reconstruct(videos, paths)
    with _timed(seconds, "S_meta judge"):
      metas = self._scorers["meta"](views, prompts)
    with _timed(seconds, "R_gen judge"):
      generals = self._scorers["general"](videos[:, : self._config.general_frames], prompts)
    results = [
      ClipResult(v.frames, v.rendered, v.offset_view, v.poses, v.depth_unit, meta, general)
      for v, meta, general in zip(views, metas, generals)
    ]
    targets = [path * np.array([1, 1, 1, CAMERA.scene_depth], np.float32) for path in paths]
    with _timed(seconds, "LPIPS and trajectory"):
      self._compose(results, targets, [True] * len(videos))
    return seconds


@contextlib.contextmanager
def _timed(seconds: dict[str, float], name: str):
  started = time.perf_counter()
  yield
  seconds[name] = time.perf_counter() - started


def print_parts(columns: dict[int, list[dict[str, float]]], memory: dict[int, float]) -> None:
  print(f"{'ms a clip':32s}" + "".join(f"{f'{size} clips':>12s}" for size in columns))
  names = list(next(iter(columns.values()))[0])
  rows = {name: [1e3 * np.median([run[name] for run in runs]) / n for n, runs in columns.items()] for name in names}
  rows["all"] = [sum(values) for values in zip(*rows.values())]
  rows["device memory, GiB"] = list(memory.values())
  for name, values in rows.items():
    print(f"{name:32s}" + "".join(f"{value:12.1f}" for value in values))


def profile(parts: Parts, videos: np.ndarray, paths: np.ndarray, device: str) -> None:
  activities = [torch.profiler.ProfilerActivity.CPU]
  if device.startswith("cuda"):
    activities.append(torch.profiler.ProfilerActivity.CUDA)
  with torch.profiler.profile(activities=activities) as profiler:
    parts.reconstruct(videos, paths)
  averages = profiler.key_averages()
  order = "self_device_time_total" if device.startswith("cuda") else "self_cpu_time_total"
  print(averages.table(sort_by=order, row_limit=25, max_name_column_width=60))
  print(f"{sum(event.count for event in averages if event.key.startswith('aten::'))} operations in all")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--device", default="cuda")
  parser.add_argument("--batches", type=lambda text: [int(x) for x in text.split(",")], default=[1, 8, 16, 32])
  parser.add_argument("--repeats", type=int, default=2)
  parser.add_argument("--height", type=int, default=96)
  parser.add_argument("--width", type=int, default=160)
  parser.add_argument("--frames", type=int, default=17)
  parser.add_argument("--profile", action="store_true")
  options = parser.parse_args()
  torch.backends.cuda.matmul.allow_tf32 = False

  started = time.perf_counter()
  largest = max(options.batches)
  videos, paths = make_clips(largest, WorldConfig(options.height, options.width, options.frames))
  name = torch.cuda.get_device_name() if options.device.startswith("cuda") else "CPU"
  size = geometry.processed_size(options.height, options.width, RewardsConfig().reconstruction)
  print(f"{name}, torch {torch.__version__}; JAX on {jax.devices()[0].platform}")
  seconds = time.perf_counter() - started
  print(f"{largest} clips of {videos.shape[1:4]}, rendered in {seconds:.1f} s, processed at {size}", flush=True)

  parts = Parts(RewardsConfig(device=options.device))
  columns, memory = {}, {}
  parts(videos[: options.batches[0]], paths[: options.batches[0]])
  for count in options.batches:
    if options.device.startswith("cuda"):
      torch.cuda.reset_peak_memory_stats()
      parts.reconstruct(videos[:count], paths[:count])  # a new size allocates and plans anew
    columns[count] = [parts(videos[:count], paths[:count]) for _ in range(options.repeats)]
    memory[count] = torch.cuda.max_memory_allocated() / 2**30 if options.device.startswith("cuda") else 0.0
  print_parts(columns, memory)

  for count in sorted({options.batches[0], largest}):
    stages = Stages(options.device)
    with stages.measured():
      parts.reconstruct(videos[:count], paths[:count])
    print(f"\nstages, {count} clips")
    stages.print(count)
  if options.profile:
    profile(parts, videos, paths, options.device)


if __name__ == "__main__":
  main()
