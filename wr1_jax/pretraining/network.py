"""Modules that are trained in mixed precision."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx


@dataclasses.dataclass(frozen=True)
class Network:
  """A module whose weights are kept in float32, and used in the dtypes that it declares."""

  graphdef: nnx.GraphDef
  declared: nnx.State  # of `jax.ShapeDtypeStruct`

  @classmethod
  def make(cls, build: Callable[..., nnx.Module]) -> Network:
    """Of the module that `build(rngs=...)` makes."""
    return cls(*nnx.split(nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0)))))

  def __call__(self, weights: nnx.State) -> nnx.Module:
    """The module with these weights; gradients pass through the conversion."""
    return nnx.merge(self.graphdef, self.cast(weights))

  def cast(self, weights: nnx.State) -> nnx.State:
    return jax.tree.map(lambda x, declared: x.astype(declared.dtype), weights, self.declared)


def rounded(weights: nnx.State) -> nnx.State:
  """Weights as they are published: bfloat16."""
  return jax.tree.map(lambda x: x.astype(jnp.bfloat16), weights)
