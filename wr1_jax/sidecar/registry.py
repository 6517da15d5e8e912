"""The scorers that a config can name, by kind.

A scorer is made once, by `factory(config: RewardsConfig)`, when the sidecar starts; `scorers` says what each kind is
then called with. Its module is imported only in the sidecar and only if it is chosen. A scorer of your own needs no
entry here: name it `package.module:factory` in the config (the sidecar must be able to import it).
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from wr1_jax.config import RewardsConfig
from wr1_jax.errors import UserError

if TYPE_CHECKING:
  from wr1_jax.sidecar.judges.checkpoints import Source  # needs huggingface-hub, which not every sidecar has

Kind = Literal["reconstructor", "meta", "general"]

SCORERS: dict[Kind, dict[str, str]] = {
  "reconstructor": {
    "depth_anything_3": "wr1_jax.sidecar.depth_anything.scorer:DepthAnythingReconstructor",
    "photometric": "wr1_jax.sidecar.photometric.scorer:make",
  },
  "meta": {
    "offset_view_proxy": "wr1_jax.sidecar.proxies:OffsetViewProxy",
    "qwen3_vl": "wr1_jax.sidecar.judges.qwen3_vl:Qwen3VLJudge",
  },
  "general": {
    "frame_quality_proxy": "wr1_jax.sidecar.proxies:FrameQualityProxy",
    "hpsv3": "wr1_jax.sidecar.judges.hpsv3:HPSv3Judge",
  },
}


def chosen(config: RewardsConfig) -> dict[Kind, str]:
  """The scorer names of a config, by kind."""
  return {"reconstructor": config.reconstructor, "meta": config.meta, "general": config.general}


def location(kind: Kind, name: str) -> tuple[str, str]:
  """Module and attribute of a scorer's factory.

  Raises:
    UserError: `name` is neither registered nor of the form `package.module:factory`.
  """
  known = SCORERS[kind]
  module, colon, attribute = known.get(name, name).partition(":")
  if not (module and colon and attribute):
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean '{near[0]}'?)" if near else ""
    raise UserError(
      f"config.rewards.{kind} is '{name}', which is no known scorer{hint}; it can be {', '.join(sorted(known))}, or "
      f"package.module:factory for one of your own."
    )
  return module, attribute


def check(config: RewardsConfig) -> None:
  """Checks the scorer names of a config without importing anything.

  Raises:
    UserError: as `location`.
  """
  for kind, name in chosen(config).items():
    location(kind, name)


def factory(kind: Kind, name: str) -> Callable[[RewardsConfig], Any]:
  """Imports a scorer's factory.

  Raises:
    UserError: there is no such scorer.
    ImportError: its module cannot be imported here.
  """
  module, attribute = location(kind, name)
  try:
    return getattr(importlib.import_module(module), attribute)
  except AttributeError as error:
    raise UserError(f"config.rewards.{kind} is '{name}', but the module {module} has no {attribute}.") from error


def sources(kind: Kind, name: str, config: RewardsConfig) -> tuple[Source, ...]:
  """Where a scorer's weights are: what `sources(config)` of its module says; without such a function it has none.

  Raises:
    UserError: there is no such scorer.
    ImportError: its module cannot be imported here.
  """
  module, _ = location(kind, name)
  return getattr(importlib.import_module(module), "sources", lambda _: ())(config)
