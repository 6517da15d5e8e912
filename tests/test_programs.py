"""The compiled programs of a run: the same numbers over every mesh, and what the adapters become in diffusers."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from parity import channels_first, channels_last, error

from conversions import to_diffusers
from wr1_jax import cli, randomness
from wr1_jax import config as config_lib
from wr1_jax.camera.start_noise import StartNoise, start_noise
from wr1_jax.camera.trajectory import target_paths
from wr1_jax.config import Config, MeshConfig
from wr1_jax.models import pipeline
from wr1_jax.objective.policy_loss import StoredSteps, policy_loss
from wr1_jax.parallel.mesh import make_mesh, replicated, shard_params
from wr1_jax.randomness import Purpose
from wr1_jax.sampling import window
from wr1_jax.sampling.guidance import guided
from wr1_jax.sampling.injection import Injection, injection_weights
from wr1_jax.sampling.rollout import Rollout, rollout
from wr1_jax.sampling.schedule import Schedule
from wr1_jax.sampling.sde import Policy
from wr1_jax.training import checkpoint, programs, state

_TINY = Path(__file__).parents[1] / "configs" / "tiny.py"
_SINGLE = MeshConfig(1, 1, 1)
_MESHES = {
  "data=8": MeshConfig(8, 1, 1),
  "fsdp=8": MeshConfig(1, 8, 1),
  "data=2 fsdp=2 sequence=2": MeshConfig(2, 2, 2),
}
_ITERATION = 3
_GROUP = 4
_PROMPTS = (  # of two rollouts
  ("Camera push in. A clay jug.", "A jug of clay on a table."),
  ("Camera orbit left, then pan right. A market.", "Camera fixed. A pier."),
)
_ADVANTAGE = np.linspace(-1, 1, 16, dtype=np.float32).reshape(2, 8)
_WEIGHT = np.ones((2, 8), np.float32)
_ADVANTAGE[0, 3], _WEIGHT[0, 3] = np.nan, 0.0  # a video without a reward


class Setup(NamedTuple):
  """What is there before the first iteration."""

  config: Config
  mesh: Mesh
  model: pipeline.WanModel
  state: state.TrainState
  run: programs.Programs

  def put(self, x: np.ndarray) -> jax.Array:
    return jax.device_put(x, replicated(self.mesh))


class Outcome(NamedTuple):
  """All that an iteration computes on the devices. Lists have an entry a rollout."""

  texts: list[jax.Array]
  starts: list[StartNoise]
  rollouts: list[Rollout]
  videos: list[np.ndarray]
  terms: programs.UpdateTerms
  gradients: dict[str, np.ndarray]  # Adam's first moments after one step: 0.1 x the clipped gradients
  state: state.TrainState


def _config(mesh: MeshConfig) -> Config:
  """The tiny run with fewer and smaller videos; delta injection, so that it is covered too."""
  config = cli.parse(
    [
      "test",
      f"--config={_TINY}",
      "--config.video.height=48",
      "--config.video.width=80",
      "--config.video.frames=5",
      "--config.sampling.steps=4",
      "--config.sampling.window_start_max=2",
      "--config.sampling.window=2",
      "--config.sampling.text_length=16",
      "--config.noise_warp.mode=stepwise_delta",
      "--config.train.seed=7",
      "--config.train.groups=4",
      "--config.train.groups_per_rollout=2",
      f"--config.train.group_size={_GROUP}",
      "--config.train.decode_batch=8",
      "--config.train.update_batch=8",
      "--config.lora.rank=4",
    ],
    lambda values: None,
  )[0]
  return dataclasses.replace(config, mesh=mesh)


@functools.cache
def _setup(mesh_config: MeshConfig) -> Setup:
  config = _config(mesh_config)
  mesh = make_mesh(config.mesh, jax.devices()[: math.prod(dataclasses.astuple(mesh_config))])
  # However small they are here, weights are spread over fsdp.
  with mock.patch.dict(shard_params.__kwdefaults__, small=1):
    model = pipeline.load(config, mesh, randomness.stream(0, Purpose.INIT))
    train_state = state.init(model.lora, state.make_optimizer(config.optimizer))
    # New adapters have no effect and half of them no gradient: start from others.
    train_state = train_state._replace(lora=jax.tree.map(lambda x: x + 0.02, train_state.lora))
    train_state = jax.device_put(train_state, shard_params(mesh, train_state))
  if mesh_config.fsdp > 1:
    assert not any(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(train_state.lora))
  return Setup(config, mesh, model, train_state, programs.compile_all(config, model, mesh, train_state))


@functools.cache
def _iteration(mesh_config: MeshConfig) -> Outcome:
  """Two rollouts of two prompts each, and an update on made-up advantages."""
  setup = _setup(mesh_config)
  config, model, run, put = setup.config, setup.model, setup.run, setup.put
  negative = programs.embed_prompt(model, setup.mesh, "")
  texts, starts, rollouts, videos = [], [], [], []
  for index, prompts in enumerate(_PROMPTS):
    place = (put(np.int32(_ITERATION)), put(np.arange(2, dtype=np.int32) + 2 * index))
    texts.append(run.embed(model.text.state, *map(put, model.text.tokenize(prompts))))
    starts.append(run.start(*place, *map(put, target_paths(prompts, config.video.frames, config.camera))))
    rollouts.append(run.rollout(setup.state.lora, model.base, texts[-1], negative, starts[-1], *place))
    videos.append(jax.device_get(run.decode(model.vae_state, rollouts[-1].latents)))
  train_state, terms = run.update(
    jax.tree.map(jnp.copy, setup.state),  # it is used up
    model.base,
    tuple(rollouts),
    tuple(texts),
    negative,
    put(_ADVANTAGE),
    put(_WEIGHT),
  )
  moments = train_state.optimizer[1][0].mu
  gradients = {jax.tree_util.keystr(k): np.asarray(v) for k, v in jax.tree_util.tree_leaves_with_path(moments)}
  return Outcome(texts, starts, rollouts, videos, jax.device_get(terms), gradients, train_state)


def _key(purpose: Purpose, *place: int) -> jax.Array:
  """The key of a draw, from its full name: seed, purpose, iteration, prompt, sample."""
  key = jax.random.fold_in(jax.random.key(7), int(purpose))
  for index in (_ITERATION, *place):
    key = jax.random.fold_in(key, index)
  return key


@pytest.mark.parametrize("name", _MESHES)
def test_samples_loss_and_gradients_do_not_depend_on_the_mesh(name):
  one, many = _iteration(_SINGLE), _iteration(_MESHES[name])
  for a, b in zip(many.rollouts, one.rollouts):
    # Guidance of 5 multiplies the rounding of every step.
    assert error(a.latents, b.latents) <= 3e-5 and error(a.log_prob, b.log_prob) <= 1e-5
  for a, b in zip(many.videos, one.videos):
    assert np.abs(a.astype(int) - b).max() <= 1  # a pixel may round the other way
  np.testing.assert_allclose(many.terms.loss.loss, one.terms.loss.loss, rtol=1e-5, atol=1e-7)
  np.testing.assert_allclose(many.terms.grad_norm, one.terms.grad_norm, rtol=1e-5)
  everything = lambda outcome: np.concatenate([g.ravel() for g in outcome.gradients.values()])
  assert error(everything(many), everything(one)) <= 1e-5


@pytest.mark.parametrize("index", [0, 1])
def test_start_noise_is_that_of_its_prompts(index):
  """The program against `start_noise` with every key written out; a prompt without a path starts from plain noise."""
  config, start = _setup(_SINGLE).config, _iteration(_SINGLE).starts[index]
  slots = (2 * index, 2 * index + 1)
  keys = [jnp.stack([_key(p, slot) for slot in slots]) for p in (Purpose.START_NOISE, Purpose.CAMERA_NOISE)]
  paths = target_paths(_PROMPTS[index], 5, config.camera)
  expected = start_noise(
    *keys, *map(jnp.asarray, paths), latent_shape=(2, 6, 10, 16), camera=config.camera, warp=config.noise_warp
  )
  np.testing.assert_allclose(start.latents, expected.latents, atol=1e-6)
  np.testing.assert_allclose(start.delta, expected.delta, atol=1e-5)
  np.testing.assert_array_equal(start.latents[1], jax.random.normal(keys[0][1], (2, 6, 10, 16)))
  assert [bool(np.any(delta)) for delta in start.delta] == [True, "fixed" in _PROMPTS[index][1]]


@pytest.mark.parametrize("index", [0, 1])
def test_rollout_is_that_of_its_parts(index):
  """The program against `sampling.rollout` put together by hand: guidance, policy, keys, window, injection."""
  setup, outcome = _setup(_SINGLE), _iteration(_SINGLE)
  sampling, model, found = setup.config.sampling, setup.model, outcome.rollouts[index]
  negative = model.text.embed(model.text.state, *model.text.tokenize([""]))
  keys = [_key(Purpose.TRANSITION, 2 * index + prompt, sample) for prompt in range(2) for sample in range(_GROUP)]
  window_start = window.draw_start(_key(Purpose.WINDOW, 2 * index), sampling)
  start = outcome.starts[index]
  expected = jax.jit(
    lambda text, start, keys: rollout(
      guided(model.transformer.velocity(setup.state.lora, model.base), 5.0),
      Policy.make(Schedule.make(4, 3.0), sampling),
      start.latents,
      text,
      negative,
      keys,
      window_start,
      window=2,
      injection=Injection(start.delta, injection_weights(4, setup.config.noise_warp)),
    )
  )(outcome.texts[index], start, jnp.stack(keys))
  assert found.steps.tolist() == [window_start, window_start + 1] == expected.steps.tolist()
  for name in ("states", "actions", "log_prob", "latents"):
    assert error(getattr(found, name), getattr(expected, name)) <= 1e-5, name


def test_update_trains_on_every_stored_step_with_what_belongs_to_it():
  """The program's loss and KL against `policy_loss` on all steps at once, gathered with plain loops."""
  setup, outcome = _setup(_SINGLE), _iteration(_SINGLE)
  config, model = setup.config, setup.model
  rows = []
  for r, one in enumerate(outcome.rollouts):
    for k, step in enumerate(one.steps):
      for b in range(8):
        sample = (one.states[k, b], one.actions[k, b], step, one.log_prob[k, b])
        rows.append(StoredSteps(*sample, _ADVANTAGE[r, b], _WEIGHT[r, b], 2 * r + b // _GROUP))
  steps = jax.tree.map(lambda *x: jnp.stack(x), *rows)
  policy = Policy.make(Schedule.make(4, 3.0), config.sampling)
  scale = policy.std / np.abs(policy.velocity_weight)
  terms = jax.jit(
    lambda steps, text: policy_loss(
      guided(model.transformer.velocity(setup.state.lora, model.base), 5.0),
      guided(model.transformer.reference(model.base), 5.0),
      steps,
      text,
      model.text.embed(model.text.state, *model.text.tokenize([""])),
      jnp.float32(30),
      policy=policy,
      step_weights=jnp.asarray(scale / scale[:4].mean()),  # windows of 2 that start at 0..2 cover 0..3
      config=config.objective,
    )
  )(steps, jnp.concatenate(outcome.texts))
  found = outcome.terms.loss
  assert terms.kl > 0
  for name in terms._fields:
    np.testing.assert_allclose(getattr(found, name), getattr(terms, name), rtol=2e-4, atol=1e-6, err_msg=name)


def test_group_shares_prompt_and_window_but_not_noise():
  spread = lambda x: np.abs(x[:, np.newaxis] - x).reshape(8, 8, -1).max(axis=2)
  group = np.kron(np.eye(2), np.ones((_GROUP, _GROUP))) > 0
  for one in _iteration(_SINGLE).rollouts:
    seen = spread(np.asarray(one.states[0]))  # by the network, at the first stochastic step
    assert (seen[group] <= 1e-6).all() and (seen[~group] > 1e-3).all()
    assert (spread(np.asarray(one.latents)) + np.eye(8) > 1e-3).all()


def test_first_update_has_ratio_one_and_trains_every_adapter():
  outcome = _iteration(_SINGLE)
  assert abs(outcome.terms.loss.ratio_mean - 1) < 1e-5
  assert outcome.terms.loss.clip_fraction == 0
  assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in outcome.gradients.values())
  assert len(outcome.gradients) == 16  # two factors of q, k, v and out of both attentions


def test_adapters_work_in_diffusers(tmp_path):
  torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
  config, trained = _config(_SINGLE), _iteration(_SINGLE).state
  with checkpoint.Checkpoints(tmp_path / "run" / "checkpoints", keep=1) as checkpoints:
    checkpoints.save(5, trained)
  (tmp_path / "run" / "config.json").write_text(json.dumps(config_lib.to_dict(config)))
  to_diffusers.convert(tmp_path / "run", tmp_path / "lora")

  their_pipeline = diffusers.WanPipeline.from_pretrained(pipeline.find_folder(config.model))
  their_pipeline.load_lora_weights(tmp_path / "lora")
  theirs = their_pipeline.transformer
  rng = np.random.default_rng(0)
  latents = rng.standard_normal((1, 2, 6, 10, 16), np.float32)
  text = rng.standard_normal((1, 16, theirs.config.text_dim), np.float32)
  with torch.no_grad():
    expected = channels_last(theirs(channels_first(latents), torch.tensor([500]), torch.tensor(text)).sample)
  mesh = make_mesh(config.mesh, jax.devices()[:1])
  model = pipeline.load(config, mesh, randomness.stream(0, randomness.Purpose.INIT))
  ours = model.transformer.velocity(trained.lora, model.base)(latents, np.array([500.0], np.float32), text)
  assert error(ours, expected) <= 1e-5


def test_export_names_a_missing_checkpoint(tmp_path):
  with pytest.raises(config_lib.UserError, match="no run's folder"):
    to_diffusers.convert(tmp_path, tmp_path / "lora")
