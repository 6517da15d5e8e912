"""Tries the scorers of a config, one by one, before a run depends on them.

    python -m wr1_jax.sidecar.check --config=configs/small.py [--config.KEY=VALUE ...]

It runs in the sidecar's own interpreter (config.rewards.python) and downloads nothing. For each scorer it prints where
the weights are, or the command that fetches them; how long it takes to get ready and to score one random clip of the
config's size; and the memory in use. The exit status is 1 if one of them cannot be used.
"""

from __future__ import annotations

import importlib.metadata
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from wr1_jax import cli, errors
from wr1_jax.config import Config
from wr1_jax.rewards.sidecar_process import environment, find_interpreter
from wr1_jax.sidecar import geometry, registry
from wr1_jax.sidecar.registry import Kind
from wr1_jax.sidecar.scorers import Unscored, View

_LIBRARIES = ("numpy", "scipy", "torch", "transformers", "huggingface-hub", "depth-anything-3", "gsplat")
_PROMPT = "Camera push in. A room."


def check(config: Config) -> bool:
  """Prints the report. Returns whether all scorers can be used."""
  rewards = config.rewards
  print(f"python {platform.python_version()} ({sys.executable}), device {rewards.device}, {rewards.threads} thread(s)")
  print(f"libraries: {', '.join(f'{name} {_version(name)}' for name in _LIBRARIES)}")
  video = config.video
  shape = (1, video.frames, video.height, video.width, 3)
  clip = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  print(f"the clip: random, {video.width}x{video.height}, {video.frames} frames")
  return all([_try(kind, name, config, clip) for kind, name in registry.chosen(rewards).items()])


def _try(kind: Kind, name: str, config: Config, clip: np.ndarray) -> bool:
  """Prints what is to be said of one scorer. Returns whether it can be used."""
  print(f"\n{kind}: {name}")
  try:
    missing = False
    for source in registry.sources(kind, name, config.rewards):
      folder = source.at_hand()
      missing = missing or folder is None
      print(f"  weights  {folder}" if folder else f"  missing  config.{source.option}; run: {source.command}")
    if missing:
      return False
    started = time.perf_counter()
    scorer = registry.factory(kind, name)(config.rewards)
    print(f"  ready    after {time.perf_counter() - started:.1f} s")
    started = time.perf_counter()
    result = _score(kind, scorer, config, clip)
    print(f"  one clip {time.perf_counter() - started:.1f} s{result}")
  except Exception as error:  # whatever is wrong with one scorer must not hide what is wrong with the next
    print(f"  fails    {type(error).__name__}: {error}")
    return False
  print(f"  memory   {_memory(config.rewards.device)}")
  return True


def _score(kind: Kind, scorer, config: Config, clip: np.ndarray) -> str:
  """Scores the clip, and says in a few words what came of it. Noise shows no scene, so that may be nothing."""
  if kind == "reconstructor":
    (found,) = scorer(clip, [None])
    return f", no scene in it ({found.reason})" if isinstance(found, Unscored) else ""
  if kind == "meta":
    (found,) = scorer([_noisy_view(config, clip)], [_PROMPT])
  else:
    (found,) = scorer(clip[:, : config.rewards.general_frames], [_PROMPT])
  return f", no score ({found.reason})" if isinstance(found, Unscored) else f", score {found:.3f}"


def _noisy_view(config: Config, clip: np.ndarray) -> View:
  """A reconstruction that is nothing but noise, of the size that it would have."""
  _, frames, height, width, _ = clip.shape
  h, w = geometry.processed_size(height, width, config.rewards.reconstruction)
  noise = np.random.default_rng(1).integers(0, 256, (frames, h, w, 3), np.uint8)
  return View(
    frames=noise,
    rendered=noise,
    offset_view=noise[0],
    offset_alpha=np.ones((h, w), np.float32),
    poses=np.tile(np.eye(4, dtype=np.float32), (frames, 1, 1)),
    depth_unit=1.0,
  )


def _memory(device: str) -> str:
  """The most that this process has used so far."""
  most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB
  text = f"{most:.1f} GiB of RAM at most so far"
  if device.startswith("cuda"):
    text += f", {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB of the GPU's"
  return text


def _version(library: str) -> str:
  try:
    return importlib.metadata.version(library)
  except importlib.metadata.PackageNotFoundError:
    return "missing"


def main(argv: Sequence[str]) -> int:
  """Entry of the command line. Returns the exit status."""
  with errors.reported():
    config, _ = cli.parse(argv, lambda values: None)
    registry.check(config.rewards)
    python = find_interpreter(config.rewards.python)
    if Path(python).absolute() != Path(sys.executable).absolute():
      # There, it is the interpreter that is meant.
      command = [python, "-m", "wr1_jax.sidecar.check", *argv[1:], "--config.rewards.python="]
      return subprocess.run(command, env=environment(config.rewards)).returncode
    return 0 if check(config) else 1


if __name__ == "__main__":
  sys.exit(main(sys.argv))
