"""The reconstructor Depth Anything 3: with stand-ins for its networks, and with small real ones where they can run.

The latter need the environment that launch/install_rewards.sh makes; without it those tests are skipped.
"""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from scipy.special import lpmv
from sidecar_helpers import TESTS

from wr1_jax.config import DepthAnythingConfig, ReconstructionConfig, RewardsConfig
from wr1_jax.errors import UserError
from wr1_jax.rewards.client import RewardClient
from wr1_jax.rewards.jobs import Job
from wr1_jax.sidecar import gaussians
from wr1_jax.sidecar.depth_anything import harmonics, model, render, scorer
from wr1_jax.sidecar.depth_anything.scene import HarmonicScene
from wr1_jax.sidecar.scorers import Unscored, View

REWARDS_PYTHON = Path(os.environ.get("WR1_REWARDS_PYTHON", TESTS.parent / ".venv-rewards" / "bin" / "python"))


pytestmark = pytest.mark.usefixtures("one_thread")


# --- colours ----------------------------------------------------------------------------------------------------------


def directions(count: int, seed: int = 0) -> np.ndarray:
  found = np.random.default_rng(seed).normal(size=(count, 3))
  return found / np.linalg.norm(found, axis=-1, keepdims=True)


def harmonic_by_angles(degree: int, order: int, x: float, y: float, z: float) -> float:
  """The real spherical harmonic from its definition; scipy's Legendre functions have the Condon-Shortley phase."""
  m = abs(order)
  size = math.sqrt((2 * degree + 1) / (4 * math.pi) * math.factorial(degree - m) / math.factorial(degree + m))
  around = math.atan2(y, x)
  turn = 1.0 if order == 0 else math.sqrt(2) * (math.cos(m * around) if order > 0 else math.sin(m * around))
  return size * turn * lpmv(m, degree, z)


def test_the_basis_is_that_of_the_definition():
  points = directions(20)
  found = harmonics.basis(torch.from_numpy(points))
  orders = [(degree, order) for degree in range(3) for order in range(-degree, degree + 1)]
  expected = [[harmonic_by_angles(*which, *point) for which in orders] for point in points]
  np.testing.assert_allclose(found, expected, atol=1e-12)


def test_the_basis_has_the_signs_of_gsplat():
  """Constants of 3D Gaussian splatting, at a direction by hand: checkpoints were trained with these signs."""
  x, y, z = 0.6, 0.48, 0.64
  first, second = 0.48860251190292, 1.092548430592079
  expected = [0.2820947917738781, -first * y, first * z, -first * x]
  expected += [second * x * y, -second * y * z, 0.9461746957575601 * z * z - 0.3153915652525201, -second * x * z]
  expected += [0.5462742152960395 * (x * x - y * y)]
  np.testing.assert_allclose(harmonics.basis(torch.tensor([x, y, z], dtype=torch.float64)), expected, atol=1e-12)


def test_colours_are_half_grey_plus_the_sum_and_never_negative():
  coefficients = torch.zeros(2, 9, 3)
  coefficients[0, 3] = torch.tensor([1.0, -1.0, 0.0])  # along -x
  coefficients[1, 0] = torch.tensor([-10.0, 1.0, 0.0])
  found = harmonics.colours(coefficients, torch.tensor([[-7.0, 0, 0], [0, 0, 2.0]]))
  expected = [[0.5 + 0.48860251, 0.5 - 0.48860251, 0.5], [0.0, 0.5 + 0.28209479, 0.5]]
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_turned_harmonics_look_the_same_from_turned_directions():
  coefficients = torch.from_numpy(np.random.default_rng(1).normal(size=(6, 9, 3)))
  rotation, points = Rotation.random(random_state=2).as_matrix(), directions(6, seed=3)
  turned = harmonics.turned(coefficients, torch.from_numpy(rotation))
  before = harmonics.colours(coefficients, torch.from_numpy(points)).numpy()
  np.testing.assert_allclose(harmonics.colours(turned, torch.from_numpy(points @ rotation.T)), before, atol=1e-12)
  assert np.abs(harmonics.colours(turned, torch.from_numpy(points)).numpy() - before).max() > 0.1


