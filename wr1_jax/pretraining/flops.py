"""How many operations the matrix products and convolutions of a function take."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def count(function: Callable, *arguments: Any) -> int:
  """Multiplications plus additions of one call.

  A scan's body counts as often as it runs, a while loop's once, and of a choice the longest branch. (XLA's own count
  takes a scan for one step, and a library's kernel for nothing.)
  """
  return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: Jaxpr) -> int:
  total = 0
  for equation in jaxpr.eqns:
    out = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
    if equation.primitive.name == "dot_general":
      (contracted, _), _ = equation.params["dimension_numbers"]
      shape = equation.invars[0].aval.shape
      total += 2 * out * math.prod(shape[axis] for axis in contracted)
    elif equation.primitive.name == "conv_general_dilated":
      kernel, numbers = equation.invars[1].aval.shape, equation.params["dimension_numbers"]
      total += 2 * out * math.prod(kernel) // kernel[numbers.rhs_spec[0]]
    repeats = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
    inner = [repeats * _count(body) for value in equation.params.values() for body in _bodies(value)]
    total += max(inner, default=0) if equation.primitive.name == "cond" else sum(inner)
  return total


def _bodies(value: Any) -> list[Jaxpr]:
  values = value if isinstance(value, (tuple, list)) else (value,)
  return [getattr(body, "jaxpr", body) for body in values if isinstance(body, (Jaxpr, ClosedJaxpr))]
