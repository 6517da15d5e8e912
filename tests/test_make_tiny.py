"""The tiny model folder: diffusers and this package read the same model from it."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from parity import channels_first, channels_last, error
from safetensors import safe_open
from transformers import AutoTokenizer

from wr1_jax import world
from wr1_jax.config import CameraConfig, LoRAConfig, ModelConfig
from wr1_jax.models import make_tiny, text, transformer, vae
from wr1_jax.models.attention import Attention
from wr1_jax.models.pipeline import find_folder
from wr1_jax.pretraining.config import PretrainConfig

PROMPT = "Camera push in. A stone lighthouse on a headland."
SIZES = {"height": 96, "width": 160, "num_frames": 5}


@pytest.fixture(scope="module")
def pipeline(tiny_folder):
  return pytest.importorskip("diffusers").WanPipeline.from_pretrained(tiny_folder)


@pytest.fixture(scope="module")
def autoencoder(tiny_folder):
  return nnx.split(vae.load(tiny_folder / "vae", dtype=jnp.float32))


@pytest.fixture(scope="module")
def noise():
  return np.random.default_rng(0).standard_normal((1, 2, 12, 20, 16), np.float32)


def test_same_seed_same_files_and_small(tiny_folder, tmp_path):
  command = [sys.executable, "-m", "wr1_jax.models.make_tiny", f"--out={tmp_path / 'again'}", "--seed=0"]
  subprocess.run(command, check=True)
  files = sorted(path.relative_to(tiny_folder) for path in tiny_folder.rglob("*") if path.is_file())
  assert files == sorted(path.relative_to(tmp_path / "again") for path in tmp_path.rglob("*") if path.is_file())
  for file in files:
    assert (tiny_folder / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file
  assert sum((tiny_folder / file).stat().st_size for file in files) < 8e6


def test_the_shipped_folder_is_what_pretraining_makes(tiny_folder):
  shipped = find_folder(ModelConfig(path="wan-tiny"))
  files = sorted(path.relative_to(tiny_folder) for path in tiny_folder.rglob("*") if path.is_file())
  assert files == sorted(path.relative_to(shipped) for path in shipped.rglob("*") if path.is_file())
  assert sum((shipped / file).stat().st_size for file in files) < 16e6
  sizes = PretrainConfig()
  assert transformer.TransformerConfig.from_folder(shipped / "transformer") == sizes.transformer_sizes()
  found = vae.VAEConfig.from_folder(shipped / "vae")
  expected = sizes.vae_sizes()
  assert dataclasses.replace(found, latents_mean=expected.latents_mean, latents_std=expected.latents_std) == expected
  for part in ("transformer/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
    with safe_open(shipped / f"{part}.safetensors", framework="numpy") as file:
      assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}, part


def test_the_shipped_autoencoder_has_learnt_the_world():
  """A quarter of the size that it was trained for, so that this is quick: random weights would be near 5 dB."""
  config, camera = world.WorldConfig(48, 80, 5), CameraConfig()
  clips = world.sample(0, range(world.HELD_OUT, world.HELD_OUT + 2), config, camera, dynamic=False)
  video = np.asarray(world.render(clips.scenes, clips.poses, config, camera).video)
  model = vae.load(find_folder(ModelConfig(path="wan-tiny")) / "vae", dtype=jnp.float32)
  graphdef, state = nnx.split(model)

  @jax.jit
  def copy(state, video):
    model = nnx.merge(graphdef, state)
    latents = model.encode(video)
    return latents, model.decode(latents)

  latents, copied = copy(state, video)
  assert 0.7 < float(np.std(latents)) < 1.4  # normalised
  assert 10 * np.log10(4 / np.mean((np.asarray(copied) - video) ** 2)) > 20


def test_other_seed_other_weights(tiny_folder, tmp_path):
  make_tiny.make(tmp_path, seed=1)
  for part in ("transformer/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
    file = f"{part}.safetensors"
    assert (tiny_folder / file).read_bytes() != (tmp_path / file).read_bytes()


def test_out_that_cannot_be_a_folder(tmp_path):
  (tmp_path / "file").write_text("")
  command = [sys.executable, "-m", "wr1_jax.models.make_tiny", f"--out={tmp_path / 'file'}"]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 2 and "cannot be written" in done.stderr and "Traceback" not in done.stderr


def test_diffusers_makes_videos_with_it(pipeline):
  torch = pytest.importorskip("torch")
  generator = torch.Generator().manual_seed(0)
  pipeline.set_progress_bar_config(disable=True)
  frames = pipeline(PROMPT, **SIZES, num_inference_steps=2, generator=generator, output_type="np").frames
  assert frames.shape == (1, 5, 96, 160, 3) and np.isfinite(frames).all()
  assert type(pipeline.scheduler).__name__ == "UniPCMultistepScheduler" and pipeline.scheduler.config.flow_shift == 3.0


def test_same_velocity_as_diffusers(tiny_folder, pipeline, noise):
  torch = pytest.importorskip("torch")
  policy, _, base = transformer.load(
    tiny_folder / "transformer",
    dtype=jnp.float32,
    lora=LoRAConfig(rank=2),
    lora_key=jax.random.key(0),
    attention=Attention("xla"),
    remat="none",
  )
  embedding = np.random.default_rng(1).standard_normal((1, 16, 64), np.float32)
  with torch.no_grad():
    expected = pipeline.transformer(channels_first(noise), torch.tensor([900]), torch.from_numpy(embedding)).sample
  expected = channels_last(expected)
  found = policy.reference(base)(noise, jnp.array([900.0]), embedding)
  assert error(found, expected) <= 1e-5
  assert 0.3 < expected.std() < 3


def test_same_embeddings_as_diffusers(tiny_folder, pipeline):
  encoder = text.load(tiny_folder, length=32, dtype=jnp.float32)
  prompts = [PROMPT, "", "Two caf&eacute;s,\n\tside by side " * 9]
  expected = pipeline._get_t5_prompt_embeds(prompts, max_sequence_length=32).detach().numpy()
  assert error(encoder.embed(encoder.state, *encoder.tokenize(prompts)), expected) <= 1e-5


def test_same_pixels_as_diffusers(autoencoder, pipeline, noise):
  torch = pytest.importorskip("torch")
  graphdef, state = autoencoder
  config = pipeline.vae.config
  plain = (noise * np.array(config.latents_std) + np.array(config.latents_mean)).astype(np.float32)
  with torch.no_grad():
    expected = channels_last(pipeline.vae.decode(channels_first(plain)).sample)
  found = np.asarray(jax.jit(lambda state, z: nnx.merge(graphdef, state).decode(z))(state, noise))
  assert error(found, expected) <= 1e-5
  # Decoded noise has structure, and does not sit at the ends of the range.
  assert 0.2 < found.std() < 0.5 and (np.abs(found) == 1).mean() < 0.05
  assert found.std(axis=(2, 3)).min() > 0.1, "every frame and colour varies over space"


def test_tokenizer_knows_every_character(tiny_folder):
  tokenizer = AutoTokenizer.from_pretrained(tiny_folder / "tokenizer")
  prompt = "Ελληνικά, 日本語 and 🦊"
  assert tokenizer.decode(tokenizer(prompt)["input_ids"], skip_special_tokens=True).strip() == prompt
