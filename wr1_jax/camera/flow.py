"""How a picture of a fronto-parallel plane moves when the camera does.

Between two frames every pixel u goes to u' ~ K (R + t n^T / z) K^-1 u, where (R, t) takes points from the first camera
to the second, n = (0, 0, 1), and z is the depth of a plane that faces the *first* of the two cameras: the plane is put
anew before every frame, as in World-R1's public release, so a path of many small steps never runs into it.

Pixel coordinates are (x, y) with centres at whole numbers. Arithmetic is written out element by element or asks for the
highest precision, because accelerators would otherwise multiply small float32 matrices in fewer bits than a sub-pixel
position needs.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_SMALLEST_W = 1e-6  # of a homogeneous point: what lies at or behind the camera lands far outside the picture instead


def intrinsics(height: int, width: int, focal: float) -> Float[np.ndarray, "3 3"]:
  """K of a pinhole camera with square pixels and a central axis; `focal` in picture widths."""
  length = focal * width
  return np.array([[length, 0.0, (width - 1) / 2], [0.0, length, (height - 1) / 2], [0.0, 0.0, 1.0]])


def plane_homographies(
  poses: Float[Array, "T 4 4"], height: int, width: int, focal: float, depth: float
) -> Float[Array, "T-1 3 3"]:
  """The map from each frame's pixels to the next frame's, for camera-to-world `poses` in the units of `depth`."""
  rotation, centre = poses[:, :3, :3], poses[:, :3, 3]
  highest = jax.lax.Precision.HIGHEST
  to_next = rotation[1:].mT
  turned = jnp.matmul(to_next, rotation[:-1], precision=highest)
  moved = jnp.einsum("tij,tj->ti", to_next, centre[:-1] - centre[1:], precision=highest)
  normal = jnp.array([0.0, 0.0, 1.0])
  plane = turned + moved[:, :, None] * normal / depth
  camera = intrinsics(height, width, focal)
  return jnp.einsum("ij,tjk,kl->til", camera, plane, np.linalg.inv(camera), precision=highest)


def multiply(after: Float[Array, "3 3"], before: Float[Array, "3 3"]) -> Float[Array, "3 3"]:
  """The map that applies `before`, then `after`."""
  return jnp.matmul(after, before, precision=jax.lax.Precision.HIGHEST)


def composed(steps: Float[Array, "T-1 3 3"]) -> Float[Array, "T 3 3"]:
  """The maps from the first frame to every frame, itself included, for the maps from each frame to the next."""
  first = jnp.eye(3)

  def add(so_far: Float[Array, "3 3"], step: Float[Array, "3 3"]) -> tuple[Float[Array, "3 3"], Float[Array, "3 3"]]:
    product = multiply(step, so_far)
    return product, product

  _, products = jax.lax.scan(add, first, steps)
  return jnp.concatenate([first[None], products])


def inverse(homography: Float[Array, "3 3"]) -> Float[Array, "3 3"]:
  """The inverse, with w kept positive in front of the camera."""
  a, b, c = homography
  determinant = jnp.sum(a * jnp.cross(b, c))
  return jnp.stack([jnp.cross(b, c), jnp.cross(c, a), jnp.cross(a, b)], axis=1) / determinant


def project(homography: Float[Array, "3 3"], points: Float[Array, "*shape 2"]) -> Float[Array, "*shape 2"]:
  """Where `homography` takes the pixels `points`, both (x, y)."""
  x, y = points[..., 0], points[..., 1]
  to_x, to_y, to_w = (row[0] * x + row[1] * y + row[2] for row in homography)
  return jnp.stack([to_x, to_y], axis=-1) / jnp.maximum(to_w, _SMALLEST_W)[..., None]


def pixel_grid(height: int, width: int) -> Float[Array, "H W 2"]:
  """The (x, y) of every pixel."""
  y, x = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
  return jnp.stack([x, y], axis=-1).astype(jnp.float32)


def limit_flow(homography: Float[Array, "3 3"], height: int, width: int, longest: float) -> Float[Array, "3 3"]:
  """Slows a homography down so that none of its flow vectors within the picture is longer than `longest` pixels.

  The whole frame is slowed by one factor l, as I + l (H - I), the largest that satisfies the limit. So it stays a
  homography and its flow keeps its shape, where clipping vectors one by one, as the public release does, would tear or
  fold the picture. With (dx, dy, b) = (H - I) u and a = (dx, dy) - b u, the slowed map's flow is l a / (1 + l b).
  """
  points = pixel_grid(height, width)
  x, y = points[..., 0], points[..., 1]
  change_x, change_y, change_w = (row[0] * x + row[1] * y + row[2] for row in homography - jnp.eye(3))
  length = jnp.hypot(change_x - x * change_w, change_y - y * change_w)
  slowest = jnp.min(longest / jnp.maximum(longest, length - longest * change_w))
  return jnp.eye(3) + slowest * (homography - jnp.eye(3))


def flow(homography: Float[Array, "3 3"], height: int, width: int) -> Float[Array, "H W 2"]:
  """The displacement (dx, dy) of every pixel, in pixels."""
  points = pixel_grid(height, width)
  return project(homography, points) - points
