"""Three-axis rotary position embedding of Wan: head channels are shared out over frame, row and column."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_THETA = 10_000.0


def rotary_angles(grid: tuple[int, int, int], head_dim: int) -> tuple[Float[Array, "N pairs"], Float[Array, "N pairs"]]:
  """Cosines and sines for the tokens of a (frames, rows, columns) grid in row-major order, one a channel pair; float32.

  A head of d channels gives 2 (d // 6) to rows, as many to columns, and the rest to frames; pair i of an axis with n
  channels turns by position / 10000^(2 i / n). Angles are computed in float64, as diffusers does.
  """
  side = 2 * (head_dim // 6)
  angles = []
  for axis, (length, channels) in enumerate(zip(grid, (head_dim - 2 * side, side, side))):
    frequencies = _THETA ** -(np.arange(0, channels, 2, dtype=np.float64) / channels)
    shape = [1, 1, 1, channels // 2]
    shape[axis] = length
    angles.append(np.outer(np.arange(length), frequencies).reshape(shape))

  def table(function: np.ufunc) -> Float[Array, "N pairs"]:
    # Only the three short tables are constants of the compiled program.
    parts = [jnp.asarray(function(angle), jnp.float32) for angle in angles]
    whole = jnp.concatenate([jnp.broadcast_to(part, (*grid, part.shape[-1])) for part in parts], axis=-1)
    return whole.reshape(-1, whole.shape[-1])

  return table(np.cos), table(np.sin)


def apply_rotary(
  x: Float[Array, "B N heads head_dim"], cos: Float[Array, "N pairs"], sin: Float[Array, "N pairs"]
) -> Float[Array, "B N heads head_dim"]:
  """Turns channel pairs (0, 1), (2, 3), ... of every head by the token's angles, in the dtype of `x`."""
  first, second = x[..., 0::2], x[..., 1::2]
  cos, sin = cos[:, None], sin[:, None]
  return jnp.stack([first * cos - second * sin, first * sin + second * cos], axis=-1).reshape(x.shape)
