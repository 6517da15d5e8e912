"""Makes the clips of the validation and sends them through the project's own reward path."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import tqdm
from jaxtyping import Float, UInt8

from wr1_jax.camera.words import Move
from wr1_jax.config import Config
from wr1_jax.rewards import jobs
from wr1_jax.rewards.compose import Composer
from wr1_jax.rewards.jobs import ClipResult, Job
from wr1_jax.rewards.transport import make_client
from wr1_jax.validation import paths
from wr1_jax.validation.paths import Path
from wr1_jax.world import Clips, WorldConfig, inconsistency, sample
from wr1_jax.world.clips import HELD_OUT

Video = UInt8[np.ndarray, "T H W 3"]

WRONG = ("shuffled", "reversed", "mirrored")  # paths that a clip does not follow


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
  """A video to be scored."""

  kind: str  # "rigid", "frozen", one of the inconsistencies, or one of `WRONG`
  clip: int  # the clip that it was made from
  video: Video
  asked: Path | None  # the path that the reward asks for


@dataclasses.dataclass(frozen=True, eq=False)
class Verdict:
  """What the rewards say of a trial; NaN where there is no number."""

  kind: str
  clip: int
  poses: Float[np.ndarray, "T 4 4"] | None  # recovered, in median depths
  scores: dict[str, float]  # recon, traj, meta, general and total
  failures: Sequence[str]


def held_out(count: int, seed: int, config: Config) -> Clips:
  """Static clips that nothing was trained on."""
  indices = range(HELD_OUT, HELD_OUT + count)
  return sample(seed, indices, world_config(config), config.camera, dynamic=False)


def world_config(config: Config) -> WorldConfig:
  return WorldConfig(config.video.height, config.video.width, config.video.frames)


def moving(clips: Clips) -> list[int]:
  """The clips that are asked to move."""
  return [i for i, moves in enumerate(clips.moves) if moves and moves != (Move.FIXED,)]


def asked(clips: Clips, index: int) -> Path | None:
  """The path that a reward would ask of a clip, in scene depths."""
  return clips.poses[index] if clips.moves[index] else None


def trials(clips: Clips, seed: int, hinted: int, config: Config) -> list[Trial]:
  """Everything that is to be scored: the clips, their spoiled and frozen versions, and clips with a wrong path as hint.

  Args:
    hinted: how many moving clips are reconstructed once more with each wrong path, which the reconstructor may use.
  """
  rigid = inconsistency.videos_of(clips.scenes, clips.poses, world_config(config), config.camera)
  videos = {"rigid": rigid}
  seeds = seed + np.arange(len(rigid))
  for kind in inconsistency.KINDS:
    videos[kind] = inconsistency.spoiled(kind, clips.scenes, clips.poses, world_config(config), config.camera, seeds)
  result = [Trial(kind, i, video, asked(clips, i)) for kind, made in videos.items() for i, video in enumerate(made)]
  for i in moving(clips):
    still = np.repeat(rigid[i][:1], len(rigid[i]), 0)  # what the first camera sees, and nothing else
    result.append(Trial("frozen", i, still, asked(clips, i)))
  for i in moving(clips)[:hinted]:
    result += [Trial(kind, i, rigid[i], path) for kind, path in wrong_paths(clips, i).items()]
  return result


def wrong_paths(clips: Clips, index: int) -> dict[str, Path]:
  """Paths other than that of a clip, by their kind in `WRONG`; those that happen to be the same are left out."""
  own, count = clips.poses[index], len(clips.moves)
  others = [i for i in np.roll(np.arange(count), -index)[1:] if i in moving(clips)]
  shuffled = next((clips.poses[i] for i in others if clips.moves[i] != clips.moves[index]), own)
  candidates = dict(zip(WRONG, (shuffled, paths.reversed_path(own), paths.mirrored(own))))
  return {kind: path for kind, path in candidates.items() if paths.differ(path, own)}


def judge(todo: Sequence[Trial], config: Config, batch: int) -> tuple[list[Verdict], dict[str, float]]:
  """Scores all trials.

  Returns:
    Verdicts in the trials' order, and the seconds that each part takes a clip in a full batch (medians).
  """
  compose = Composer(config.rewards, config.camera)
  verdicts, seconds = [], []
  with make_client(config.rewards) as client:
    for start in tqdm.tqdm(range(0, len(todo), batch), desc="scoring", unit="batch"):
      chosen = todo[start : start + batch]
      job = Job(np.stack([trial.video for trial in chosen]), [""] * len(chosen), [trial.asked for trial in chosen])
      results = client.submit(job).result()
      verdicts += _verdicts(chosen, results, compose, config.camera.scene_depth)
      if len(chosen) == batch:
        seconds.append(results[0].seconds)
  parts = seconds[0] if seconds else {}
  return verdicts, {part: float(np.median([one[part] for one in seconds])) / batch for part in parts}


def _verdicts(
  chosen: Sequence[Trial], results: Sequence[ClipResult], compose: Composer, scene_depth: float
) -> list[Verdict]:
  targets = [None if trial.asked is None else _in_units(trial.asked, scene_depth) for trial in chosen]
  rewards = compose(results, targets, [True] * len(chosen))
  return [
    Verdict(
      trial.kind,
      trial.clip,
      None if result.poses is None else jobs.in_scene_depths(result.poses, result.depth_unit),
      {name.removeprefix("reward/"): value for name, value in reward.metrics().items()},
      reward.failures,
    )
    for trial, result, reward in zip(chosen, results, rewards)
  ]


def _in_units(path: Path, scene_depth: float) -> Path:
  path = path.copy()
  path[:, :3, 3] *= scene_depth
  return path
