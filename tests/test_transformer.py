"""The transformer against diffusers, its adapters, and what rematerialisation may and may not change."""

from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from parity import channels_first, channels_last, diffusers_transformer, error
from safetensors.numpy import load_file, save_file
from transformer_helpers import LORA, build, inputs, save_folder, small_config

from wr1_jax.errors import UserError
from wr1_jax.models import transformer, weights
from wr1_jax.models.attention import Attention

WEIGHTS = "diffusion_pytorch_model.safetensors"


def load(folder, **options):
  defaults = {
    "dtype": jnp.float32,
    "lora": LORA,
    "lora_key": jax.random.key(5),
    "attention": Attention(),
    "remat": "full",
  }
  return transformer.load(folder, **defaults | options)


def diffusers_velocity(folder, latents, timestep, text):
  torch = pytest.importorskip("torch")
  with torch.no_grad():
    out = diffusers_transformer(folder)(
      channels_first(latents), torch.from_numpy(timestep).long(), torch.from_numpy(text)
    ).sample
  return channels_last(out)


@pytest.mark.parametrize(
  "config, sizes",
  [
    (small_config(2, 16), (3, 6, 10)),
    (small_config(3, 24), (1, 10, 4)),
    (small_config(4, 32, layers=1, freq_dim=256), (2, 4, 6)),
    (small_config(12, 8, layers=3, out_channels=None), (2, 2, 8)),
    (small_config(1, 128, layers=1, patch_size=(2, 1, 3), in_channels=5, out_channels=7), (4, 3, 6)),
  ],
  ids=lambda value: f"{value.num_attention_heads}x{value.attention_head_dim}" if hasattr(value, "dim") else None,
)
def test_velocity_equals_diffusers(tmp_path, config, sizes):
  save_folder(tmp_path, config)
  args = inputs(config, sizes=sizes)
  expected = diffusers_velocity(tmp_path, *args)
  policy, _, base = load(tmp_path)
  assert error(jax.jit(lambda base, *args: policy.reference(base)(*args))(base, *args), expected) <= 1e-5


def test_every_tensor_of_diffusers_matters(tmp_path):
  """All tensors that diffusers itself writes are read, each into a place where it changes the velocity."""
  config = small_config(2, 16)
  abstract = jax.eval_shape(lambda base: base, save_folder(tmp_path, config))
  diffusers_transformer(tmp_path).save_pretrained(tmp_path)
  args = inputs(config, batch=1, sizes=(2, 4, 4))
  policy, _, base = load(tmp_path)
  velocity = jax.jit(lambda base: policy.reference(base)(*args))
  before = np.asarray(velocity(base))
  tensors = load_file(tmp_path / WEIGHTS)
  assert len(tensors) == 15 + config.num_layers * 27
  for name, tensor in tensors.items():
    changed = tensor + 0.1 * np.cos(np.arange(tensor.size, dtype=np.float32)).reshape(tensor.shape)
    save_file(tensors | {name: changed}, tmp_path / WEIGHTS)
    base = weights.load(tmp_path, abstract, transformer.tensor_table(config))
    assert error(velocity(base), before) > 1e-4, name


def test_bfloat16_layers_follow_float32(tmp_path):
  config = small_config(2, 16)
  save_folder(tmp_path, config)
  args = inputs(config)
  exact = load(tmp_path)
  policy, lora, base = load(tmp_path, dtype=jnp.bfloat16)
  assert base["blocks"]["ffn_in"]["kernel"].dtype == jnp.bfloat16
  floats = (
    base["blocks"]["norm2"]["scale"],
    base["blocks"]["attn1"]["norm_q"]["scale"],
    base["time_proj"]["kernel"],
    base["blocks"]["scale_shift_table"],
    lora["blocks"]["attn1"]["to_q"]["lora_a"],
  )
  assert all(leaf.dtype == jnp.float32 for leaf in floats)
  velocity = jax.jit(lambda policy, *states: policy.velocity(*states)(*args), static_argnums=0)
  found = velocity(policy, lora, base)
  assert found.dtype == jnp.float32
  assert 1e-5 < error(found, velocity(*exact)) < 2e-2


