"""Tiny judges of the real classes with random weights, in folders laid out like the published ones."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2VLConfig, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from wr1_jax.sidecar.judges.hpsv3 import CHECKPOINT, HPSv3Model

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
TEXT = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)


def weights(name: str, shape: tuple[int, ...]) -> torch.Tensor:
  """Random numbers that depend on the name alone: whoever has the names has the model."""
  numbers = np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape)
  if "norm" in name or "ln_q" in name:
    numbers = 1 + 0.1 * numbers
  elif len(shape) > 1:
    numbers *= 1.5 / np.sqrt(np.prod(shape[1:]))
  return torch.tensor(numbers, dtype=torch.float32)


def write_tokenizer(folder: Path, before: str = "") -> PreTrainedTokenizerFast:
  """Bytes are its tokens. `before` is put before every text."""
  words = sorted(pre_tokenizers.ByteLevel.alphabet())
  tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
  if before:
    tokenizer.normalizer = normalizers.Prepend(before)
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=SPECIAL[0], eos_token=SPECIAL[2])
  fast.add_tokens(list(SPECIAL), special_tokens=True)
  fast.save_pretrained(folder)
  return fast


def write_image_processor(folder: Path, patch: int, mean: float, **settings) -> None:
  settings |= dict(patch_size=patch, temporal_patch_size=2, merge_size=2, image_mean=[mean] * 3, image_std=[0.5] * 3)
  (folder / "preprocessor_config.json").write_text(json.dumps(settings))


def write_qwen3_vl(folder: Path) -> Path:
  folder.mkdir(exist_ok=True)
  tokenizer = write_tokenizer(folder)
  size = dict(shortest_edge=64 * 64, longest_edge=128 * 128)
  write_image_processor(folder, patch=16, mean=0.5, image_processor_type="Qwen2VLImageProcessorFast", size=size)
  config = Qwen3VLConfig(
    text_config=TEXT
    | dict(
      head_dim=8,
      vocab_size=len(tokenizer),
      rope_parameters=dict(rope_type="default", rope_theta=5e6, mrope_section=[2, 1, 1], mrope_interleaved=True),
    ),
    vision_config=dict(
      depth=3,
      hidden_size=32,
      intermediate_size=48,
      num_heads=2,
      out_hidden_size=32,
      num_position_embeddings=64,
      deepstack_visual_indexes=[0, 1],
    ),
    image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
  )
  model = Qwen3VLForConditionalGeneration(config)
  model.load_state_dict({name: weights(name, tensor.shape) for name, tensor in model.state_dict().items()})
  model.save_pretrained(folder)
  return folder


def hpsv3_config(tokenizer: PreTrainedTokenizerFast) -> dict:
  """A config.json in the flat layout of Qwen2-VL's; the vocabulary has room to spare, as there."""
  return TEXT | dict(
    model_type="qwen2_vl",
    vocab_size=len(tokenizer) + 100,
    rope_theta=1e6,
    rope_scaling=dict(type="mrope", mrope_section=[2, 1, 1]),
    rms_norm_eps=1e-6,
    max_position_embeddings=8192,
    use_sliding_window=False,
    tie_word_embeddings=False,
    image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
    vision_config=dict(
      model_type="qwen2_vl", depth=2, embed_dim=32, hidden_size=32, num_heads=2, mlp_ratio=2, patch_size=14
    ),
  )


def write_hpsv3(folder: Path) -> Path:
  """Base and checkpoint in one folder; the checkpoint's names are the release's, its vocabulary is cut."""
  folder.mkdir(exist_ok=True)
  tokenizer = write_tokenizer(folder)
  size = dict(min_pixels=56 * 56, max_pixels=28 * 28 * 1280)
  write_image_processor(folder, patch=14, mean=0.45, image_processor_type="Qwen2VLImageProcessor", **size)
  (folder / "config.json").write_text(json.dumps(hpsv3_config(tokenizer)))
  config = Qwen2VLConfig.from_pretrained(folder)
  config.text_config.vocab_size = len(tokenizer) + 1  # and the reward token
  shapes = {release_name(name): tensor.shape for name, tensor in HPSv3Model(config).state_dict().items()}
  shapes["lm_head.weight"] = shapes["model.embed_tokens.weight"]
  save_hpsv3(folder, {name: weights(name, shape) for name, shape in shapes.items()})
  return folder


def save_hpsv3(folder: Path, state: dict[str, torch.Tensor]) -> None:
  safetensors.torch.save_file(state, folder / CHECKPOINT)


def release_name(name: str) -> str:
  """What transformers 4.45 calls the weight that today's calls `name`."""
  return name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")
