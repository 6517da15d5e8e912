"""Weights from and to diffusers folders: safetensors files, one or many with an index, beside a config.json.

A model says where its weights lie with a table from the path of each JAX leaf ("blocks/attn1/to_q/kernel") to a
`Tensor`: the checkpoint's name for it and the `Layout` in which PyTorch keeps it. The same table loads and saves.

    TABLE = {
      "proj_out/kernel": Tensor("proj_out.weight", LINEAR),
      "proj_out/bias": Tensor("proj_out.bias"),
      **linear("blocks/ffn/up", "blocks.{layer}.ffn.net.0.proj"),  # the kernel and bias of every layer, stacked
    }
    config = parse_config(ModelConfig, read_config(folder), folder)  # the sizes, from config.json
    abstract = nnx.eval_shape(lambda: Model(..., rngs=nnx.Rngs(0)))
    graphdef, abstract_state = nnx.split(abstract)
    model = nnx.merge(graphdef, load(folder, abstract_state, TABLE))

A name with "{layer}" stands for one tensor a layer; they are stacked along the leaf's first axis. The abstract state
fixes shapes and dtypes leaf by leaf: a leaf declared float32 stays float32 beside bfloat16 ones, whatever the files
hold (float64, float32, float16 or bfloat16).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

from wr1_jax.errors import UserError

T = TypeVar("T")

_STEMS = ("diffusion_pytorch_model", "model")  # what diffusers and transformers call their weight files
_FLOATS = ("F64", "F32", "F16", "BF16")
_LISTED = 6  # tensors that an error names a side


@dataclasses.dataclass(frozen=True)
class Layout:
  """How one layer's tensor lies in PyTorch and in JAX: an einops pattern from the first to the second.

  `sizes` are the axis lengths that the pattern cannot do without, such as the heads in "(h d) i -> i h d".
  """

  pattern: str
  sizes: tuple[tuple[str, int], ...] = ()

  def to_jax(self, tensor: np.ndarray) -> np.ndarray:
    return einops.rearrange(tensor, self.pattern, **dict(self.sizes))

  def to_torch(self, array: np.ndarray) -> np.ndarray:
    torch_side, jax_side = self.pattern.split("->")
    return einops.rearrange(array, f"{jax_side}->{torch_side}", **dict(self.sizes))


IDENTITY = Layout("... -> ...")
LINEAR = Layout("o i -> i o")
CONV2D = Layout("o i h w -> h w i o")
CONV3D = Layout("o i t h w -> t h w i o")


@dataclasses.dataclass(frozen=True)
class Tensor:
  """Where one JAX leaf lies in a checkpoint.

  `aliases` are further names under which a file may hold the same tensor (tied weights): any one of them is enough to
  load it, and it is saved as `name`.
  """

  name: str
  layout: Layout = IDENTITY
  aliases: tuple[str, ...] = ()

  @property
  def stacked(self) -> bool:
    return "{layer}" in self.name

  def names(self, shape: tuple[int, ...]) -> list[str]:
    """The checkpoint's name or, for a leaf stacked along the first axis of `shape`, its names layer by layer."""
    return [self.name.format(layer=layer) for layer in range(shape[0])] if self.stacked else [self.name]

  def torch_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that each tensor of a leaf of `shape` has in the checkpoint."""
    return self.layout.to_torch(np.broadcast_to(np.int8(0), shape[1:] if self.stacked else shape)).shape


def linear(path: str, name: str, *, bias: bool = True) -> dict[str, Tensor]:
  """The table of a `torch.nn.Linear` called `name` that is an `nnx.Linear` (or the like) at `path`."""
  kernel = {f"{path}/kernel": Tensor(f"{name}.weight", LINEAR)}
  return kernel | {f"{path}/bias": Tensor(f"{name}.bias")} if bias else kernel


def read_config(folder: str | os.PathLike) -> dict[str, Any]:
  """The contents of `folder`/config.json; a `UserError` where there is no such folder, file or JSON object."""
  folder = Path(folder)
  if not folder.is_dir():
    raise UserError(
      f"there is no folder {folder}: it should hold one model in diffusers layout (config.json and safetensors files)."
    )
  return _read_json(folder / "config.json")


def parse_config(schema: type[T], values: Mapping[str, Any], folder: str | os.PathLike) -> T:
  """Fills the dataclass `schema` from the config.json of `folder`, of which it may name only a part.

  Fields have the names of the file. A field may be an int, float, bool, str, a tuple of those, or None as well
  (`X | None`); one that the file lacks keeps its default.

  Raises:
    UserError: a value is of another type, or the file lacks a field that has no default.
  """
  kinds = typing.get_type_hints(schema)
  found = {}
  for field in dataclasses.fields(schema):
    if field.name in values:
      value = values[field.name]
      value = tuple(value) if isinstance(value, list) else value
      if not _fits(value, kinds[field.name]):
        raise UserError(
          f"{Path(folder) / 'config.json'} has {field.name} = {values[field.name]!r}; it should be of "
          f"type {field.type}."
        )
      found[field.name] = value
    elif field.default is dataclasses.MISSING:
      raise UserError(f"{Path(folder) / 'config.json'} lacks {field.name}, of type {field.type}.")
  return schema(**found)


def _fits(value: Any, kind: Any) -> bool:
  if typing.get_origin(kind) in (typing.Union, types.UnionType):
    return any(_fits(value, choice) for choice in typing.get_args(kind))
  if typing.get_origin(kind) is tuple:
    items = typing.get_args(kind)
    items = (items[0],) * len(value) if isinstance(value, tuple) and items[-1] is Ellipsis else items
    return isinstance(value, tuple) and len(value) == len(items) and all(map(_fits, value, items))
  if isinstance(value, bool):
    return kind is bool
  return isinstance(value, (int, float) if kind is float else kind)


def load(
  folder: str | os.PathLike,
  abstract_state: nnx.State,
  table: Mapping[str, Tensor],
  *,
  shardings: nnx.State | None = None,
) -> nnx.State:
  """Reads a model's weights, one leaf at a time: host memory holds the largest (stacked) leaf, not the model.

  Args:
    folder: holds the safetensors files.
    abstract_state: the state to fill; its leaves are `jax.ShapeDtypeStruct`, as `nnx.eval_shape` makes them.
    table: one entry for every leaf of the state.
    shardings: a state like `abstract_state` whose leaves are the shardings to place the weights with; without it they
      go to the default device.

  Raises:
    UserError: no weights, an unreadable file, or tensors missing, unexpected or of another shape or kind.
  """
  folder = Path(folder)
  leaves = _flatten(abstract_state)
  _check_table(leaves, table)
  placements = dict.fromkeys(leaves) if shardings is None else _flatten(shardings)
  loaded = {}
  with _Checkpoint.open(folder) as checkpoint:
    _check_tensors(checkpoint, leaves, table)
    for path, leaf in tqdm(leaves.items(), desc=f"loading {folder.name}", disable=None, leave=False):
      host = _read_leaf(checkpoint, table[path], leaf)
      loaded[path] = _place(host, placements[path])
  return _unflatten(abstract_state, loaded)


def save(
  folder: str | os.PathLike,
  state: nnx.State,
  table: Mapping[str, Tensor],
  config: Mapping[str, Any],
  *,
  stem: str = "diffusion_pytorch_model",
  max_shard_bytes: int = 5_000_000_000,
) -> None:
  """Writes config.json and the weights, in the dtypes they have, where `load` and diffusers find them.

  Weights of `stem` that are there already are replaced. `stem` is "model" for a transformers model.
  """
  folder = Path(folder)
  leaves = _flatten(state)
  _check_table(leaves, table)
  folder.mkdir(parents=True, exist_ok=True)
  for old in (*folder.glob(f"{stem}.safetensors*"), *folder.glob(f"{stem}-*-of-*.safetensors")):
    old.unlink()
  shards = _plan_shards(leaves, table, max_shard_bytes)
  files = [f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
  if len(shards) == 1:
    files = [f"{stem}.safetensors"]
  for file, shard in zip(files, shards):
    tensors = {name: _export(table[path].layout, leaves[path], layer) for name, path, layer in shard}
    save_file(tensors, folder / file, metadata={"format": "pt"})
  if len(shards) > 1:
    weight_map = {name: file for file, shard in zip(files, shards) for name, _, _ in shard}
    total_size = sum(leaf.nbytes for leaf in leaves.values())
    write_json(
      folder / f"{stem}.safetensors.index.json", {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    )
  write_json(folder / "config.json", config)


class _Checkpoint:
  """Open safetensors files seen as one mapping from tensor names; nothing is read before `read`."""

  def __init__(self, folder: Path, files: Mapping[str, Any]):
    self.folder = folder
    self._files = files  # by tensor name
    self.shapes = {name: tuple(file.get_slice(name).get_shape()) for name, file in files.items()}

  @classmethod
  @contextlib.contextmanager
  def open(cls, folder: Path) -> Iterator[_Checkpoint]:
    with contextlib.ExitStack() as stack:
      files = {}
      for path in _weight_files(folder):
        try:
          file = stack.enter_context(safe_open(path, framework="numpy"))
        except (SafetensorError, OSError) as error:
          raise UserError(
            f"{path} cannot be read as a safetensors file ({error}): it is cut short, damaged or not "
            "fully downloaded. Fetch it again."
          ) from None
        files |= dict.fromkeys(file.keys(), file)
      yield cls(folder, files)

  def dtype(self, name: str) -> str:
    return self._files[name].get_slice(name).get_dtype()

  def read(self, name: str) -> np.ndarray:
    return self._files[name].get_tensor(name)


def _weight_files(folder: Path) -> list[Path]:
  """The safetensors files of a model folder: those of its index, or the one file."""
  for stem in _STEMS:
    index = folder / f"{stem}.safetensors.index.json"
    if index.is_file():
      weight_map = _read_json(index).get("weight_map")
      if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f'{index} has no "weight_map" from tensor names to files.')
      files = [folder / name for name in sorted(set(weight_map.values()))]
      absent = [file.name for file in files if not file.is_file()]
      if absent:
        raise UserError(f"{index} names weight files that are not in {folder}: {_bounded(absent)}.")
      return files
    single = folder / f"{stem}.safetensors"
    if single.is_file():
      return [single]
  expected = " or ".join(f"{stem}.safetensors" for stem in _STEMS)
  raise UserError(
    f"there are no weights in {folder}: it should hold {expected}, or such a file's index "
    "(.safetensors.index.json) and its parts."
  )


def _check_table(leaves: Mapping[str, Any], table: Mapping[str, Tensor]) -> None:
  """A table that does not fit its model is our mistake, not the user's."""
  if leaves.keys() != table.keys():
    raise ValueError(
      f"leaves without a tensor: {sorted(leaves.keys() - table.keys())}; "
      f"tensors without a leaf: {sorted(table.keys() - leaves.keys())}"
    )


