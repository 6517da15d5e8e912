"""Videos by the deterministic sampler: a function of prompt, place and adapters, in batches of one compiled size.

    sampler = Sampler(config, model, mesh, batch=4)
    videos = sampler(adapters, prompts, places=range(4))  # adapters None: the base model

Start noise, camera path and injection are those of training. The noise of a video is named by config.train.seed and by
its place, so it is the same whatever the adapters are, and whichever videos are made beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from wr1_jax.camera.start_noise import StartNoise
from wr1_jax.camera.trajectory import target_paths
from wr1_jax.config import Config, NoiseWarpConfig
from wr1_jax.models.pipeline import WanModel
from wr1_jax.parallel.mesh import batch_sharding, check_batch, replicated, shard_batch
from wr1_jax.sampling import solvers
from wr1_jax.sampling.guidance import GuidedModel, guided
from wr1_jax.sampling.injection import Injection, injection_weights
from wr1_jax.sampling.schedule import Schedule
from wr1_jax.training.programs import Builder, embed_prompt

Solver = Literal["euler", "unipc"]

_ITERATION = 2**31 - 1  # in the names of the draws: one that no training reaches


def sample(
  velocity: GuidedModel,
  schedule: Schedule,
  start: StartNoise,
  text: Float[Array, "B L D"],
  negative: Float[Array, "1 L D"] | None,
  *,
  solver: Solver,
  warp: NoiseWarpConfig,
) -> Float[Array, "B T H W C"]:
  """Latents at sigma 0, deterministically from `start`; its delta is injected as in a rollout.

  Args:
    velocity: the guided network; traced once.
    schedule: the grid.
    start: noise at `schedule.sigmas[0]`, one for each video.
    text: embeddings of the prompts.
    negative: embedding of the negative prompt; None without guidance.
    solver: Euler, as rollouts, or UniPC of order 2.
    warp: how strongly, and for how many steps, the delta is injected.
  """
  after_step = solvers.unchanged
  if start.delta is not None:
    after_step = Injection(start.delta, injection_weights(schedule.steps, warp))
  solve = {"euler": solvers.euler, "unipc": solvers.unipc}[solver]
  conditioned = lambda x, timestep: velocity(x, timestep, text, negative)
  return solve(conditioned, schedule, start.latents, after_step=after_step)


class Sampler:
  """Makes videos in batches of `batch`, all by the same compiled programs: the base model has adapters of zeros."""

  def __init__(self, config: Config, model: WanModel, mesh: Mesh, *, batch: int, solver: Solver = "euler"):
    """Nothing is compiled before the first call.

    Args:
      config: size of the videos, sampling (steps, shift, guidance), camera, noise warp and seed.
      batch: videos that are made at once.

    Raises:
      UserError: `batch` cannot be dealt out over the mesh, or the model cannot make videos of this size.
    """
    check_batch(mesh, "the number of videos that are made at once", batch)
    model.latent_shape(config.video)
    self.batch = batch
    self._model, self._mesh, self._solver = model, mesh, solver
    # As a training in which `batch` groups of a single video roll out together.
    self._config = dataclasses.replace(
      config,
      train=dataclasses.replace(config.train, groups_per_rollout=batch, group_size=1),
      sampling=dataclasses.replace(config.sampling, shared_start_noise=True),
    )
    self._build = Builder(self._config, model, mesh)
    self._negative = embed_prompt(model, mesh, config.sampling.negative_prompt)
    self._embed = jax.jit(self._build.embed, out_shardings=replicated(mesh))
    self._start = jax.jit(self._build.start, out_shardings=replicated(mesh))
    self._make = jax.jit(self._videos, out_shardings=batch_sharding(mesh))
    self._off = jax.tree.map(lambda x: jax.device_put(jnp.zeros(x.shape, x.dtype), x.sharding), model.lora)

  def __call__(
    self, adapters: nnx.State | None, prompts: Sequence[str], places: Sequence[int]
  ) -> UInt8[np.ndarray, "N T H W 3"]:
    """One video a prompt.

    Args:
      adapters: of the structure and the shardings of `WanModel.lora`; None: the base model.
      prompts: N of them, 1 to `batch`.
      places: one a prompt, 0 to 2^31 - 1; with the seed it names the start noise.
    """
    count = len(prompts)
    if not 0 < count <= self.batch or len(places) != count:
      raise ValueError(f"{count} prompts and {len(places)} places do not go with batches of {self.batch}")
    filled = np.minimum(np.arange(self.batch), count - 1)  # the last one fills the batch up
    prompts = [prompts[index] for index in filled]
    paths, has_path = target_paths(prompts, self._config.video.frames, self._config.camera)
    text = self._embed(self._model.text.state, *map(self._put, self._model.text.tokenize(prompts)))
    places = np.asarray(places, np.int32)[filled]
    start = self._start(*map(self._put, (np.int32(_ITERATION), places, paths, has_path)))
    lora = self._off if adapters is None else adapters
    videos = self._make(lora, self._model.base, self._model.vae_state, text, self._negative, start)
    return jax.device_get(videos)[:count]

  def _videos(
    self,
    lora: nnx.State,
    base: nnx.State,
    vae_state: nnx.State,
    text: Float[Array, "B L D"],
    negative: Float[Array, "1 L D"],
    start: StartNoise,
  ) -> UInt8[Array, "B T H W 3"]:
    sampling = self._config.sampling
    latents = sample(
      guided(self._model.transformer.velocity(lora, base), sampling.guidance),
      Schedule.make(sampling.steps, sampling.shift),
      jax.tree.map(lambda x: shard_batch(x, self._mesh), start),
      shard_batch(text, self._mesh),
      negative,
      solver=self._solver,
      warp=self._config.noise_warp,
    )
    return self._build.decode(vae_state, latents)

  def _put(self, x: np.ndarray) -> Array:
    return jax.device_put(x, replicated(self._mesh))
