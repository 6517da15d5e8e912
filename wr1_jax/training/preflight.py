"""Everything that can be known to be wrong before work starts."""

from __future__ import annotations

from jax.sharding import Mesh

from wr1_jax.camera import words
from wr1_jax.config import Config
from wr1_jax.errors import UserError
from wr1_jax.parallel.mesh import check_batch
from wr1_jax.sampling import window

_VAE_STRIDE, _PATCH, _TEMPORAL_STRIDE = 8, 2, 4  # of every Wan2.1 model


def check(config: Config, mesh: Mesh) -> None:
  """Raises `UserError` for the first option that cannot work, whatever the model."""
  _check_video(config)
  _check_positive(config)
  window.check(config.sampling)
  words.asked("", config.camera.moves)
  train = config.train
  if train.groups % train.groups_per_rollout:
    raise UserError(
      f"train.groups = {train.groups} does not divide by train.groups_per_rollout = {train.groups_per_rollout}."
    )
  check_batch(mesh, "train.groups_per_rollout x train.group_size", train.groups_per_rollout * train.group_size)


def latent_shape(config: Config, channels: int) -> tuple[int, int, int, int]:
  """`[T', H', W', C]` of one clip's latents."""
  video = config.video
  return (
    (video.frames - 1) // _TEMPORAL_STRIDE + 1,
    video.height // _VAE_STRIDE,
    video.width // _VAE_STRIDE,
    channels,
  )


def _check_video(config: Config) -> None:
  video, side = config.video, _VAE_STRIDE * _PATCH
  for name, size in (("height", video.height), ("width", video.width)):
    if size < side or size % side:
      nearest = max(side, round(size / side) * side)
      raise UserError(
        f"video.{name} = {size} does not divide by {side} (VAE stride x patch); the nearest is {nearest}."
      )
  if video.frames < 1 or (video.frames - 1) % _TEMPORAL_STRIDE:
    nearest = max(1, round((video.frames - 1) / _TEMPORAL_STRIDE) * _TEMPORAL_STRIDE + 1)
    raise UserError(
      f"video.frames = {video.frames} is not 1 more than a multiple of {_TEMPORAL_STRIDE}, which is what the VAE "
      f"takes; the nearest is {nearest}."
    )


def _check_positive(config: Config) -> None:
  train = config.train
  for name in (
    "iterations",
    "groups",
    "group_size",
    "groups_per_rollout",
    "decode_batch",
    "update_batch",
    "checkpoint_every",
    "keep_checkpoints",
    "video_every",
  ):
    if (value := vars(train)[name]) < 1:
      raise UserError(f"train.{name} = {value}; it must be at least 1.")
  if train.group_size < 2:
    raise UserError(
      "train.group_size = 1: an advantage compares the videos of one prompt; it takes at least 2, the paper uses 8."
    )
  if train.main_iterations < 0 or train.dynamic_iterations < 0 or not train.main_iterations + train.dynamic_iterations:
    raise UserError(
      f"train.main_iterations = {train.main_iterations} and train.dynamic_iterations = {train.dynamic_iterations}; "
      "neither may be negative and one must be positive."
    )
  if config.lora.rank < 1:
    raise UserError(f"lora.rank = {config.lora.rank}; it must be at least 1.")
