"""The programs of a run, each one `jax.jit` over the mesh and compiled once, before the first iteration.

They are compiled ahead of time from shapes and shardings alone. An input of another shape is then an error instead of a
second compilation, and what each program needs is known before any work is done.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int32, PyTree, UInt8
from tqdm import tqdm

from wr1_jax import randomness
from wr1_jax.camera import start_noise
from wr1_jax.config import Config
from wr1_jax.models.pipeline import WanModel
from wr1_jax.objective.policy_gradient import microbatches, policy_gradient
from wr1_jax.objective.policy_loss import LossTerms
from wr1_jax.parallel.mesh import BATCH_AXES, batch_sharding, batch_shards, replicated, shard_batch
from wr1_jax.randomness import Purpose
from wr1_jax.sampling import sde, window
from wr1_jax.sampling.guidance import guided
from wr1_jax.sampling.injection import Injection, injection_weights
from wr1_jax.sampling.rollout import Rollout, rollout
from wr1_jax.sampling.schedule import Schedule
from wr1_jax.training import state
from wr1_jax.training.state import TrainState


class UpdateTerms(NamedTuple):
  """What an update reports: means over the samples that took part."""

  loss: LossTerms
  grad_norm: Float[Array, ""]  # before clipping
  lora_norm: Float[Array, ""]  # of the adapters after the update


@dataclasses.dataclass(frozen=True)
class Program:
  """One compiled function; call it with arrays of exactly the shapes it was compiled for."""

  name: str
  executable: jax.stages.Compiled
  seconds: float  # that compilation took

  def __call__(self, *arguments: Any) -> Any:
    return self.executable(*arguments)

  @property
  def bytes(self) -> int:
    """Memory of one device for arguments, results and temporaries; 0 where the platform does not tell."""
    memory = self.executable.memory_analysis()
    if memory is None:
      return 0
    return memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes


@dataclasses.dataclass(frozen=True)
class Programs:
  """The five steps of an iteration. P prompts roll out together and make B = P * group_size videos.

  embed(text_state, tokens, mask) -> text [P, L, D]
  start(iteration, slots, poses, has_path) -> StartNoise of P (or, unshared, B) latents
  rollout(lora, base, text, negative, start, iteration, slots) -> Rollout of B videos
  decode(vae_state, latents) -> uint8 [B, T, H, W, 3]
  update(state, base, rollouts, texts, negative, advantage [R, B], weight [R, B]) -> (state, UpdateTerms)

  `slots` [P] are the places of the prompts in the iteration, 0 .. groups - 1: with the iteration they name every draw.
  """

  embed: Program
  start: Program
  rollout: Program
  decode: Program
  update: Program

  def all(self) -> tuple[Program, ...]:
    return (self.embed, self.start, self.rollout, self.decode, self.update)


@dataclasses.dataclass(frozen=True)
class Builder:
  """The functions behind the programs, and the shapes they are compiled for."""

  config: Config
  model: WanModel
  mesh: Mesh

  # --- the functions -------------------------------------------------------------------------------------------------

  def embed(
    self, text_state: nnx.State, tokens: Int32[Array, "P L"], mask: Bool[Array, "P L"]
  ) -> Float[Array, "P L D"]:
    return self.model.text.embed(text_state, tokens, mask)

  def start(
    self,
    iteration: Int32[Array, ""],
    slots: Int32[Array, "P"],
    poses: Float[Array, "P T 4 4"],
    has_path: Bool[Array, "P"],
  ) -> start_noise.StartNoise:
    """One start a prompt, or with `shared_start_noise` off one a video."""
    each_sample = not self.config.sampling.shared_start_noise
    if each_sample:
      poses, has_path = (jnp.repeat(x, self.config.train.group_size, axis=0) for x in (poses, has_path))
    return start_noise.start_noise(
      self._keys(Purpose.START_NOISE, iteration, slots, each_sample=each_sample),
      self._keys(Purpose.CAMERA_NOISE, iteration, slots, each_sample=each_sample),
      poses,
      has_path,
      latent_shape=self.model.latent_shape(self.config.video),
      camera=self.config.camera,
      warp=self.config.noise_warp,
    )

  def rollout(
    self,
    lora: nnx.State,
    base: nnx.State,
    text: Float[Array, "P L D"],
    negative: Float[Array, "1 L D"],
    start: start_noise.StartNoise,
    iteration: Int32[Array, ""],
    slots: Int32[Array, "P"],
  ) -> Rollout:
    sampling = self.config.sampling
    window_key = randomness.at(randomness.stream(self.config.train.seed, Purpose.WINDOW), iteration, slots[0])
    injection = None
    if start.delta is not None:
      injection = Injection(start.delta, injection_weights(sampling.steps, self.config.noise_warp))
    return rollout(
      guided(self.model.transformer.velocity(lora, base), sampling.guidance),
      self.policy,
      start.latents,
      text,
      negative,
      self._keys(Purpose.TRANSITION, iteration, slots, each_sample=True),
      window.draw_start(window_key, sampling),
      window=sampling.window,
      injection=injection,
      shard=self._shard,
    )

  def decode(self, vae_state: nnx.State, latents: Float[Array, "B T H W C"]) -> UInt8[Array, "B T2 H2 W2 3"]:
    """A few videos at a time; each time every device decodes some of its own."""
    decode = functools.partial(self.model.decode, vae_state, frames_per_chunk=self.config.model.vae_frames_per_chunk)
    batches = rearrange(latents, "(n m) ... -> m n ...", n=self._at_once(self.config.train.decode_batch))
    videos = jax.lax.map(lambda batch: decode(self._shard(batch)), batches)
    return rearrange(videos, "m n ... -> (n m) ...")

  def update(
    self,
    train_state: TrainState,
    base: nnx.State,
    rollouts: Sequence[Rollout],
    texts: Sequence[Float[Array, "P L D"]],
    negative: Float[Array, "1 L D"],
    advantage: Float[Array, "R B"],
    weight: Float[Array, "R B"],
  ) -> tuple[TrainState, UpdateTerms]:
    config = self.config
    steps = microbatches(
      jax.tree.map(lambda *leaves: jnp.stack(leaves), *rollouts),
      advantage,
      weight,
      prompts_per_rollout=config.train.groups_per_rollout,
      size=self._at_once(config.train.update_batch),
    )
    reference = None
    if config.objective.kl_weight:
      reference = guided(self.model.transformer.reference(base), config.sampling.guidance)
    gradients, terms = policy_gradient(
      lambda lora: guided(self.model.transformer.velocity(lora, base), config.sampling.guidance),
      reference,
      train_state.lora,
      steps,
      jnp.concatenate(texts),
      negative,
      policy=self.policy,
      step_weights=jnp.asarray(self.step_weights),
      config=config.objective,
      shard=self._shard,
    )
    optimizer = state.make_optimizer(config.optimizer)
    changed = state.apply_gradients(train_state, gradients, weight.sum() > 0, optimizer, config.optimizer)
    return changed, UpdateTerms(terms, optax.tree.norm(gradients), optax.tree.norm(changed.lora))

  # --- what they share -----------------------------------------------------------------------------------------------

  @property
  def policy(self) -> sde.Policy:
    sampling = self.config.sampling
    return sde.Policy.make(Schedule.make(sampling.steps, sampling.shift), sampling)

  @property
  def step_weights(self) -> Float[Array, "S"]:
    if not self.config.objective.step_weights:
      return jnp.ones(self.config.sampling.steps)
    return self.policy.step_weights(window.trainable_steps(self.config.sampling))

  def _at_once(self, limit: int) -> int:
    """How many of a rollout's videos all devices together take at a time, where each takes at most `limit`."""
    train, shards = self.config.train, batch_shards(self.mesh)
    each = train.groups_per_rollout * train.group_size // shards
    return shards * max(n for n in range(1, min(limit, each) + 1) if each % n == 0)

  def _shard(self, x: Array) -> Array:
    return shard_batch(x, self.mesh)

  def _keys(self, purpose: Purpose, iteration: Array, slots: Int32[Array, "P"], *, each_sample: bool) -> Array:
    """Keys [P] of the prompts, or [B] of their samples."""
    of_prompts = randomness.at_each(randomness.at(randomness.stream(self.config.train.seed, purpose), iteration), slots)
    if not each_sample:
      return of_prompts
    samples = jnp.arange(self.config.train.group_size)
    return jax.vmap(lambda key: randomness.at_each(key, samples))(of_prompts).reshape(-1)


