"""How far generated clips are from real ones: the Frechet distance between Gaussians fitted to their features.

As in FID (Heusel et al. 2017), with the features of `latent_features` in place of a network's, each measured in the
real clips' standard deviations, and with covariances shrunk as by Ledoit and Wolf (2004). Like every Frechet distance
it is biased upwards, more so with fewer clips: compare numbers for the same number of clips.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from wr1_jax.evaluation.paired import Row

RESAMPLES = 200
FEWEST = 8  # clips of either kind, below which there is no distance

_SMALL = 1e-6


def distance(features: Float[np.ndarray, "n F"], real: Float[np.ndarray, "m F"]) -> float:
  """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), features in standard deviations of the `real` ones; at least 0.

  Raises:
    ValueError: there are fewer than two clips of a kind, or a feature is not finite.
  """
  features, real = np.asarray(features, np.float64), np.asarray(real, np.float64)
  if min(len(features), len(real)) < 2 or not (np.isfinite(features).all() and np.isfinite(real).all()):
    raise ValueError(f"features of {len(features)} and {len(real)} clips: at least 2 of each, all finite, are needed")
  spread = real.std(axis=0)
  spread = np.where(spread > _SMALL, spread, 1.0)  # a feature that real clips do not vary in
  features, real = features / spread, real / spread
  return gaussian_distance(features.mean(0), covariance(features), real.mean(0), covariance(real))


def gaussian_distance(
  mean: Float[np.ndarray, "F"],
  cov: Float[np.ndarray, "F F"],
  other_mean: Float[np.ndarray, "F"],
  other_cov: Float[np.ndarray, "F F"],
) -> float:
  """The squared Frechet (Wasserstein-2) distance of two Gaussians."""
  root = _root(cov)
  cross = np.linalg.eigvalsh(root @ other_cov @ root)  # has the eigenvalues of cov @ other_cov
  spreads = np.trace(cov) + np.trace(other_cov) - 2 * np.sqrt(np.maximum(cross, 0)).sum()
  return float(np.square(mean - other_mean).sum() + max(spreads, 0.0))


def covariance(features: Float[np.ndarray, "n F"]) -> Float[np.ndarray, "F F"]:
  """Ledoit and Wolf's estimate: the sample covariance S, mixed with (tr S / F) I as much as its noise asks for."""
  count, size = features.shape
  centred = features - features.mean(axis=0)
  sample = centred.T @ centred / count
  target = np.trace(sample) / size * np.eye(size)
  spread = np.square(sample - target).sum()
  # sum over clips of |x x^T - S|^2 = sum of |x|^4 - n |S|^2
  noise = (np.square(np.square(centred).sum(axis=1)).sum() / count - np.square(sample).sum()) / count
  share = min(max(noise / spread, 0.0), 1.0) if spread > 0 else 0.0
  return (1 - share) * sample + share * target


def compare(
  base: Float[np.ndarray, "N F"], tuned: Float[np.ndarray, "N F"] | None, real: Float[np.ndarray, "m F"], seed: int
) -> Row:
  """The distances of the base model's and the tuned one's clips to the real ones, and their difference.

  Standard errors are those of a bootstrap over prompts (the same ones for both models) and real clips.

  Args:
    tuned: None: there is only the base model.
    seed: of the bootstrap.
  """
  rng = np.random.default_rng(seed)
  models = [base] if tuned is None else [base, tuned]
  counts = (len(base), len(real))

  def distances(prompts: np.ndarray, clips: np.ndarray) -> list[float]:
    return [distance(features[prompts], real[clips]) for features in models]

  found = distances(*map(np.arange, counts))
  again = np.array([distances(*(rng.integers(count, size=count) for count in counts)) for _ in range(RESAMPLES)])
  numbers = np.stack([found, again.std(axis=0, ddof=1)], axis=1).ravel().tolist()  # each distance, and its error
  if tuned is not None:
    numbers += [found[1] - found[0], float((again[:, 1] - again[:, 0]).std(ddof=1))]
  return Row(len(base), 0, 0, *numbers)


def _root(matrix: Float[np.ndarray, "F F"]) -> Float[np.ndarray, "F F"]:
  values, vectors = np.linalg.eigh(matrix)
  return vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
