"""Start noise by mode."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wr1_jax.camera.noise_warp import blend, warped_noise
from wr1_jax.camera.start_noise import low_pass, start_noise
from wr1_jax.camera.trajectory import target_paths
from wr1_jax.config import CameraConfig, NoiseWarpConfig

_SHAPE = (5, 12, 20, 16)
_CAMERA = CameraConfig()
_PROMPTS = ["A lake.", "Camera push in. A lake.", "Camera move left. A lake."]


def _start(mode, prompts=_PROMPTS):
  poses, has_path = target_paths(prompts, 17, _CAMERA)
  plain_keys, camera_keys = (jax.random.split(jax.random.key(seed), 3)[: len(prompts)] for seed in (1, 2))
  warp = NoiseWarpConfig(mode=mode)
  return start_noise(plain_keys, camera_keys, poses, has_path, latent_shape=_SHAPE, camera=_CAMERA, warp=warp)


@jax.jit
def _carried():
  poses, _ = target_paths(_PROMPTS, 17, _CAMERA)
  carry = functools.partial(warped_noise, latent_shape=_SHAPE, camera=_CAMERA, warp=NoiseWarpConfig())
  return jax.vmap(carry)(jax.random.split(jax.random.key(2), 3), jnp.asarray(poses))


def _plain():
  return np.stack([jax.random.normal(key, _SHAPE) for key in jax.random.split(jax.random.key(1), 3)])


@pytest.mark.parametrize("mode", ["none", "initial", "blend", "stepwise_delta"])
def test_clip_without_a_path_starts_from_plain_noise_in_every_mode(mode):
  start = _start(mode)
  np.testing.assert_array_equal(start.latents[0], _plain()[0])
  assert (start.delta is None) == (mode != "stepwise_delta")
  if start.delta is not None:
    np.testing.assert_array_equal(start.delta[0], 0)


def test_initial_is_the_carried_noise():
  np.testing.assert_allclose(_start("initial").latents[1:], _carried()[1:], atol=1e-5)


def test_blend_mixes_at_the_given_strength():
  mixed = blend(_plain(), _carried(), NoiseWarpConfig().strength)
  np.testing.assert_allclose(_start("blend").latents[1:], mixed[1:], atol=1e-5)


def test_delta_is_smooth_has_unit_variance_and_follows_the_carried_noise():
  start = _start("stepwise_delta")
  np.testing.assert_array_equal(start.latents, _plain())
  delta = np.asarray(start.delta[1:])
  np.testing.assert_allclose(delta.std(axis=(1, 2, 3, 4)), 1, rtol=1e-4)
  assert np.mean(delta[:, :, :, 1:] * delta[:, :, :, :-1]) > 0.8
  carried = low_pass(_carried(), NoiseWarpConfig().delta_blur)[1:]
  assert np.corrcoef(delta.ravel(), np.ravel(carried))[0, 1] > 0.5


@pytest.mark.parametrize("side", [3, 4, 9])
def test_low_pass_sums_boxes_and_keeps_the_variance_at_the_edge(side):
  noise = jax.random.normal(jax.random.key(0), (4000, 6, 7, 1))
  smooth = np.asarray(low_pass(noise, side))
  if side == 3:
    np.testing.assert_allclose(smooth[:, 2, 3], noise[:, 1:4, 2:5].sum(axis=(1, 2)) / 3, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(smooth.var(axis=0), 1, atol=0.15)


def test_clips_do_not_depend_on_each_other():
  together, alone = _start("initial"), _start("initial", _PROMPTS[:2])
  assert "Camera" not in _PROMPTS[0] and "Camera" in _PROMPTS[1]  # plain noise and carried noise
  np.testing.assert_array_equal(together.latents[:2], alone.latents)


def test_other_paths_do_not_compile_again():
  _start("stepwise_delta")
  compiled = start_noise._cache_size()
  _start("stepwise_delta", ["Camera orbit left.", "A street.", "Camera fixed, then pull right."])
  assert start_noise._cache_size() == compiled
