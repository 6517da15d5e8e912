"""Has a language model describe the scenes of a prompt file more richly.

    python -m wr1_jax.data.expand_prompts --prompts=FILE --out=FILE --url=http://host:port/v1 --model=NAME
        [--api-key-env=OPENAI_API_KEY] [--workers=8]

Any server that answers OpenAI's `POST /chat/completions` will do. The sentence that asks for the camera ("Camera push
in.") never leaves this program: the model sees the scene alone, and an answer counts only if the prompt asks for the
same moves afterwards. A prompt without a usable answer stays as it was.

Prompts keep their order. Answers are kept in `OUT.answers.jsonl` as they come, so that a second call of the same
command asks only for what is missing; deleting that file starts over.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import os
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import tqdm

from wr1_jax.camera import words
from wr1_jax.data import prompts as prompt_files
from wr1_jax.data.chat import ChatEndpoint
from wr1_jax.errors import UserError, reported

LONGEST = 120  # words of an answer; UMT5 reads 512 tokens
TRIES = 3  # answers to one prompt before it stays as it was

_CAMERA = re.compile(r"\s*camera\b[^.]*\.\s*", re.IGNORECASE)
_INSTRUCTION = (
  "You turn short scene descriptions into prompts for a text-to-video model. Describe the scene you are given in 40 to "
  "80 words of plain English: what is there, materials, light, colours, depth and mood. Keep everything that is "
  "mentioned and its style; invent only what fits. Say nothing of the camera, its movement or the shot, and nothing of "
  "yourself. Answer with the description alone: one paragraph, no title, no list, no quotation marks."
)


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What became of the prompts.

  Attributes:
    texts: one prompt for each one that was given, in the same order.
    expanded: how many have a new description.
    kept: those that stayed as they were, because no answer was usable.
  """

  texts: tuple[str, ...]
  expanded: int
  kept: tuple[str, ...]


def split(prompt: str) -> tuple[str, str]:
  """The camera sentence that a prompt begins with, up to the scene, and the scene. The first may be empty."""
  found = _CAMERA.match(prompt)
  if not found or not words.parse(found[0]) or found.end() == len(prompt):
    return "", prompt
  return found[0], prompt[found.end() :]


def fault(prompt: str, answer: str) -> str | None:
  """Why `answer` cannot be the scene of `prompt`; None if it can."""
  camera, _ = split(prompt)
  if not answer:
    return "it is empty"
  if len(answer.split()) > LONGEST:
    return f"it is longer than {LONGEST} words"
  if words.parse(camera + answer) != words.parse(prompt):
    return "it changes the camera words"
  if re.search(r"\bcamera\b", answer, re.IGNORECASE) and "camera" not in split(prompt)[1].lower():
    return "it speaks of the camera"
  return None


def expand(prompts: Sequence[str], endpoint: ChatEndpoint, answers: Path, workers: int) -> Outcome:
  """Asks `endpoint` for the scenes of `prompts`, `workers` of them at a time.

  Args:
    answers: file of the answers so far; read first, then added to.

  Raises:
    UserError: the endpoint cannot be used (as `ChatEndpoint.ask`), or `answers` cannot be read or written.
  """
  known = _read_answers(answers, endpoint.model)
  missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
  kept = set()
  stop = threading.Event()
  with _opened(answers) as file, concurrent.futures.ThreadPoolExecutor(workers) as pool:
    asked = {pool.submit(_expand_one, prompt, endpoint, stop): prompt for prompt in missing}
    try:
      for done in tqdm.tqdm(concurrent.futures.as_completed(asked), total=len(asked), desc="expanding", unit="prompt"):
        prompt, text = asked[done], done.result()
        if text is None:
          kept.add(prompt)
          continue
        known[prompt] = text
        file.write(json.dumps({"model": endpoint.model, "prompt": prompt, "text": text}, ensure_ascii=False) + "\n")
        file.flush()
    except OSError as error:
      raise UserError(f"{answers} cannot be written: {error.strerror}.") from error
    finally:  # after a failure or Ctrl-C, what is under way is the last
      stop.set()
      pool.shutdown(wait=False, cancel_futures=True)
  texts = tuple(known.get(prompt, prompt) for prompt in prompts)
  return Outcome(texts, sum(prompt in known for prompt in prompts), tuple(p for p in prompts if p in kept))


