"""A whole Wan2.1 text-to-video model: the parts of one diffusers folder, placed on a mesh."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax.numpy as jnp
from flax import nnx
from huggingface_hub import snapshot_download
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key, UInt8

from wr1_jax.config import Config, ModelConfig, VideoConfig
from wr1_jax.errors import UserError
from wr1_jax.models import text, transformer, vae
from wr1_jax.models.attention import Attention

_SHIPPED = Path(__file__).parents[1] / "assets"
_PARTS = ("transformer", "vae", "text_encoder", "tokenizer")


@dataclasses.dataclass(frozen=True)
class WanModel:
  """Everything that a prompt passes through on its way to a video, and the new adapters to be trained."""

  transformer: transformer.AdaptedTransformer
  lora: nnx.State  # float32
  base: nnx.State
  vae_config: vae.VAEConfig
  vae_graphdef: nnx.GraphDef
  vae_state: nnx.State
  text: text.TextEncoder

  def latent_shape(self, video: VideoConfig) -> tuple[int, int, int, int]:
    """`[T', H', W', C]` of one clip's latents; a `UserError` where the autoencoder cannot take such clips."""
    return self.vae_config.latent_shape(video.frames, video.height, video.width)

  def decode(
    self, vae_state: nnx.State, latents: Float[Array, "B T H W C"], *, frames_per_chunk: int
  ) -> UInt8[Array, "B T2 H2 W2 3"]:
    """Videos from latents; a pure function of its arguments."""
    model = nnx.merge(self.vae_graphdef, vae_state)
    return vae.to_uint8(model.decode(latents, frames_per_chunk=frames_per_chunk))


def load(config: Config, mesh: Mesh, lora_key: Key[Array, ""]) -> WanModel:
  """Loads the folder `config.model.path`, and draws new adapters from `lora_key`.

  Raises:
    UserError: the folder or a part of it is missing or damaged, or does not fit the mesh.
  """
  folder = find_folder(config.model)
  network, lora, base = transformer.load(
    folder / "transformer",
    dtype=jnp.dtype(config.model.dtype),
    lora=config.lora,
    lora_key=lora_key,
    attention=Attention(config.model.attention, mesh),
    remat=config.model.remat,
  )
  autoencoder = vae.load(folder / "vae", dtype=jnp.dtype(config.model.vae_dtype), mesh=mesh)
  encoder = text.load(folder, length=config.sampling.text_length, dtype=jnp.dtype(config.model.dtype), mesh=mesh)
  return WanModel(network, lora, base, autoencoder.config, *nnx.split(autoencoder), encoder)


def find_folder(config: ModelConfig) -> Path:
  """The folder of `config.path`: one on this machine, one shipped with the package, or one of the Hugging Face hub.

  Raises:
    UserError: there is no such folder, it lacks a part, or it could not be fetched.
  """
  folder = next((path for path in (Path(config.path), _SHIPPED / config.path) if path.is_dir()), None)
  if folder is None:
    folder = _fetch(config.path)
  missing = [part for part in _PARTS if not (folder / part).is_dir()]
  if missing:
    raise UserError(
      f"config.model.path = {config.path}: {folder} is not a Wan2.1 folder in diffusers layout; it lacks "
      f"{', '.join(part + '/' for part in missing)}."
    )
  return folder


def _fetch(name: str) -> Path:
  if name.count("/") != 1 or name.startswith((".", "/", "~")):
    shipped = ", ".join(sorted(path.parent.name for path in _SHIPPED.glob("*/model_index.json")))
    raise UserError(
      f"config.model.path = {name}: there is no such folder. It can be a folder in diffusers layout, a name on the "
      f"Hugging Face hub (owner/model), or one that is shipped with the package ({shipped})."
    )
  try:
    return Path(snapshot_download(name, allow_patterns=[f"{part}/*" for part in _PARTS]))
  except Exception as error:  # the hub client raises errors of several libraries
    raise UserError(
      f"config.model.path = {name}: there is no such folder here, and it could not be fetched from the Hugging Face "
      f"hub ({type(error).__name__}). Fetch it where there is a network, `hf download {name} --local-dir DIR`, and "
      "give --config.model.path=DIR."
    ) from error
