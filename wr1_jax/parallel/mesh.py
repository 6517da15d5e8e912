"""The device mesh: which axes there are, and what is spread over which.

    data      batches; weights are copied
    fsdp      batches and weights: each layer's weights are gathered where they are used
    sequence  the tokens of a video; self-attention swaps tokens for heads (see `models.attention`)

A function of this module that takes `mesh: Mesh | None` leaves its array as it is where there is no mesh.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, PyTree, Shaped

from wr1_jax.config import MeshConfig
from wr1_jax.errors import UserError

T = TypeVar("T")

AXES = ("data", "fsdp", "sequence")
BATCH_AXES = ("data", "fsdp")  # axes that a batch is dealt out over
_SMALL = 2**16  # elements; smaller weights are not worth a gather


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """A mesh over `devices` (default: all) of axes data, fsdp and sequence; a size of -1 takes the devices that are left.

  Raises:
    UserError: sizes that are not positive, more than one -1, or a product that is not the number of devices.
  """
  devices = jax.devices() if devices is None else list(devices)
  sizes = {axis: size for axis, size in zip(AXES, (config.data, config.fsdp, config.sequence))}
  asked = "config.mesh is " + ", ".join(f"{axis}={size}" for axis, size in sizes.items())
  free = [axis for axis, size in sizes.items() if size == -1]
  if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
    raise UserError(f"{asked}: sizes must be 1 or more, and at most one may be -1 (which takes the devices left).")
  fixed = math.prod(size for size in sizes.values() if size != -1)
  if free and len(devices) % fixed == 0:
    sizes[free[0]] = len(devices) // fixed
  if math.prod(sizes.values()) != len(devices):
    need = f"a multiple of {fixed}" if free else str(fixed)
    raise UserError(
      f"{asked}, which needs {need} devices, and there are {len(devices)} "
      f"({devices[0].platform}). The sizes must multiply to the number of devices."
    )
  return jax.make_mesh(tuple(sizes.values()), AXES, (AxisType.Auto,) * len(AXES), devices=devices)


def check_heads(mesh: Mesh | None, heads: int) -> None:
  """A `UserError` where the sequence axis cannot share out the attention heads."""
  if mesh is not None and heads % mesh.shape["sequence"]:
    allowed = ", ".join(str(size) for size in range(1, heads + 1) if heads % size == 0)
    raise UserError(
      f"config.mesh.sequence is {mesh.shape['sequence']}, and the transformer has {heads} attention "
      f"heads, which it must divide: {allowed} would do."
    )


def batch_shards(mesh: Mesh) -> int:
  """Into how many parts a batch is dealt out."""
  return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch(mesh: Mesh, name: str, size: int) -> None:
  """A `UserError` where the batch that the option `name` sets to `size` cannot be dealt out over the mesh."""
  shards = batch_shards(mesh)
  if size % shards:
    raise UserError(
      f"{name} is {size}, and cannot be dealt out evenly over the {shards} shards of the mesh "
      f"(data={mesh.shape['data']} x fsdp={mesh.shape['fsdp']}): it must be a multiple of {shards}."
    )


def replicated(mesh: Mesh) -> NamedSharding:
  """A whole copy on every device."""
  return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The first axis dealt out over data and fsdp: for batches that pass `check_batch`."""
  return NamedSharding(mesh, P(BATCH_AXES))


def batch_axes(mesh: Mesh, size: int) -> tuple[str, ...]:
  """The mesh axes that a batch of `size` can be dealt out over evenly; the work of the others is repeated.

  Batches inside a program are not always those that the user chose: a rollout's shared start has one entry a group.
  """
  choices = (BATCH_AXES, *((axis,) for axis in sorted(BATCH_AXES, key=mesh.shape.get, reverse=True)))
  return next((axes for axes in choices if size % math.prod(mesh.shape[axis] for axis in axes) == 0), ())


def shard_tokens(x: Shaped[Array, "B N ..."], mesh: Mesh | None) -> Shaped[Array, "B N ..."]:
  """Inside jit: spreads a batch of token sequences over all three axes. N divides by the sequence axis."""
  if mesh is None:
    return x
  return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(batch_axes(mesh, x.shape[0]), "sequence")))


def shard_batch(x: Shaped[Array, "B ..."], mesh: Mesh | None) -> Shaped[Array, "B ..."]:
  """Inside jit: spreads a batch over data and fsdp, with whole copies along sequence."""
  if mesh is None:
    return x
  return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(batch_axes(mesh, x.shape[0]))))


def gather(tree: T, mesh: Mesh | None) -> T:
  """Inside jit: whole copies of weights that `shard_params` spread out, to be used at once and dropped."""
  return tree if mesh is None else jax.lax.with_sharding_constraint(tree, replicated(mesh))


def shard_params(mesh: Mesh, state: PyTree, *, small: int = _SMALL) -> PyTree:
  """Shardings of weights: each is split over fsdp along the longer of its last two axes that divides evenly.

  Those are the input and output features, never the axis that layers are stacked along (which a scan walks through).
  Weights of fewer than `small` elements, and those that do not divide, are copied.

  Args:
    state: any tree whose leaves have a shape; those under a key "blocks" are stacked along their first axis.

  Returns:
    a tree like it, whose leaves are `NamedSharding`.
  """
  size = mesh.shape["fsdp"]

  def sharding(path: jax.tree_util.KeyPath, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
    stacked = "blocks" in jax.tree_util.keystr(path)
    spec = [None] * leaf.ndim
    axes = [axis for axis in range(stacked, leaf.ndim)[-2:] if leaf.shape[axis] % size == 0]
    if size > 1 and leaf.ndim > 1 and leaf.size >= small and axes:
      spec[max(axes, key=lambda axis: leaf.shape[axis])] = "fsdp"
    return NamedSharding(mesh, P(*spec))

  return jax.tree.map_with_path(sharding, state)
