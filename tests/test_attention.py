"""The attention kernels against each other, and the choice among them."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import error

from wr1_jax.config import MeshConfig
from wr1_jax.errors import UserError
from wr1_jax.models import attention as attention_lib
from wr1_jax.models.attention import Attention
from wr1_jax.parallel.mesh import make_mesh

LENGTHS = np.asarray([70, 133])


def arrays(queries: int, keys: int, heads: int = 2, head_dim: int = 24, batch: int = 2) -> list[jax.Array]:
  rng = np.random.default_rng(0)
  shapes = ((batch, tokens, heads, head_dim) for tokens in (queries, keys, keys))
  return [jnp.asarray(rng.standard_normal(shape, np.float32)) for shape in shapes]


def expected(q, k, v, lengths=None):
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  logits = np.einsum("bnhd,bmhd->bhnm", q, k) / np.sqrt(q.shape[-1])
  if lengths is not None:
    logits = np.where(np.arange(k.shape[1]) < lengths[:, None, None, None], logits, -np.inf)
  exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
  return np.einsum("bhnm,bmhd->bnhd", exp / exp.sum(axis=-1, keepdims=True), v)


def output_and_gradients(kernel, q, k, v, lengths):
  def loss(q, k, v):
    out = kernel(q, k, v, lengths)
    return jnp.sum(jnp.sin(out.astype(jnp.float32))), out

  (_, out), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)
  return out, *gradients


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "lengths"])
@pytest.mark.parametrize("logits", [2**24, 1000], ids=["at once", "in pieces"])
def test_xla(monkeypatch, lengths, logits):
  q, k, v = arrays(200, 133)
  whole = output_and_gradients(attention_lib.xla, q, k, v, lengths)
  assert error(whole[0], expected(q, k, v, lengths)) < 1e-6
  monkeypatch.setattr(attention_lib, "_XLA_LOGITS", logits)
  for found, wanted in zip(output_and_gradients(attention_lib.xla, q, k, v, lengths), whole):
    assert error(found, wanted) < 1e-6


@pytest.mark.parametrize("keys, lengths", [(128, None), (133, None), (133, LENGTHS)])
def test_splash_equals_xla(keys, lengths):
  args = (*arrays(200, keys), lengths)
  splash = output_and_gradients(functools.partial(attention_lib.splash, interpret=True), *args)
  for found, wanted in zip(splash, output_and_gradients(attention_lib.xla, *args)):
    assert error(found, wanted) < 1e-5


@pytest.mark.parametrize("sizes, batch", [((8, 1, 1), 4), ((2, 2, 2), 4), ((1, 2, 4), 1)])
def test_mesh_equals_one_device(sizes, batch):
  attend = Attention("xla", make_mesh(MeshConfig(*sizes), jax.devices("cpu")[:8]))
  lengths = np.asarray([40, 31, 37, 33])[:batch]
  for keys, shard_sequence, lengths in ((40, True, lengths), (33, False, None)):
    q, k, v = arrays(40, keys, heads=4, head_dim=8, batch=batch)
    kernel = lambda q, k, v, lengths: attend(q, k, v, key_lengths=lengths, shard_sequence=shard_sequence)
    found = output_and_gradients(kernel, q, k, v, lengths)
    for a, b in zip(found, output_and_gradients(attention_lib.xla, q, k, v, lengths)):
      assert error(a, b) < 1e-5


def test_choice_by_platform(monkeypatch):
  chosen = {}
  for platform in ("cpu", "gpu", "tpu"):
    monkeypatch.setattr(Attention, "platform", platform)
    chosen[platform] = [
      Attention().kernel(dtype, size) for dtype, size in ((jnp.bfloat16, 128), (jnp.float32, 128), (jnp.bfloat16, 20))
    ]
  xla, cudnn, splash = attention_lib.xla, attention_lib._cudnn, attention_lib.splash
  assert chosen == {"cpu": [xla] * 3, "gpu": [cudnn, xla, xla], "tpu": [splash] * 3}


@pytest.mark.parametrize(
  "implementation, platform, message",
  [
    ("cudnn", "cpu", "runs on gpu devices only"),
    ("cudnn", "tpu", "runs on gpu devices only"),
    ("splash", "cpu", "runs on tpu devices only"),
    ("flash", "cpu", "can be auto, xla, cudnn, splash"),
  ],
)
def test_impossible_choices_are_user_errors(monkeypatch, implementation, platform, message):
  monkeypatch.setattr(Attention, "platform", platform)
  with pytest.raises(UserError, match=message):
    Attention(implementation)


def test_cudnn_refuses_float32(monkeypatch):
  monkeypatch.setattr(Attention, "platform", "gpu")
  with pytest.raises(UserError, match="bfloat16 or float16"):
    Attention("cudnn").kernel(jnp.float32, 128)


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "lengths"])
def test_cudnn_equals_xla(lengths):
  q, k, v = (x.astype(jnp.bfloat16) for x in arrays(201, 133, head_dim=128))
  assert Attention().kernel(q.dtype, 128) is attention_lib._cudnn
  kernel = lambda q, k, v, lengths: Attention("cudnn")(q, k, v, key_lengths=lengths)
  exact = output_and_gradients(attention_lib.xla, *(x.astype(jnp.float32) for x in (q, k, v)), lengths)
  for found, wanted in zip(output_and_gradients(kernel, q, k, v, lengths), exact):
    assert found.dtype == jnp.bfloat16 and error(found, wanted) < 1e-2
