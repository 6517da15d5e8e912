"""What the trainer and the reward sidecar say to each other, and how it is written: typed dataclasses as strict JSON.

    trainer -> sidecar   Start, then any number of ScoreBatch (each with the descriptor of its shared memory)
    sidecar -> trainer   Ready, then one Scored for every ScoreBatch, in their order

Pixels and poses travel in shared memory (`shared_arrays`), never in a message. Nothing is ever unpickled: a message is
accepted only if every field is there, none is unknown, and each has exactly the declared type.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import types
import typing
from typing import Any, Literal

from wr1_jax.config import RewardsConfig

Part = Literal["reconstruction", "meta", "general"]  # what can be asked of a clip; "meta" needs a reconstruction too


class ProtocolError(Exception):
  """The other side broke the protocol."""


@dataclasses.dataclass(frozen=True)
class BatchShape:
  """Sizes of a batch of clips [clips, frames, height, width, 3]; it is processed at the size (rows, columns)."""

  clips: int
  frames: int
  height: int
  width: int
  rows: int
  columns: int

  def __post_init__(self) -> None:
    if min(dataclasses.astuple(self)) < 1:
      raise ValueError(f"sizes must be positive, got {self}")


@dataclasses.dataclass(frozen=True)
class Start:
  """The first message: which scorers to make."""

  config: RewardsConfig


@dataclasses.dataclass(frozen=True)
class Ready:
  """All scorers are made. `versions`: of Python and of the libraries they loaded."""

  versions: dict[str, str]


@dataclasses.dataclass(frozen=True)
class ScoreBatch:
  """Score the clips that lie in the shared memory which comes with this message."""

  job: int
  shape: BatchShape
  parts: tuple[Part, ...]
  prompts: tuple[str, ...]  # one a clip
  with_path: tuple[bool, ...]  # one a clip: whether a camera path was asked for


@dataclasses.dataclass(frozen=True)
class ClipScores:
  """The numbers of one clip; a part that was asked for and failed is null and has a reason."""

  depth_unit: float | None  # median depth of the reconstructed scene; null: there is no reconstruction
  meta: float | None
  general: float | None
  reasons: dict[Part, str]


@dataclasses.dataclass(frozen=True)
class Scored:
  """The answer to the ScoreBatch with the same `job`. `seconds`: what each part of the whole batch took."""

  job: int
  clips: tuple[ClipScores, ...]
  seconds: dict[Part, float]


Message = Start | Ready | ScoreBatch | Scored
_KINDS = {kind.__name__: kind for kind in typing.get_args(Message)}


def encode(message: Message) -> bytes:
  """`message` as UTF-8 JSON.

  Raises:
    ValueError: it holds a number that is not finite, which JSON cannot say.
  """
  content = {"kind": type(message).__name__, **dataclasses.asdict(message)}
  return json.dumps(content, allow_nan=False).encode()


def decode(data: bytes) -> Message:
  """The inverse of `encode`.

  Raises:
    ProtocolError: `data` is anything else than what `encode` writes.
  """
  try:
    content = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
  except (ValueError, RecursionError) as error:
    raise ProtocolError(f"a message is not JSON: {error}") from error
  name = content.pop("kind", None) if isinstance(content, dict) else None
  if not isinstance(name, str) or name not in _KINDS:
    raise ProtocolError("a message is of no known kind")
  kind = _KINDS[name]
  return _checked(content, kind, kind.__name__)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  result = dict(pairs)
  if len(result) < len(pairs):
    raise ValueError("a key comes twice")
  return result


def _no_constant(name: str) -> None:
  raise ValueError(f"{name} is not JSON")


def _checked(value: Any, kind: Any, where: str) -> Any:
  """`value`, as parsed from JSON, turned into `kind`; `where` names it in errors."""
  origin, arguments = typing.get_origin(kind), typing.get_args(kind)
  if dataclasses.is_dataclass(kind):
    return _checked_dataclass(value, kind, where)
  if origin in (types.UnionType, typing.Union):  # only ever X | None
    return None if value is None else _checked(value, arguments[0], where)
  if origin is tuple and isinstance(value, list):
    return tuple(_checked(item, arguments[0], f"{where}[{i}]") for i, item in enumerate(value))
  if origin is dict and isinstance(value, dict):
    return {_checked(k, arguments[0], where): _checked(v, arguments[1], f"{where}[{k!r}]") for k, v in value.items()}
  if origin is Literal and isinstance(value, str) and value in arguments:
    return value
  if kind is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:
    return float(value)
  if kind in (bool, int, str) and type(value) is kind:
    return value
  raise ProtocolError(f"{where} is {str(value)[:80]!r}, which is not {kind}")


def _checked_dataclass(value: Any, kind: type, where: str) -> Any:
  kinds = typing.get_type_hints(kind)
  if not isinstance(value, dict) or value.keys() != kinds.keys():
    raise ProtocolError(f"{where} must be an object with the fields {', '.join(kinds)}")
  try:
    return kind(**{name: _checked(value[name], kinds[name], f"{where}.{name}") for name in kinds})
  except ValueError as error:
    raise ProtocolError(f"{where}: {error}") from error
