"""The autoencoder while it is trained: its loss, and how well it does."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int, Key, UInt8

from wr1_jax import randomness
from wr1_jax.models import make_tiny, vae
from wr1_jax.pretraining.clips import to_float
from wr1_jax.pretraining.config import PretrainConfig
from wr1_jax.pretraining.network import Network

TERMS = ("l1", "mse", "kl")  # of the loss
_TOGETHER = 8  # clips that are evaluated at once, at most
_FIRST_LOG_VARIANCE = -4.0
_WEIGHTS = 0  # names the draw of the first weights


@dataclasses.dataclass(frozen=True)
class Reconstruction:
  """What the autoencoder makes of n clips."""

  video: UInt8[Array, "n T H W 3"]
  psnr: Float[Array, "n"]  # decibels
  moments: Float[Array, "3 C"]  # means over the clips of the posterior's mean, the mean's square and the variance


jax.tree_util.register_dataclass(Reconstruction)


class Autoencoding:
  """The network and its loss."""

  def __init__(self, config: PretrainConfig):
    self._config = config
    self._sizes = config.vae_sizes()
    self._chunk = max(1, self._sizes.latent_shape(*self._frame_sizes)[0] - 1)  # a whole clip after its first frame
    self._build = functools.partial(vae.WanVAE, self._sizes, dtype=jnp.dtype(config.dtype))
    self.network = Network.make(self._build)

  @property
  def _frame_sizes(self) -> tuple[int, int, int]:
    return self._config.world.frames, self._config.world.height, self._config.world.width

  def init(self) -> nnx.State:
    """New weights, float32."""
    weights = make_tiny.random_weights(self._build, np.random.default_rng([self._config.seed, _WEIGHTS]), {})
    # Samples of the posteriors would be mostly noise at first.
    weights["quant_conv"]["bias"][...][self._sizes.z_dim :] = _FIRST_LOG_VARIANCE
    return weights

  def loss(
    self,
    side: int,
    batch: int,
    weights: nnx.State,
    key: Key[Array, ""],
    videos: UInt8[Array, "n T H W 3"],
    filled: Int[Array, ""],
  ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Distance of `batch` clips to what is decoded from samples of their posteriors, and the posteriors' KL.

    Kingma and Welling 2014, with a weight for the KL. Clips are cut to a random square of `side` pixels; 0: not at all.
    """
    config, which, noise = self._config.vae, randomness.at(key, 0), randomness.at(key, 1)
    video = to_float(_draw(which, videos, filled, side, batch))
    model = self.network(weights)
    mean, log_variance = model.posterior(video, frames_per_chunk=self._chunk)
    latents = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(noise, mean.shape)
    error = model.decode(latents, frames_per_chunk=self._chunk, clip=False) - video
    l1, mse = jnp.abs(error).mean(), jnp.square(error).mean()
    kl = 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance).mean()
    value = config.l1_weight * l1 + config.mse_weight * mse + config.kl_weight * kl
    return value, {"l1": l1, "mse": mse, "kl": kl}

  def reconstruct(self, weights: nnx.State, videos: UInt8[Array, "n T H W 3"]) -> Reconstruction:
    """Encodes clips to their posterior's mean, and decodes that."""
    model = self.network(weights)

    def some(videos: UInt8[Array, "m T H W 3"]) -> tuple[Array, Array, Array]:
      mean, log_variance = model.posterior(to_float(videos), frames_per_chunk=self._chunk)
      decoded = model.decode(mean, frames_per_chunk=self._chunk)
      mse = jnp.square(decoded - to_float(videos)).mean(axis=(1, 2, 3, 4))
      moments = jnp.stack([mean, jnp.square(mean), jnp.exp(log_variance)]).mean(axis=(1, 2, 3, 4))
      return vae.to_uint8(decoded), 10 * jnp.log10(4 / mse), moments

    together = max(n for n in range(1, _TOGETHER + 1) if len(videos) % n == 0)
    decoded, psnr, moments = jax.lax.map(some, rearrange(videos, "(k m) ... -> k m ...", m=together))
    return Reconstruction(rearrange(decoded, "k m ... -> (k m) ..."), psnr.reshape(-1), moments.mean(axis=0))

  def normalised(self, moments: Float[np.ndarray, "3 C"]) -> vae.VAEConfig:
    """Sizes with the mean and standard deviation of the latents.

    The deviation is that of posterior samples: a channel that carries nothing would otherwise be blown up to noise.
    """
    mean, square, variance = np.asarray(moments, np.float64)
    std = np.sqrt(np.maximum(square - mean**2, 0) + variance)
    return dataclasses.replace(self._sizes, latents_mean=tuple(mean.tolist()), latents_std=tuple(std.tolist()))


def _draw(
  key: Key[Array, ""], videos: UInt8[Array, "n T H W 3"], filled: Int[Array, ""], side: int, batch: int
) -> UInt8[Array, "B T h w 3"]:
  which, rows, columns = (randomness.at(key, i) for i in range(3))
  index = jax.random.randint(which, (batch,), 0, filled)
  if not side:
    return videos[index]
  _, frames, height, width, _ = videos.shape
  top = jax.random.randint(rows, (batch,), 0, height - side + 1)
  left = jax.random.randint(columns, (batch,), 0, width - side + 1)
  cut = lambda i, y, x: jax.lax.dynamic_slice(videos, (i, 0, y, x, 0), (1, frames, side, side, 3))[0]
  return jax.vmap(cut)(index, top, left)
