"""What an iteration asks of the devices and of the sidecar: rollouts, their rewards, and the update."""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, UInt8

from wr1_jax.camera.trajectory import target_paths
from wr1_jax.config import Config
from wr1_jax.models.pipeline import WanModel
from wr1_jax.objective.advantage import Advantages
from wr1_jax.parallel.mesh import replicated
from wr1_jax.rewards import compose
from wr1_jax.rewards.jobs import ALL_PARTS, ClipResult, Job, Results, in_scene_depths
from wr1_jax.rewards.transport import Rewards
from wr1_jax.sampling.rollout import Rollout
from wr1_jax.training.phases import Phase
from wr1_jax.training.programs import Programs, UpdateTerms, embed_prompt
from wr1_jax.training.state import TrainState
from wr1_jax.training.stop import StopRequest
from wr1_jax.training.stopwatch import Stopwatch

_POLL_SECONDS = 0.5  # how often a wait for rewards looks for a stop request


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
  """P prompts that rolled out together, B = P * G videos, and their rewards on the way."""

  prompts: tuple[str, ...]
  targets: Sequence[compose.Target]  # one a video
  text: Float[Array, "P L D"]
  rollout: Rollout
  videos: UInt8[np.ndarray, "B T H W 3"] | None
  pending: Results

  def without_videos(self) -> Batch:
    """The same without its largest part, which only a log needs."""
    return dataclasses.replace(self, videos=None)


@dataclasses.dataclass(frozen=True, eq=False)
class Scored:
  """The rewards of an iteration: P prompts by G videos, in the order of `results` and `rewards`."""

  results: Sequence[ClipResult]
  rewards: Sequence[compose.ClipReward]
  group_size: int

  def part(self, name: str) -> Float[np.ndarray, "P G"]:
    """`reward/NAME` of every video: total, recon, traj, meta or general; NaN where there is none."""
    values = [reward.metrics()[f"reward/{name}"] for reward in self.rewards]
    return np.array(values, np.float64).reshape(-1, self.group_size)

  @property
  def total(self) -> Float[np.ndarray, "P G"]:
    return self.part("total")

  @property
  def valid(self) -> Bool[np.ndarray, "P G"]:
    return np.isfinite(self.total)


class Runner:
  """Runs the compiled programs and talks to the sidecar."""

  def __init__(self, config: Config, model: WanModel, mesh: Mesh, programs: Programs, rewards: Rewards):
    self._config = config
    self._model = model
    self._mesh = mesh
    self._programs = programs
    self._rewards = rewards
    self._compose = compose.Composer(config.rewards, config.camera)
    self._negative = embed_prompt(model, mesh, config.sampling.negative_prompt)

  def roll_out(
    self, lora: nnx.State, iteration: int, first_slot: int, prompts: tuple[str, ...], phase: Phase, watch: Stopwatch
  ) -> Batch:
    """Makes the videos of `prompts` and sends them to the sidecar.

    Args:
      lora: adapters of the policy that rolls out.
      first_slot: place of the first prompt in the iteration; with the iteration it names every draw.
      phase: the dynamic phase asks for the general reward alone.
    """
    config, programs, model = self._config, self._programs, self._model
    count = self._put(np.int32(iteration))
    slots = self._put(np.arange(first_slot, first_slot + len(prompts), dtype=np.int32))
    paths, has_path = target_paths(prompts, config.video.frames, config.camera)

    with watch.measure("text"):
      text = programs.embed(model.text.state, *map(self._put, model.text.tokenize(prompts)))
      jax.block_until_ready(text)
    with watch.measure("rollout"):
      start = programs.start(count, slots, self._put(paths), self._put(has_path))
      rollout = programs.rollout(lora, model.base, text, self._negative, start, count, slots)
      jax.block_until_ready(rollout)
    with watch.measure("decode"):
      videos = jax.device_get(programs.decode(model.vae_state, rollout.latents))

    of_videos = np.repeat(np.arange(len(prompts)), config.train.group_size)
    targets = [paths[prompt] if has_path[prompt] else None for prompt in of_videos]
    asked = [None if target is None else in_scene_depths(target, config.camera.scene_depth) for target in targets]
    parts = ALL_PARTS if phase is Phase.MAIN else frozenset({"general"})
    with watch.measure("submit"):
      pending = self._rewards.submit(Job(videos, [prompts[prompt] for prompt in of_videos], asked, parts))
    return Batch(prompts, targets, text, rollout, videos, pending)

  def collect(self, batches: Sequence[Batch], phase: Phase, watch: Stopwatch, request: StopRequest) -> Scored:
    """Waits for the sidecar and puts the rewards together.

    Raises:
      Stop: a signal came while it waited.
    """
    results, rewards = [], []
    for batch in batches:
      with watch.measure("reward_wait"):
        found = _wait(batch.pending, request)
      with watch.measure("score"):
        rewards += self._compose(found, batch.targets, [phase is Phase.MAIN] * len(found))
      results += found
      watch.add("sidecar", sum(found[0].seconds.values()))
    return Scored(results, rewards, self._config.train.group_size)

  def update(
    self, train_state: TrainState, batches: Sequence[Batch], advantage: Advantages, watch: Stopwatch
  ) -> tuple[TrainState, UpdateTerms]:
    """One optimiser step on the whole iteration; `train_state` is used up."""
    with watch.measure("update"):
      per_batch = lambda x: self._put(x.reshape(len(batches), -1))
      train_state, terms = self._programs.update(
        train_state,
        self._model.base,
        tuple(batch.rollout for batch in batches),
        tuple(batch.text for batch in batches),
        self._negative,
        per_batch(advantage.values),
        per_batch(advantage.weights),
      )
      return train_state, jax.device_get(terms)

  def _put(self, x: np.ndarray) -> Array:
    return jax.device_put(x, replicated(self._mesh))


def _wait(pending: Results, request: StopRequest) -> list[ClipResult]:
  while True:
    request.check()
    try:
      return pending.result(timeout=_POLL_SECONDS)
    except concurrent.futures.TimeoutError:
      continue