# --- scenes -----------------------------------------------------------------------------------------------------------

SIZE = (24, 32)
CAMERA = torch.tensor([[30.0, 0, 16], [0, 28, 12], [0, 0, 1]])


def random_scene(count: int = 60, seed: int = 0) -> HarmonicScene:
  rng = np.random.default_rng(seed)
  f = lambda x: torch.tensor(x, dtype=torch.float32)
  depth = rng.uniform(1, 3, (count, 1))
  return HarmonicScene(
    means=f(depth * np.concatenate([rng.uniform(-0.4, 0.4, (count, 2)), np.ones((count, 1))], 1)),
    scales=f(rng.uniform(0.02, 0.2, (count, 3))),
    quaternions=f(rng.normal(size=(count, 4))),
    opacities=f(rng.uniform(0.2, 1, count)),
    harmonics=f(rng.normal(0, 0.4, (count, 9, 3))),
  )


def motion(seed: int, shift: float = 2.0) -> np.ndarray:
  pose = np.eye(4)
  pose[:3, :3] = Rotation.random(random_state=seed).as_matrix()
  pose[:3, 3] = np.random.default_rng(seed).normal(0, shift, 3)
  return pose


def path(frames: int) -> np.ndarray:
  """Camera-to-world from the origin: sideways at a steady pace, with a steady turn."""
  poses = np.tile(np.eye(4), (frames, 1, 1))
  for k, pose in enumerate(poses):
    pose[:3, :3] = Rotation.from_rotvec([0.0, 0.02 * k, 0.005 * k]).as_matrix()
    pose[:3, 3] = [0.05 * k, -0.01 * k, 0.02 * k]
  return poses


def draw(scene: HarmonicScene, poses: np.ndarray, size=SIZE, camera=CAMERA) -> tuple[np.ndarray, np.ndarray]:
  k = camera.expand(len(poses), 3, 3)
  images, alpha = render.on_cpu(scene, torch.from_numpy(poses).float(), k, size)
  return images.numpy(), alpha.numpy()


def test_a_scene_is_drawn_in_the_colours_of_each_direction():
  """As plain Gaussians whose colours were computed by hand for each camera."""
  scene, poses = random_scene(), path(3)
  images, alpha = draw(scene, poses)
  for pose, image, covered in zip(poses, images, alpha):
    seen = scene.means.numpy() - pose[:3, 3].astype(np.float32)
    values = np.stack([harmonics.basis(torch.from_numpy(ray / np.linalg.norm(ray))).numpy() for ray in seen])
    by_hand = np.maximum(np.einsum("gk,gkc->gc", values, scene.harmonics.numpy()) + 0.5, 0)
    plain = dataclasses.replace(scene.seen_from(torch.zeros(3)), colours=torch.from_numpy(by_hand)[None])
    expected, expected_alpha = gaussians.render(
      plain, torch.from_numpy(pose).float()[None, None], CAMERA[None, None], SIZE
    )
    np.testing.assert_allclose(image, expected[0, 0], atol=1e-5)
    np.testing.assert_allclose(covered, expected_alpha[0, 0], atol=1e-6)
  assert alpha.mean() > 0.5


def test_a_moved_scene_looks_the_same_to_moved_cameras():
  scene, poses, moved = random_scene(), path(3), motion(5)
  before, alpha_before = draw(scene, poses)
  after, alpha_after = draw(scene.turned_and_moved(moved), moved @ poses)
  np.testing.assert_allclose(after, before, atol=1e-3)
  np.testing.assert_allclose(alpha_after, alpha_before, atol=1e-3)
  larger = poses.copy()
  larger[:, :3, 3] *= 3.0
  np.testing.assert_allclose(draw(scene.scaled(3.0), larger)[0], before, atol=1e-3)


