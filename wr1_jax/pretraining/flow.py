"""Flow matching of transformer and text encoder, and samples from what they have learnt."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key
from transformers import PreTrainedTokenizerBase

from wr1_jax import randomness
from wr1_jax.models import make_tiny, text, transformer, umt5, weights
from wr1_jax.models.attention import Attention
from wr1_jax.pretraining.config import PretrainConfig
from wr1_jax.pretraining.network import Network
from wr1_jax.sampling.guidance import guided
from wr1_jax.sampling.schedule import TRAIN_TIMESTEPS, Schedule
from wr1_jax.sampling.solvers import euler

_WEIGHTS = 1  # names the draw of the first weights


class Weights(NamedTuple):
  """What the stage trains."""

  transformer: nnx.State
  text_encoder: nnx.State


class Entries(NamedTuple):
  """n clips as the transformer knows them."""

  latents: Float[Array, "n T H W C"]  # normalised, bfloat16
  tokens: Int[Array, "n L"]
  mask: Bool[Array, "n L"]


class Flow:
  """The networks, their loss and their sampler."""

  def __init__(self, config: PretrainConfig, tokenizer: PreTrainedTokenizerBase, attention: str = "auto"):
    """`attention`: the kernel, as `models.attention` names it."""
    self._config = config.flow
    self._seed, dtype = config.seed, jnp.dtype(config.dtype)
    self._sizes, self._network_sizes = config.text_encoder_sizes(), config.transformer_sizes()
    self._build_transformer = functools.partial(
      transformer.WanTransformer,
      self._network_sizes,
      lora=None,
      dtype=dtype,
      attention=Attention(attention),
      remat="none",
    )
    self._build_encoder = functools.partial(umt5.UMT5Encoder, self._sizes, dtype=dtype)
    self.transformer, self.encoder = Network.make(self._build_transformer), Network.make(self._build_encoder)
    module = nnx.merge(self.encoder.graphdef, self.encoder.declared)
    self._text = text.TextEncoder(tokenizer, module, length=config.flow.text_length)
    self.tokenize = self._text.tokenize
    self._empty = self.tokenize([""])  # what guidance steers away from

  def load(self, folder: Path) -> Weights:
    """The weights of a model folder, in float32.

    Raises:
      UserError: it lacks a part, or its sizes are not the config's.
    """
    float32 = lambda declared: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), declared)
    network, encoder = float32(self.transformer.declared), float32(self.encoder.declared)
    return Weights(
      weights.load(folder / "transformer", network, transformer.tensor_table(self._network_sizes)),
      weights.load(folder / "text_encoder", encoder, umt5.tensor_table()),
    )

  def init(self) -> Weights:
    """New weights, float32; as Wan begins, with a velocity of zero and a clock that hardly modulates the layers."""
    rng = np.random.default_rng([self._seed, _WEIGHTS])
    gains = {"proj_out/kernel": 0.0, "time_out/kernel": 0.1}
    network = make_tiny.random_weights(self._build_transformer, rng, gains)
    gains = {"blocks/attention/q/kernel": self._sizes.d_kv**-0.5}  # its logits are unscaled
    return Weights(network, make_tiny.random_weights(self._build_encoder, rng, gains))

  def embed(self, weights: Weights, tokens: Int[Array, "B L"], mask: Bool[Array, "B L"]) -> Float[Array, "B L D"]:
    """Text embeddings, zero after each prompt's end."""
    return self._text.embed(self.encoder.cast(weights.text_encoder), tokens, mask)

  def loss(
    self, weights: Weights, key: Key[Array, ""], entries: Entries, filled: Int[Array, ""]
  ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Of a batch that is drawn from the first `filled` entries, some with the empty prompt in place of theirs."""
    which, dropped, levels = (randomness.at(key, i) for i in range(3))
    batch = self._config.batch
    index = jax.random.randint(which, (batch,), 0, filled)
    latents, tokens, mask = jax.tree.map(lambda x: x[index], entries)
    drop = jax.random.bernoulli(dropped, self._config.text_dropout, (batch, 1))
    tokens, mask = (jnp.where(drop, empty, x) for empty, x in zip(self._empty, (tokens, mask)))
    return self.mismatch(weights, levels, Entries(latents, tokens, mask)), {}

  def mismatch(self, weights: Weights, key: Key[Array, ""], entries: Entries) -> Float[Array, ""]:
    """Mean squared error of the velocity on all entries, at one noise level each.

    Rectified flow (Liu et al. 2022): at sigma the clip is `(1 - sigma) x0 + sigma eps` and the velocity `eps - x0`. The
    levels are uniform, one in each of n equal parts, and then shifted as the sampling grid is.
    """
    place, noise = randomness.at(key, 0), randomness.at(key, 1)
    clean = entries.latents.astype(jnp.float32)
    n = len(clean)
    uniform = (jnp.arange(n) + jax.random.uniform(place, (n,))) / n
    shift = self._config.shift
    sigma = shift * uniform / (1 + (shift - 1) * uniform)
    timestep = jnp.minimum(jnp.trunc(TRAIN_TIMESTEPS * sigma), TRAIN_TIMESTEPS - 1)
    eps = jax.random.normal(noise, clean.shape)
    level = sigma[:, None, None, None, None]
    found = self.transformer(weights.transformer)(
      (1 - level) * clean + level * eps, timestep, self.embed(weights, entries.tokens, entries.mask)
    )
    return jnp.square(found - (eps - clean)).mean()

  def sample(
    self,
    weights: Weights,
    tokens: Int[Array, "n L"],
    mask: Bool[Array, "n L"],
    noise: Float[Array, "n T H W C"],
  ) -> Float[Array, "n T H W C"]:
    """Latents of guided Euler samples from `noise`."""
    grid = Schedule.make(self._config.sample_steps, self._config.shift)
    prompt, negative = self.embed(weights, tokens, mask), self.embed(weights, *map(jnp.asarray, self._empty))
    velocity = guided(self.transformer(weights.transformer), self._config.sample_guidance)
    return euler(lambda x, timestep: velocity(x, timestep, prompt, negative), grid, noise)
