"""The splatting rasteriser against the image formation model written out pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wr1_jax.sidecar import gaussians
from wr1_jax.sidecar.gaussians import Gaussians

SIZE = (20, 28)
CAMERA = torch.tensor([[30.0, 0, 14], [0, 26, 10], [0, 0, 1]])


def random_scene(count: int, seed: int = 0) -> Gaussians:
  rng = np.random.default_rng(seed)
  f = lambda x: torch.tensor(x, dtype=torch.float32)[None]
  depth = rng.uniform(0.6, 2.5, (count, 1))
  return Gaussians(
    means=f(depth * np.concatenate([rng.uniform(-0.25, 0.25, (count, 2)), np.ones((count, 1))], 1)),
    scales=f(rng.uniform(0.01, 0.15, (count, 3))),
    quaternions=f(rng.normal(size=(count, 4))),
    opacities=f(rng.uniform(0.02, 1, count)),
    colours=f(rng.uniform(0, 1, (count, 3))),
  )


def pose(seed: int = 3) -> torch.Tensor:
  rng = np.random.default_rng(seed)
  turn, _ = np.linalg.qr(np.eye(3) + 0.05 * rng.normal(size=(3, 3)))
  result = np.eye(4)
  result[:3, :3] = turn * np.sign(np.diag(turn))
  result[:3, 3] = rng.normal(0, 0.02, 3)
  return torch.tensor(result, dtype=torch.float32)


def draw_slowly(scene: Gaussians, c2w: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
  """Every Gaussian of one scene at every pixel, front to back, in double precision."""
  (means, scales, quaternions, opacities, colours) = (field[0].double() for field in vars(scene).values())
  h, w = SIZE
  k = CAMERA.double().numpy()
  w2c = np.linalg.inv(c2w.double().numpy())
  points = means.numpy() @ w2c[:3, :3].T + w2c[:3, 3]
  axes = gaussians.rotation_matrices(quaternions).numpy() * scales.numpy()[:, None]
  image, alpha = np.zeros((h, w, 3)), np.zeros((h, w))
  transmittance, open_ = np.ones((h, w)), np.ones((h, w), bool)
  row, column = np.mgrid[:h, :w] + 0.5
  for g in np.argsort(points[:, 2]):
    x, y, z = points[g]
    jacobian = np.array([[k[0, 0] / z, 0, -k[0, 0] * x / z**2], [0, k[1, 1] / z, -k[1, 1] * y / z**2]])
    half = jacobian @ w2c[:3, :3] @ axes[g]
    inverse = np.linalg.inv(half @ half.T + 0.3 * np.eye(2))
    d = np.stack([column - k[0, 0] * x / z - k[0, 2], row - k[1, 1] * y / z - k[1, 2]], -1)
    a = np.minimum(0.999, float(opacities[g]) * np.exp(-0.5 * np.einsum("hwi,ij,hwj->hw", d, inverse, d)))
    a = np.where(a < 1 / 255, 0, a)
    open_ &= transmittance * (1 - a) > 1e-4
    weight = np.where(open_, transmittance * a, 0)
    image += weight[..., None] * colours[g].numpy()
    alpha += weight
    transmittance *= 1 - a
  return image, alpha


def test_matches_the_definition():
  scene = random_scene(120)
  image, alpha = gaussians.render(scene, pose()[None, None], CAMERA[None, None], SIZE)
  expected_image, expected_alpha = draw_slowly(scene, pose())
  assert expected_alpha.max() > 0.99  # some pixels are closed, some open
  assert expected_alpha.min() < 0.5
  np.testing.assert_allclose(image[0, 0], expected_image, atol=1e-5)
  np.testing.assert_allclose(alpha[0, 0], expected_alpha, atol=1e-5)


def test_order_of_gaussians_does_not_matter():
  scene = random_scene(40)
  turned = Gaussians(**{name: getattr(scene, name).flip(1) for name in vars(scene)})
  first, _ = gaussians.render(scene, pose()[None, None], CAMERA[None, None], SIZE)
  second, _ = gaussians.render(turned, pose()[None, None], CAMERA[None, None], SIZE)
  np.testing.assert_allclose(first, second, atol=1e-6)


@pytest.mark.parametrize("where", [[0, 0, -1.0], [50.0, 0, 1]], ids=["behind", "beside"])
def test_what_is_out_of_view_is_not_drawn(where):
  scene = random_scene(1)
  scene.means[0, 0] = torch.tensor(where)
  image, alpha = gaussians.render(scene, torch.eye(4)[None, None], CAMERA[None, None], SIZE)
  assert image.shape == (1, 1, *SIZE, 3)
  assert float(image.abs().max()) == 0 == float(alpha.abs().max())
  assert alpha.dtype == torch.float32


def two_scenes() -> Gaussians:
  """Of 30 and of 50 Gaussians."""
  return Gaussians.stack([random_scene(30), random_scene(50, seed=1)])


def paths(frames: int) -> tuple[torch.Tensor, torch.Tensor]:
  """Poses and intrinsics for two scenes."""
  poses = torch.stack([pose(seed) for seed in range(2 * frames)]).unflatten(0, (2, frames))
  return poses, CAMERA.expand(2, frames, 3, 3)


def test_gather_is_the_transpose_of_blend():
  fragments = gaussians.splat(two_scenes(), *paths(3), SIZE)
  generator = torch.Generator().manual_seed(0)
  values, image = torch.rand(2, 50, 2, generator=generator), torch.rand(2, 3, *SIZE, 2, generator=generator)
  by_scene = lambda x: x.flatten(1).sum(1)
  torch.testing.assert_close(by_scene(fragments.blend(values) * image), by_scene(values * fragments.gather(image)))


def test_scenes_and_frames_drawn_together_are_those_drawn_alone():
  scenes, (poses, cameras) = two_scenes(), paths(4)
  together = gaussians.splat(scenes, poses, cameras, SIZE)
  for scene, count in ((0, 30), (1, 50)):
    for frame in range(4):
      one, at = random_scene(count, seed=scene), (slice(scene, scene + 1), slice(frame, frame + 1))
      alone = gaussians.splat(one, poses[at], cameras[at], SIZE)
      torch.testing.assert_close(together.blend(scenes.colours)[at], alone.blend(one.colours))
      torch.testing.assert_close(together.alpha()[at], alone.alpha())


def test_joined_scenes_are_drawn_as_one():
  """With another that fills up: it adds nothing."""
  first, second = random_scene(30), random_scene(20, seed=1)
  filled = Gaussians.stack([second, random_scene(25)])[:1]
  for joined in (first.join(second), second.join(first), first.join(filled)):
    image, _ = gaussians.render(joined, pose()[None, None], CAMERA[None, None], SIZE)
    np.testing.assert_allclose(image[0, 0], draw_slowly(first.join(second), pose())[0], atol=1e-5)
