"""Every option of the project: its name, type, range, default and meaning, in one place.

The defaults are the paper's Small model. A file in `configs/` starts from `default()`, changes what it needs and
returns an `ml_collections.ConfigDict`; the command line may override any key (`--config.sampling.steps=8`). `resolve`
turns the result into the frozen dataclasses below, which is all that the parts ever see.

This module imports neither jax nor torch, so that the reward sidecar can read its own section.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar

import ml_collections

from wr1_jax.errors import UserError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Range:
  """The values that an option may have, as part of its type: `low` to `high`, without the two themselves if `open`."""

  low: float
  high: float = math.inf
  open: bool = False

  def __contains__(self, value: float) -> bool:
    within = self.low < value < self.high if self.open else self.low <= value <= self.high
    return within and math.isfinite(value)

  def __str__(self) -> str:
    if self.high == math.inf:
      return f"above {self.low}" if self.open else f"at least {self.low}"
    return f"{'strictly ' if self.open else ''}between {self.low} and {self.high}"


Count = Annotated[int, Range(1)]
Natural = Annotated[int, Range(0)]
Positive = Annotated[float, Range(0, open=True)]
NonNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
Decay = Annotated[float, Range(0, 1 - 1e-9)]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Which Wan2.1-shaped diffusers folder to train, and how to compute with it."""

  path: str = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"  # folder in diffusers layout; sizes come from its config.json files
  dtype: Literal["bfloat16", "float32"] = "bfloat16"  # base weights and matrix products; LoRA and norms are float32
  vae_dtype: Literal["bfloat16", "float32"] = "bfloat16"
  vae_frames_per_chunk: Count = 1  # latent frames decoded at once; changes memory and speed, never the result
  attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"  # auto: cuDNN on GPU, splash on TPU, XLA on CPU
  # What the backward pass keeps: nothing but each block's input ("full"), also what the self-attention needs
  # ("attention", faster and larger), or everything ("none").
  remat: Literal["full", "attention", "none"] = "full"


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
  """Low-rank adapters on q, k, v and out of both attentions: the only weights that are trained."""

  rank: Count = 32
  alpha: Positive = 64.0


@dataclasses.dataclass(frozen=True)
class VideoConfig:
  """The clips that are made: pixels and frames per second. frames = 4 k + 1; sides divide by 16."""

  height: Count = 480
  width: Count = 832
  frames: Count = 81
  fps: Count = 16


@dataclasses.dataclass(frozen=True)
class CameraConfig:
  """What a camera word means, in units in which the scene is `scene_depth` away (the public release's magnitudes)."""

  moves: str = ""  # asks every clip for these moves, such as "push in, pan left"; empty: those that its prompt names
  scene_depth: Positive = 1000.0
  focal: Positive = 1.2  # in image widths
  zoom: NonNegative = 600.0  # push in, pull out
  move: NonNegative = 220.0
  pan_degrees: NonNegative = 14.0
  orbit_degrees: NonNegative = 24.0
  orbit_radius: Positive = 600.0
  pull_move: NonNegative = 160.0
  pull_zoom: NonNegative = 300.0
  pull_yaw_degrees: NonNegative = 8.0


