"""Classifier-free guidance."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# (latents, timestep, text) -> velocity: the network
Model = Callable[
  [Float[Array, "B T H W C"], Float[Array, "B"], Float[Array, "B L D"]],
  Float[Array, "B T H W C"],
]
# (latents, timestep, text, negative text) -> velocity: what samples and is trained
GuidedModel = Callable[
  [Float[Array, "B T H W C"], Float[Array, "B"], Float[Array, "B L D"], Float[Array, "1 L D"] | None],
  Float[Array, "B T H W C"],
]


def guided(model: Model, scale: float) -> GuidedModel:
  """`v_negative + scale (v_text - v_negative)`; a scale of 1 calls the network once, without negative text.

  The negative text [1, L, D] serves the whole batch. Both calls run one after the other from one traced copy of the
  network: at video sizes one sample fills the device, and a doubled batch would only double the memory.
  """

  def velocity(
    x: Float[Array, "B T H W C"],
    timestep: Float[Array, "B"],
    text: Float[Array, "B L D"],
    negative: Float[Array, "1 L D"] | None,
  ) -> Float[Array, "B T H W C"]:
    if scale == 1:
      return model(x, timestep, text)
    both = jnp.stack([text, jnp.broadcast_to(negative, text.shape)])
    with_text, without = jax.lax.map(lambda text: model(x, timestep, text), both)
    return without + scale * (with_text - without)

  return velocity
