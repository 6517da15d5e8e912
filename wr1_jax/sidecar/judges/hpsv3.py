"""R_gen: HPSv3, a model of human preference among generated pictures, averaged over the first frames of a clip.

HPSv3 (Ma et al., ICCV 2025; github.com/MizzenAI/HPSv3, MIT licence) is Qwen2-VL-7B with a small head that reads the
hidden state of one special token. Its package runs on transformers 4.45 alone. Here the same weights run on today's
transformers, with what that version did spelled out: see `HPSv3Model.forward` and `picture_size`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import nn
from transformers import Qwen2VLConfig, Qwen2VLModel, Qwen2VLPreTrainedModel

from wr1_jax.config import HPSv3Config, RewardsConfig
from wr1_jax.errors import UserError
from wr1_jax.sidecar.judges.checkpoints import Source, check_weights
from wr1_jax.sidecar.judges.inputs import Inputs, conversation
from wr1_jax.sidecar.scorers import Unscored

CHECKPOINT = "HPSv3.safetensors"
BASE_FILES = ("config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")
REWARD_TOKEN = "<|Reward|>"
PIXELS = 256 * 28 * 28  # about the area of every picture that the model was trained on
SIDE = 28  # sides are multiples of this: two patches of 14 pixels become one visual token

_SYSTEM = "You are a helpful assistant."  # what Qwen2-VL's chat template says if nothing else is said
# The weights were trained with exactly this text, so every character of it is part of the model. It is the release's.
_INSTRUCTION = (Path(__file__).parents[2] / "assets" / "judges" / "hpsv3_instruction.txt").read_text(encoding="utf-8")


class HPSv3Model(Qwen2VLPreTrainedModel):
  """Qwen2-VL with the reward head; the names of its weights are those that `own_names` gives to the release's."""

  _keep_in_fp32_modules_strict = ["rm_head"]

  def __init__(self, config: Qwen2VLConfig):
    super().__init__(config)
    self.model = Qwen2VLModel(config)
    self.rm_head = nn.Sequential(
      nn.Linear(config.text_config.hidden_size, 1024),
      nn.ReLU(),
      nn.Dropout(0.05),
      nn.Linear(1024, 16),
      nn.ReLU(),
      nn.Linear(16, 2),
    )
    self.post_init()

  def forward(
    self,
    reward_id: int,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    pixel_values: torch.Tensor,
    image_grid_thw: torch.Tensor,
  ) -> torch.Tensor:
    """The head's output for pictures with their questions.

    Args:
      input_ids, attention_mask: [N, L] int64, padded on the right, each row with one `reward_id`.
      pixel_values, image_grid_thw: as `Inputs` returns them.

    Returns:
      [N, 2] float32: mean, and logarithm of the standard deviation, of the picture's score.
    """
    # Qwen2-VL counts the rows and columns of pictures. The release never asked for that, and was trained with plain
    # positions on all three axes.
    positions = torch.arange(input_ids.shape[1], device=input_ids.device).expand(3, *input_ids.shape)
    hidden = self.model(
      input_ids=input_ids,
      attention_mask=attention_mask,
      position_ids=positions,
      pixel_values=pixel_values,
      image_grid_thw=image_grid_thw,
      use_cache=False,
    ).last_hidden_state
    return self.rm_head(hidden[input_ids == reward_id].float())


def sources(config: RewardsConfig) -> tuple[Source, ...]:
  """Where the weights are, and the base model's small files."""
  options, published = config.hpsv3, HPSv3Config()
  weights = Source(
    option="rewards.hpsv3.path",
    path=options.path,
    revision=options.revision,
    published=(published.path, published.revision),
    files=(CHECKPOINT,),
  )
  base = Source(
    option="rewards.hpsv3.base_path",
    path=options.base_path,
    revision=options.base_revision,
    published=(published.base_path, published.base_revision),
    files=BASE_FILES,
  )
  return weights, base


