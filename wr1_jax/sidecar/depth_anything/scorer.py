"""The reconstructor `depth_anything_3` as the sidecar's scorers see it.

The networks see every few frames of a clip at a size of their own; the scene is then drawn at the processed size, from
the poses of all frames, those in between being interpolated: image k belongs to frame k.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8

from wr1_jax.config import RewardsConfig
from wr1_jax.sidecar import geometry
from wr1_jax.sidecar.depth_anything.model import DepthAnything, NoPrediction, Prediction, source_of
from wr1_jax.sidecar.depth_anything.render import renderer
from wr1_jax.sidecar.depth_anything.scene import HarmonicScene
from wr1_jax.sidecar.judges.checkpoints import Source
from wr1_jax.sidecar.offset_view import offset_pose
from wr1_jax.sidecar.photometric.reconstruct import shrink
from wr1_jax.sidecar.scorers import Unscored, View

MIN_COVERED = 0.01  # share of the pixels of all frames that a scene must fill, or there is none to speak of


@dataclasses.dataclass(frozen=True, eq=False)
class AnchoredScene:
  """A reconstruction in the frame of the first camera, in units of the median depth that this camera sees."""

  poses: Float[np.ndarray, "n 4 4"]  # camera-to-world, float64
  scene: HarmonicScene


def sources(config: RewardsConfig) -> tuple[Source, ...]:
  """Where the model is."""
  return (source_of(config.depth_anything_3),)


class DepthAnythingReconstructor:
  """Makes the reconstructor `depth_anything_3`; its options are `config.rewards.depth_anything_3`.

  Raises:
    UserError: as `render.renderer` and `model.DepthAnything`.
  """

  def __init__(self, config: RewardsConfig):
    torch.set_num_threads(config.threads)
    self._options, self._config = config.depth_anything_3, config.reconstruction
    self._render = renderer(config.device)
    self._predict = DepthAnything(self._options, config.device)

  def __call__(
    self, videos: UInt8[np.ndarray, "N T H W 3"], paths: Sequence[Float[np.ndarray, "T 4 4"] | None]
  ) -> list[View | Unscored]:
    """Clips are reconstructed one by one; the paths asked for are not looked at."""
    del paths
    return [self._view(video) for video in videos]

  def _view(self, video: UInt8[np.ndarray, "T H W 3"]) -> View | Unscored:
    frames, height, width = video.shape[:3]
    at = seen_frames(frames, self._options.every)
    try:
      prediction = self._predict(np.ascontiguousarray(video[at]))
    except NoPrediction as error:
      return Unscored(str(error))
    found = anchored(prediction)
    if isinstance(found, Unscored):
      return found
    size = geometry.processed_size(height, width, self._config)
    poses = geometry.interpolate_poses(found.poses, at, frames).astype(np.float32)
    cameras = all_intrinsics(prediction, at, frames, size)
    rendered, alpha = self._seen(found.scene, poses, cameras, size)
    covered = float((alpha > 0.5).mean())
    if covered < MIN_COVERED:
      return Unscored(f"Depth Anything 3's scene is empty: it fills {covered:.2%} of the frames")
    behind = offset_pose(poses, 1.0, self._config)[np.newaxis]
    offset_view, offset_alpha = self._seen(found.scene, behind, cameras[:1], size)
    return View(
      frames=shrink(torch.from_numpy(np.ascontiguousarray(video)), size).numpy(),
      rendered=rendered,
      offset_view=offset_view[0],
      offset_alpha=offset_alpha[0].clip(0, 1),
      poses=poses,
      depth_unit=1.0,
    )

  @torch.inference_mode()
  def _seen(
    self,
    scene: HarmonicScene,
    poses: Float[np.ndarray, "k 4 4"],
    cameras: Float[np.ndarray, "k 3 3"],
    size: tuple[int, int],
  ) -> tuple[UInt8[np.ndarray, "k h w 3"], Float[np.ndarray, "k h w"]]:
    images, alpha = self._render(scene, *(torch.from_numpy(x).to(scene.means) for x in (poses, cameras)), size)
    return (255 * images).round().to(torch.uint8).cpu().numpy(), alpha.cpu().numpy()


def seen_frames(frames: int, every: int) -> Int[np.ndarray, "n"]:
  """The frames that the networks see: every so many from the first on, and the last."""
  return np.unique([*range(0, frames, every), frames - 1])


def anchored(prediction: Prediction) -> AnchoredScene | Unscored:
  """The prediction in the first frame's coordinates, where the median depth of that frame's own Gaussians is 1."""
  cameras, scene = prediction.world_to_camera, prediction.scene
  if not (np.isfinite(cameras).all() and np.isfinite(prediction.intrinsics).all()):
    return Unscored("Depth Anything 3 found no finite cameras")
  if not scene.is_finite:
    return Unscored("Depth Anything 3 gave Gaussians that are not finite")
  if not (prediction.intrinsics[:, [0, 1], [0, 1]] > 0).all():
    return Unscored("Depth Anything 3 found cameras without a focal length")
  scene = scene.turned_and_moved(cameras[0])
  height, width = prediction.size
  unit = float(scene.means[: height * width, 2].median())
  if unit <= 0:
    return Unscored("Depth Anything 3 found the scene behind its first camera")
  poses = cameras[0] @ np.linalg.inv(cameras)
  poses[:, :3, 3] /= unit
  return AnchoredScene(poses, scene.scaled(1 / unit))


def all_intrinsics(
  prediction: Prediction, at: Int[np.ndarray, "n"], frames: int, size: tuple[int, int]
) -> Float[np.ndarray, "T 3 3"]:
  """The intrinsics of all frames, float32, in pixels of `size` (h, w), from those of the frames `at`.

  Each axis is rescaled by itself, so that a frame's fields of view stay those that the networks found.
  """
  (h, w), (seen_h, seen_w) = size, prediction.size
  known = prediction.intrinsics * np.array([w / seen_w, h / seen_h, 1.0])[:, np.newaxis]
  times = np.arange(frames)
  flat = [np.interp(times, at, values) for values in known.reshape(len(known), 9).T]
  return np.stack(flat, -1).reshape(frames, 3, 3).astype(np.float32)
