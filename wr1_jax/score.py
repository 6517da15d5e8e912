"""Scores clips that any program may have made.

    python -m wr1_jax.score --config=configs/tiny.py --videos=FOLDER --prompts=FILE --out=scores.jsonl

FOLDER holds clips (mp4, or .npy with uint8 [T, H, W, 3]) of any number of frames and any size from 64 pixels up. FILE
holds one prompt a line, in the order of the clips' names. For every clip, one line of JSON goes to the output:

    clip             file name
    reward/total     R, and its terms reward/recon, reward/traj, reward/meta, reward/general
    poses            [T][4][4] recovered camera-to-world, in median depths of the scene; the first camera is the world
    reasons          for everything above that is null: why
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import tqdm
from absl import flags

from wr1_jax import cli, errors
from wr1_jax.camera import trajectory, words
from wr1_jax.config import Config
from wr1_jax.data import prompts as prompt_files
from wr1_jax.errors import UserError
from wr1_jax.rewards import clips, jobs
from wr1_jax.rewards.clips import ClipError
from wr1_jax.rewards.compose import METRICS, Composer, Target
from wr1_jax.rewards.jobs import Job, Results
from wr1_jax.rewards.transport import Rewards, make_client

_IN_FLIGHT = 2  # the next clip is read while one is scored


def score_folder(config: Config, videos: Path, prompts: Path, out: Path) -> None:
  """Scores every clip of the folder `videos` and writes the lines described above to `out`.

  Raises:
    UserError: there are no clips, not as many prompts as clips, `out` cannot be written, or the sidecar cannot start.
  """
  words.asked("", config.camera.moves)
  files = clips.find(videos)
  texts = prompt_files.read_lines(prompts)
  if len(texts) != len(files):
    raise UserError(
      f"{prompts} holds {len(texts)} prompts, but {videos} holds {len(files)} clips ({files[0].name} to "
      f"{files[-1].name}); there must be one prompt a line for each clip, in the order of the clips' names."
    )
  with make_client(config.rewards) as client, _opened(out) as file:
    lines = _Scorer(config, client).lines(files, texts)
    for line in tqdm.tqdm(lines, total=len(files), desc="scoring", unit="clip"):
      try:
        file.write(json.dumps(line, allow_nan=False) + "\n")
        file.flush()
      except OSError as error:
        raise UserError(f"--out={out} could not be written: {error.strerror}.") from error


@dataclasses.dataclass(frozen=True)
class _Pending:
  """A clip on its way."""

  name: str
  target: Target
  results: Results


class _Scorer:
  """Sends clips to the sidecar and makes lines of what comes back."""

  def __init__(self, config: Config, client: Rewards):
    self._camera = config.camera
    self._client = client
    self._compose = Composer(config.rewards, config.camera)

  def lines(self, files: Sequence[Path], texts: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The lines of all clips, in order."""
    pending: collections.deque[_Pending | dict[str, Any]] = collections.deque()
    for file, text in zip(files, texts):
      pending.append(self._submit(file, text))
      if len(pending) == _IN_FLIGHT:
        yield self._line(pending.popleft())
    while pending:
      yield self._line(pending.popleft())

  def _submit(self, file: Path, text: str) -> _Pending | dict[str, Any]:
    """Hands in a clip as a job of its own, so that its score does not depend on its neighbours.

    Returns:
      The clip on its way, or its line if it cannot be scored.
    """
    moves = words.asked(text, self._camera.moves)
    try:
      video = clips.read(file)
      target = trajectory.trajectory(moves, len(video), self._camera) if moves else None
      path = None if target is None else jobs.in_scene_depths(target, self._camera.scene_depth)
      return _Pending(file.name, target, self._client.submit(Job(video[None], [text], [path])))
    except (ClipError, UserError) as error:
      names = (*METRICS, "poses")
      return {"clip": file.name, **dict.fromkeys(names), "reasons": dict.fromkeys(names, str(error))}

  def _line(self, clip: _Pending | dict[str, Any]) -> dict[str, Any]:
    if isinstance(clip, dict):
      return clip
    (result,) = clip.results.result()
    (reward,) = self._compose([result], [clip.target], [True])
    line = {"clip": clip.name}
    line |= {name: value if math.isfinite(value) else None for name, value in reward.metrics().items()}
    reasons = dict(reward.reasons)
    if result.poses is None:
      return line | {"poses": None, "reasons": reasons | {"poses": result.reasons["reconstruction"]}}
    poses = jobs.in_scene_depths(result.poses, result.depth_unit)
    return line | {"poses": poses.tolist(), "reasons": reasons}


def _opened(out: Path) -> TextIO:
  try:
    return out.open("w", encoding="utf-8")
  except OSError as error:
    raise UserError(f"--out={out} cannot be written: {error.strerror}.") from error


def _define_flags(values: flags.FlagValues) -> None:
  flags.DEFINE_string("videos", None, "folder of clips (.mp4, .npy)", flag_values=values)
  flags.DEFINE_string("prompts", None, "UTF-8 file of one prompt a line", flag_values=values)
  flags.DEFINE_string("out", None, "file for the scores, one JSON object a line", flag_values=values)


def main(argv: Sequence[str]) -> None:
  """Entry of the command line."""
  with errors.reported():
    config, values = cli.parse(argv, _define_flags)
    missing = [f"--{name}" for name in ("videos", "prompts", "out") if not values[name].value]
    if missing:
      raise UserError(f"{', '.join(missing)} must be given; see the top of wr1_jax/score.py.")
    score_folder(config, Path(values.videos), Path(values.prompts), Path(values.out))


if __name__ == "__main__":
  main(sys.argv)