def test_gsplat_is_asked_for_the_same_pictures(monkeypatch):
  """With a stand-in that takes what gsplat 1.5.3 takes, and draws on the CPU what it was told to."""

  def rasterization(
    *, means, quats, scales, opacities, colors, viewmats, Ks, width, height, near_plane, eps2d, sh_degree
  ):
    assert (near_plane, eps2d, sh_degree) == (gaussians.NEAREST, gaussians.SCREEN_BLUR, 2)
    assert colors.shape == (len(means), 9, 3)
    scene = HarmonicScene(means, scales, quats, opacities, colors)
    images, alpha = render.on_cpu(scene, torch.linalg.inv(viewmats), Ks, (height, width))
    return images, alpha[..., None], {}

  monkeypatch.setitem(sys.modules, "gsplat", types.SimpleNamespace(rasterization=rasterization))
  scene, poses = random_scene(), torch.from_numpy(path(3)).float()
  for found, expected in zip(
    render.on_cuda(scene, poses, CAMERA.expand(3, 3, 3), SIZE),
    render.on_cpu(scene, poses, CAMERA.expand(3, 3, 3), SIZE),
  ):
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_gsplat_draws_as_the_cpu_does():
  pytest.importorskip("gsplat")
  scene, poses, cameras = random_scene(), torch.from_numpy(path(3)).float(), CAMERA.expand(3, 3, 3)
  on_gpu = HarmonicScene(**{name: field.cuda() for name, field in vars(scene).items()})
  drawn = render.renderer("cuda")(on_gpu, poses.cuda(), cameras.cuda(), SIZE)
  for found, expected in zip(drawn, render.on_cpu(scene, poses, cameras, SIZE)):
    assert float((found.cpu() - expected).abs().mean()) < 5e-3


def test_other_devices_are_refused():
  with pytest.raises(UserError, match="config.rewards.device is 'tpu'; Depth Anything 3 runs on 'cuda'"):
    render.renderer("tpu")
  assert render.renderer("cpu") is render.on_cpu


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_a_user_error():
  with pytest.raises(UserError, match="'cuda', which PyTorch .* cannot use here: .*install_rewards.sh cuda"):
    render.renderer("cuda")


@pytest.mark.parametrize(
  "gsplat, complaint",
  [
    (None, "gsplat cannot be used.*needs the package gsplat==1.5.3.*install_rewards.sh cuda"),
    (types.SimpleNamespace(_C=None), "kernels must be compiled once, and there is no nvcc. Install the CUDA toolkit"),
  ],
)
def test_without_gsplat_or_nvcc_nothing_else_is_taken(monkeypatch, gsplat, complaint):
  monkeypatch.setattr(torch, "empty", lambda *_, **__: None)  # as if there were a GPU
  cuda = types.SimpleNamespace(_backend=gsplat)
  for name, module in (("gsplat", gsplat), ("gsplat.cuda", gsplat and cuda), ("gsplat.cuda._backend", gsplat)):
    monkeypatch.setitem(sys.modules, name, module)
  with pytest.raises(UserError, match=complaint):
    render.renderer("cuda:0")


# --- what the networks say --------------------------------------------------------------------------------------------

FRAMES = 10
CLIP = (48, 80)  # height and width
SEEN = (28, 42)  # by the networks
PROCESSED = (48, 80)
VERTICAL_FIELD = 2 * math.atan(0.6)
CONFIG = RewardsConfig(reconstruction=ReconstructionConfig(max_pixels=48 * 80))
WORLD = motion(7)  # where the networks' world lies: near no camera


def camera_of(size: tuple[int, int]) -> np.ndarray:
  """Intrinsics of one camera for images of `size`; pixels need not be square."""
  h, w = size
  return np.array([[0.9 * w, 0, w / 2], [0, h / 2 / math.tan(VERTICAL_FIELD / 2), h / 2], [0, 0, 1]])


