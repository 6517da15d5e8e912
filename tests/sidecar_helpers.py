"""Jobs for fake scorers, and a look at processes and shared memory."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from wr1_jax.config import RewardsConfig
from wr1_jax.rewards.jobs import Job
from wr1_jax.sidecar import shared_arrays

TESTS = Path(__file__).parent
FAKES = RewardsConfig(
  reconstructor="fake_scorers:Reconstructor",
  meta="fake_scorers:Meta",
  general="fake_scorers:General",
  job_seconds=60.0,
  start_seconds=60.0,
  retries=1,
)


def names_in_shm() -> list[str]:
  """Names that stay: tests that run beside this one have some for a moment."""
  names = _names_in_shm()
  if names:
    time.sleep(0.1)
    names &= _names_in_shm()
  return sorted(names)


def _names_in_shm() -> set[str]:
  return {name for name in os.listdir(shared_arrays.SHM_FOLDER) if name.startswith(shared_arrays.NAME_PREFIX)}


def shm_free() -> int:
  stat = os.statvfs(shared_arrays.SHM_FOLDER)
  return stat.f_bavail * stat.f_frsize


def sidecars_of(process: int) -> list[int]:
  """Sidecars that `process` has started and that still run."""
  found = []
  for folder in Path("/proc").glob("[0-9]*"):
    try:
      command = (folder / "cmdline").read_bytes()
    except OSError:
      continue
    if b"wr1_jax.sidecar" in command and f"--parent={process}".encode() in command:
      found.append(int(folder.name))
  return found


def group_of(process: int) -> list[int]:
  """The other members of its process group: what else it has started."""
  own = os.getpgid(process)
  members = [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]
  return [member for member in members if is_running(member) and os.getpgid(member) == own and member != process]


def is_running(process: int) -> bool:
  try:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
  except OSError:
    return False


def wait_for(condition, seconds=20.0):
  deadline = time.monotonic() + seconds
  while not (value := condition()):
    assert time.monotonic() < deadline, "waited in vain"
    time.sleep(0.02)
  return value


def job(*prompts: str, colours=None, parts=("general",), frames=3) -> Job:
  """A batch of one clip a prompt, each of one colour."""
  colours = colours or [10 * (i + 1) for i in range(len(prompts))]
  videos = np.empty((len(prompts), frames, 64, 96, 3), np.uint8)
  videos[:] = np.array(colours, np.uint8)[:, None, None, None, None]
  return Job(videos, prompts, [None] * len(prompts), frozenset(parts))


def path(seed: int, frames=3) -> np.ndarray:
  poses = np.tile(np.eye(4, dtype=np.float32), (frames, 1, 1))
  poses[:, :3, 3] = np.random.default_rng(seed).normal(size=(frames, 3))
  return poses