def _check_tensors(
  checkpoint: _Checkpoint, leaves: Mapping[str, jax.ShapeDtypeStruct], table: Mapping[str, Tensor]
) -> None:
  """Raises one `UserError` that names every kind of difference between the files and the model."""
  missing, misshaped, expected = [], [], set()
  for path, leaf in leaves.items():
    tensor = table[path]
    shape = tensor.torch_shape(leaf.shape)
    for name in tensor.names(leaf.shape):
      present = [alias for alias in (name, *tensor.aliases) if alias in checkpoint.shapes]
      expected.update(present)
      if not present:
        missing.append(name)
      misshaped += [
        f"{alias} is {list(checkpoint.shapes[alias])} in the files and {list(shape)} in the model"
        for alias in present
        if checkpoint.shapes[alias] != shape
      ]
  unexpected = sorted(checkpoint.shapes.keys() - expected)
  if missing or unexpected or misshaped:
    differences = [
      f"{what} ({len(names)}): {_bounded(names)}."
      for what, names in (
        ("In the model but not in the files", missing),
        ("In the files but not in the model", unexpected),
        ("Of another shape", misshaped),
      )
      if names
    ]
    raise UserError(
      f"the weights in {checkpoint.folder} are not those of the model that its config.json describes. "
      f"{' '.join(differences)} Weights and config.json must come from the same Wan2.1-shaped model."
    )
  odd = [f"{name} is {checkpoint.dtype(name)}" for name in sorted(expected) if checkpoint.dtype(name) not in _FLOATS]
  if odd:
    raise UserError(
      f"the weights in {checkpoint.folder} are not all of a kind that can be read "
      f"({', '.join(_FLOATS)}): {_bounded(odd)}. Use an unquantised checkpoint."
    )


