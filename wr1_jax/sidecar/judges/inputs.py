"""Turns a picture and a question into what a Qwen vision-language model takes.

This does for pictures what transformers' `Qwen2VLProcessor` and `Qwen3VLProcessor` do (a test compares them). Those
cannot be made where torchvision is missing, because they come with a video processor; and with torchvision, pictures
would be resized by another library, and judged a little differently, than without.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from transformers import AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from wr1_jax.errors import UserError

_PICTURE = "<|image_pad|>"  # stands for one visual token


class Inputs:
  """Tokenizer and image processor of a model folder.

  `padding_side`: "left" if the last token is read, which then is the last column of every row; else "right".
  """

  def __init__(self, folder: Path, padding_side: Literal["left", "right"]):
    self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side=padding_side)
    self._pictures = Qwen2VLImageProcessorPil.from_pretrained(folder)
    self._picture_id = self.token(_PICTURE)

  def token(self, text: str) -> int:
    """The id of `text`.

    Raises:
      UserError: the tokenizer splits `text` or does not know it.
    """
    ids = self.tokenizer.encode(text, add_special_tokens=False)
    if len(ids) != 1 or ids[0] == self.tokenizer.unk_token_id:
      raise UserError(
        f"The tokenizer in {self.tokenizer.name_or_path} makes {ids} of '{text}', which must be exactly one token of "
        f"its own; this is no tokenizer of the judge's model."
      )
    return ids[0]

  def reserved(self, text: str) -> str | None:
    """A special token that `text`, which comes from outside, contains and so cannot be shown to the model."""
    return next((token for token in self.tokenizer.get_added_vocab() if token in text), None)

  def __call__(
    self, pictures: Sequence[Image.Image], questions: Sequence[str], resize: bool
  ) -> dict[str, torch.Tensor]:
    """A batch of conversations, padded to one length.

    Args:
      questions: each has one `<|image_pad|>`, for its picture.
      resize: to a size that the image processor likes; else the sides must divide by patches * merge already.

    Returns:
      input_ids, attention_mask and mm_token_type_ids (1 at visual tokens) [N, L] int64; pixel_values [patches, values]
      float32 and image_grid_thw [N, 3] int64, the patches of each picture by time, height and width.
    """
    seen = self._pictures(images=list(pictures), do_resize=resize, return_tensors="pt")
    counts = (seen["image_grid_thw"].prod(-1) // self._pictures.merge_size**2).tolist()
    texts = [text.replace(_PICTURE, _PICTURE * count) for text, count in zip(questions, counts)]
    tokens = self.tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")
    return {
      "input_ids": tokens["input_ids"],
      "attention_mask": tokens["attention_mask"],
      "mm_token_type_ids": (tokens["input_ids"] == self._picture_id).long(),
      "pixel_values": seen["pixel_values"],
      "image_grid_thw": seen["image_grid_thw"],
    }


def conversation(question: str, system: str = "") -> str:
  """The chat in which a user shows a picture and asks a question, up to where the model answers (Qwen's ChatML)."""
  start = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
  picture = f"<|vision_start|>{_PICTURE}<|vision_end|>"
  return f"{start}<|im_start|>user\n{picture}{question}<|im_end|>\n<|im_start|>assistant\n"
