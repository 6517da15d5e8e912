"""The mesh, and that the transformer does not notice it."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P
from parity import error
from transformer_helpers import LORA, build, inputs, save_folder, small_config

from wr1_jax.config import MeshConfig
from wr1_jax.errors import UserError
from wr1_jax.models import transformer
from wr1_jax.models.attention import Attention
from wr1_jax.parallel import mesh as mesh_lib


def make(data: int, fsdp: int = 1, sequence: int = 1) -> jax.sharding.Mesh:
  return mesh_lib.make_mesh(MeshConfig(data, fsdp, sequence), jax.devices("cpu")[:8])


def test_sizes():
  assert dict(make(2, 2, 2).shape) == {"data": 2, "fsdp": 2, "sequence": 2}
  assert dict(make(-1, 2).shape) == {"data": 4, "fsdp": 2, "sequence": 1}
  assert dict(make(2, sequence=-1).shape) == {"data": 2, "fsdp": 1, "sequence": 4}
  for sizes, message in (
    ((3, -1), "a multiple of 3 devices"),
    ((2, 2), "needs 4 devices, and there are 8"),
    ((-1, -1), "at most one"),
    ((0, 8), "1 or more"),
  ):
    with pytest.raises(UserError, match=message):
      make(*sizes)


def test_heads_and_batches_that_do_not_divide():
  mesh_lib.check_heads(make(2, 1, 4), 12)
  with pytest.raises(UserError, match="sequence is 8, .* 12 attention heads, .*: 1, 2, 3, 4, 6, 12 would do"):
    mesh_lib.check_heads(make(1, 1, 8), 12)
  with pytest.raises(UserError, match="12 attention heads"):
    build(small_config(12, 8), Attention("xla", make(1, 1, 8)))
  mesh_lib.check_batch(make(2, 2, 2), "train.update_batch", 8)
  with pytest.raises(UserError, match="train.update_batch is 6, .* multiple of 4"):
    mesh_lib.check_batch(make(2, 2, 2), "train.update_batch", 6)


def test_odd_batches_use_the_axes_they_can():
  mesh = make(2, 4)
  found = {size: mesh_lib.batch_axes(mesh, size) for size in (16, 4, 2, 3)}
  assert found == {16: ("data", "fsdp"), 4: ("fsdp",), 2: ("data",), 3: ()}


def test_weights_are_split_along_features_never_along_layers():
  leaf = lambda *shape: nnx.Param(jax.ShapeDtypeStruct(shape, jnp.float32))
  shapes = {"a": (1024, 64, 256), "b": (512, 256), "c": (8, 8), "d": (2**17,), "e": (8, 2**15, 9)}
  state = nnx.State({name: leaf(*shape) for name, shape in shapes.items()} | {"blocks": {"bias": leaf(40, 8961)}})
  shardings = nnx.to_flat_state(mesh_lib.shard_params(make(2, 4), state))
  assert {"/".join(path): sharding.get_value().spec for path, sharding in shardings} == {
    "a": P(None, None, "fsdp"),
    "b": P("fsdp", None),
    "c": P(None, None),
    "d": P(None),
    "e": P(None, "fsdp", None),
    "blocks/bias": P(None, None),
  }


CONFIG = small_config(4, 12)
SIZES = (1, 6, 10)  # 15 tokens, which no sequence axis divides


@functools.cache
def gradient(mesh: jax.sharding.Mesh | None, batch: int, remat: str):
  """Velocity and adapters' gradient of a batch, by one jit with explicit shardings."""
  graphdef, lora, base = build(CONFIG, Attention("xla", mesh), remat)
  args = inputs(CONFIG, batch, SIZES)

  def loss(lora, base, latents, timestep, text):
    velocity = nnx.merge(graphdef, lora, base)(latents, timestep, text)
    return jnp.mean(velocity**2), velocity

  step = jax.value_and_grad(loss, has_aux=True)
  if mesh is None:
    (_, velocity), gradients = jax.jit(step)(lora, base, *args)
  else:
    states = [mesh_lib.shard_params(mesh, state, small=1) for state in (lora, base)]
    data = mesh_lib.batch_sharding(mesh) if batch > 1 else mesh_lib.replicated(mesh)
    sharded = jax.jit(
      step, in_shardings=(*states, data, data, data), out_shardings=((mesh_lib.replicated(mesh), data), states[0])
    )
    lora, base = (jax.device_put(state, sharding) for state, sharding in zip((lora, base), states))
    (_, velocity), gradients = sharded(lora, base, *args)
  return velocity, {path: leaf.get_value() for path, leaf in nnx.to_flat_state(gradients)}


@pytest.mark.parametrize(
  "sizes, batch, remat",
  [
    ((8, 1, 1), 8, "full"),
    ((1, 8, 1), 8, "full"),
    ((2, 2, 2), 8, "full"),
    ((2, 2, 2), 8, "attention"),
    ((2, 1, 4), 1, "none"),
  ],
)
def test_velocity_and_gradients_do_not_depend_on_the_mesh(sizes, batch, remat):
  velocity, gradients = gradient(make(*sizes), batch, remat)
  expected_velocity, expected_gradients = gradient(None, batch, "full")
  assert error(velocity, expected_velocity) < 1e-5
  for path, expected in expected_gradients.items():
    assert error(gradients[path], expected) < 1e-5, path


def test_loading_over_a_mesh(tmp_path):
  save_folder(tmp_path, small_config(4, 64, layers=1))
  loaded = []
  for mesh in (None, make(2, 4)):
    loaded.append(
      transformer.load(
        tmp_path,
        dtype=jnp.float32,
        lora=LORA,
        lora_key=jax.random.key(3),
        attention=Attention("xla", mesh),
        remat="full",
      )[1:]
    )
  for one, many in zip(jax.tree.leaves(loaded[0]), jax.tree.leaves(loaded[1])):
    np.testing.assert_array_equal(one, many)
    assert len(many.sharding.device_set) == 8
  kernel = loaded[1][1]["blocks"]["attn1"]["to_q"]["kernel"].get_value()
  assert kernel.sharding.spec == P(None, "fsdp", None)
