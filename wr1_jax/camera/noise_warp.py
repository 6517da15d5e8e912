"""Gaussian noise that moves with the camera: Go-with-the-Flow's noise transport, on flows that are known exactly.

The flow of every video frame is a homography (`camera.flow`), so the flow from any frame to any other is one too: the
product of those in between. The noise of a clip is therefore painted once, as independent N(0, 1) values on a canvas
that covers all that the camera gets to see, several times finer than the latents; and each latent frame is that canvas
moved along the composed flow. No value is rounded to a pixel more than once, so motion of a hundredth of a pixel a
frame adds up, what leaves the picture and comes back is the same noise, and what comes into view was on the canvas
before. (Warping each frame's noise from the frame before it instead loses most of a push in's noise on the way.)

From the canvas values v to the pixels p of a frame, z(p) = sum of z(v) / sqrt(count):

  - Every v moves to the pixel that it lands in. Values that land in the same p are added and divided by the root of
    their count: the picture shrinks, or simply is coarser than the canvas.
  - A p where nothing lands takes a share of the value it lies in, its parent: the picture is stretched. A parent with
    d - 1 such children is split in d: z / sqrt(d), plus fresh noise that sums to zero over the d shares.
  - A p beyond the canvas gets fresh noise. The canvas reaches `_REACH` picture sizes to each side, so this happens only
    on paths that turn by some 100 degrees in all.

Every frame is exactly N(0, 1) and white, whatever the flow: the split is an orthogonal map of z and d - 1 fresh numbers
(a Householder reflection), every share goes to one p only, and a sum of `count` independent values is divided by
sqrt(count). The tests check this as a matrix identity.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from wr1_jax.camera import flow
from wr1_jax.config import CameraConfig, NoiseWarpConfig

_REACH = 4.0  # of the canvas, in picture sizes to each side of the middle frame's centre
_ONE = 2**20  # 1.0 in fixed point


def warped_noise(
  key: Key[Array, ""],
  poses: Float[Array, "T 4 4"],
  latent_shape: tuple[int, int, int, int],
  camera: CameraConfig,
  warp: NoiseWarpConfig,
) -> Float[Array, "T' H' W' C"]:
  """White noise of `latent_shape` = (T', H', W', C), float32, that moves as the scene seen from the camera path does.

  `poses` has one camera-to-world pose per video frame, in units of `camera.scene_depth`. Flow is taken, and capped,
  from video frame to video frame; latent frame k is video frame k (T-1) / (T'-1). While the camera stands still all
  frames are equal, save for the share `warp.degradation` of fresh noise.

  A pure function of its arguments: jit it with the last three static, vmap it over `key` and `poses`.

  Raises:
    ValueError: T - 1 is not a multiple of T' - 1.
  """
  frames, height, width, channels = latent_shape
  stride = max((poses.shape[0] - 1) // max(frames - 1, 1), 1)
  if poses.shape[0] != stride * (frames - 1) + 1:
    raise ValueError(f"{poses.shape[0]} video frames do not come down to {frames} latent frames")
  canvas_key, detail_key, beyond_key, fresh_key = jax.random.split(key, 4)
  canvas_size = (warp.upscale * height, warp.upscale * width)
  canvas = jax.random.normal(canvas_key, (canvas_size[0] * canvas_size[1], channels))
  detail = jax.random.normal(detail_key, (height * width, channels))

  def frame(view: tuple[Float[Array, "3 3"], Int[Array, ""]]) -> Float[Array, "H' W' C"]:
    from_canvas, index = view
    beyond = jax.random.normal(jax.random.fold_in(beyond_key, index), detail.shape)
    return transport(canvas, canvas_size, from_canvas, (height, width), detail, beyond)

  longest = warp.max_flow * max(height, width)
  steps = flow.plane_homographies(poses, height, width, camera.focal, camera.scene_depth)
  steps = jax.vmap(lambda step: flow.limit_flow(step, height, width, longest))(steps)
  from_canvas = _canvas_maps(flow.composed(steps)[::stride], (height, width), canvas_size)
  latents = jax.lax.map(frame, (from_canvas, jnp.arange(frames)))
  return blend(latents, jax.random.normal(fresh_key, latents.shape), warp.degradation)


def blend(noise: Float[Array, "*shape"], other: Float[Array, "*shape"], share: float) -> Float[Array, "*shape"]:
  """Mixes `share` of `other` into `noise`; unit variance stays unit variance (Go-with-the-Flow's degradation)."""
  return ((1 - share) * noise + share * other) / ((1 - share) ** 2 + share**2) ** 0.5


def transport(
  canvas: Float[Array, "N C"],
  canvas_size: tuple[int, int],
  from_canvas: Float[Array, "3 3"],
  size: tuple[int, int],
  detail: Float[Array, "M C"],
  beyond: Float[Array, "M C"],
) -> Float[Array, "H W C"]:
  """White noise for a frame of `size` = (H, W), M = H W pixels, from the values of a canvas of `canvas_size`, N in all.

  Args:
    canvas: N(0, 1), white, its rows in row-major order.
    from_canvas: the homography from canvas pixels to the frame's.
    detail: fresh N(0, 1) noise that pixels spend where the canvas is stretched. The frames of a clip share it, so that
      a camera that stands still sees the same everywhere.
    beyond: fresh N(0, 1) noise for pixels that lie outside the canvas.
  """
  target = _row(flow.project(from_canvas, flow.pixel_grid(*canvas_size)), size)
  parent = _row(flow.project(flow.inverse(from_canvas), flow.pixel_grid(*size)), canvas_size)
  pixels, values = detail.shape[0], canvas.shape[0]

  count = jnp.bincount(target, length=pixels + 1)[:pixels]  # row `pixels`, or `values`, stands for "outside"
  parent = jnp.where(count == 0, parent, values)
  shares = 1 + jnp.bincount(parent, length=values + 1)[:values, None]
  root = jnp.sqrt(shares)
  spent = _sum_by(parent, detail, values)
  own = (canvas + spent) / root
  given = canvas / root - spent / jnp.where(shares > 1, shares - root, 1.0)  # plus the child's own fresh number

  landed = _sum_by(target, own, pixels) / jnp.sqrt(jnp.maximum(count, 1))[:, None]
  child = given[jnp.minimum(parent, values - 1)] + detail
  noise = jnp.where((count > 0)[:, None], landed, jnp.where((parent < values)[:, None], child, beyond))
  return noise.reshape(*size, -1)


def _canvas_maps(
  to_frame: Float[Array, "T 3 3"], size: tuple[int, int], canvas_size: tuple[int, int]
) -> Float[Array, "T 3 3"]:
  """From canvas pixels to each frame's, for a canvas that just covers all frames, laid out as the middle one sees them.

  `to_frame` takes pixels of one common frame to every frame's.
  """
  height, width = size
  middle = to_frame[to_frame.shape[0] // 2]
  to_middle = jax.vmap(lambda to: flow.multiply(middle, flow.inverse(to)))(to_frame)
  corners = jnp.array([[x, y] for x in (-0.5, width - 0.5) for y in (-0.5, height - 0.5)])
  seen = jax.vmap(lambda to: flow.project(to, corners))(to_middle).reshape(-1, 2)
  centre, reach = jnp.array([width - 1, height - 1]) / 2, _REACH * jnp.array([width, height])
  low = jnp.maximum(seen.min(axis=0), centre - reach)
  high = jnp.minimum(seen.max(axis=0), centre + reach)
  cell_x, cell_y = (high - low) / jnp.array([canvas_size[1], canvas_size[0]])
  lay_out = jnp.array([[cell_x, 0.0, low[0] + cell_x / 2], [0.0, cell_y, low[1] + cell_y / 2], [0.0, 0.0, 1.0]])
  return jax.vmap(lambda to: flow.multiply(flow.inverse(to), lay_out))(to_middle)


def _row(points: Float[Array, "H W 2"], size: tuple[int, int]) -> Int[Array, "N"]:
  """Row-major numbers of the pixels, of a picture of `size`, that points (x, y) lie in; H W for those outside."""
  height, width = size
  x, y = jnp.moveaxis(points.reshape(-1, 2), -1, 0) + 0.5
  inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
  number = jnp.floor(y).astype(jnp.int32) * width + jnp.floor(x).astype(jnp.int32)
  return jnp.where(inside, number, height * width)


def _sum_by(row: Int[Array, "N"], values: Float[Array, "N C"], rows: int) -> Float[Array, "M C"]:
  """Sums the values that have the same row number; what is past the last row is left out.

  In fixed point: an accelerator adds colliding floats in any order, and a resumed run could differ in the last bit.
  """
  fixed = jnp.round(values * _ONE).astype(jnp.int32)
  return jnp.zeros((rows, values.shape[1]), jnp.int32).at[row].add(fixed, mode="drop") / _ONE
