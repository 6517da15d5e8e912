"""The photometric reconstructor as the sidecar's scorers see it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8

from wr1_jax.config import ReconstructionConfig, RewardsConfig
from wr1_jax.errors import UserError
from wr1_jax.sidecar.photometric.reconstruct import PhotometricReconstructor
from wr1_jax.sidecar.reconstruction import Reconstruction, views
from wr1_jax.sidecar.scorers import Unscored, View


def make(config: RewardsConfig) -> PhotometricScorer:
  """The reconstructor that a config describes.

  Raises:
    UserError: this torch has no such device.
  """
  torch.set_num_threads(config.threads)
  try:
    torch.empty(0, device=config.device)
  except (RuntimeError, AssertionError) as error:
    raise UserError(
      f"config.rewards.device is '{config.device}', which PyTorch {torch.__version__} cannot use here: "
      f"{str(error).splitlines()[0]}. 'cpu' always works."
    ) from error
  return PhotometricScorer(config.reconstruction, config.device)


class PhotometricScorer:
  """Reconstructs clips and renders what the rewards look at."""

  def __init__(self, config: ReconstructionConfig, device: str):
    self._config = config
    self._reconstruct = PhotometricReconstructor(config, device)

  def __call__(
    self, videos: UInt8[np.ndarray, "N T H W 3"], paths: Sequence[Float[np.ndarray, "T 4 4"] | None]
  ) -> list[View | Unscored]:
    results: list[View | Unscored] = []
    for batch in self._reconstruct.batches(videos, paths):
      seen = iter(views([one for one in batch if isinstance(one, Reconstruction)], self._config))
      results += [one if isinstance(one, Unscored) else next(seen) for one in batch]
    return results
