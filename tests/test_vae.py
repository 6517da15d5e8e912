"""The video autoencoder against diffusers, chunk by chunk, and what it refuses."""

from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from parity import channels_first, channels_last, error

from wr1_jax.errors import UserError
from wr1_jax.models import vae, vae_layers, weights

CONFIG = vae.VAEConfig(
  base_dim=8,
  z_dim=4,
  num_res_blocks=1,
  latents_mean=(0.1, -0.2, 0.3, 0.4),
  latents_std=(1.0, 2.0, 0.5, 1.5),
)
SIZE = (32, 48)  # pixels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A small autoencoder in diffusers layout; no weight is zero or one."""
  abstract = nnx.state(nnx.eval_shape(lambda: vae.WanVAE(CONFIG, dtype=jnp.float32, rngs=nnx.Rngs(0))))
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    noise = rng.standard_normal(leaf.shape, np.float32)
    if path[-1] == "kernel":
      return leaf.replace(noise * np.prod(leaf.shape[:-1]) ** -0.5)
    return leaf.replace(0.3 * noise + (path[-1] == "scale"))

  state = nnx.from_flat_state([(path, draw(path, leaf)) for path, leaf in nnx.to_flat_state(abstract)])
  folder = tmp_path_factory.mktemp("vae")
  config = {"_class_name": "AutoencoderKLWan", **vars(CONFIG)}
  weights.save(folder, state, vae.tensor_table(state), config)
  return folder


@pytest.fixture(scope="module")
def parts(folder):
  return nnx.split(vae.load(folder, dtype=jnp.float32))


@pytest.fixture(scope="module")
def reference(folder):
  return pytest.importorskip("diffusers").AutoencoderKLWan.from_pretrained(folder).eval()


@functools.cache
def compiled(direction: str, graphdef: nnx.GraphDef, frames_per_chunk: int):
  def run(state, x):
    model = nnx.merge(graphdef, state)
    return (model.encode if direction == "encode" else model.decode)(x, frames_per_chunk=frames_per_chunk)

  # Unoptimised machine code takes half as long to make.
  return jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})


def video(frames: int, batch: int = 2) -> np.ndarray:
  return np.random.default_rng(frames).uniform(-1, 1, (batch, frames, *SIZE, 3)).astype(np.float32)


def latents(frames: int, batch: int = 2) -> np.ndarray:
  shape = (batch, *CONFIG.latent_shape(frames, *SIZE))
  return np.random.default_rng(frames).standard_normal(shape, np.float32)


# 1, 2 and 5 latent frames; chunks that divide those after the first, that do not, and that are larger.
CHUNKINGS = [(1, 1), (5, 1), (5, 4), (17, 1), (17, 2), (17, 3)]


@pytest.mark.parametrize("frames, frames_per_chunk", CHUNKINGS)
def test_encode_equals_diffusers(parts, reference, frames, frames_per_chunk):
  torch = pytest.importorskip("torch")
  with torch.no_grad():
    mode = channels_last(reference.encode(channels_first(video(frames))).latent_dist.mode())
  found = compiled("encode", parts[0], frames_per_chunk)(parts[1], video(frames))
  assert found.dtype == jnp.float32
  assert error(found, (mode - np.array(CONFIG.latents_mean)) / np.array(CONFIG.latents_std)) <= 1e-5


@pytest.mark.parametrize("frames, frames_per_chunk", CHUNKINGS)
def test_decode_equals_diffusers(parts, reference, frames, frames_per_chunk):
  torch = pytest.importorskip("torch")
  z = latents(frames)
  plain = (z * np.array(CONFIG.latents_std) + np.array(CONFIG.latents_mean)).astype(np.float32)
  with torch.no_grad():
    expected = channels_last(reference.decode(channels_first(plain)).sample)
  found = compiled("decode", parts[0], frames_per_chunk)(parts[1], z)
  assert found.dtype == jnp.float32 and found.shape == (2, frames, *SIZE, 3)
  assert np.abs(expected).max() == 1 and expected.std() > 0.1, "the case should show that pixels are clipped"
  assert error(found, expected) <= 1e-5


def test_every_tensor_counts(folder, parts, reference):
  """The leaves are diffusers' tensors, one for one, and each changes what is encoded or decoded."""
  graphdef, state = parts
  names = [tensor.name for tensor in vae.tensor_table(state).values()]
  assert sorted(names) == sorted(reference.state_dict())
  runs = {direction: compiled(direction, graphdef, 1) for direction in ("encode", "decode")}
  inputs = {"encode": video(5), "decode": latents(5)}
  before = {direction: run(state, inputs[direction]) for direction, run in runs.items()}
  flat = nnx.to_flat_state(state)
  for i, (path, leaf) in enumerate(flat):
    changed = [*flat[:i], (path, leaf.replace(leaf[...] * 1.5)), *flat[i + 1 :]]
    direction = "encode" if path[0] in ("encoder", "quant_conv") else "decode"
    after = runs[direction](nnx.from_flat_state(changed), inputs[direction])
    assert error(after, before[direction]) > 1e-4, path


