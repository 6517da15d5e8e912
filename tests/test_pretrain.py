"""Pre-training at micro sizes: both stages learn, stop, go on exactly, and write a folder that diffusers reads too."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache
from parity import channels_first, channels_last, error

from wr1_jax import cli, pretrain
from wr1_jax import config as config_lib
from wr1_jax.config import Config, LoRAConfig, MeshConfig, ModelConfig, SamplingConfig
from wr1_jax.errors import UserError
from wr1_jax.models import pipeline, transformer, umt5, vae
from wr1_jax.parallel.mesh import make_mesh
from wr1_jax.pretraining import bank as bank_lib
from wr1_jax.pretraining import clips, flops
from wr1_jax.pretraining import config as pretraining_config
from wr1_jax.pretraining.clips import Block
from wr1_jax.pretraining.config import PretrainConfig
from wr1_jax.training.stop import Stop

_CONFIG = Path(__file__).parents[1] / "configs" / "pretrain.py"
_VAE_STEPS, _FLOW_STEPS = 30, 60


def _micro() -> PretrainConfig:
  values = pretraining_config.default()
  values.world.height, values.world.width = 16, 24
  values.world.frames, values.world.subrays = 5, 1
  values.autoencoder.base_dim, values.autoencoder.dim_mult = 4, (1, 1, 2)
  values.autoencoder.temperal_downsample = (True, True)
  values.transformer.num_attention_heads, values.transformer.attention_head_dim = 2, 12
  values.transformer.num_layers, values.transformer.ffn_dim, values.transformer.freq_dim = 2, 48, 16
  text = values.text_encoder
  text.vocab_size, text.d_model, text.d_kv, text.d_ff, text.num_layers, text.num_heads = 320, 16, 8, 32, 1, 2
  for stage, steps in ((values.vae, _VAE_STEPS), (values.flow, _FLOW_STEPS)):
    stage.steps, stage.warmup_steps, stage.batch = steps, 5, 8
    stage.bank, stage.bank_first, stage.fresh, stage.fresh_every = 8, 4, 4, 10
    stage.ema_decay = 0.9
  values.vae.learning_rate, values.flow.learning_rate = 4e-3, 1e-2
  values.vae.crop, values.vae.full_size_batch = 0, 2
  values.flow.sample_steps = 2
  values.loop.log_every, values.loop.evaluate_every, values.loop.checkpoint_every = 10, 30, 20
  values.dtype, values.workers = "float32", 0
  return config_lib.resolve(values, PretrainConfig)


class _Patience:
  """Raises `error` the `calls`-th time that it is asked."""

  def __init__(self, calls: int | None = None, error: BaseException | None = None):
    self._calls, self._error = calls, error

  def check(self) -> None:
    if self._calls is not None:
      self._calls -= 1
      if self._calls == 0:
        raise self._error


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  """Runs share what they compile."""
  options = {
    "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("cache")),
    "jax_persistent_cache_min_compile_time_secs": 0,
  }
  before = {name: jax.config.values[name] for name in options}
  for values in (options, before):
    compilation_cache.reset_cache()
    for name, value in values.items():
      jax.config.update(name, value)
    if values is options:
      yield


@pytest.fixture(scope="module")
def finished(cache, tmp_path_factory):
  """The folder of a run that was never disturbed."""
  workdir = tmp_path_factory.mktemp("finished")
  pretrain.pretrain(_micro(), workdir, _Patience())
  return workdir


def _records(workdir: Path, stage: str) -> list[dict]:
  return [json.loads(line) for line in (workdir / stage / "metrics.jsonl").read_text().splitlines()]


def _last(folder: Path) -> int:
  """The number of the newest checkpoint."""
  return max(int(path.name) for path in (folder / "checkpoints").iterdir())


def test_both_stages_learn(finished):
  for stage, steps in (("vae", _VAE_STEPS), ("flow", _FLOW_STEPS)):
    records = _records(finished, stage)
    assert [record["iteration"] for record in records] == list(range(10, steps + 1, 10))
    assert np.mean([record["loss"] for record in records[-2:]]) < 0.85 * records[0]["loss"]
  assert _records(finished, "vae")[-1]["held_out_psnr"] > 12
  assert list((finished / "vae" / "pictures").glob("*_reconstructions.png"))
  assert list((finished / "flow" / "pictures").glob("*_samples.png"))
  report = json.loads((finished / "report.json").read_text())
  assert {"vae: held-out PSNR (dB), mean", "flow: held-out loss", "render: clips a second"} <= report.keys()


def test_stopped_and_killed_runs_go_on_exactly(finished, tmp_path):
  with pytest.raises(Stop):  # saves where it is: between two checkpoints, and after clips were replaced
    pretrain.pretrain(_micro(), tmp_path, _Patience(29, Stop("test")))
  assert _last(tmp_path / "vae") == 25
  with pytest.raises(ZeroDivisionError):  # goes back to the last checkpoint
    pretrain.pretrain(_micro(), tmp_path, _Patience(60, ZeroDivisionError()))
  assert (tmp_path / "wan-tiny" / "vae").is_dir() and _last(tmp_path / "flow") == 40
  pretrain.pretrain(_micro(), tmp_path, _Patience())
  files = sorted(path.relative_to(finished) for path in (finished / "wan-tiny").rglob("*") if path.is_file())
  assert len(files) == 10
  for file in files:
    assert (tmp_path / file).read_bytes() == (finished / file).read_bytes(), file


def test_a_finished_model_is_trained_further(finished, tmp_path):
  config = dataclasses.replace(_micro(), start=str(finished / "wan-tiny"))
  pretrain.pretrain(config, tmp_path, _Patience())
  for part in ("vae", "tokenizer"):
    for file in (finished / "wan-tiny" / part).iterdir():
      assert (tmp_path / "wan-tiny" / part / file.name).read_bytes() == file.read_bytes()
  assert not (tmp_path / "vae").exists()
  before, after = (_records(run, "flow") for run in (finished, tmp_path))
  assert after[0]["loss"] < 0.9 * before[0]["loss"]
  assert after[-1]["held_out_loss"] < before[-1]["held_out_loss"]


def test_only_a_model_of_the_same_sizes_is_trained_further(finished, tmp_path):
  other = dataclasses.replace(_micro().transformer, ffn_dim=56)
  config = dataclasses.replace(_micro(), start=str(finished / "wan-tiny"), transformer=other)
  with pytest.raises(UserError, match="ffn"):
    pretrain.pretrain(config, tmp_path, _Patience())


def test_the_folder_is_a_model(finished):
  """What this package loads is what was trained, and diffusers sees the same."""
  folder = finished / "wan-tiny"
  config = Config(
    model=ModelConfig(path=str(folder), dtype="float32", vae_dtype="float32"),
    lora=LoRAConfig(rank=2),
    sampling=SamplingConfig(text_length=16),
  )
  model = pipeline.load(config, make_mesh(MeshConfig(), jax.devices()[:1]), jax.random.key(0))
  shape = (2, 2, 4, 6, 16)
  noise = np.random.default_rng(0).standard_normal(shape, np.float32)
  video = np.array(jax.jit(lambda state, z: nnx.merge(model.vae_graphdef, state).decode(z))(model.vae_state, noise))
  latents = jax.jit(lambda state, video: nnx.merge(model.vae_graphdef, state).encode(video))(model.vae_state, video)
  text = model.text.embed(model.text.state, *model.text.tokenize(["Camera fixed. A red ball.", ""]))
  velocity = jax.jit(lambda base, x: model.transformer.reference(base)(x, jnp.array([900.0, 500.0]), text))(
    model.base, noise
  )

  torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
  theirs = diffusers.WanPipeline.from_pretrained(folder, torch_dtype=torch.float32)
  with torch.no_grad():
    mean, std = (np.array(x) for x in (theirs.vae.config.latents_mean, theirs.vae.config.latents_std))
    plain = channels_first((noise * std + mean).astype(np.float32))
    assert error(video, channels_last(theirs.vae.decode(plain).sample)) <= 1e-5
    encoded = channels_last(theirs.vae.encode(channels_first(video)).latent_dist.mode())
    assert error(latents, (encoded - mean) / std) <= 1e-5
    embedded = theirs._get_t5_prompt_embeds(["Camera fixed. A red ball.", ""], max_sequence_length=16)
    assert error(text, embedded.numpy()) <= 1e-5
    expected = theirs.transformer(channels_first(noise), torch.tensor([900, 500]), embedded).sample
    assert error(velocity, channels_last(expected)) <= 1e-5


def test_latents_are_normalised(finished):
  """Encoded clips have about mean 0 and deviation 1 in every channel."""
  config = _micro()
  model = vae.load(finished / "wan-tiny" / "vae", dtype=jnp.float32)
  with clips.Sampler(config) as sampler:
    block = sampler.block(0, 16)
  videos = jax.jit(clips.renderer(config))(block.scenes, block.poses)
  latents = np.asarray(
    jax.jit(lambda model_state, x: nnx.merge(nnx.graphdef(model), model_state).encode(x))(
      nnx.state(model), clips.to_float(videos)
    )
  )
  assert np.abs(latents.mean(axis=(0, 1, 2, 3))).max() < 0.2
  assert 0.5 < latents.std(axis=(0, 1, 2, 3)).min() and latents.std(axis=(0, 1, 2, 3)).max() < 1.2


def test_default_sizes_fit():
  """The model that is shipped: at most 16 MB in bfloat16, with a tenth of a MB for tokenizer and headers."""
  config = PretrainConfig()
  build = (
    lambda: vae.WanVAE(config.vae_sizes(), dtype=jnp.bfloat16, rngs=nnx.Rngs(0)),
    lambda: transformer.WanTransformer(
      config.transformer_sizes(),
      lora=None,
      dtype=jnp.bfloat16,
      attention=transformer.Attention("xla"),
      remat="none",
      rngs=nnx.Rngs(0),
    ),
    lambda: umt5.UMT5Encoder(config.text_encoder_sizes(), dtype=jnp.bfloat16, rngs=nnx.Rngs(0)),
  )
  weights = sum(leaf.size for make in build for leaf in jax.tree.leaves(nnx.state(nnx.eval_shape(make))))
  assert 2 * weights <= 15.9e6
  pretraining_config.check(config)


@pytest.mark.parametrize("first", [0, 9, 10, 23, 60])
def test_what_a_bank_holds_depends_on_the_step_alone(first):
  stage = dataclasses.replace(PretrainConfig().vae, bank=8, bank_first=4, fresh=2, fresh_every=5)
  bank, other = (_bank(stage) for _ in range(2))
  for step in range(first + 1):
    entries, filled = bank.at(step)
  resumed, filled_then = other.at(first)
  drawn = 4 + 2 * (first // 5)
  assert filled == filled_then == min(drawn, 8)
  assert sorted(np.asarray(entries)[:filled]) == list(range(max(0, drawn - 8), drawn))
  np.testing.assert_array_equal(entries[:filled], resumed[:filled])


def _bank(stage):
  class Numbers:
    def stream(self, start, size, unsound_share):
      while True:
        yield Block((), np.arange(start, start + size), None)
        start += size

  return bank_lib.Bank(stage, Numbers(), lambda block: jnp.asarray(block.poses), lambda: None)


def test_clips_are_the_same_from_every_process():
  config = dataclasses.replace(_micro(), workers=1)
  with clips.Sampler(config) as sampler:
    here = [sampler.block(start, 3) for start in (4, 7)]
    there = [block for block, _ in zip(sampler.stream(4, 3), range(2))]
  for mine, theirs in zip(here, there):
    assert mine.captions == theirs.captions
    jax.tree.map(np.testing.assert_array_equal, mine[1:], theirs[1:])


def test_operations_are_counted():
  x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 5))

  def convolve(x):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

  assert flops.count(convolve, x) == 2 * (2 * 6 * 6 * 5) * 27
  step = lambda carry, _: (jnp.tanh(carry @ carry), None)
  assert flops.count(lambda a: jax.lax.scan(step, a, None, length=7)[0], jnp.ones((4, 4))) == 7 * 2 * 4**3
  branches = (lambda a: a @ a @ a, lambda a: a @ a)
  assert flops.count(lambda a: jax.lax.cond(a[0, 0] > 0, *branches, a), jnp.ones((4, 4))) == 2 * 2 * 4**3
  assert flops.count(jax.jit(jax.checkpoint(lambda a: a @ a)), jnp.ones((4, 4))) == 2 * 4**3


def test_wrong_options_are_named(tmp_path):
  parse = lambda *arguments: cli.parse(
    ["program", f"--config={_CONFIG}", *arguments], lambda values: None, PretrainConfig
  )
  assert parse("--config.flow.bank=2048", "--config.autoencoder.dim_mult=(1,2)")[0].autoencoder.dim_mult == (1, 2)
  with pytest.raises(UserError, match=r"'flow.step'; the nearest are: .*flow\.steps"):
    parse("--config.flow.step=3")
  with pytest.raises(UserError, match=r"config.autoencoder.dim_mult\[1\] is 0"):
    parse("--config.autoencoder.dim_mult=(1,0)")
  for options, said in (
    (("vae.crop=20",), "vae.crop is 20"),
    (("flow.fresh=100",), "flow.bank is 16384.*flow.fresh"),
    (("world.width=100",), "multiples of"),
    (("autoencoder.dim_mult=(1,2)",), "temperal_downsample has 3"),
    (("autoencoder.temperal_downsample=(False,False,True)",), "temperal_downsample has 1"),
  ):
    config, _ = parse(*(f"--config.{option}" for option in options))
    with pytest.raises(UserError, match=said):
      pretrain.pretrain(config, tmp_path, _Patience())
  with pytest.raises(UserError, match="there is no .*vae"):
    pretrain.pretrain(_micro(), tmp_path, _Patience(), ["flow"])
