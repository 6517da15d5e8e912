"""Every option of pre-training: name, type, range, default and meaning. `config.resolve` checks them."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import ml_collections

from wr1_jax import config as config_lib
from wr1_jax.config import CameraConfig, Count, Decay, Natural, NonNegative, Positive, Range, Share
from wr1_jax.errors import UserError
from wr1_jax.models import transformer, umt5, vae
from wr1_jax.world import WorldConfig


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
  """Sizes of the autoencoder, under diffusers' names; the others are Wan2.1's."""

  base_dim: Count = 16
  dim_mult: tuple[Count, ...] = (1, 2, 4, 4)
  num_res_blocks: Count = 1
  temperal_downsample: tuple[bool, ...] = (False, True, True)


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
  """Sizes of the transformer, under diffusers' names; the others are Wan2.1's."""

  num_attention_heads: Count = 6
  attention_head_dim: Count = 32
  num_layers: Count = 8
  ffn_dim: Count = 640
  freq_dim: Count = 64


@dataclasses.dataclass(frozen=True)
class TextEncoderConfig:
  """Sizes of the text encoder, under transformers' names."""

  vocab_size: Count = 1024  # the tokenizer is trained to at most as many tokens
  d_model: Count = 96
  d_kv: Count = 16
  d_ff: Count = 256
  num_layers: Count = 3
  num_heads: Count = 6


@dataclasses.dataclass(frozen=True)
class StageConfig:
  """What both stages have."""

  steps: Count
  batch: Count
  learning_rate: Positive
  end_learning_rate: NonNegative  # at the last step, after a cosine from the first
  warmup_steps: Natural  # at most a quarter of the steps
  ema_decay: Share  # ceiling; the decay warms up as (1 + n) / (10 + n)
  # Clips wait on the device in a bank that steps draw from. It starts with `bank_first` of them; every `fresh_every`
  # steps `fresh` new ones are added and, once it is full, take the place of the oldest.
  bank: Count
  bank_first: Count
  fresh: Count
  fresh_every: Count
  unsound_share: Share = 0.0  # of the clips in which things morph or textures swim, whatever the caption says
  beta1: Decay = 0.9
  beta2: Decay = 0.99
  weight_decay: NonNegative = 0.01  # of matrices and convolutions
  max_grad_norm: Positive = 1.0


@dataclasses.dataclass(frozen=True)
class VAEStageConfig(StageConfig):
  """The autoencoder's training."""

  steps: Count = 6000
  batch: Count = 32  # crops
  learning_rate: Positive = 2e-3
  end_learning_rate: NonNegative = 2e-5
  warmup_steps: Natural = 200
  ema_decay: Share = 0.998
  bank: Count = 2048  # fewer than 2^31 bytes: not every kernel counts further
  bank_first: Count = 1024
  fresh: Count = 64
  fresh_every: Count = 40
  crop: Natural = 64  # side in pixels of the places that are trained on; 0: whole frames throughout
  full_size_share: Share = 0.25  # of the steps, the last ones: on whole frames
  full_size_batch: Count = 8
  l1_weight: NonNegative = 1.0
  mse_weight: NonNegative = 4.0
  kl_weight: NonNegative = 1e-5  # of the mean over the latents' elements


@dataclasses.dataclass(frozen=True)
class FlowStageConfig(StageConfig):
  """The training of transformer and text encoder."""

  steps: Count = 12000
  batch: Count = 256
  learning_rate: Positive = 1e-3
  end_learning_rate: NonNegative = 2e-5
  warmup_steps: Natural = 500
  ema_decay: Share = 0.9995
  bank: Count = 16384
  bank_first: Count = 4096
  fresh: Count = 128
  fresh_every: Count = 64
  text_length: Count = 64  # tokens
  text_dropout: Share = 0.1  # share of the clips that are trained on with the empty prompt
  shift: Positive = 3.0  # bends the distribution of sigma towards noise, as that of sampling is
  sample_steps: Count = 20  # of the clips that are made to look at
  sample_guidance: NonNegative = 4.0


@dataclasses.dataclass(frozen=True)
class LoopConfig:
  """How often, in steps."""

  log_every: Count = 100
  evaluate_every: Count = 1000
  checkpoint_every: Count = 1000


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
  """A whole run."""

  autoencoder: AutoencoderConfig = AutoencoderConfig()
  transformer: TransformerConfig = TransformerConfig()
  text_encoder: TextEncoderConfig = TextEncoderConfig()
  vae: VAEStageConfig = VAEStageConfig()
  flow: FlowStageConfig = FlowStageConfig()
  loop: LoopConfig = LoopConfig()
  world: WorldConfig = WorldConfig()
  camera: CameraConfig = CameraConfig()
  # A model folder of the same sizes (a path, or "wan-tiny") to go on from: its autoencoder is kept, and its transformer
  # and text encoder are trained further. Empty: from nothing.
  start: str = ""
  seed: Annotated[int, Range(0, 2**31 - 1)] = 0
  dtype: Literal["bfloat16", "float32"] = "bfloat16"  # of products and activations; weights and moments are float32
  workers: Natural = 8  # processes that draw scenes ahead of the device; 0: a thread of this one

  def vae_sizes(self) -> vae.VAEConfig:
    """Sizes of the autoencoder, whose latents are not normalised."""
    sizes = vae.VAEConfig(**dataclasses.asdict(self.autoencoder))
    return dataclasses.replace(sizes, latents_mean=(0.0,) * sizes.z_dim, latents_std=(1.0,) * sizes.z_dim)

  def transformer_sizes(self) -> transformer.TransformerConfig:
    return transformer.TransformerConfig(**dataclasses.asdict(self.transformer), text_dim=self.text_encoder.d_model)

  def text_encoder_sizes(self) -> umt5.UMT5Config:
    return umt5.UMT5Config(**dataclasses.asdict(self.text_encoder))


def default() -> ml_collections.ConfigDict:
  """All options at their defaults, to be changed by a config file."""
  return config_lib.default(PretrainConfig)


def check(config: PretrainConfig) -> None:
  """Raises `UserError` where options that are right one by one do not fit each other."""
  sizes, world = config.vae_sizes(), config.world
  stages = len(sizes.dim_mult)
  if len(sizes.temperal_downsample) != stages - 1:
    raise UserError(
      f"config.autoencoder.temperal_downsample has {len(sizes.temperal_downsample)} values; {stages - 1} would go with "
      f"the {stages} of dim_mult."
    )
  if sizes.time_factor != 4:
    raise UserError(
      f"config.autoencoder.temperal_downsample has {sum(sizes.temperal_downsample)} times True; two are needed, since "
      "diffusers cuts every video into pieces of four frames."
    )
  sizes.latent_shape(world.frames, world.height, world.width)
  patch = sizes.space_factor * config.transformer_sizes().patch_size[1]
  if world.height % patch or world.width % patch:
    raise UserError(f"config.world is {world.width}x{world.height}: both sides must be multiples of {patch}.")
  crop = config.vae.crop
  if crop % sizes.space_factor or crop > min(world.height, world.width):
    raise UserError(
      f"config.vae.crop is {crop}; it must be a multiple of {sizes.space_factor} and at most the shorter side of the "
      f"clips, {min(world.height, world.width)}."
    )
  for name, stage in (("vae", config.vae), ("flow", config.flow)):
    for option in ("bank", "bank_first"):
      if getattr(stage, option) % stage.fresh:
        raise UserError(
          f"config.{name}.{option} is {getattr(stage, option)}; it must be a multiple of config.{name}.fresh, "
          f"{stage.fresh}."
        )