@dataclasses.dataclass(frozen=True)
class NoiseWarpConfig:
  """How the camera path enters the start noise."""

  # none; initial: warped noise is the start (paper); blend: a variance-preserving mix with i.i.d. noise;
  # stepwise_delta: plain start, and a low-passed delta added during the first steps (release).
  mode: Literal["none", "initial", "blend", "stepwise_delta"] = "stepwise_delta"
  strength: Share = 0.35  # of blend and stepwise_delta
  degradation: Share = 0.35  # share of fresh noise mixed into the warped noise, variance kept
  upscale: Count = 8  # noise is carried on a canvas this many times finer than the latents
  max_flow: Positive = 0.25  # cap on the flow of one frame, in longer sides
  delta_steps: Share = 0.16  # stepwise_delta: share of the steps that get a delta
  delta_last_weight: Share = 0.1  # stepwise_delta: weights fall from 1 to this, then are normalised
  delta_blur: Count = 9  # stepwise_delta: side of the box that low-passes the delta, in latent pixels


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """Rollouts: the sigma grid, guidance, and where and how the policy is stochastic."""

  steps: Count = 20
  shift: Positive = 3.0  # 3.0 for 480p, 5.0 for 720p
  guidance: NonNegative = 5.0  # 1.0: no guidance, in rollouts and updates alike
  negative_prompt: str = ""
  text_length: Count = 512  # tokens
  noise: Literal["linear", "sqrt", "cps"] = "linear"
  sqrt_scale: NonNegative = 0.7  # a of "sqrt"
  # "sqrt" clamps the sigma of its denominator here, or the first step explodes.
  sqrt_max_sigma: Annotated[float, Range(0, 1, open=True)] = 0.96
  cps_eta: Share = 0.8  # eta of "cps"
  window: Count = 1  # stochastic steps of a rollout; only these are stored and trained
  window_start_min: Natural = 0  # the window starts at a step drawn uniformly from min..max, both included
  window_start_max: Natural = 9
  shared_start_noise: bool = True  # one start for a whole group: its deterministic prefix is computed once


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
  """Flow-GRPO's clipped policy loss with a closed-form KL to the LoRA-off reference."""

  clip_range: Positive = 1e-3
  kl_weight: NonNegative = 0.004  # 0 skips the reference passes
  advantage_clip: Positive = 5.0
  advantage_std: Literal["group", "batch"] = "group"
  step_weights: bool = True  # Flash-GRPO's lambda


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """AdamW and the running average of the adapters."""

  learning_rate: Positive = 1e-4
  beta1: Decay = 0.9
  beta2: Decay = 0.999
  weight_decay: NonNegative = 1e-4
  max_grad_norm: Positive = 1.0
  ema_decay: Share = 0.9  # ceiling; the decay warms up as (1 + n) / (10 + n)
  ema_every: Count = 8  # optimiser steps between two averages


@dataclasses.dataclass(frozen=True)
class ReconstructionConfig:
  """The weight-free reconstructor: camera path and Gaussian scene from the video alone.

  `max_pixels` and the offset view are also those of `depth_anything_3`.
  """

  # A larger frame is shrunk to about this area first; at this size clips and scenes are compared.
  max_pixels: Annotated[int, Range(1024)] = 96 * 160
  # Of a longer clip, this many evenly spaced frames are optimised and the rest interpolated.
  max_frames: Annotated[int, Range(2)] = 33
  focal: Positive = 1.2  # assumed focal length in image widths
  iterations: Count = 1  # multiplies the optimiser's steps: more is slower and more accurate
  offset_back: NonNegative = 0.15  # the offset view: this far behind the path, in median depths
  offset_side: NonNegative = 0.15  # and this far to its side


@dataclasses.dataclass(frozen=True)
class DepthAnythingConfig:
  """The reconstructor `depth_anything_3`. Its environment: launch/install_rewards.sh; download the model first."""

  # Folder, or hub id, of a model with a head for Gaussians; the other one is depth-anything/DA3NESTED-GIANT-LARGE-1.1.
  path: str = "depth-anything/DA3-GIANT-1.1"
  revision: str = "72ee9f89ce4e50d704e9d55ee9c646ec8dc25a19"  # commit, if `path` is a hub id
  dtype: Literal["bfloat16", "float32"] = "bfloat16"  # of the backbone's matrix products; the heads are float32
  longest_side: Annotated[int, Range(14)] = 504  # of what the networks see, in pixels; 832x480 becomes 504x294
  every: Count = 4  # reconstruct from every so many frames and interpolate the others' poses; 1: from all


@dataclasses.dataclass(frozen=True)
class Qwen3VLConfig:
  """The judge `qwen3_vl` of S_meta. Download the model first: its time counts as the sidecar's `start_seconds`."""

  path: str = "Qwen/Qwen3-VL-8B-Instruct"  # folder, or hub id; the 4B model is Qwen/Qwen3-VL-4B-Instruct
  revision: str = "0c351dd01ed87e9c1b53cbc748cba10e6187ff3b"  # commit, if `path` is a hub id
  dtype: Literal["bfloat16", "float32"] = "bfloat16"
  batch: Count = 8  # views judged at once, at most


@dataclasses.dataclass(frozen=True)
class HPSv3Config:
  """The judge `hpsv3` of R_gen: the mean score of the frames times `scale`, clipped to [-`clip`, `clip`]."""

  path: str = "MizzenAI/HPSv3"  # folder with HPSv3.safetensors, or hub id
  revision: str = "4f81e3e09edd82fe3c5f636444c721b592a735ca"  # commit, if `path` is a hub id
  base_path: str = "Qwen/Qwen2-VL-7B-Instruct"  # sizes, tokenizer and image processor: only the small files are read
  base_revision: str = "eed13092ef92e448dd6875b2a00151bd3f7db0ac"
  dtype: Literal["bfloat16", "float32"] = "bfloat16"  # the head is float32
  batch: Count = 8  # frames judged at once, at most
  scale: Positive = 0.1  # scores run from about -0.2 to 10.5
  clip: Positive = 1.0


