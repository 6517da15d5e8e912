"""Writes a complete Wan2.1-shaped diffusers folder that is small enough for tests and laptops, with random weights.

    python -m wr1_jax.models.make_tiny --out=DIR [--seed=0]

Every part is there and has the real architecture: transformer, autoencoder, UMT5 encoder, a tokenizer trained on the
shipped prompts, and the scheduler's settings. diffusers' `WanPipeline.from_pretrained` loads the folder as well. The
same seed and prompts give the same files.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.resources
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from wr1_jax.errors import UserError, reported
from wr1_jax.models import transformer, umt5, vae, weights
from wr1_jax.models.attention import Attention

TRANSFORMER = transformer.TransformerConfig(
  num_attention_heads=4, attention_head_dim=24, text_dim=64, freq_dim=64, ffn_dim=256, num_layers=4
)
VAE = vae.VAEConfig(base_dim=8)
TEXT_ENCODER = umt5.UMT5Config(vocab_size=1024, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4)

_CONTRAST = 0.6  # of the last convolution: decoded noise spreads over the range of pixels, and seldom leaves it
_LONGEST_PROMPT = 512  # tokens
_PAD, _END = "<pad>", "</s>"  # tokens 0 and 1, as T5 has them
_VERSION = {"_diffusers_version": "0.33.0"}  # the first diffusers with Wan2.1


def make(out: Path, seed: int) -> None:
  """Writes the folder `out`, replacing what an earlier run left there."""
  rng = np.random.default_rng(seed)  # NumPy draws the same numbers on every platform
  build = functools.partial(
    transformer.WanTransformer, TRANSFORMER, lora=None, dtype=jnp.float32, attention=Attention("xla"), remat="none"
  )
  write_transformer(out, TRANSFORMER, random_weights(build, rng, {}))
  build = functools.partial(vae.WanVAE, VAE, dtype=jnp.float32)
  write_vae(out, VAE, random_weights(build, rng, {"decoder/conv_out/kernel": _CONTRAST}))
  build = functools.partial(umt5.UMT5Encoder, TEXT_ENCODER, dtype=jnp.float32)
  gains = {"blocks/attention/q/kernel": TEXT_ENCODER.d_kv**-0.5}  # its logits are unscaled
  write_text_encoder(out, TEXT_ENCODER, random_weights(build, rng, gains))
  write_tokenizer(out, shipped_prompts(), TEXT_ENCODER.vocab_size)
  write_index(out)


def write_transformer(out: Path, config: transformer.TransformerConfig, state: nnx.State) -> None:
  """Writes `out`/transformer, in the dtypes that the weights have."""
  values = {"_class_name": "WanTransformer3DModel", **_VERSION, **dataclasses.asdict(config)}
  weights.save(out / "transformer", state, transformer.tensor_table(config), values)


def write_vae(out: Path, config: vae.VAEConfig, state: nnx.State) -> None:
  """Writes `out`/vae."""
  values = {"_class_name": "AutoencoderKLWan", **_VERSION, **dataclasses.asdict(config)}
  weights.save(out / "vae", state, vae.tensor_table(state), values)


def write_text_encoder(out: Path, config: umt5.UMT5Config, state: nnx.State) -> None:
  """Writes `out`/text_encoder."""
  values = {"architectures": ["UMT5EncoderModel"], "model_type": "umt5", **dataclasses.asdict(config)}
  weights.save(out / "text_encoder", state, umt5.tensor_table(), values, stem="model")


def write_index(out: Path) -> None:
  """Writes what says how the parts belong together: the scheduler's settings and model_index.json."""
  _write_scheduler(out / "scheduler")
  index = {
    "_class_name": "WanPipeline",
    **_VERSION,
    "scheduler": ["diffusers", "UniPCMultistepScheduler"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "vae": ["diffusers", "AutoencoderKLWan"],
  }
  weights.write_json(out / "model_index.json", index)


def random_weights(build: Callable[..., nnx.Module], rng: np.random.Generator, gains: Mapping[str, float]) -> nnx.State:
  """Weights for what `build(rngs=...)` makes that keep the size of activations, save where `gains` scales a leaf.

  Unlike in a fresh model none is constant: one that got lost on the way would be noticed. They are float32 and drawn on
  the host: a program that draws so many arrays would take long to compile.
  """

  def draw(path: tuple[str | int, ...], variable: nnx.Variable) -> nnx.Variable:
    noise = rng.standard_normal(variable.shape, np.float32)
    if path[-1] == "kernel":
      layers = 1 if path[0] == "blocks" else 0  # axes that layers are stacked along
      noise *= math.prod(variable.shape[layers:-1]) ** -0.5
    elif path[-1] in ("scale", "bias"):
      noise = 0.05 * noise + (path[-1] == "scale")
    elif path[-1] in ("scale_shift_table", "distance_bias"):
      noise *= variable.shape[-1] ** -0.5
    return variable.replace(noise * np.float32(gains.get("/".join(map(str, path)), 1.0)))

  abstract = nnx.state(nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0))))
  return nnx.from_flat_state([(path, draw(path, leaf)) for path, leaf in nnx.to_flat_state(abstract)])


def shipped_prompts() -> list[str]:
  """The lines of the prompt files that come with the package."""
  prompts = importlib.resources.files("wr1_jax") / "assets" / "prompts"
  return [line for name in ("static.txt", "dynamic.txt") for line in (prompts / name).read_text("utf-8").splitlines()]


def write_tokenizer(out: Path, lines: Iterable[str], vocab_size: int) -> None:
  """Trains `out`/tokenizer on `lines`, to at most `vocab_size` tokens.

  It is a byte-level BPE (it knows every character, and training it is deterministic) with T5's padding and end tokens.
  """
  folder = out / "tokenizer"
  tokenizer = Tokenizer(models.BPE())
  tokenizer.normalizer = normalizers.NFKC()
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size,
    special_tokens=[_PAD, _END],
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  tokenizer.train_from_iterator(lines, trainer)
  tokenizer.post_processor = processors.TemplateProcessing(
    single=f"$A {_END}", special_tokens=[(_END, tokenizer.token_to_id(_END))]
  )
  folder.mkdir(parents=True, exist_ok=True)
  tokenizer.save(str(folder / "tokenizer.json"))
  config = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "pad_token": _PAD,
    "eos_token": _END,
    "model_max_length": _LONGEST_PROMPT,
  }
  weights.write_json(folder / "tokenizer_config.json", config)


def _write_scheduler(folder: Path) -> None:
  """The settings that Wan2.1's checkpoints have for 480p."""
  config = {
    "_class_name": "UniPCMultistepScheduler",
    **_VERSION,
    "flow_shift": 3.0,
    "num_train_timesteps": 1000,
    "prediction_type": "flow_prediction",
    "solver_order": 2,
    "solver_type": "bh2",
    "use_flow_sigmas": True,
  }
  folder.mkdir(parents=True, exist_ok=True)
  weights.write_json(folder / "scheduler_config.json", config)


def main() -> None:
  parser = argparse.ArgumentParser(prog="python -m wr1_jax.models.make_tiny", description=__doc__.splitlines()[0])
  parser.add_argument("--out", type=Path, required=True, help="folder to write")
  parser.add_argument("--seed", type=int, default=0, help="of the random weights")
  arguments = parser.parse_args()
  with reported():
    try:
      make(arguments.out, arguments.seed)
    except OSError as error:
      raise UserError(f"--out={arguments.out} cannot be written: {error}.") from error


if __name__ == "__main__":
  main()
