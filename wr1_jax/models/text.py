"""Prompts to text embeddings: the tokenizer and the UMT5 encoder of a diffusers folder.

encoder = text.load(folder, length=512, dtype=jnp.bfloat16, mesh=mesh)
embed = jax.jit(encoder.embed)
embeddings = embed(encoder.state, *encoder.tokenize(["Camera push in. A lighthouse."]))
"""

from __future__ import annotations

import html
import os
import re
from collections.abc import Sequence
from pathlib import Path

import ftfy
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, DTypeLike, Float, Int
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from wr1_jax.errors import UserError
from wr1_jax.models import umt5


class TextEncoder:
  """Turns prompts into embeddings of a fixed number of tokens, as diffusers' `WanPipeline` does.

  Attributes:
    length: tokens of an embedding; longer prompts are cut (with the end-of-sequence token kept), shorter ones padded.
    state: the encoder's weights, to be handed to `embed`.
  """

  def __init__(self, tokenizer: PreTrainedTokenizerBase, encoder: umt5.UMT5Encoder, *, length: int):
    self.length = length
    self._tokenizer = tokenizer
    self._graphdef, self.state = nnx.split(encoder)

  def tokenize(self, prompts: Sequence[str]) -> tuple[Int[np.ndarray, "B L"], Bool[np.ndarray, "B L"]]:
    """Tokens (int32) of the cleaned prompts, and a mask that is true up to and with each prompt's end."""
    encoded = self._tokenizer(
      [clean(prompt) for prompt in prompts],
      padding="max_length",
      max_length=self.length,
      truncation=True,
      return_attention_mask=True,
      return_tensors="np",
    )
    return encoded["input_ids"].astype(np.int32), encoded["attention_mask"].astype(bool)

  def embed(self, state: nnx.State, tokens: Int[Array, "B L"], mask: Bool[Array, "B L"]) -> Float[Array, "B L D"]:
    """Embeddings in the encoder's dtype, zero after each prompt's end. A pure function of its arguments."""
    hidden = nnx.merge(self._graphdef, state)(tokens, mask)
    return jnp.where(mask[..., None], hidden, 0)


def clean(prompt: str) -> str:
  """Repairs mis-decoded characters, resolves HTML entities and collapses white space, as diffusers does before Wan."""
  text = html.unescape(html.unescape(ftfy.fix_text(prompt)))
  return re.sub(r"\s+", " ", text.strip()).strip()


def load(folder: str | os.PathLike, *, length: int, dtype: DTypeLike, mesh: Mesh | None = None) -> TextEncoder:
  """Reads the `tokenizer` and `text_encoder` folders of a diffusers `folder`; nothing is fetched from the network.

  Raises:
    UserError: one of them is missing, damaged or something else, or they do not belong together.
  """
  tokenizer = _load_tokenizer(Path(folder) / "tokenizer")
  encoder = umt5.load(Path(folder) / "text_encoder", dtype=dtype, mesh=mesh)
  if len(tokenizer) > encoder.config.vocab_size:
    raise UserError(
      f"the tokenizer in {folder} has {len(tokenizer)} tokens, and the text encoder beside it knows only "
      f"{encoder.config.vocab_size}: they are not of the same model."
    )
  return TextEncoder(tokenizer, encoder, length=length)


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
  if not folder.is_dir():
    raise UserError(f"there is no folder {folder}: it should hold a tokenizer (tokenizer.json, tokenizer_config.json).")
  try:
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)
  except Exception as error:  # whatever a damaged file makes the library raise
    raise UserError(f"the tokenizer in {folder} cannot be read ({' '.join(str(error).split())}).") from error