def true_scene() -> HarmonicScene:
  """A wavy, coloured wall about 2 in front of the first camera: one Gaussian a pixel of what the networks see there."""
  h, w = SEEN
  rng = np.random.default_rng(0)
  row, column = np.mgrid[:h, :w] + 0.5
  rays = np.stack([column, row, np.ones_like(row)], -1) @ np.linalg.inv(camera_of(SEEN)).T
  depth = 2 + 0.2 * np.sin(column / 5) * np.cos(row / 4)
  f = lambda x: torch.tensor(x, dtype=torch.float32)
  return HarmonicScene(
    means=f((rays * depth[..., None]).reshape(-1, 3)),
    scales=f(np.full((h * w, 3), 0.04)),
    quaternions=f(rng.normal(size=(h * w, 4))),
    opacities=f(np.full(h * w, 0.95)),
    harmonics=f(rng.normal(0, 1, (h * w, 9, 3)) * np.array([1.2] + 3 * [0.1] + 5 * [0.05])[:, None]),
  )


def output(at: np.ndarray, **changes) -> dict:
  """What the networks would say of frames `at` of `path`: everything in the world `WORLD`."""
  scene, count = true_scene().turned_and_moved(WORLD), len(at)
  w2c = np.linalg.inv(WORLD @ path(FRAMES)[at])
  unseen = lambda x, times: torch.cat([x, torch.zeros_like(x).repeat(times - 1, *[1] * (x.ndim - 1))])[None]
  found = {
    "means": unseen(scene.means, count),
    "scales": unseen(scene.scales, count),
    "rotations": torch.cat([scene.quaternions] * count)[None],
    "opacities": unseen(scene.opacities, count),
    "harmonics": unseen(scene.harmonics, count).transpose(-1, -2),
  }
  result = {
    "extrinsics": torch.tensor(w2c[None, :, :3]),
    "intrinsics": torch.tensor(np.tile(camera_of(SEEN), (1, count, 1, 1))),
  }
  for name, change in changes.items():
    if name in found:
      found[name] = change(found[name])
    elif name in result:
      result[name] = change(result[name])
    else:
      result[name] = change
  return result | {"gaussians": types.SimpleNamespace(**found)}


def reconstructor(monkeypatch, config=CONFIG, **changes) -> tuple[scorer.DepthAnythingReconstructor, list[int]]:
  """With a stand-in for the networks, and the numbers of the frames that it gets to see (their first pixel's red)."""
  seen: list[int] = []

  def predict(frames):
    seen[:] = frames[:, 0, 0, 0].tolist()
    return model.read(output(np.array(seen), **changes), SEEN)

  monkeypatch.setattr(scorer, "DepthAnything", lambda options, device: predict)
  return scorer.DepthAnythingReconstructor(config), seen


def numbered_clip() -> np.ndarray:
  """The true scene as its cameras see it; the first pixel of a frame is its number."""
  images, _ = draw(true_scene(), path(FRAMES), CLIP, torch.from_numpy(camera_of(CLIP)).float())
  video = (255 * images).round().astype(np.uint8)
  video[:, 0, 0] = np.arange(FRAMES)[:, None]
  return video


def difference(a: np.ndarray, b: np.ndarray) -> float:
  return float(np.abs(a.astype(float) - b.astype(float)).mean())


@pytest.mark.parametrize("every", [1, 4])
def test_a_clip_is_drawn_back_frame_by_frame(monkeypatch, every):
  config = dataclasses.replace(CONFIG, depth_anything_3=DepthAnythingConfig(every=every))
  reconstruct, seen = reconstructor(monkeypatch, config)
  video = numbered_clip()
  (view,) = reconstruct(video[None], [None])
  assert seen == (list(range(FRAMES)) if every == 1 else [0, 4, 8, 9])
  assert view.frames.shape == (FRAMES, *PROCESSED, 3) and np.array_equal(view.frames, video)
  for k in range(FRAMES):
    own = difference(view.rendered[k], video[k])
    others = [difference(view.rendered[k], video[other]) for other in range(FRAMES) if other != k]
    assert own < 1.0 and min(others) > 2 * own + 1.0, k
  np.testing.assert_allclose(view.poses[0], np.eye(4), atol=1e-6)


