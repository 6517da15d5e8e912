"""Prompts to embeddings: cleaning, tokens, padding, and what is refused."""

from __future__ import annotations

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import AutoTokenizer

from wr1_jax.errors import UserError
from wr1_jax.models import text

PROMPTS = ["Camera push in. A lighthouse.", "", "wheat " * 100]


@pytest.fixture(scope="module")
def encoder(tiny_folder):
  return text.load(tiny_folder, length=24, dtype=jnp.float32)


def test_tokens_end_and_are_padded(encoder):
  tokens, mask = encoder.tokenize(PROMPTS)
  assert tokens.shape == mask.shape == (3, 24) and tokens.dtype == np.int32 and mask.dtype == bool
  lengths = mask.sum(axis=1)
  assert lengths[1] == 1 and lengths[2] == 24 and 1 < lengths[0] < 24
  for row, length in zip(tokens, lengths):
    assert row[length - 1] == 1 and (row[: length - 1] > 1).all() and (row[length:] == 0).all()


def test_embeddings_are_zero_after_the_end(encoder):
  tokens, mask = encoder.tokenize(PROMPTS)
  embeddings = np.asarray(jax.jit(encoder.embed)(encoder.state, tokens, mask))
  assert (embeddings[~mask] == 0).all() and (np.abs(embeddings[mask]).max(axis=-1) > 0.1).all()


def test_an_embedding_depends_on_its_prompt_alone(encoder, tiny_folder):
  """Neither on the rest of the batch nor on the padding."""
  alone = encoder.embed(encoder.state, *encoder.tokenize(PROMPTS[:1]))
  together = encoder.embed(encoder.state, *encoder.tokenize(PROMPTS))
  np.testing.assert_allclose(alone[0], together[0], atol=1e-5)
  longer = text.load(tiny_folder, length=40, dtype=jnp.float32)
  padded = longer.embed(longer.state, *longer.tokenize(PROMPTS[:1]))
  np.testing.assert_allclose(alone[0], padded[0, :24], atol=1e-5)


@pytest.mark.parametrize(
  "prompt",
  [
    "  A  caf\u00e9\n on\tthe\u3000corner ",
    "Tom &amp;amp; Jerry &lt;3",
    "schÃ¶n â€œquotedâ€\x9d",
    "\u00a0\x1cplain\x1f&#x1c;",
  ],
)
def test_cleaning_equals_diffusers(prompt):
  reference = pytest.importorskip("diffusers.pipelines.wan.pipeline_wan")
  assert text.clean(prompt) == reference.prompt_clean(prompt)


@pytest.mark.parametrize("part", ["tokenizer", "text_encoder"])
def test_refuses_a_folder_without(tiny_folder, tmp_path, part):
  shutil.copytree(tiny_folder, tmp_path / "model")
  shutil.rmtree(tmp_path / "model" / part)
  with pytest.raises(UserError, match=part):
    text.load(tmp_path / "model", length=24, dtype=jnp.float32)


def test_refuses_a_damaged_tokenizer(tiny_folder, tmp_path):
  shutil.copytree(tiny_folder, tmp_path / "model")
  (tmp_path / "model" / "tokenizer" / "tokenizer.json").write_text("{")
  with pytest.raises(UserError, match="cannot be read"):
    text.load(tmp_path / "model", length=24, dtype=jnp.float32)


def test_refuses_a_tokenizer_of_another_model(tiny_folder, tmp_path):
  shutil.copytree(tiny_folder, tmp_path / "model")
  tokenizer = AutoTokenizer.from_pretrained(tiny_folder / "tokenizer")
  tokenizer.add_tokens([f"word{i}" for i in range(1024)])
  tokenizer.save_pretrained(tmp_path / "model" / "tokenizer")
  with pytest.raises(UserError, match="not of the same model"):
    text.load(tmp_path / "model", length=24, dtype=jnp.float32)