def _read_leaf(checkpoint: _Checkpoint, tensor: Tensor, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
  """One leaf in host memory, layers stacked, in the leaf's own dtype."""
  host = np.empty(leaf.shape, leaf.dtype)
  for layer, name in enumerate(tensor.names(leaf.shape)):
    found = next(alias for alias in (name, *tensor.aliases) if alias in checkpoint.shapes)
    host[layer if tensor.stacked else ...] = tensor.layout.to_jax(checkpoint.read(found))
  return host


def _place(host: np.ndarray, sharding: jax.sharding.Sharding | None) -> jax.Array:
  if sharding is None:
    return jnp.asarray(host)
  return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def _plan_shards(
  leaves: Mapping[str, jax.Array], table: Mapping[str, Tensor], max_bytes: int
) -> list[list[tuple[str, str, int | None]]]:
  """Deals (tensor name, leaf path, layer or None) out to files of at most `max_bytes`, or of one larger tensor."""
  shards, filled = [[]], 0
  for path, leaf in leaves.items():
    names = table[path].names(leaf.shape)
    size = leaf.nbytes // len(names)
    for layer, name in enumerate(names):
      if shards[-1] and filled + size > max_bytes:
        shards.append([])
        filled = 0
      shards[-1].append((name, path, layer if table[path].stacked else None))
      filled += size
  return shards


def _export(layout: Layout, leaf: jax.Array, layer: int | None) -> np.ndarray:
  """One tensor as PyTorch lays it out; contiguous, since safetensors writes the buffer as it is."""
  return np.ascontiguousarray(layout.to_torch(np.asarray(leaf if layer is None else leaf[layer])))


def _flatten(state: nnx.State) -> dict[str, Any]:
  """{"blocks/attn1/to_q/kernel": value}, in the state's order."""
  return {"/".join(map(str, path)): variable.get_value() for path, variable in nnx.to_flat_state(state)}


def _unflatten(like: nnx.State, values: Mapping[str, jax.Array]) -> nnx.State:
  """The state `like` with the values of `_flatten` in it."""
  flat = [(path, variable.replace(values["/".join(map(str, path))])) for path, variable in nnx.to_flat_state(like)]
  return nnx.from_flat_state(flat)


def _bounded(items: list[str]) -> str:
  """The first few of a list, and how many more there are."""
  more = len(items) - _LISTED
  return ", ".join(items[:_LISTED]) + (f" and {more} more" if more > 0 else "")


def _read_json(path: Path) -> dict[str, Any]:
  try:
    contents = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError:
    raise UserError(f"there is no {path.name} in {path.parent}: a model folder in diffusers layout has one.") from None
  except (OSError, ValueError) as error:
    raise UserError(f"{path} cannot be read as JSON ({error}).") from None
  if not isinstance(contents, dict):
    raise UserError(f"{path} should hold a JSON object, and holds a {type(contents).__name__}.")
  return contents


def write_json(path: Path, contents: Mapping[str, Any]) -> None:
  """Writes a model folder's JSON file."""
  path.write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