def test_poses_and_scene_are_in_the_first_camera_and_its_median_depth(monkeypatch):
  reconstruct, _ = reconstructor(monkeypatch)
  (view,) = reconstruct(numbered_clip()[None], [None])
  unit = float(true_scene().means[:, 2].median())
  expected = path(FRAMES)
  expected[:, :3, 3] /= unit
  np.testing.assert_allclose(view.poses, expected, atol=1e-5)
  assert view.depth_unit == 1.0 and view.poses.dtype == np.float32
  found = scorer.anchored(model.read(output(np.arange(FRAMES)), SEEN))
  own = found.scene.means[: SEEN[0] * SEEN[1]]
  np.testing.assert_allclose(own, true_scene().means / unit, atol=1e-4)
  assert float(own[:, 2].median()) == pytest.approx(1.0, abs=1e-5)


def test_a_nested_models_scale_is_taken_back():
  """Its poses are in metres, here 2.5 a unit; its Gaussians are not."""
  at = np.arange(0, FRAMES, 3)

  def in_metres(extrinsics):
    extrinsics[..., 3] *= 2.5
    return extrinsics

  plain = scorer.anchored(model.read(output(at), SEEN))
  nested = scorer.anchored(model.read(output(at, extrinsics=in_metres, scale_factor=2.5), SEEN))
  np.testing.assert_allclose(nested.poses, plain.poses, atol=1e-9)
  torch.testing.assert_close(nested.scene.means, plain.scene.means)
  ignored = scorer.anchored(model.read(output(at, extrinsics=in_metres), SEEN))
  assert np.abs(ignored.poses - plain.poses).max() > 0.1


@pytest.mark.parametrize("size", [(480, 832), (96, 160), (40, 104)])
def test_fields_of_view_do_not_change_with_the_size(size):
  at = np.array([0, 4, 8, 9])
  cameras = scorer.all_intrinsics(model.read(output(at), SEEN), at, FRAMES, size)
  assert cameras.shape == (FRAMES, 3, 3) and cameras.dtype == np.float32
  np.testing.assert_allclose(2 * np.arctan(size[0] / 2 / cameras[:, 1, 1]), VERTICAL_FIELD, rtol=1e-6)
  np.testing.assert_allclose(2 * np.arctan(size[1] / 2 / cameras[:, 0, 0]), 2 * math.atan(1 / 1.8), rtol=1e-6)
  np.testing.assert_allclose(cameras[:, :2, 2], [[size[1] / 2, size[0] / 2]] * FRAMES)


def test_intrinsics_of_other_frames_lie_between_those_of_their_neighbours():
  def zoomed(intrinsics):
    intrinsics[0, :, 0, 0] = torch.tensor([10.0, 18.0, 26.0, 20.0])
    return intrinsics

  at = np.array([0, 4, 8, 9])
  cameras = scorer.all_intrinsics(model.read(output(at, intrinsics=zoomed), SEEN), at, FRAMES, SEEN)
  np.testing.assert_allclose(cameras[:, 0, 0], [10, 12, 14, 16, 18, 20, 22, 24, 26, 20], rtol=1e-6)


@pytest.mark.parametrize("frames, every, expected", [(81, 4, 21), (1, 4, 1), (2, 4, 2), (17, 1, 17)])
def test_the_first_and_the_last_frame_are_always_seen(frames, every, expected):
  at = scorer.seen_frames(frames, every)
  assert len(at) == expected and at[0] == 0 and at[-1] == frames - 1


@pytest.mark.parametrize(
  "size, expected",
  [((480, 832), (294, 504)), ((832, 480), (504, 294)), ((720, 1280), (280, 504)), ((96, 160), (308, 504))],
)
def test_the_networks_see_the_size_that_the_package_gives_them(size, expected):
  assert model.seen_size(*size, 504) == expected


