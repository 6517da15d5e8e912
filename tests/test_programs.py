"""The compiled programs of a run: the same numbers over every mesh, and what the adapters become in diffusers."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from conversions import to_diffusers
from wr1_jax import cli, randomness
from wr1_jax import config as config_lib
from wr1_jax.camera.trajectory import target_paths
from wr1_jax.config import Config, MeshConfig
from wr1_jax.models import pipeline
from wr1_jax.parallel.mesh import make_mesh, replicated, shard_params
from wr1_jax.training import checkpoint, programs, state

_TINY = Path(__file__).parents[1] / "configs" / "tiny.py"
_PROMPTS = ["Camera push in. A clay jug.", "Camera orbit left, then pan right. A market."]
_MESHES = {
  "data=8": MeshConfig(8, 1, 1),
  "fsdp=8": MeshConfig(1, 8, 1),
  "data=2 fsdp=2 sequence=2": MeshConfig(2, 2, 2),
}


class Outcome(NamedTuple):
  """All that an iteration computes on the devices, on the host."""

  latents: list[np.ndarray]
  log_prob: list[np.ndarray]
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
      "--config.train.group_size=8",
      "--config.train.decode_batch=8",
      "--config.train.update_batch=8",
      "--config.lora.rank=4",
    ],
    lambda values: None,
  )[0]
  return dataclasses.replace(config, mesh=mesh)


@functools.cache
def _iteration(mesh_config: MeshConfig) -> Outcome:
  """Rollouts of two prompts and an update on made-up advantages."""
  config = _config(mesh_config)
  devices = np.prod(dataclasses.astuple(mesh_config))
  mesh = make_mesh(config.mesh, jax.devices()[:devices])
  model = pipeline.load(config, mesh, randomness.stream(0, randomness.Purpose.INIT))
  train_state = state.init(model.lora, state.make_optimizer(config.optimizer))
  # New adapters have no effect and half of them no gradient: start from others.
  train_state = train_state._replace(lora=jax.tree.map(lambda x: x + 0.02, train_state.lora))
  train_state = jax.device_put(train_state, shard_params(mesh, train_state))
  run = programs.compile_all(config, model, mesh, train_state)
  put = lambda x: jax.device_put(x, replicated(mesh))
  negative = programs.embed_prompt(model, mesh, "")
  rollouts, texts, videos = [], [], []
  for slot, prompt in enumerate(_PROMPTS):
    place = (put(np.int32(3)), put(np.array([slot], np.int32)))
    texts.append(run.embed(model.text.state, *map(put, model.text.tokenize([prompt]))))
    start = run.start(*place, *map(put, target_paths([prompt], config.video.frames, config.camera)))
    rollouts.append(run.rollout(train_state.lora, model.base, texts[-1], negative, start, *place))
    videos.append(jax.device_get(run.decode(model.vae_state, rollouts[-1].latents)))
  advantage = np.linspace(-1, 1, 16, dtype=np.float32).reshape(2, 8)
  weight = np.ones((2, 8), np.float32)
  advantage[0, 3], weight[0, 3] = np.nan, 0.0  # a video without a reward
  train_state, terms = run.update(
    train_state, model.base, tuple(rollouts), tuple(texts), negative, put(advantage), put(weight)
  )
  moments = train_state.optimizer[1][0].mu
  gradients = {jax.tree_util.keystr(k): np.asarray(v) for k, v in jax.tree_util.tree_leaves_with_path(moments)}
  return Outcome(
    [np.asarray(r.latents) for r in rollouts],
    [np.asarray(r.log_prob) for r in rollouts],
    videos,
    jax.device_get(terms),
    gradients,
    train_state,
  )


def _relative(a: np.ndarray, b: np.ndarray) -> float:
  return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("name", _MESHES)
def test_samples_loss_and_gradients_do_not_depend_on_the_mesh(name):
  one, many = _iteration(MeshConfig(1, 1, 1)), _iteration(_MESHES[name])
  for a, b in zip(many.latents + many.log_prob, one.latents + one.log_prob):
    assert _relative(a, b) <= 1e-5
  for a, b in zip(many.videos, one.videos):
    assert np.abs(a.astype(int) - b).max() <= 1  # a pixel may round the other way
  np.testing.assert_allclose(many.terms.loss.loss, one.terms.loss.loss, rtol=1e-5, atol=1e-7)
  np.testing.assert_allclose(many.terms.grad_norm, one.terms.grad_norm, rtol=1e-5)
  everything = lambda outcome: np.concatenate([g.ravel() for g in outcome.gradients.values()])
  assert _relative(everything(many), everything(one)) <= 1e-5


def test_group_shares_prompt_and_window_but_not_noise():
  outcome = _iteration(MeshConfig(1, 1, 1))
  for latents in outcome.latents:
    spread = np.abs(latents - latents[:1]).reshape(8, -1).max(axis=1)
    assert spread[0] == 0 and (spread[1:] > 1e-3).all()


def test_first_update_has_ratio_one_and_trains_every_adapter():
  outcome = _iteration(MeshConfig(1, 1, 1))
  assert abs(outcome.terms.loss.ratio_mean - 1) < 1e-5
  assert outcome.terms.loss.clip_fraction == 0
  assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in outcome.gradients.values())
  assert len(outcome.gradients) == 16  # two factors of q, k, v and out of both attentions


def test_adapters_work_in_diffusers(tmp_path):
  torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
  config, trained = _config(MeshConfig(1, 1, 1)), _iteration(MeshConfig(1, 1, 1)).state
  with checkpoint.Checkpoints(tmp_path / "run" / "checkpoints", keep=1) as checkpoints:
    checkpoints.save(5, trained)
  (tmp_path / "run" / "config.json").write_text(json.dumps(config_lib.to_dict(config)))
  tensors = load_file(to_diffusers.convert(tmp_path / "run", tmp_path / "lora"))

  folder = pipeline.find_folder(config.model)
  theirs = diffusers.WanTransformer3DModel.from_pretrained(folder / "transformer")
  with torch.no_grad():
    for name in [name for name in tensors if name.endswith("lora_A.weight")]:
      layer = theirs.get_submodule(name.removeprefix("transformer.").removesuffix(".lora_A.weight"))
      layer.weight += torch.tensor(tensors[name.replace("lora_A", "lora_B")] @ tensors[name])
  rng = np.random.default_rng(0)
  latents = rng.standard_normal((1, 2, 6, 10, 16), np.float32)
  text = rng.standard_normal((1, 16, theirs.config.text_dim), np.float32)
  with torch.no_grad():
    expected = theirs(torch.tensor(latents).permute(0, 4, 1, 2, 3), torch.tensor([500]), torch.tensor(text)).sample
  mesh = make_mesh(config.mesh, jax.devices()[:1])
  model = pipeline.load(config, mesh, randomness.stream(0, randomness.Purpose.INIT))
  ours = model.transformer.velocity(trained.lora, model.base)(latents, np.array([500.0], np.float32), text)
  assert _relative(np.asarray(ours), expected.permute(0, 2, 3, 4, 1).numpy()) <= 1e-5


def test_export_names_a_missing_checkpoint(tmp_path):
  with pytest.raises(config_lib.UserError, match="no run's folder"):
    to_diffusers.convert(tmp_path, tmp_path / "lora")
