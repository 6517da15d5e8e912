"""What a run tells its user: metrics, pictures, progress, and what to do when it stops."""

from __future__ import annotations

import collections
import math
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from wr1_jax.config import Config
from wr1_jax.errors import UserError
from wr1_jax.models.pipeline import WanModel
from wr1_jax.objective.advantage import Advantages
from wr1_jax.rewards.compose import TERMS
from wr1_jax.rewards.jobs import in_scene_depths
from wr1_jax.training import pictures
from wr1_jax.training.iteration import Batch, Scored
from wr1_jax.training.phases import Phase
from wr1_jax.training.programs import Programs, UpdateTerms
from wr1_jax.training.run_log import RunLog
from wr1_jax.training.stop import Stop
from wr1_jax.training.stopwatch import Stopwatch

_SHOWN = 8  # videos of a group


def metrics(scored: Scored, advantage: Advantages, terms: UpdateTerms, watch: Stopwatch) -> dict[str, float]:
  """The scalars of an iteration; NaN for what no sample has.

  `reward/*` are means over the samples that have that part, `policy/*` over those that took part in the update.
  `time/reward_wait` is what the loop waited for the sidecar, `time/sidecar` what the sidecar worked.
  """
  took_part = advantage.weights.sum() > 0
  policy = {**terms.loss._asdict(), "grad_norm": terms.grad_norm}
  return {
    **{f"reward/{name}": _mean(scored.part(name)) for name in TERMS},
    "reward/std": _mean(_group_std(scored.total)),
    "reward/valid_fraction": float(scored.valid.mean()),
    **{f"policy/{name}": float(value) if took_part else math.nan for name, value in policy.items()},
    "policy/samples": float(advantage.weights.sum()),
    "policy/lora_norm": float(terms.lora_norm),
    **watch.seconds(),
  }


def check_finite(
  values: dict[str, float], iteration: int, batches: Sequence[Batch], scored: Scored, workdir: Path
) -> None:
  """Stops a run whose numbers are not finite any more, and describes the iteration.

  That is the loss and its gradient (unless no sample took part), the adapters, and the rollouts' log-probabilities.

  Raises:
    UserError: with the prompts, the steps, the rewards, and where the last good checkpoint is.
  """
  names = ["policy/lora_norm"] + (["policy/loss", "policy/grad_norm"] if values["policy/samples"] else [])
  log_prob = np.concatenate([np.asarray(batch.rollout.log_prob).ravel() for batch in batches])
  if all(math.isfinite(values[name]) for name in names) and np.isfinite(log_prob).all():
    return
  prompts = [prompt for batch in batches for prompt in batch.prompts]
  steps = sorted({int(step) for batch in batches for step in np.asarray(batch.rollout.steps)})
  raise UserError(
    f"iteration {iteration} is not finite: loss {values['policy/loss']}, gradient norm {values['policy/grad_norm']}, "
    f"norm of the adapters {values['policy/lora_norm']}, {np.isnan(log_prob).sum()} of {log_prob.size} "
    f"log-probabilities NaN. It was trained on sampling steps {steps}, on {scored.valid.sum()} of {scored.total.size} "
    f"videos with rewards {np.round(scored.total[scored.valid], 3).tolist()[:16]}, and on the prompts {prompts[:4]}"
    f"{' and others' if len(prompts) > 4 else ''}. Nothing of it was saved: {workdir / 'checkpoints'} has the last "
    "good state. A lower config.optimizer.learning_rate, or config.model.dtype=float32, may help."
  )


def show(log: RunLog, iteration: int, batches: Sequence[Batch], scored: Scored, config: Config) -> None:
  """Writes the videos of the iteration's first group, their reconstructions, and a picture of one video's paths."""
  size = min(config.train.group_size, _SHOWN)
  log.video(iteration, "rollouts", batches[0].videos[np.newaxis, :size], config.video.fps)
  rebuilt = [result for result in scored.results[:size] if result.rendered is not None]
  if rebuilt:
    rows = np.stack([[result.frames for result in rebuilt], [result.rendered for result in rebuilt]])
    log.video(iteration, "reconstructions", rows, config.video.fps)
  picture = _camera_picture(batches, scored, config)
  if picture is not None:
    log.picture(iteration, "camera_path", picture)


