"""What can be known to be wrong with a config before work starts. `config.resolve` has checked each option alone."""

from __future__ import annotations

from jax.sharding import Mesh

from wr1_jax.camera import words
from wr1_jax.config import Config, TrainConfig, VideoConfig
from wr1_jax.errors import UserError
from wr1_jax.models.transformer import TransformerConfig
from wr1_jax.models.vae import VAEConfig
from wr1_jax.parallel.mesh import check_batch
from wr1_jax.sampling import window


def check(config: Config, mesh: Mesh) -> None:
  """Raises `UserError` for the first option that cannot work with the others, or with any Wan2.1 model."""
  _check_video(config.video)
  _check_train(config.train)
  window.check(config.sampling)
  words.asked("", config.camera.moves)
  batch = config.train.groups_per_rollout * config.train.group_size
  check_batch(mesh, "config.train.groups_per_rollout x config.train.group_size", batch)


def _check_video(video: VideoConfig) -> None:
  autoencoder, (_, *patch) = VAEConfig(), TransformerConfig().patch_size
  for name, size, patch_side in (("height", video.height, patch[0]), ("width", video.width, patch[1])):
    side = autoencoder.space_factor * patch_side
    if size % side:
      nearest = max(side, round(size / side) * side)
      raise UserError(
        f"config.video.{name} = {size} does not divide by {side} (VAE stride x patch); the nearest is {nearest}."
      )
  stride = autoencoder.time_factor
  if (video.frames - 1) % stride:
    nearest = round((video.frames - 1) / stride) * stride + 1
    raise UserError(
      f"config.video.frames = {video.frames} is not 1 more than a multiple of {stride}, which is what the VAE takes; "
      f"the nearest is {nearest}."
    )


def _check_train(train: TrainConfig) -> None:
  if train.groups % train.groups_per_rollout:
    raise UserError(
      f"config.train.groups = {train.groups} does not divide by config.train.groups_per_rollout = "
      f"{train.groups_per_rollout}."
    )
  if not train.main_iterations + train.dynamic_iterations:
    raise UserError(
      "config.train.main_iterations and config.train.dynamic_iterations are both 0; one phase must have iterations."
    )
