"""The UMT5 encoder against transformers."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh
from parity import error
from safetensors.numpy import load_file, save_file

from wr1_jax.errors import UserError
from wr1_jax.models import umt5, weights
from wr1_jax.parallel.mesh import batch_sharding

CONFIG = umt5.UMT5Config(vocab_size=100, d_model=32, d_kv=8, d_ff=64, num_layers=3, num_heads=3)
LENGTH = 300  # longer than the largest distance that has a bucket of its own
TOKENS = np.random.default_rng(1).integers(0, CONFIG.vocab_size, (4, LENGTH), dtype=np.int32)
MASK = np.arange(LENGTH) < np.array([LENGTH, 1, 17, 150])[:, None]


def masked_error(found, expected) -> float:
  """The error over the tokens that there are."""
  return error(found[MASK], expected[MASK])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A small encoder in transformers layout; no weight is zero or one."""
  state = nnx.state(umt5.UMT5Encoder(CONFIG, dtype=jnp.float32, rngs=nnx.Rngs(0)))
  rng = np.random.default_rng(0)
  state = jax.tree.map(lambda leaf: leaf + 0.05 * rng.standard_normal(leaf.shape, np.float32), state)
  folder = tmp_path_factory.mktemp("umt5")
  weights.save(folder, state, umt5.tensor_table(), vars(CONFIG) | {"model_type": "umt5"}, stem="model")
  return folder


@pytest.fixture(scope="module")
def parts(folder):
  return nnx.split(umt5.load(folder, dtype=jnp.float32))


@pytest.fixture(scope="module")
def run(parts):
  return jax.jit(lambda state, tokens, mask: nnx.merge(parts[0], state)(tokens, mask))


def transformers_hidden(folder, **options) -> np.ndarray:
  torch = pytest.importorskip("torch")
  model = pytest.importorskip("transformers").UMT5EncoderModel.from_pretrained(folder, **options).eval()
  with torch.no_grad():
    hidden = model(torch.from_numpy(TOKENS).long(), torch.from_numpy(MASK).long()).last_hidden_state
  return hidden.float().numpy()


def test_hidden_states_equal_transformers(folder, parts, run):
  assert masked_error(run(parts[1], TOKENS, MASK), transformers_hidden(folder)) <= 1e-5


def test_bfloat16_is_as_close_as_that_of_transformers(folder):
  torch = pytest.importorskip("torch")
  expected = transformers_hidden(folder)
  encoder = umt5.load(folder, dtype=jnp.bfloat16)
  assert encoder.blocks.attention.q.kernel.dtype == jnp.bfloat16
  assert encoder.blocks.attention_norm.scale.dtype == jnp.float32
  found = encoder(TOKENS, MASK)
  assert found.dtype == jnp.bfloat16
  theirs = transformers_hidden(folder, dtype=torch.bfloat16)
  assert masked_error(found, expected) <= 1.1 * masked_error(theirs, expected)


def test_every_tensor_counts(parts, run):
  """Each leaf changes the output, and of a stacked leaf each layer."""
  before = run(parts[1], TOKENS, MASK)
  flat = nnx.to_flat_state(parts[1])
  for i, (path, leaf) in enumerate(flat):
    for layer in range(CONFIG.num_layers) if path[0] == "blocks" else (...,):
      value = np.array(leaf[...])
      value[layer] *= 1.5
      changed = [*flat[:i], (path, leaf.replace(value)), *flat[i + 1 :]]
      assert masked_error(run(nnx.from_flat_state(changed), TOKENS, MASK), before) > 1e-4, (path, layer)


def test_padding_is_not_seen(parts, run):
  other = np.where(MASK, TOKENS, (TOKENS + 1) % CONFIG.vocab_size)
  assert masked_error(run(parts[1], other, MASK), run(parts[1], TOKENS, MASK)) == 0


def test_buckets_equal_transformers():
  torch = pytest.importorskip("torch")
  modeling = pytest.importorskip("transformers.models.umt5.modeling_umt5")
  sizes = {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128}
  config = modeling.UMT5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, **sizes)
  positions = torch.arange(1024)
  expected = modeling.UMT5Attention(config)._relative_position_bucket(positions[None] - positions[:, None])
  np.testing.assert_array_equal(umt5.distance_buckets(1024, CONFIG), expected)


def test_embedding_under_either_name(folder, tmp_path):
  """Tied weights: a file may hold the embedding as the encoder's own, or under both names."""
  tensors = load_file(folder / "model.safetensors")
  own = {"encoder.embed_tokens.weight": tensors.pop("shared.weight")}
  (tmp_path / "config.json").write_text((folder / "config.json").read_text())
  for extra in (own, own | {"shared.weight": own["encoder.embed_tokens.weight"]}):
    save_file(tensors | extra, tmp_path / "model.safetensors")
    loaded = umt5.load(tmp_path, dtype=jnp.float32)
    np.testing.assert_array_equal(loaded.embed.embedding[...], own["encoder.embed_tokens.weight"])


def test_sharded_over_prompts(folder, parts, run):
  mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2, 1), ("data", "fsdp", "sequence"))
  state = nnx.state(umt5.load(folder, dtype=jnp.float32, mesh=mesh))
  tokens, mask = jax.device_put((TOKENS, MASK), batch_sharding(mesh))
  assert masked_error(run(state, tokens, mask), run(parts[1], TOKENS, MASK)) <= 1e-5


def test_refuses_another_feed_forward_network(folder, tmp_path):
  config = json.loads((folder / "config.json").read_text())
  (tmp_path / "config.json").write_text(json.dumps(config | {"feed_forward_proj": "relu"}))
  with pytest.raises(UserError, match="feed_forward_proj = 'relu'"):
    umt5.load(tmp_path, dtype=jnp.float32)
