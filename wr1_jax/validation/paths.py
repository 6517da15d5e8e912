"""Camera paths that a clip does not follow: plainly wrong ones, and ones that are wrong by a known amount.

Paths are camera-to-world [T, 4, 4], anchored at their first camera, in scene depths.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy import ndimage
from scipy.spatial.transform import Rotation

from wr1_jax.rewards.trajectory import anchored

Path = Float[np.ndarray, "T 4 4"]

AMOUNTS = (0.0, 0.1, 0.2, 0.35, 0.55, 0.8, 1.2)  # of a perturbation
_SAME = 0.01  # paths that differ less (depths, radians) are one


def reversed_path(path: Path) -> Path:
  """From the last camera back to the first."""
  return anchored(path[::-1])


def mirrored(path: Path) -> Path:
  """Left and right exchanged."""
  flip = np.diag([-1.0, 1, 1, 1])
  return flip @ path @ flip


def differ(a: Path, b: Path) -> bool:
  return bool(np.abs(a - b).max() > _SAME)


def perturbed(path: Path, rng: np.random.Generator) -> list[Path]:
  """The path scaled, its course turned, and with smooth noise added, by all `AMOUNTS`."""
  result = []
  for amount in AMOUNTS:
    result.append(_scaled(path, 1 + amount * rng.choice([-1.0, 1.0])))
    result.append(_turned(path, np.radians(60) * amount * rng.choice([-1.0, 1.0])))
    result.append(_noisy(path, amount, rng))
  return result


def _scaled(path: Path, factor: float) -> Path:
  """Every pose `factor` times as far from the first, in angle and in place."""
  result = path.copy()
  result[:, :3, :3] = Rotation.from_rotvec(factor * Rotation.from_matrix(path[:, :3, :3]).as_rotvec()).as_matrix()
  result[:, :3, 3] *= factor
  return result


def _turned(path: Path, angle: float) -> Path:
  """Positions turned about the first camera's vertical; half of it is added to the cameras' own turns by the end."""
  result = path.copy()
  result[:, :3, 3] = Rotation.from_rotvec([0, angle, 0]).apply(path[:, :3, 3])
  share = np.linspace(0, 0.5, len(path))[:, None] * [0, angle, 0]
  result[:, :3, :3] = Rotation.from_rotvec(share).as_matrix() @ path[:, :3, :3]
  return result


def _noisy(path: Path, amount: float, rng: np.random.Generator) -> Path:
  """Smooth noise of up to about 0.25 depths and 15 degrees, times `amount`."""
  noise = ndimage.gaussian_filter1d(rng.normal(size=(len(path), 6)), len(path) / 6, axis=0, mode="nearest")
  noise = amount * (noise - noise[0]) / max(np.abs(noise - noise[0]).max(), 1e-9)
  result = path.copy()
  result[:, :3, :3] = Rotation.from_rotvec(np.radians(15) * noise[:, :3]).as_matrix() @ path[:, :3, :3]
  result[:, :3, 3] += 0.25 * noise[:, 3:]
  return result