def _camera_picture(batches: Sequence[Batch], scored: Scored, config: Config) -> np.ndarray | None:
  """The paths of the first reconstructed video that was asked for one, or else of the first; None: there is none."""
  rebuilt = [index for index, result in enumerate(scored.results) if result.rendered is not None]
  if not rebuilt:
    return None
  targets = [target for batch in batches for target in batch.targets]
  prompts = [prompt for batch in batches for prompt in batch.prompts]
  index = next((index for index in rebuilt if targets[index] is not None), rebuilt[0])
  result, target = scored.results[index], targets[index]
  if target is not None:
    target = in_scene_depths(target, config.camera.scene_depth)
  parts = ", ".join(f"{name} {scored.part(name).flat[index]:.2f}" for name in TERMS)
  title = f"{prompts[index // config.train.group_size]}\n{parts}"
  recovered = in_scene_depths(result.poses, result.depth_unit)
  return pictures.camera_paths(result.frames, result.rendered, result.offset_view, target, recovered, title)


def startup(config: Config, model: WanModel, programs: Programs, done: int) -> None:
  """One line on the model, one a program, and where the run starts."""
  count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
  tqdm.write(f"{config.model.path}: {count(model.base) / 1e6:.1f} M weights, {count(model.lora) / 1e6:.2f} M adapted")
  for program in programs.all():
    tqdm.write(f"  {program.name:8} compiled in {program.seconds:5.1f} s, {program.bytes / 2**20:9.1f} MiB a device")
  if done:
    tqdm.write(f"going on after iteration {done - 1}")


def rollout_bar(starts: range) -> Iterable[int]:
  """Shows, at a terminal, how far the rollouts of an iteration are."""
  return tqdm(starts, desc="rollouts", unit="batch", disable=None, leave=False)


def progress(bar: tqdm, iteration: int, phase: Phase, values: dict[str, float], scored: Scored) -> None:
  """Prints a line, which a log file keeps, and why videos have no reward; advances the bar."""
  tqdm.write(
    f"iteration {iteration} {phase}: reward {values['reward/total']:.3f} (recon {values['reward/recon']:.3f}, traj "
    f"{values['reward/traj']:.3f}, meta {values['reward/meta']:.3f}, general {values['reward/general']:.3f}), "
    f"{values['time/total']:.1f} s"
  )
  if failures := collections.Counter(failure for reward in scored.rewards for failure in reward.failures):
    most, count = failures.most_common(1)[0]
    tqdm.write(f"  {np.sum(~scored.valid)} of {scored.valid.size} videos have no reward; {count} times {most}")
  bar.update()


def stopped(signal: Stop, done: int) -> None:
  """What a signal led to."""
  tqdm.write(f"{signal}: stopping after {done} iterations; the same command goes on from there")


def finished(workdir: Path, done: int, iterations: int, shown: Sequence[Path]) -> None:
  """Where to look; `shown` are the pictures of what changed."""
  state = "done" if done == iterations else f"stopped at {done} of {iterations}"
  tqdm.write(
    f"{state}: {workdir / 'metrics.jsonl'}, {workdir / 'videos'}, {workdir / 'pictures'}, and "
    f"tensorboard --logdir {workdir}"
  )
  if shown:
    tqdm.write(f"before and after, and the rewards: {', '.join(map(str, shown))}")


def _mean(values: np.ndarray) -> float:
  finite = values[np.isfinite(values)]
  return float(finite.mean()) if finite.size else math.nan


def _group_std(values: np.ndarray) -> np.ndarray:
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", RuntimeWarning)  # a group without a valid sample has no spread
    return np.nanstd(values, axis=1)
