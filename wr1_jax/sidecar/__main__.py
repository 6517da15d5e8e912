"""The reward process: `python -m wr1_jax.sidecar --socket=FD --parent=PID`. Started by the trainer, never by hand."""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import socket
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with(parent: int) -> None:
  """Has the kernel kill this process, even a stopped one, when the thread of process `parent` that started it ends."""
  libc = ctypes.CDLL(None, use_errno=True)
  if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
    raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
  if os.getppid() != parent:  # it ended before the call above, which therefore came too late
    sys.exit("the trainer is gone")


def main() -> None:
  parser = argparse.ArgumentParser(prog="python -m wr1_jax.sidecar", description=__doc__)
  parser.add_argument("--socket", type=int, required=True, help="descriptor of the connection to the trainer")
  parser.add_argument("--parent", type=int, required=True, help="process id of the trainer")
  arguments = parser.parse_args()
  die_with(arguments.parent)

  # Imported late: no library may be loading, and so nothing may hang, before the lines above have run.
  from wr1_jax import errors
  from wr1_jax.sidecar import worker
  from wr1_jax.sidecar.channel import Channel

  connection = socket.socket(fileno=arguments.socket)
  os.set_inheritable(arguments.socket, False)
  with errors.reported():
    worker.serve(Channel(connection))


if __name__ == "__main__":
  main()
