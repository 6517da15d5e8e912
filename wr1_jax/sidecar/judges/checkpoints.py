"""Finds the files of published models: in a folder, or on the Hugging Face hub at a pinned commit."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shlex
from collections.abc import Iterator, Sequence, Set
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import LocalEntryNotFoundError

from wr1_jax.errors import UserError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclasses.dataclass(frozen=True)
class Source:
  """Where a model's files are. `option` is the config option that holds `path`, for errors."""

  option: str
  path: str  # a folder, or a hub id
  revision: str  # commit on the hub; not looked at if `path` is a folder
  published: tuple[str, str]  # hub id and commit of the model that the judge was written for
  files: tuple[str, ...] = ()  # those that are needed; none: all

  @property
  def _on_hub(self) -> bool:
    return not Path(self.path).is_dir() and _HUB_ID.fullmatch(self.path) is not None

  @property
  def command(self) -> str:
    """The shell command that brings the files into a folder."""
    name, revision = (self.path, self.revision) if self._on_hub else self.published
    folder = f"weights/{name.partition('/')[2]}" if self._on_hub else self.path
    return shlex.join(["hf", "download", name, *self.files, "--revision", revision, "--local-dir", folder])

  def folder(self) -> Path:
    """The folder with the files, downloaded to the hub's cache if need be.

    Raises:
      UserError: `path` is neither a folder nor a hub id, the revision is no commit, or the download fails.
    """
    if Path(self.path).is_dir():
      return Path(self.path)
    if not self._on_hub:
      raise UserError(
        f"config.{self.option} is '{self.path}', which is no folder; give the folder of a model, or a hub id such as "
        f"'{self.published[0]}'. To fill it: {self.command}"
      )
    if not _COMMIT.fullmatch(self.revision):
      raise UserError(
        f"config.{self.option} is the hub id '{self.path}' at the revision '{self.revision}'; a model from the hub "
        f"must be pinned to a commit, 40 hexadecimal digits, or its scores may change from one day to the next."
      )
    try:
      return Path(
        huggingface_hub.snapshot_download(self.path, revision=self.revision, allow_patterns=list(self.files) or None)
      )
    except Exception as error:  # no network, no such model, no such commit, no room: the remedy is the same
      raise UserError(
        f"config.{self.option} is '{self.path}', which is no folder here, and as a model of the hub it could not be "
        f"downloaded ({type(error).__name__}: {error}). Where there is a network, run: {self.command}   Then set "
        f"config.{self.option} to that folder."
      ) from error

  def at_hand(self) -> Path | None:
    """The folder if the files that are needed are in it already; downloads nothing."""
    folder = Path(self.path) if Path(self.path).is_dir() else None
    if folder is None and self._on_hub:
      with contextlib.suppress(LocalEntryNotFoundError):
        folder = Path(
          huggingface_hub.snapshot_download(
            self.path, revision=self.revision, allow_patterns=list(self.files) or None, local_files_only=True
          )
        )
    return folder if folder and all((folder / file).is_file() for file in self.files) else None

  @contextlib.contextmanager
  def reading(self) -> Iterator[Path]:
    """The folder; what goes wrong inside the block because of its files becomes a `UserError`."""
    folder = self.folder()
    try:
      yield folder
    except UserError:
      raise
    except Exception as error:  # torn, missing and foreign files show as errors of every type
      raise UserError(
        f"config.{self.option}: the model in {folder} cannot be read ({type(error).__name__}: {error}). It must be a "
        f"whole copy; for one: {self.command}"
      ) from error


def check_weights(option: str, missing: Set[str], unexpected: Set[str], misshapen: Set[str]) -> None:
  """Checks that a checkpoint has the weights that its model has, of the same shapes, and no others.

  Raises:
    UserError: it does not; names those that differ.
  """
  faults = {"lacks": missing, "has beside the model's own": unexpected, "has of the wrong shape": misshapen}
  listed = [f"{fault} {_listed(sorted(names))}" for fault, names in faults.items() if names]
  if listed:
    raise UserError(f"config.{option}: the checkpoint {', and '.join(listed)}; it is not one of this judge's model.")


def _listed(names: Sequence[str], most: int = 8) -> str:
  more = f" and {len(names) - most} more" if len(names) > most else ""
  return ", ".join(names[:most]) + more