def _expand_one(prompt: str, endpoint: ChatEndpoint, stop: threading.Event) -> str | None:
  """The prompt with a new scene; None if `TRIES` answers were all unusable."""
  camera, scene = split(prompt)
  for _ in range(TRIES):
    if stop.is_set():
      break
    answer = endpoint.ask(_INSTRUCTION, scene)
    answer = re.sub(r"<think>.*?</think>", "", answer, flags=re.DOTALL)  # some models think aloud
    answer = " ".join(answer.split()).strip('"“”')
    if fault(prompt, answer) is None:
      return camera + answer
  return None


def _read_answers(file: Path, model: str) -> dict[str, str]:
  """What `model` answered in earlier calls; a line that was cut off in the middle counts as missing."""
  try:
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n") if file.exists() else []
  except OSError as error:
    raise UserError(f"{file} cannot be read: {error.strerror}.") from error
  known = {}
  for line in lines:
    try:
      entry = json.loads(line)
      if (
        entry["model"] == model
        and fault(entry["prompt"], entry["text"].removeprefix(split(entry["prompt"])[0])) is None
      ):
        known[entry["prompt"]] = entry["text"]
    except (ValueError, KeyError, TypeError, AttributeError):
      continue
  return known


def _opened(file: Path) -> TextIO:
  """`file`, to be added to."""
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
    opened = file.open("a", encoding="utf-8")
    if opened.tell() and not file.read_bytes().endswith(b"\n"):
      opened.write("\n")  # closes a line that was cut off
    return opened
  except OSError as error:
    raise UserError(f"{file} cannot be written: {error.strerror}.") from error


def main() -> None:
  parser = argparse.ArgumentParser(prog="python -m wr1_jax.data.expand_prompts", description=__doc__.splitlines()[0])
  parser.add_argument("--prompts", type=Path, required=True, help="file of one prompt a line")
  parser.add_argument("--out", type=Path, required=True, help="file to write")
  parser.add_argument("--url", required=True, help="of the server, up to and with /v1")
  parser.add_argument("--model", required=True, help="name that the server knows the model by")
  parser.add_argument(
    "--api-key-env", default="OPENAI_API_KEY", help="environment variable with the key, if there is one"
  )
  parser.add_argument("--workers", type=int, default=8, help="prompts that are asked for at the same time")
  arguments = parser.parse_args()
  with reported():
    if arguments.workers < 1:
      raise UserError(f"--workers={arguments.workers} must be at least 1.")
    if arguments.out.resolve() == arguments.prompts.resolve():
      raise UserError(f"--out={arguments.out} is the file that --prompts names; it would be lost.")
    prompts = prompt_files.load(arguments.prompts).texts
    endpoint = ChatEndpoint(arguments.url, arguments.model, os.environ.get(arguments.api_key_env, ""))
    answers = arguments.out.with_name(arguments.out.name + ".answers.jsonl")
    outcome = expand(prompts, endpoint, answers, arguments.workers)
    try:
      arguments.out.write_bytes("".join(f"{text}\n" for text in outcome.texts).encode())
    except OSError as error:
      raise UserError(f"--out={arguments.out} cannot be written: {error.strerror}.") from error
    print(f"{arguments.out}: {outcome.expanded} of {len(prompts)} prompts expanded.")
    if outcome.kept:
      print(
        f"{len(outcome.kept)} stayed as they were: {TRIES} answers to each were empty, too long or spoke of the "
        f"camera. The same command tries them again. The first: {outcome.kept[0]}"
      )


if __name__ == "__main__":
  main()