def test_activations_do_not_grow_with_the_video(parts):
  """Beside input and output, memory holds a chunk: what a longer video adds is small against its activations."""
  graphdef, state = parts

  def temporary_bytes(frames: int) -> int:
    program = compiled("decode", graphdef, 1).lower(state, latents(frames, batch=1)).compile()
    return program.memory_analysis().temp_size_in_bytes

  pixels = SIZE[0] * SIZE[1] * 4  # bytes of one channel of one frame
  added = temporary_bytes(33) - temporary_bytes(17)
  # The video itself is held twice while its parts are joined; one activation at full resolution has 8 channels.
  assert added <= 16 * pixels * 3 * 2.5


def test_bfloat16_stays_close(folder, parts):
  graphdef, state = nnx.split(vae.load(folder, dtype=jnp.bfloat16))
  assert state.decoder.conv_in.kernel.dtype == jnp.bfloat16 and state.decoder.norm_out.scale.dtype == jnp.float32
  found = compiled("decode", graphdef, 1)(state, latents(5))
  assert found.dtype == jnp.float32
  assert error(found, compiled("decode", parts[0], 1)(parts[1], latents(5))) < 0.03


@pytest.mark.parametrize("size, stride, padding", [(3, 1, (1, 1)), (3, 2, (0, 1)), (1, 1, (0, 0))])
def test_products_of_patches_are_the_convolution(size, stride, padding):
  """What runs on GPUs for narrow layers, with its gradients, which do not come from differentiating it."""
  rng = np.random.default_rng(5)
  x = rng.standard_normal((2, 3, 8, 12, 5), np.float32)
  kernel = rng.standard_normal((size, size, 5, 7), np.float32)

  def run(convolve):
    y, back = jax.vjp(functools.partial(convolve, stride=stride, padding=padding), x, kernel)
    return y, *back(np.random.default_rng(6).standard_normal(y.shape, np.float32))

  for got, want in zip(run(vae_layers._product_of_patches), run(vae_layers._convolution)):
    assert got.shape == want.shape and error(got, want) < 1e-6


def test_sharded_over_videos(folder, parts):
  mesh = Mesh(np.array(jax.devices()[:2]).reshape(1, 2, 1), ("data", "fsdp", "sequence"))
  graphdef, state = nnx.split(vae.load(folder, dtype=jnp.float32, mesh=mesh))
  assert all(leaf.sharding.is_fully_replicated and len(leaf.devices()) == 2 for leaf in jax.tree.leaves(state))
  batch = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
  z = jax.device_put(latents(5), batch)
  found = compiled("decode", graphdef, 1)(state, z)
  assert found.sharding.is_equivalent_to(batch, found.ndim)
  assert error(found, compiled("decode", parts[0], 1)(parts[1], latents(5))) <= 1e-5


def test_to_uint8_rounds():
  values = jnp.array([-2.0, -1.0, -0.999, 0.0, 1 / 255, 0.5, 1.0, 3.0])
  np.testing.assert_array_equal(vae.to_uint8(values), [0, 0, 0, 128, 128, 191, 255, 255])


@pytest.mark.parametrize(
  "sizes, reason",
  [
    ((16, 32, 48), "closest are 13 and 17"),
    ((0, 32, 48), "closest are 1 and 5"),
    ((17, 36, 48), "multiples of 8"),
    ((17, 32, 0), "multiples of 8"),
  ],
)
def test_refuses_videos_that_do_not_fit(parts, sizes, reason):
  with pytest.raises(UserError, match=reason):
    CONFIG.latent_shape(*sizes)
  with pytest.raises(UserError, match=reason):
    nnx.merge(*parts).encode(jnp.zeros((1, *sizes, 3)))


@pytest.mark.parametrize(
  "option, value",
  [
    ("is_residual", True),
    ("patch_size", 2),
    ("in_channels", 12),
    ("attn_scales", [0.5]),
    ("latents_mean", [0.0]),
    ("temperal_downsample", [True, True]),
    ("dim_mult", "1, 2"),
  ],
)
def test_refuses_other_autoencoders(folder, tmp_path, option, value):
  config = json.loads((folder / "config.json").read_text())
  (tmp_path / "config.json").write_text(json.dumps(config | {option: value}))
  with pytest.raises(UserError, match=option):
    vae.load(tmp_path, dtype=jnp.float32)


def test_wan21_sizes():
  """A config.json as short as Wan2.1's own gives the published latents: 832x480x81 to 104x60x21."""
  config = vae.VAEConfig()
  assert config.latent_shape(81, 480, 832) == (21, 60, 104, 16)
  abstract = nnx.state(nnx.eval_shape(lambda: vae.WanVAE(config, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))))
  assert sum(leaf.size for leaf in jax.tree.leaves(abstract)) == 126_892_531
