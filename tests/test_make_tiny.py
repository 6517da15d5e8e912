"""The tiny model folder: diffusers and this package read the same model from it."""

from __future__ import annotations

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from parity import channels_first, channels_last, error
from safetensors.numpy import load_file
from transformers import AutoTokenizer

from wr1_jax.config import LoRAConfig, ModelConfig
from wr1_jax.models import make_tiny, text, transformer, vae
from wr1_jax.models.attention import Attention
from wr1_jax.models.pipeline import find_folder

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


def test_the_shipped_folder_is_one_of_these(tiny_folder):
  shipped = find_folder(ModelConfig(path="wan-tiny"))
  files = sorted(path.relative_to(tiny_folder) for path in tiny_folder.rglob("*") if path.is_file())
  assert files == sorted(path.relative_to(shipped) for path in shipped.rglob("*") if path.is_file())
  for file in (file for file in files if file.suffix == ".json"):
    assert json.loads((shipped / file).read_text()) == json.loads((tiny_folder / file).read_text()), file
  for part in ("transformer/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
    ours, theirs = (load_file(folder / f"{part}.safetensors") for folder in (tiny_folder, shipped))
    assert {name: x.shape for name, x in ours.items()} == {name: x.shape for name, x in theirs.items()}


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