def test_new_adapters_change_nothing(tmp_path):
  config = small_config(2, 16)
  save_folder(tmp_path, config)
  args = inputs(config)
  policy, lora, base = load(tmp_path)
  velocity = jax.jit(lambda lora, base: policy.velocity(lora, base)(*args))(lora, base)
  np.testing.assert_array_equal(velocity, jax.jit(lambda base: policy.reference(base)(*args))(base))
  a = np.asarray(lora["blocks"]["attn1"]["to_q"]["lora_a"][...])
  assert a.shape == (config.num_layers, config.dim, LORA.rank)
  assert abs(a.std() * LORA.rank - 1) < 0.2 and not np.array_equal(a[0], a[1])


def test_adapters_are_low_rank_changes_of_the_weights():
  """Every adapted layer equals one whose weights are W + (alpha / rank) A B, and no other layer has an adapter."""
  config = small_config(2, 16)
  graphdef, lora, base = build(config)
  args = inputs(config)
  flat_lora = {path: leaf.get_value() for path, leaf in nnx.to_flat_state(lora)}
  adapted = {path[:-1] for path in flat_lora}
  projections = ("to_q", "to_k", "to_v", "to_out")
  assert adapted == {("blocks", attention, name) for attention in ("attn1", "attn2") for name in projections}

  def with_adapter(path, leaf):
    layer, kind = path[:-1], path[-1]
    if kind != "kernel" or layer not in adapted:
      return leaf
    change = jnp.einsum("lir,lro->lio", flat_lora[*layer, "lora_a"], flat_lora[*layer, "lora_b"])
    return leaf.replace(leaf.get_value() + LORA.alpha / LORA.rank * change)

  folded = nnx.from_flat_state([(path, with_adapter(path, leaf)) for path, leaf in nnx.to_flat_state(base)])
  off = jax.tree.map(jnp.zeros_like, lora)
  velocity = jax.jit(lambda lora, base: nnx.merge(graphdef, lora, base)(*args))
  expected = velocity(off, folded)
  assert error(velocity(lora, base), expected) < 1e-5
  assert error(velocity(off, base), expected) > 1e-2


@functools.cache
def compiled_gradient(remat):
  config = small_config(2, 16, layers=3, ffn_dim=64)
  graphdef, lora, base = build(config, remat=remat)
  args = inputs(config, batch=1, sizes=(4, 12, 12))

  def loss(lora, base):
    return jnp.mean(nnx.merge(graphdef, lora, base)(*args) ** 2)

  compiled = jax.jit(jax.grad(loss)).lower(lora, base).compile()
  return compiled, compiled(lora, base)


@pytest.mark.parametrize("remat", ["attention", "none"])
def test_rematerialisation_does_not_change_gradients(remat):
  found, expected = (compiled_gradient(kind)[1] for kind in (remat, "full"))
  for (path, a), (_, b) in zip(nnx.to_flat_state(found), nnx.to_flat_state(expected)):
    assert error(a.get_value(), b.get_value()) < 1e-5, path


def test_rematerialisation_trades_work_for_memory():
  work = {remat: compiled_gradient(remat)[0].cost_analysis()["flops"] for remat in ("full", "attention", "none")}
  memory = {remat: compiled_gradient(remat)[0].memory_analysis().temp_size_in_bytes for remat in work}
  assert work["none"] < work["attention"] < work["full"]
  assert memory["none"] > memory["attention"] > memory["full"]


@pytest.mark.parametrize(
  "change, message",
  [
    ({"_class_name": "AutoencoderKLWan"}, "holds a AutoencoderKLWan"),
    ({"image_dim": 1280}, "image_dim = 1280"),
    ({"num_layers": "two"}, "num_layers = 'two'"),
    ({"num_layers": 3}, r"In the model but not in the files \(27\): blocks\.2\."),
    ({"num_layers": 1}, r"In the files but not in the model \(27\): blocks\.1\."),
    ({"text_dim": 25}, r"linear_1\.weight is \[32, 24\] in the files and \[32, 25\] in the model"),
  ],
)
def test_config_and_weights_that_do_not_fit_are_user_errors(tmp_path, change, message):
  save_folder(tmp_path, small_config(2, 16))
  path = tmp_path / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  with pytest.raises(UserError, match=message):
    load(tmp_path)
