"""Which way the rewards go: to sidecars on this machine, or to the nodes of a Ray cluster."""

from __future__ import annotations

from typing import Protocol, Self

from wr1_jax.config import RewardsConfig
from wr1_jax.errors import UserError
from wr1_jax.rewards.client import RewardClient
from wr1_jax.rewards.jobs import Job, Results


class Rewards(Protocol):
  """What every transport offers; `RewardClient` says what the methods promise."""

  def __enter__(self) -> Self: ...

  def __exit__(self, *_) -> None: ...

  @property
  def versions(self) -> dict[str, str]: ...

  def check_room(self, clips: int, frames: int, height: int, width: int) -> None: ...

  def submit(self, job: Job) -> Results: ...

  def close(self) -> None: ...


def make_client(config: RewardsConfig) -> Rewards:
  """The client of the transport that `config` names, to be entered in a `with` statement.

  Raises:
    UserError: Ray is chosen and not installed, or what the client itself finds wrong with the config.
  """
  if config.transport == "local":
    return RewardClient(config)
  try:
    from wr1_jax.rewards.ray_client import RayRewardClient  # ray is optional, and slow to import
  except ModuleNotFoundError as error:
    if error.name != "ray":
      raise
    raise UserError(
      "config.rewards.transport is 'ray', but the package ray is not installed here; run pip install \"ray>=2.50\" in "
      "the trainer's environment, or set config.rewards.transport=local."
    ) from error
  return RayRewardClient(config)
