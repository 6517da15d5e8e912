"""A small exact renderer of textured rooms with known cameras: the ground truth of the reconstruction tests.

A room is the inside of a box with solid boxes and balls in it. Every pixel is the mean of 2 x 2 rays whose first hit is
found in closed form, so the images obey the pinhole model exactly: OpenCV axes, pixel (0, 0) centred at (0.5, 0.5),
focal length `FOCAL` image widths, principal point in the middle. The median depth of a room is about 1.

`render` makes the rigid clip of a room; `INCONSISTENT` names the ways to spoil it.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, UInt8
from scipy import ndimage
from scipy.spatial.transform import Rotation

FOCAL = 1.2
SUBRAYS = ((0.25, 0.25), (0.25, 0.75), (0.75, 0.25), (0.75, 0.75))
INCONSISTENT = ("warped", "morphing", "swimming", "melting")


@dataclasses.dataclass(frozen=True)
class Room:
  """`walls`: half sizes (x, y) and the depths of the front and back wall. Boxes and balls: (n, 3) centres and sizes."""

  walls: Float[np.ndarray, "4"]
  boxes: Float[np.ndarray, "n 3"]
  box_sizes: Float[np.ndarray, "n 3"]
  balls: Float[np.ndarray, "m 3"]
  ball_radii: Float[np.ndarray, "m"]
  colours: Float[np.ndarray, "s 3"]  # of walls, boxes and balls in this order
  lattice: Float[np.ndarray, "l l l 3"]  # the solid texture, periodic

  @classmethod
  def make(cls, seed: int) -> Room:
    """The room of a seed: objects stand at the sides, so that a camera may move forward between them."""
    rng = np.random.default_rng(seed)
    walls = np.array([rng.uniform(0.45, 0.7), rng.uniform(0.28, 0.4), -2.0, rng.uniform(1.0, 1.3)])
    side = np.array([-1, 1, -1, 1])
    boxes = np.stack([side * rng.uniform(0.15, 0.4, 4), rng.uniform(-0.05, 0.3, 4), rng.uniform(0.7, 1.0, 4)], -1)
    balls = np.stack([rng.uniform(-0.25, 0.25, 2), rng.uniform(-0.2, 0.2, 2), rng.uniform(0.75, 0.95, 2)], -1)
    lattice = rng.uniform(-1, 1, (32, 32, 32, 3))
    # Brightness varies more than hue, as in photographs.
    lattice = 0.75 * lattice.mean(-1, keepdims=True) * np.sqrt(3) + 0.4 * lattice
    return cls(
      walls,
      boxes,
      rng.uniform(0.05, 0.12, (4, 3)),
      balls,
      rng.uniform(0.05, 0.09, 2),
      rng.uniform(0.3, 0.7, (7, 3)),
      lattice,
    )

  def texture(self, points: Float[np.ndarray, "r 3"], surface: np.ndarray) -> Float[np.ndarray, "r 3"]:
    """Four octaves of smooth noise around the colour of the surface."""
    value = np.zeros_like(points)
    for frequency, weight in ((6, 0.45), (14, 0.4), (30, 0.4), (60, 0.3)):
      coordinates = (points * frequency + 7.3 * surface[:, None]).T
      for channel in range(3):
        value[:, channel] += weight * ndimage.map_coordinates(
          self.lattice[..., channel], coordinates, order=1, mode="grid-wrap"
        )
    return np.clip(self.colours[surface] + 0.35 * value, 0, 1)


def _hit_box(origin, direction, low, high):
  """Where rays enter an axis-aligned box and where they leave it."""
  with np.errstate(divide="ignore", invalid="ignore"):
    near, far = (low - origin) / direction, (high - origin) / direction
  near, far = np.minimum(near, far), np.maximum(near, far)
  return np.nanmax(near, -1), np.nanmin(far, -1)


def _trace(room: Room, origin: Float[np.ndarray, "3"], direction: Float[np.ndarray, "r 3"]):
  """Distance along each ray (in lengths of `direction`) and the surface it hits first."""
  x, y, front, back = room.walls
  distance = _hit_box(origin, direction, np.array([-x, -y, front]), np.array([x, y, back]))[1]
  surface = np.zeros(len(direction), int)

  def closer(candidate, mask, index):
    mask &= (candidate > 1e-6) & (candidate < distance)
    distance[mask] = candidate[mask]
    surface[mask] = index

  for i, (centre, size) in enumerate(zip(room.boxes, room.box_sizes)):
    near, far = _hit_box(origin, direction, centre - size, centre + size)
    closer(near, near < far, 1 + i)
  for i, (centre, radius) in enumerate(zip(room.balls, room.ball_radii)):
    a = (direction**2).sum(-1)
    b = direction @ (origin - centre)
    root = b**2 - a * (((origin - centre) ** 2).sum() - radius**2)
    closer((-b - np.sqrt(np.maximum(root, 0))) / a, root > 0, 1 + len(room.boxes) + i)
  return distance, surface


def render_frame(
  room: Room, pose: Float[np.ndarray, "4 4"], height: int, width: int, focal: float = FOCAL, texture_shift: float = 0.0
):
  """One frame: rgb float64 [H, W, 3] in [0, 1] and depth float64 [H, W] along the optical axis."""
  v, u = np.mgrid[:height, :width]
  rgb, depth = np.zeros((height * width, 3)), np.full(height * width, np.inf)
  for du, dv in SUBRAYS:
    ray = np.stack([u + du - width / 2, v + dv - height / 2, np.full(u.shape, focal * width)], -1).reshape(-1, 3)
    direction = ray / (focal * width) @ pose[:3, :3].T
    distance, surface = _trace(room, pose[:3, 3], direction)
    points = pose[:3, 3] + distance[:, None] * direction
    # A texture that swims moves along each surface at its own pace.
    shift = texture_shift * np.stack([np.cos(2.4 * surface), np.sin(2.4 * surface), np.cos(1 + surface)], -1)
    rgb += room.texture(points + shift, surface) / len(SUBRAYS)
    depth = np.minimum(depth, distance)
  return rgb.reshape(height, width, 3), depth.reshape(height, width)


def _morph(room: Room, phase: float) -> Room:
  """The objects grow, shrink and wander; `phase` runs from 0 to 1."""
  wave = np.sin(2 * np.pi * (phase + np.arange(len(room.boxes)) / 4))[:, None]
  return dataclasses.replace(
    room,
    boxes=room.boxes + 0.06 * wave * [1, -1, 0.5],
    box_sizes=room.box_sizes * (1 + 0.5 * wave * [1, -1, 1]),
    balls=room.balls + 0.08 * wave[:2] * [-1, 1, 0],
    ball_radii=room.ball_radii * (1 + 0.5 * wave[:2, 0]),
  )


def _bend(image: np.ndarray, offset: np.ndarray) -> np.ndarray:
  """Image resampled at positions moved by `offset` [2, H, W] pixels (rows, columns)."""
  position = np.mgrid[: image.shape[0], : image.shape[1]] + offset
  return np.stack([ndimage.map_coordinates(image[..., c], position, order=1, mode="nearest") for c in range(3)], -1)


def _warp_offset(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
  """A smooth random displacement of about 1 % of the width, new in every frame."""
  offset = ndimage.gaussian_filter(rng.normal(size=(2, height, width)), (0, width / 12, width / 12), mode="wrap")
  return offset / offset.std() * 0.01 * width


def _melt_offset(phase: float, height: int, width: int) -> np.ndarray:
  """Surfaces run down in streaks, each from its own moment on and faster and faster."""
  v, u = np.mgrid[:height, :width]
  start = 0.4 + 0.2 * np.sin(u / width * 31) + 0.2 * np.sin(u / width * 13 + 1)
  run = np.clip(phase - start, 0, 1) ** 2
  return np.stack([-0.25 * run * height * (0.3 + 0.7 * v / height), np.zeros(u.shape)])


def render(
  room: Room,
  poses: Float[np.ndarray, "T 4 4"],
  height: int = 96,
  width: int = 160,
  focal: float = FOCAL,
  spoiled: str = "",
  seed: int = 0,
) -> UInt8[np.ndarray, "T H W 3"]:
  """The clip of a room along camera-to-world poses; `spoiled` is "" (rigid) or one of `INCONSISTENT`."""
  rng = np.random.default_rng(seed)
  frames = []
  for t, pose in enumerate(poses):
    phase = t / max(len(poses) - 1, 1)
    scene = _morph(room, phase) if spoiled == "morphing" else room
    shift = 0.06 * phase if spoiled == "swimming" else 0.0
    image, _ = render_frame(scene, pose, height, width, focal, shift)
    if spoiled == "warped":
      image = _bend(image, _warp_offset(rng, height, width))
    if spoiled == "melting":
      image = _bend(image, _melt_offset(phase, height, width))
    frames.append(np.round(255 * image).astype(np.uint8))
  return np.stack(frames)


def _turn_right(degrees: Float[np.ndarray, "T"]) -> Float[np.ndarray, "T 3 3"]:
  return Rotation.from_rotvec(np.radians(degrees)[:, None] * [0, 1, 0]).as_matrix()


def move(name: str, frames: int = 17, amount: float = 1.0) -> Float[np.ndarray, "T 4 4"]:
  """Camera-to-world path of one camera word, eased in and out, `amount` times its usual size."""
  poses = np.tile(np.eye(4), (frames, 1, 1))
  share = amount * (0.5 - 0.5 * np.cos(np.pi * np.linspace(0, 1, frames))) if frames > 1 else np.zeros(1)
  side = -1 if name.endswith("left") else 1
  if name == "push in" or name == "pull out":
    poses[:, 2, 3] = (0.5 if name == "push in" else -0.5) * share
  elif name.startswith("move"):
    poses[:, 0, 3] = 0.22 * side * share
  elif name.startswith("pan"):
    poses[:, :3, :3] = _turn_right(14 * side * share)
  elif name.startswith("orbit"):
    angle = -side * 24 * share  # a camera that goes to the right turns to the left
    poses[:, :3, :3] = _turn_right(angle)
    poses[:, :3, 3] = 0.6 * (np.array([0, 0, 1]) - poses[:, :3, 2])
  elif name.startswith("pull"):
    poses[:, :3, :3] = _turn_right(8 * side * share)
    poses[:, 0, 3], poses[:, 2, 3] = 0.16 * side * share, -0.3 * share
  elif name != "fixed":
    raise ValueError(name)
  return poses


MOVES = (
  "push in",
  "pull out",
  "move left",
  "move right",
  "pan left",
  "pan right",
  "orbit left",
  "orbit right",
  "pull left",
  "pull right",
  "fixed",
)


def chain(*paths: np.ndarray) -> Float[np.ndarray, "T 4 4"]:
  """Paths one after the other, each going on from the last pose of the one before."""
  result = list(paths[0])
  for path in paths[1:]:
    end = result[-1]
    result += [end @ pose for pose in path[1:]]
  return np.stack(result)


def path_errors(recovered: np.ndarray, depth_unit: float, true: np.ndarray) -> tuple[float, float, float]:
  """Mean rotation error and direction error of the translation in degrees, and the ratio of path sizes.

  The direction error is the angle between the two translation paths as vectors of all frames: scale does not matter.
  """
  relative = np.einsum("tji,tjk->tik", recovered[:, :3, :3], true[:, :3, :3])
  rotation = np.degrees(Rotation.from_matrix(relative).magnitude()).mean()
  a, b = recovered[:, :3, 3].ravel() / depth_unit, true[:, :3, 3].ravel()
  if np.linalg.norm(b) < 1e-9:
    return rotation, np.nan, float(np.linalg.norm(recovered[:, :3, 3], axis=-1).max() / depth_unit)
  cosine = a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-12)
  return rotation, float(np.degrees(np.arccos(np.clip(cosine, -1, 1)))), float(np.linalg.norm(a) / np.linalg.norm(b))