def compile_all(config: Config, model: WanModel, mesh: Mesh, train_state: TrainState) -> Programs:
  """Compiles the five programs for the shapes of `config`, with a progress bar."""
  build = Builder(config, model, mesh)
  whole, batch = replicated(mesh), batch_sharding(mesh)
  prompts, length = config.train.groups_per_rollout, config.sampling.text_length

  scalar = _abstract((), jnp.int32, whole)
  slots = _abstract((prompts,), jnp.int32, whole)
  tokens = _abstract((prompts, length), jnp.int32, whole)
  mask = _abstract((prompts, length), jnp.bool_, whole)
  poses = _abstract((prompts, config.video.frames, 4, 4), jnp.float32, whole)
  has_path = _abstract((prompts,), jnp.bool_, whole)
  base, vae_state, text_state, trained = map(
    _abstract_like, (model.base, model.vae_state, model.text.state, train_state)
  )

  bar = tqdm(total=len(dataclasses.fields(Programs)), desc="compiling", unit="program", disable=None)

  def program(function: Callable, *arguments: PyTree, out: Any, donate: tuple[int, ...] = ()) -> tuple[Program, PyTree]:
    """The compiled `function`, and the shapes and shardings of what it returns."""
    bar.set_postfix_str(function.__name__)
    started = time.perf_counter()
    lowered = jax.jit(function, out_shardings=out, donate_argnums=donate).lower(*arguments)
    executable = lowered.compile()
    bar.update()
    result = jax.tree.map(lambda x, s: _abstract(x.shape, x.dtype, s), lowered.out_info, executable.output_shardings)
    return Program(function.__name__, executable, time.perf_counter() - started), result

  with bar:
    embed, text = program(build.embed, text_state, tokens, mask, out=whole)
    negative = _abstract((1, *text.shape[1:]), text.dtype, whole)
    start, noise = program(build.start, scalar, slots, poses, has_path, out=whole)
    window_batch = NamedSharding(mesh, P(None, BATCH_AXES))
    rolled_out = Rollout(window_batch, window_batch, whole, window_batch, batch)
    roll, rollouts = program(build.rollout, trained.lora, base, text, negative, noise, scalar, slots, out=rolled_out)
    decode, _ = program(build.decode, vae_state, rollouts.latents, out=batch)
    count = config.train.groups // prompts
    samples = _abstract((count, prompts * config.train.group_size), jnp.float32, whole)
    update, _ = program(
      build.update,
      trained,
      base,
      (rollouts,) * count,
      (text,) * count,
      negative,
      samples,
      samples,
      out=(jax.tree.map(lambda x: x.sharding, trained), whole),
      donate=(0,),
    )
  return Programs(embed, start, roll, decode, update)


def embed_prompt(model: WanModel, mesh: Mesh, prompt: str) -> Float[Array, "1 L D"]:
  """The embedding of one prompt (the negative one), computed once a run."""
  tokens, mask = model.text.tokenize([prompt])
  return jax.jit(model.text.embed, out_shardings=replicated(mesh))(model.text.state, tokens, mask)


def _abstract(shape: tuple[int, ...], dtype: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def _abstract_like(tree: PyTree) -> PyTree:
  return jax.tree.map(lambda x: _abstract(x.shape, x.dtype, x.sharding), tree)