@dataclasses.dataclass(frozen=True)
class RayConfig:
  """The cluster that the transport `ray` runs the sidecars on, as actors."""

  address: str = ""  # HOST:PORT of its head; empty: $RAY_ADDRESS, and without that a new cluster of this machine alone
  cpus: Count = 1  # reserved for each actor
  gpus: NonNegative = 0.0  # reserved for each actor; may be a share of one
  restarts: Annotated[int, Range(-1)] = -1  # of an actor whose process or node is lost; -1: without end


@dataclasses.dataclass(frozen=True)
class RewardsConfig:
  """What a clip is worth, and the process that finds out."""

  # local: sidecars are processes of this machine; ray: they are actors on the nodes of a Ray cluster.
  transport: Literal["local", "ray"] = "local"
  ray: RayConfig = RayConfig()
  python: str = ""  # interpreter of a local sidecar; empty: this one
  device: str = "cpu"
  # Sidecars that share every job. Local ones share the device too: for many CPU cores; a GPU serves one at a time.
  replicas: Count = 1
  threads: Count = 1  # of a sidecar
  reconstructor: str = "photometric"  # or depth_anything_3
  meta: str = "offset_view_proxy"  # or qwen3_vl
  general: str = "frame_quality_proxy"  # or hpsv3
  reconstruction: ReconstructionConfig = ReconstructionConfig()
  depth_anything_3: DepthAnythingConfig = DepthAnythingConfig()
  qwen3_vl: Qwen3VLConfig = Qwen3VLConfig()
  hpsv3: HPSv3Config = HPSv3Config()
  # R is the sum of S_meta, S_recon, S_traj and R_gen times their weights; general_weight is lambda_gen. A term of
  # weight 0 is logged, and its absence makes no reward invalid.
  meta_weight: NonNegative = 1.0
  recon_weight: NonNegative = 1.0
  traj_weight: NonNegative = 1.0
  general_weight: NonNegative = 1.0
  general_frames: Count = 8  # R_gen looks at the first K frames
  lpips_network: Literal["alexnet", "vgg16"] = "alexnet"
  translation_tolerance: Positive = 0.25  # S_traj = exp(-(e_t / this + e_r / that)); e_t in reaches of the target path
  rotation_tolerance_degrees: Positive = 6.0
  max_scale: Annotated[float, Range(1)] = 3.0  # the fitted scale of a recovered path stays within [1/this, this]
  job_seconds: Positive = 300.0  # a job that takes longer is given up and its sidecar restarted
  start_seconds: Positive = 300.0  # a sidecar that is not ready by then has failed
  retries: Natural = 1  # of a job, each on a fresh sidecar; after that its rewards are NaN with a reason


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Prompt files: UTF-8, one prompt a line. A path, or the name of a file in wr1_jax/assets/prompts/."""

  static_prompts: str = "static.txt"
  dynamic_prompts: str = "dynamic.txt"


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each axis; one axis may be -1 and takes what is left."""

  data: int = -1
  fsdp: int = 1
  sequence: int = 1


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """The loop."""

  seed: Annotated[int, Range(0, 2**63 - 1)] = 0
  iterations: Count = 300
  main_iterations: Natural = 100  # R, on static prompts
  dynamic_iterations: Natural = 50  # R_gen alone, on dynamic prompts; then main again. 0: no periodic phase
  groups: Count = 48  # prompts an iteration
  group_size: Annotated[int, Range(2)] = 8  # videos a prompt; an advantage compares them with each other
  groups_per_rollout: Count = 1  # prompts that roll out together: one compiled batch of groups_per_rollout * group_size
  decode_batch: Count = 1  # videos that a device decodes at once, at most
  update_batch: Count = 1  # stored steps that a device trains on at once, at most; gradients are accumulated
  checkpoint_every: Count = 10  # iterations
  keep_checkpoints: Count = 3
  video_every: Count = 10  # iterations between two logged videos
  compare: Natural = 4  # static prompts whose clips are shown before and after training when a run is done


