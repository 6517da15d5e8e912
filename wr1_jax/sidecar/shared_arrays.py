"""Numpy arrays in memory that two processes share, in a segment that has no name while it is in use.

`multiprocessing.shared_memory` makes the segment. Its name is removed before anything is put into it, and the other
process gets the open descriptor instead (over the control socket). So the kernel frees the memory when both sides have
let go of it, however they end: there is no name that a killed process could leave behind in /dev/shm, and nothing that
Python's resource tracker, which would otherwise take every process that attaches for an owner, has to be told.
"""

from __future__ import annotations

import dataclasses
import errno
import math
import mmap
import os
import secrets
from collections.abc import Mapping
from multiprocessing import shared_memory

import numpy as np

from wr1_jax.errors import UserError

SHM_FOLDER = "/dev/shm"
NAME_PREFIX = "wr1_jax_"
_ALIGNMENT = 64  # bytes


@dataclasses.dataclass(frozen=True)
class Spec:
  """Type and shape of one array."""

  dtype: str
  shape: tuple[int, ...]

  @property
  def nbytes(self) -> int:
    return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def total_bytes(specs: Mapping[str, Spec]) -> int:
  """Size of the segment that holds `specs`."""
  return sum(_aligned(spec.nbytes) for spec in specs.values())


class SharedArrays:
  """Arrays by name. They live as long as this object or any view of them; `close` only drops this object's hold."""

  def __init__(self, descriptor: int, specs: Mapping[str, Spec]):
    """Maps an open segment; takes over `descriptor`.

    Raises:
      ValueError: the segment is smaller than `specs` need.
    """
    self.descriptor = descriptor
    size = total_bytes(specs)
    if os.fstat(descriptor).st_size < size:
      raise ValueError(f"a segment of {os.fstat(descriptor).st_size} bytes cannot hold {size}")
    memory = mmap.mmap(descriptor, size)
    self.arrays: dict[str, np.ndarray] = {}
    offset = 0
    for name, spec in specs.items():
      self.arrays[name] = np.frombuffer(memory, spec.dtype, math.prod(spec.shape), offset).reshape(spec.shape)
      offset += _aligned(spec.nbytes)

  @classmethod
  def allocate(cls, specs: Mapping[str, Spec]) -> SharedArrays:
    """New arrays, all zero.

    Raises:
      UserError: /dev/shm has too little room.
    """
    size = total_bytes(specs)
    stat = os.statvfs(SHM_FOLDER)
    if size > stat.f_bavail * stat.f_frsize:  # else the kernel would first fill what there is
      raise _no_room(size)
    segment = shared_memory.SharedMemory(f"{NAME_PREFIX}{os.getpid()}_{secrets.token_hex(4)}", create=True, size=size)
    try:
      descriptor = os.open(os.path.join(SHM_FOLDER, segment.name), os.O_RDWR)
    finally:
      segment.close()
      segment.unlink()
    try:
      # Without this, memory that somebody else has taken meanwhile would be noticed as a bus error at the first write.
      os.posix_fallocate(descriptor, 0, size)
      return cls(descriptor, specs)
    except OSError as error:
      os.close(descriptor)
      if error.errno in (errno.ENOSPC, errno.ENOMEM):
        raise _no_room(size) from error
      raise

  def close(self) -> None:
    """Closes the descriptor and forgets the arrays. Idempotent."""
    if self.descriptor >= 0:
      os.close(self.descriptor)
      self.descriptor = -1
      self.arrays = {}


def check_room(specs: Mapping[str, Spec]) -> None:
  """Checks that `specs` fit into the shared memory of this machine when nothing else is in it.

  Raises:
    UserError: they do not.
  """
  stat = os.statvfs(SHM_FOLDER)
  if total_bytes(specs) > stat.f_blocks * stat.f_frsize:
    raise _no_room(total_bytes(specs))


def _no_room(size: int) -> UserError:
  stat = os.statvfs(SHM_FOLDER)
  free, total = (blocks * stat.f_frsize / 2**20 for blocks in (stat.f_bavail, stat.f_blocks))
  return UserError(
    f"the reward sidecar needs {size / 2**20:.0f} MiB of shared memory for a batch of clips, but {SHM_FOLDER} has "
    f"{free:.0f} MiB free of {total:.0f}; enlarge it (docker run --shm-size=..., or mount -o remount,size=...), or "
    f"score fewer clips at once."
  )


def _aligned(size: int) -> int:
  return -(-size // _ALIGNMENT) * _ALIGNMENT
