"""S_meta: Qwen3-VL looks at the scene from off the camera path and marks its geometry (paper: World-R1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from transformers import Qwen3VLForConditionalGeneration

from wr1_jax.camera import words
from wr1_jax.config import Qwen3VLConfig, RewardsConfig
from wr1_jax.sidecar.judges.checkpoints import Source, check_weights
from wr1_jax.sidecar.judges.inputs import Inputs, conversation
from wr1_jax.sidecar.scorers import Unscored, View

_ROLE = "You are an expert in 3D computer vision who inspects reconstructed scenes."
_QUESTION = """A 3D scene was reconstructed from a short video and rendered from a viewpoint that the video never had: \
a step behind its camera path and to the side. The picture is this rendering. {motion}

Mark how consistent the geometry of the scene is, with one digit from 0 to 9.

Take marks off for
- floaters: specks, blobs and shreds that hang in space and belong to no surface;
- billboards: things or whole scenes that are flat like a stage set, with no depth of their own;
- stretched texture: surfaces smeared into streaks or torn where this viewpoint sees them at a slant;
- holes in what should be solid, doubled outlines, and things that run into each other.

What the video could not have seen is no fault: plain empty margins cost nothing. Neither do softness, style, subject \
or beauty. Judge the geometry alone. No kind of camera motion earns a better mark than another: a scene filmed by a \
camera that stands still or moves straight is worth as much as one filmed in an orbit.

9: solid and believable everywhere. 6: sound, with small faults. 3: faults spoil large parts. 0: no scene to speak of.

Answer with the digit and nothing else."""


def sources(config: RewardsConfig) -> tuple[Source, ...]:
  """Where the model is."""
  options, published = config.qwen3_vl, Qwen3VLConfig()
  return (
    Source(
      option="rewards.qwen3_vl.path",
      path=options.path,
      revision=options.revision,
      published=(published.path, published.revision),
    ),
  )


class Qwen3VLJudge:
  """Makes the judge `qwen3_vl`; its options are `config.rewards.qwen3_vl`.

  Raises:
    UserError: there is no model at the path, its weights are not Qwen3-VL's, or its tokenizer splits a digit.
  """

  def __init__(self, config: RewardsConfig):
    options, (source,) = config.qwen3_vl, sources(config)
    with source.reading() as folder:
      self._inputs = Inputs(folder, padding_side="left")
      self._digits = [self._inputs.token(str(digit)) for digit in range(10)]
      model, report = Qwen3VLForConditionalGeneration.from_pretrained(
        folder, dtype=getattr(torch, options.dtype), output_loading_info=True, ignore_mismatched_sizes=True
      )
    # transformers only warns of these, and fills what is missing with noise.
    misshapen = {name for name, *_ in report["mismatched_keys"]}
    check_weights(source.option, set(report["missing_keys"]), set(report["unexpected_keys"]), misshapen)
    self._model = model.to(config.device).eval()
    self._device, self._batch = config.device, options.batch

  def __call__(self, views: Sequence[View], prompts: Sequence[str]) -> list[float | Unscored]:
    """The expected digit over 9, in [0, 1]."""
    expected = self.distribution(views, prompts) @ np.arange(10) / 9
    # Rounding may leave the sum of the shares a hair above 1.
    return [_score(value) for value in np.minimum(expected, 1.0).tolist()]

  def distribution(self, views: Sequence[View], prompts: Sequence[str]) -> Float[np.ndarray, "N 10"]:
    """The share of each digit among the ten as the first token of the answer, float64; NaN if the model's output is."""
    pictures = [Image.fromarray(view.offset_view) for view in views]
    questions = [question(prompt) for prompt in prompts]
    starts = range(0, len(pictures), self._batch)
    return np.concatenate(
      [self._shares(pictures[i : i + self._batch], questions[i : i + self._batch]) for i in starts]
      or [np.empty((0, 10))]
    )

  @torch.inference_mode()
  def _shares(self, pictures: Sequence[Image.Image], questions: Sequence[str]) -> Float[np.ndarray, "N 10"]:
    inputs = self._inputs(pictures, questions, resize=True)
    inputs = {name: tensor.to(self._device) for name, tensor in inputs.items()}
    logits = self._model(**inputs, logits_to_keep=1, use_cache=False).logits[:, -1, self._digits]
    return logits.double().softmax(-1).cpu().numpy()


def question(prompt: str) -> str:
  """What the judge is asked about a clip: of `prompt`, it is told the camera moves only."""
  moves = [f'"{move}"' for move in words.parse(prompt)]
  motion = f"The camera was meant to make these moves, in order: {', '.join(moves)}." if moves else ""
  return conversation(_QUESTION.format(motion=motion or "No particular camera motion was asked for."), system=_ROLE)


def _score(value: float) -> float | Unscored:
  return value if np.isfinite(value) else Unscored("the Qwen3-VL judge gave no finite digit distribution")