@dataclasses.dataclass(frozen=True)
class Config:
  """A whole run."""

  model: ModelConfig = ModelConfig()
  lora: LoRAConfig = LoRAConfig()
  video: VideoConfig = VideoConfig()
  camera: CameraConfig = CameraConfig()
  noise_warp: NoiseWarpConfig = NoiseWarpConfig()
  sampling: SamplingConfig = SamplingConfig()
  objective: ObjectiveConfig = ObjectiveConfig()
  optimizer: OptimizerConfig = OptimizerConfig()
  rewards: RewardsConfig = RewardsConfig()
  data: DataConfig = DataConfig()
  mesh: MeshConfig = MeshConfig()
  train: TrainConfig = TrainConfig()


def default(schema: type = Config) -> ml_collections.ConfigDict:
  """All options at their defaults, typed and locked: assigning an unknown key or another type is an error."""
  return ml_collections.ConfigDict(dataclasses.asdict(schema())).lock()


def option_names(schema: type = Config) -> frozenset[str]:
  """The dotted name of every option and of every section, as in `--config.sampling.steps`."""
  return frozenset(_names(schema, prefix=""))


def unknown_option(name: str, schema: type = Config) -> UserError:
  """The error for an option that does not exist; suggests the nearest ones that do."""
  near = difflib.get_close_matches(name, sorted(option_names(schema)), n=3, cutoff=0.5)
  place = schema.__module__.replace(".", "/")
  hint = f"the nearest are: {', '.join(near)}" if near else f"{place}.py lists all options"
  return UserError(f"the config has no option '{name}'; {hint}.")


def resolve(values: ml_collections.ConfigDict, schema: type[T] = Config) -> T:
  """Checks `values` against the schema (that of training, unless given) and returns it as frozen dataclasses.

  Raises:
    UserError: an option is unknown, missing or of the wrong type, or outside its choices or range.
  """
  if not isinstance(values, ml_collections.ConfigDict):
    raise UserError(
      f"get_config() of the config file returned {values!r}; it must return an ml_collections.ConfigDict."
    )
  unknown = next(_unknown(values, schema, prefix=""), None)
  if unknown is not None:
    raise unknown_option(unknown, schema)
  return _resolve(values, schema, prefix="")


def to_dict(config: Any) -> dict[str, Any]:
  """Plain nested dicts of a config, for JSON."""
  return dataclasses.asdict(config)


def _names(schema: type, prefix: str) -> list[str]:
  names = []
  for name, kind in typing.get_type_hints(schema).items():
    names.append(prefix + name)
    if dataclasses.is_dataclass(kind):
      names += _names(kind, f"{prefix}{name}.")
  return names


def _unknown(values: ml_collections.ConfigDict, schema: type, prefix: str) -> Iterator[str]:
  kinds = typing.get_type_hints(schema)
  for name, value in values.items():
    if name not in kinds:
      yield prefix + name
    elif dataclasses.is_dataclass(kinds[name]) and isinstance(value, ml_collections.ConfigDict):
      yield from _unknown(value, kinds[name], f"{prefix}{name}.")


def _resolve(values: Mapping[str, Any], schema: type, prefix: str) -> Any:
  kinds = typing.get_type_hints(schema, include_extras=True)
  missing = [prefix + name for name in kinds if name not in values]
  if missing:
    raise UserError(f"the config lacks {', '.join(missing)}; start it from wr1_jax.config.default().")
  return schema(**{name: _checked(values[name], kind, prefix + name) for name, kind in kinds.items()})


def _checked(value: Any, kind: Any, name: str) -> Any:
  if dataclasses.is_dataclass(kind):
    return _resolve(value, kind, prefix=f"{name}.")
  if typing.get_origin(kind) is Annotated:
    kind, allowed = typing.get_args(kind)
    value = _checked(value, kind, name)
    if value not in allowed:
      raise UserError(f"config.{name} is {value}; it must be {allowed}.")
    return value
  if typing.get_origin(kind) is tuple and isinstance(value, (tuple, list)):
    return tuple(_checked(item, typing.get_args(kind)[0], f"{name}[{i}]") for i, item in enumerate(value))
  if typing.get_origin(kind) is Literal:
    if value not in typing.get_args(kind):
      raise UserError(f"config.{name} is {value!r}; it can be {', '.join(map(repr, typing.get_args(kind)))}.")
    return value
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  plain = typing.get_origin(kind) or kind
  if not isinstance(value, plain) or (kind is int and isinstance(value, bool)):
    raise UserError(f"config.{name} is {value!r}, a {type(value).__name__}; it must be of type {plain.__name__}.")
  return value