def spoilt(value: float):
  def spoil(x):
    x = x.clone()
    x[0, 1] = value
    return x

  return spoil


@pytest.mark.parametrize(
  "changes, reason",
  [
    ({"extrinsics": spoilt(math.nan)}, "no finite cameras"),
    ({"intrinsics": spoilt(math.inf)}, "no finite cameras"),
    ({"scale_factor": 0.0}, "no finite cameras"),
    ({"intrinsics": lambda x: x * torch.tensor([-1.0, 1.0, 1.0]).double()[:, None]}, "without a focal length"),
    *[({name: spoilt(math.nan)}, "Gaussians that are not finite") for name in ("means", "scales", "rotations")],
    *[({name: spoilt(math.inf)}, "Gaussians that are not finite") for name in ("opacities", "harmonics")],
    ({"opacities": torch.zeros_like}, "scene is empty: it fills 0.00%"),
    ({"means": lambda x: x - 9 * torch.tensor(WORLD[:3, 2]).float()}, "behind its first camera"),
  ],
)
def test_bad_output_is_unscored(monkeypatch, changes, reason):
  reconstruct, _ = reconstructor(monkeypatch, **changes)
  (found,) = reconstruct(numbered_clip()[None], [None])
  assert isinstance(found, Unscored), found
  assert reason in found.reason


def test_a_clip_that_the_networks_give_up_costs_no_other(monkeypatch):
  def predict(frames):
    if frames[0, 0, 0, 0] == 255:
      raise model.NoPrediction("Depth Anything 3 gave up: nothing but sky")
    return model.read(output(frames[:, 0, 0, 0]), SEEN)

  monkeypatch.setattr(scorer, "DepthAnything", lambda options, device: predict)
  video = numbered_clip()
  lost, fine = scorer.DepthAnythingReconstructor(CONFIG)(np.stack([np.full_like(video, 255), video]), [None, None])
  assert isinstance(lost, Unscored) and "nothing but sky" in lost.reason
  assert isinstance(fine, View)


# --- model folders ----------------------------------------------------------------------------------------------------

ADAPTER = types.SimpleNamespace(pred_color=False, sh_degree=2)


def test_networks_with_gaussians_are_taken():
  plain = types.SimpleNamespace(gs_head=object(), gs_adapter=ADAPTER)
  for network in (plain, types.SimpleNamespace(da3=plain)):
    model.check_gaussian_head(network, "da3-giant", "rewards.depth_anything_3.path")


@pytest.mark.parametrize(
  "network, complaint",
  [
    (types.SimpleNamespace(gs_head=None, gs_adapter=None), "has no head for Gaussians.*da3-giant"),
    (types.SimpleNamespace(da3=types.SimpleNamespace(gs_head=None, gs_adapter=ADAPTER)), "has no head for Gaussians"),
    (
      types.SimpleNamespace(gs_head=object(), gs_adapter=types.SimpleNamespace(pred_color=False, sh_degree=3)),
      "gives colours of another form than spherical harmonics of degree 2",
    ),
    (
      types.SimpleNamespace(gs_head=object(), gs_adapter=types.SimpleNamespace(pred_color=True, sh_degree=2)),
      "gives colours of another form than spherical harmonics of degree 2",
    ),
  ],
)
def test_networks_without_gaussians_that_can_be_read_are_refused(network, complaint):
  with pytest.raises(UserError, match=f"config.rewards.depth_anything_3.path: the model 'da3-large' {complaint}"):
    model.check_gaussian_head(network, "da3-large", "rewards.depth_anything_3.path")


def test_without_its_package_the_environment_is_named(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, "cv2", None)
  monkeypatch.setitem(sys.modules, "depth_anything_3", None)
  with pytest.raises(UserError, match="'depth_anything_3', which .* cannot run.*bash launch/install_rewards.sh"):
    model.DepthAnything(DepthAnythingConfig(path=str(tmp_path)), "cpu")


