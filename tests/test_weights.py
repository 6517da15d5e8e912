"""Reading and writing diffusers folders."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from wr1_jax.config import MeshConfig
from wr1_jax.errors import UserError
from wr1_jax.models import weights
from wr1_jax.models.weights import CONV2D, CONV3D, IDENTITY, LINEAR, Layout, Tensor
from wr1_jax.parallel.mesh import make_mesh, shard_params

FILE = "model.safetensors"
TABLE = {
  "blocks/kernel": Tensor("blocks.{layer}.fc.weight", LINEAR),
  "blocks/scale": Tensor("blocks.{layer}.norm.weight"),
  "embedding": Tensor("shared.weight", aliases=("encoder.embed_tokens.weight",)),
}


def abstract_state(layers: int = 3, kernel_dtype=jnp.bfloat16) -> nnx.State:
  leaf = lambda shape, dtype=jnp.float32: nnx.Param(jax.ShapeDtypeStruct(shape, dtype))
  return nnx.State(
    {
      "blocks": {"kernel": leaf((layers, 4, 6), kernel_dtype), "scale": leaf((layers, 4))},
      "embedding": leaf((5, 4)),
    }
  )


def tensors(layers: int = 3, dtype=np.float32) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(0)
  names = {"shared.weight": (5, 4)}
  for layer in range(layers):
    names |= {f"blocks.{layer}.fc.weight": (6, 4), f"blocks.{layer}.norm.weight": (4,)}
  return {name: rng.standard_normal(shape).astype(dtype) for name, shape in names.items()}


def leaves(state: nnx.State) -> list[jax.Array]:
  return [leaf.get_value() for _, leaf in nnx.to_flat_state(state)]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
def test_load_stacks_layers_and_casts_leaf_by_leaf(tmp_path, dtype):
  stored = tensors(dtype=dtype)
  save_file(stored, tmp_path / FILE)
  kernel, scale, embedding = leaves(weights.load(tmp_path, abstract_state(), TABLE))
  expected = np.stack([stored[f"blocks.{layer}.fc.weight"].T for layer in range(3)]).astype(ml_dtypes.bfloat16)
  assert kernel.dtype == jnp.bfloat16 and scale.dtype == embedding.dtype == jnp.float32
  np.testing.assert_array_equal(kernel, expected)
  np.testing.assert_array_equal(scale[1], stored["blocks.1.norm.weight"].astype(np.float32))
  np.testing.assert_array_equal(embedding, stored["shared.weight"].astype(np.float32))


@pytest.mark.parametrize(
  "layout, shape, jax_shape",
  [
    (IDENTITY, (2, 3, 4), (2, 3, 4)),
    (LINEAR, (2, 3), (3, 2)),
    (CONV2D, (2, 3, 4, 5), (4, 5, 3, 2)),
    (CONV3D, (2, 3, 4, 5, 6), (4, 5, 6, 3, 2)),
    (Layout("c 1 1 1 -> c"), (7, 1, 1, 1), (7,)),
    (Layout("(h d) i -> i h d", (("h", 2),)), (6, 4), (4, 2, 3)),
  ],
)
def test_layouts_invert(layout, shape, jax_shape):
  tensor = np.arange(np.prod(shape)).reshape(shape)
  array = layout.to_jax(tensor)
  assert array.shape == jax_shape
  np.testing.assert_array_equal(layout.to_torch(array), tensor)
  stacked = Tensor("blocks.{layer}.weight", layout)
  assert stacked.torch_shape((9, *jax_shape)) == shape and stacked.names((2,)) == ["blocks.0.weight", "blocks.1.weight"]


@pytest.mark.parametrize("max_shard_bytes, files", [(10**9, 1), (200, 2), (1, 7)])
def test_saved_weights_load_again(tmp_path, max_shard_bytes, files):
  save_file(tensors(), tmp_path / FILE)
  state = weights.load(tmp_path, abstract_state(), TABLE)
  out = tmp_path / "out"
  for limit in (100, max_shard_bytes):  # the second replaces the first
    weights.save(out, state, TABLE, {"_class_name": "Net", "sizes": [1, 2]}, stem="model", max_shard_bytes=limit)
  assert len(list(out.glob("*.safetensors"))) == files
  assert len(list(out.glob("*.index.json"))) == (files > 1)
  assert weights.read_config(out) == {"_class_name": "Net", "sizes": [1, 2]}
  for saved, loaded in zip(leaves(state), leaves(weights.load(out, abstract_state(), TABLE))):
    assert saved.dtype == loaded.dtype
    np.testing.assert_array_equal(saved, loaded)


def test_tied_weights_load_by_either_name(tmp_path):
  stored = tensors()
  stored["encoder.embed_tokens.weight"] = stored.pop("shared.weight")
  save_file(stored, tmp_path / FILE)
  embedding = leaves(weights.load(tmp_path, abstract_state(), TABLE))[2]
  np.testing.assert_array_equal(embedding, stored["encoder.embed_tokens.weight"])
  save_file(stored | {"shared.weight": stored["encoder.embed_tokens.weight"]}, tmp_path / FILE)
  weights.load(tmp_path, abstract_state(), TABLE)


def test_load_places_weights_over_a_mesh(tmp_path):
  save_file(tensors(), tmp_path / FILE)
  mesh = make_mesh(MeshConfig(data=4, fsdp=2), jax.devices("cpu")[:8])
  shardings = shard_params(mesh, abstract_state(), small=1)
  kernel = leaves(weights.load(tmp_path, abstract_state(), TABLE, shardings=shardings))[0]
  assert kernel.sharding.shard_shape(kernel.shape) == (3, 4, 3)
  np.testing.assert_array_equal(kernel, leaves(weights.load(tmp_path, abstract_state(), TABLE))[0])


def test_differences_are_listed_on_both_sides(tmp_path):
  stored = tensors()
  stored["blocks.0.fc.weigth"] = stored.pop("blocks.0.fc.weight")
  stored["blocks.1.norm.weight"] = np.zeros(5, np.float32)
  save_file(stored, tmp_path / FILE)
  with pytest.raises(UserError) as caught:
    weights.load(tmp_path, abstract_state(), TABLE)
  message = str(caught.value)
  assert str(tmp_path) in message and "\n" not in message
  assert "In the model but not in the files (1): blocks.0.fc.weight." in message
  assert "In the files but not in the model (1): blocks.0.fc.weigth." in message
  assert "blocks.1.norm.weight is [5] in the files and [4] in the model" in message


def test_a_long_list_of_differences_is_cut(tmp_path):
  save_file(tensors(layers=1), tmp_path / FILE)
  with pytest.raises(UserError, match=r"not in the files \(198\): .* and 192 more\.") as caught:
    weights.load(tmp_path, abstract_state(layers=100), TABLE)
  assert len(str(caught.value)) < 1000


def test_quantised_weights_are_refused(tmp_path):
  save_file(tensors() | {"shared.weight": np.ones((5, 4), np.int8)}, tmp_path / FILE)
  with pytest.raises(UserError, match="shared.weight is I8"):
    weights.load(tmp_path, abstract_state(), TABLE)


def test_a_table_that_lacks_a_leaf_is_a_bug(tmp_path):
  save_file(tensors(), tmp_path / FILE)
  with pytest.raises(ValueError, match="embedding"):
    weights.load(tmp_path, abstract_state(), {path: tensor for path, tensor in TABLE.items() if path != "embedding"})


def test_broken_folders_are_user_errors(tmp_path):
  def fails(message, action=lambda: weights.load(tmp_path, abstract_state(), TABLE)):
    with pytest.raises(UserError, match=message):
      action()

  fails("no folder", lambda: weights.read_config(tmp_path / "nowhere"))
  fails("no config.json", lambda: weights.read_config(tmp_path))
  for text, message in (("{", "cannot be read as JSON"), ("[]", "holds a list")):
    (tmp_path / "config.json").write_text(text)
    fails(message, lambda: weights.read_config(tmp_path))
  fails("no weights in")
  save_file(tensors(), tmp_path / FILE)
  (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:-7])
  fails(f"{FILE} cannot be read")
  (tmp_path / f"{FILE}.index.json").write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))
  fails("model-00001-of-00002.safetensors")
  (tmp_path / f"{FILE}.index.json").write_text("{}")
  fails("weight_map")


def test_parse_config(tmp_path):
  @dataclasses.dataclass(frozen=True)
  class Schema:
    sizes: tuple[int, ...]
    eps: float
    patch: tuple[int, int] = (1, 2)
    width: int | None = 3

  def parse(**values):
    return weights.parse_config(Schema, values, tmp_path)

  assert parse(sizes=[1, 2, 4], eps=1, width=None, other="ignored") == Schema((1, 2, 4), 1, (1, 2), None)
  for wrong in (
    {"eps": 1.0},
    {"sizes": [1, 2.5], "eps": 1.0},
    {"sizes": [], "eps": True},
    {"sizes": [], "eps": 1.0, "patch": [1, 2, 3]},
    {"sizes": 3, "eps": 1.0},
  ):
    with pytest.raises(UserError, match="config.json"):
      parse(**wrong)