class HPSv3Judge:
  """Makes the judge `hpsv3`; its options are `config.rewards.hpsv3`.

  Raises:
    UserError: there is no model at a path, or its weights are not HPSv3's.
  """

  def __init__(self, config: RewardsConfig):
    self._options, (weights, base) = config.hpsv3, sources(config)
    with base.reading() as folder:
      self._inputs = Inputs(folder, padding_side="right")
      architecture = Qwen2VLConfig.from_pretrained(folder)
      self._inputs.tokenizer.add_tokens([REWARD_TOKEN], special_tokens=True)
      self._reward_id = self._inputs.token(REWARD_TOKEN)
    with weights.reading() as folder:
      state = own_names(safetensors.torch.load_file(folder / CHECKPOINT))
      self._model = load(architecture, state, getattr(torch, self._options.dtype), weights.option)
    words = self._model.get_input_embeddings().num_embeddings
    if self._reward_id >= words:
      raise UserError(
        f"config.{weights.option}: the checkpoint knows {words} tokens, but {REWARD_TOKEN} is number {self._reward_id} "
        f"of the tokenizer in config.{base.option}; the two do not belong together."
      )
    self._model = self._model.to(config.device).eval()
    self._device = config.device

  def __call__(self, frames: UInt8[np.ndarray, "N K H W 3"], prompts: Sequence[str]) -> list[float | Unscored]:
    """Each clip's mean over its frames, times `scale`, clipped to [-`clip`, `clip`]."""
    spoiled = [self._inputs.reserved(prompt) for prompt in prompts]
    results: list[float | Unscored] = [
      Unscored(f"the prompt contains '{token}', which HPSv3 reserves for itself") for token in spoiled
    ]
    readable = [i for i, token in enumerate(spoiled) if token is None]
    means = self.means(frames[readable], [prompts[i] for i in readable]).mean(axis=1)
    for i, mean in zip(readable, means.tolist()):
      results[i] = self._score(mean)
    return results

  def means(self, frames: UInt8[np.ndarray, "N K H W 3"], prompts: Sequence[str]) -> Float[np.ndarray, "N K"]:
    """HPSv3's score of every frame, as published (about -0.2 to 10.5), float64; NaN if the model's output is."""
    n, k = frames.shape[:2]
    pictures = [_resized(frame) for clip in frames for frame in clip]
    questions = [question(prompt) for prompt in prompts for _ in range(k)]
    means = np.empty(n * k)
    for i in range(0, n * k, self._options.batch):
      part = slice(i, i + self._options.batch)
      means[part] = self._means(pictures[part], questions[part])
    return means.reshape(n, k)

  @torch.inference_mode()
  def _means(self, pictures: Sequence[Image.Image], questions: Sequence[str]) -> Float[np.ndarray, "N"]:
    inputs = self._inputs(pictures, questions, resize=False)
    del inputs["mm_token_type_ids"]  # for the positions that this model does not use
    inputs = {name: tensor.to(self._device) for name, tensor in inputs.items()}
    return self._model(self._reward_id, **inputs)[:, 0].double().cpu().numpy()

  def _score(self, mean: float) -> float | Unscored:
    if not math.isfinite(mean):
      return Unscored("HPSv3 gave a frame no finite score")
    return min(max(self._options.scale * mean, -self._options.clip), self._options.clip)


def load(config: Qwen2VLConfig, state: Mapping[str, torch.Tensor], dtype: torch.dtype, option: str) -> HPSv3Model:
  """The model with the weights `state` (own names); the head stays float32.

  Raises:
    UserError: weights are missing, misshapen, or not the model's. `option` names the config option for the message.
  """
  # The release cut Qwen2-VL's vocabulary, which has room to spare, to the tokens that are in use.
  config.text_config.vocab_size = len(state.get("model.language_model.embed_tokens.weight", ()))
  with torch.device("meta"):
    own = HPSv3Model(config).state_dict()
  misshapen = {name for name in own.keys() & state.keys() if own[name].shape != state[name].shape}
  check_weights(option, own.keys() - state.keys(), state.keys() - own.keys(), misshapen)
  return HPSv3Model.from_pretrained(None, config=config, state_dict=dict(state), dtype=dtype)


def own_names(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
  """The release's weights under the names that today's transformers gives to the same modules.

  The release's are those of transformers 4.45: `visual.`, `model.` for the language model, `lm_head.`, and `rm_head.`.
  Today's own names stay as they are. `lm_head.`, which predicts words, is not used.
  """
  renamed = {}
  for name, tensor in state.items():
    name = re.sub(r"^visual\.", "model.visual.", name)
    name = re.sub(r"^model\.(?!visual\.|language_model\.)", "model.language_model.", name)
    if not name.startswith("lm_head."):
      renamed[name] = tensor
  return renamed


def question(prompt: str) -> str:
  """What the model is asked about a picture made for `prompt`."""
  return conversation(_INSTRUCTION.replace("{prompt}", prompt), system=_SYSTEM)


def picture_size(height: int, width: int) -> tuple[int, int]:
  """The (height, width) at which the model sees a picture: of about `PIXELS`, and of much the same aspect.

  As `smart_resize` of the release, with its least and its greatest area both `PIXELS`.
  """
  h, w = (max(SIDE, round(side / SIDE) * SIDE) for side in (height, width))
  if h * w == PIXELS:
    return h, w
  if h * w > PIXELS:
    shrink = math.sqrt(height * width / PIXELS)
    return math.floor(height / shrink / SIDE) * SIDE, math.floor(width / shrink / SIDE) * SIDE
  grow = math.sqrt(PIXELS / (height * width))
  return math.ceil(height * grow / SIDE) * SIDE, math.ceil(width * grow / SIDE) * SIDE


def _resized(frame: UInt8[np.ndarray, "H W 3"]) -> Image.Image:
  height, width = picture_size(*frame.shape[:2])
  return Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC)