def test_a_folder_that_is_not_there_is_named_with_the_download(tmp_path):
  path = str(tmp_path / "weights")
  with pytest.raises(UserError, match=f"is '{path}', which is no folder.*hf download depth-anything/DA3-GIANT-1.1 con"):
    model.DepthAnything(DepthAnythingConfig(path=path), "cpu")


# --- the real classes, small ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Three small models, and in `found.npz` what they and their package say."""
  if not REWARDS_PYTHON.exists():
    pytest.skip(f"there is no {REWARDS_PYTHON}; `bash launch/install_rewards.sh` makes it")
  made = tmp_path_factory.mktemp("depth_anything")
  environment = os.environ | {"PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}", "OMP_NUM_THREADS": "1"}
  command = [str(REWARDS_PYTHON), "-W", "ignore", str(TESTS / "tiny_depth_anything.py"), str(made)]
  done = subprocess.run(command, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  return made


@pytest.fixture(scope="module")
def found(folder):
  with np.load(folder / "found.npz") as arrays:
    return dict(arrays)


def tiny(folder: Path, name: str) -> RewardsConfig:
  return RewardsConfig(
    python=str(REWARDS_PYTHON),
    reconstructor="tiny_depth_anything:make",
    depth_anything_3=DepthAnythingConfig(path=str(folder / name), dtype="float32", longest_side=56),
    reconstruction=ReconstructionConfig(max_pixels=32 * 48),
    start_seconds=120.0,
  )


def test_a_sidecar_in_its_own_environment_scores_with_it(folder, monkeypatch):
  monkeypatch.setenv("PYTHONPATH", str(TESTS))
  video = np.random.default_rng(0).integers(0, 256, (1, 6, 64, 96, 3)).astype(np.uint8)
  with RewardClient(tiny(folder, "tiny")) as client:
    (clip,) = client.submit(Job(video, ("a room",), [None], frozenset({"reconstruction", "meta"}))).result()
    versions = client.versions
  assert clip.reasons == {}
  assert versions["depth-anything-3"] == "0.1.1"
  assert clip.rendered.shape == clip.frames.shape == (6, 32, 48, 3)
  assert clip.rendered.std() > 1 and 0 <= clip.meta <= 1
  np.testing.assert_allclose(clip.poses[0], np.eye(4), atol=1e-6)
  assert np.abs(clip.poses[1:, :3, 3]).max() > 1e-3 and clip.depth_unit == 1.0


def test_a_sidecar_refuses_a_model_without_gaussians(folder, monkeypatch):
  monkeypatch.setenv("PYTHONPATH", str(TESTS))
  with pytest.raises(UserError, match="the model 'headless' has no head for Gaussians"):
    with RewardClient(tiny(folder, "headless")):
      pass


def test_a_nested_model_gives_the_scene_of_its_inner_one(found):
  """It has the same weights there, and a metric branch that scales poses alone."""
  assert abs(found["scale_factor"] - 1) > 0.05
  np.testing.assert_allclose(found["nested_cameras"], found["tiny_cameras"], atol=1e-5)
  np.testing.assert_allclose(found["nested_means"], found["tiny_means"], atol=1e-5)


def test_pictures_reach_the_networks_as_the_package_prepares_them(found):
  for i in range(3):
    np.testing.assert_allclose(found[f"inputs_{i}"], found[f"package_inputs_{i}"], atol=1e-5)


def test_harmonics_turn_as_the_package_turns_them(found):
  own = harmonics.turned(torch.from_numpy(found["harmonics"]), torch.from_numpy(found["rotation"]))
  np.testing.assert_allclose(own.transpose(-1, -2), found["package_turned"], atol=1e-4)


def test_models_that_are_not_whole_or_not_known_are_refused(found):
  option = "config.rewards.depth_anything_3.path"
  assert f"{option}: the checkpoint lacks model.gs_head.scratch.output_conv2.2.weight;" in str(found["missing"])
  assert f"{option}: the config.json in " in str(found["unknown"])
  assert "the model 'da4', which depth-anything-3 does not know; it knows da3-base, " in str(found["unknown"])
