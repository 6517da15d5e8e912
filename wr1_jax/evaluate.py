"""Measures what post-training did: the same prompts and start noise, without and with a run's adapters.

    python -m wr1_jax.evaluate --config=configs/tiny.py --run=runs/tiny --prompts=FILE --out=DIR

FILE holds one prompt a line, which no training has seen. For each, the base model and the tuned one make a video from
the same start noise, deterministically; the sidecar reconstructs both. Into DIR go

    evaluation.json   the table; every number of every video, and why one is missing; the options
    evaluation.md     the table: both models, the paired difference, its standard error
    videos/           the first prompts' videos, base on the left and tuned on the right
    videos.png        frames of them

Without --run only the base model is measured. --real=FOLDER of real clips (mp4, or .npy with uint8 [T, H, W, 3]) adds
the Frechet distance to them. The measures are explained in `evaluation.measures` and the modules it calls.
"""

from __future__ import annotations

import collections
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float32, UInt8
from tqdm import tqdm

from wr1_jax import cli, errors, randomness
from wr1_jax import config as config_lib
from wr1_jax.camera.trajectory import target_paths
from wr1_jax.config import Config
from wr1_jax.data import prompts as prompt_files
from wr1_jax.errors import UserError
from wr1_jax.evaluation import adapters, frechet, latent_features, paired, report, samples
from wr1_jax.evaluation.adapters import Adapters
from wr1_jax.evaluation.measures import FRECHET, LEFT_OUT, MEASURES, Measured, Meter
from wr1_jax.evaluation.report import Evaluation
from wr1_jax.models import pipeline
from wr1_jax.parallel.mesh import make_mesh
from wr1_jax.randomness import Purpose
from wr1_jax.rewards.compose import Target
from wr1_jax.rewards.jobs import Job, Results, in_scene_depths
from wr1_jax.rewards.transport import Rewards, make_client
from wr1_jax.training import preflight

_CLIPS_A_SIDECAR = {"cpu": 8}  # at once
_MOST_CLIPS_A_SIDECAR = 64  # on other devices, which work on many of them together
_AHEAD = 2  # batches that are made before the first one's results are waited for
_SHOWN = 4  # prompts whose videos are written


@dataclasses.dataclass(frozen=True)
class Options:
  """What the command line says beside the config."""

  prompts: str  # a path, or the name of a file that is shipped with the package
  out: Path
  run: Path | None = None  # None: the base model alone
  step: int | None = None  # iterations of the run's checkpoint; None: the newest
  ema: bool = False  # the running average of the adapters
  steps: int | None = None  # of the sampler; None: config.sampling.steps
  solver: samples.Solver = "euler"
  batch: int | None = None  # videos that are made at once; None: as many as in training
  real: Path | None = None  # folder of real clips


def evaluate(config: Config, mesh: Mesh, options: Options) -> Evaluation:
  """Measures, and writes what the top of this file lists to `options.out`.

  Raises:
    UserError: something in the input, the run's folder or the machine does not allow it.
  """
  preflight.check(config, mesh)
  prompts = prompt_files.load(options.prompts).texts
  real_files = None if options.real is None else latent_features.find_real(options.real)
  trained = None
  if options.run is not None:
    trained = adapters.read(options.run, step=options.step, ema=options.ema)
    trained.check(config.lora)
    if trained.base_model != config.model.path:
      tqdm.write(f"note: the run was made with config.model.path = {trained.base_model}, not {config.model.path}")
  _make_folder(options.out)
  if options.steps is not None:
    config = dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, steps=options.steps))
  batch = options.batch or config.train.groups_per_rollout * config.train.group_size

  with make_client(config.rewards) as rewards:
    video = config.video
    rewards.check_room(min(batch, _job_size(config)), video.frames, video.height, video.width)
    model = pipeline.load(config, mesh, randomness.stream(config.train.seed, Purpose.INIT))
    models = {"base": None} | ({} if trained is None else {"tuned": trained.placed(model.lora)})
    sampler = samples.Sampler(config, model, mesh, batch=batch, solver=options.solver)
    extractor = None if real_files is None else latent_features.Extractor(config, model, mesh)
    measured, features = _Evaluator(config, models, sampler, extractor, rewards, options.out).measure(prompts)

  rows = {
    measure.name: paired.compare(*(_column(measured.get(name), measure.name) for name in ("base", "tuned")))
    for measure in MEASURES
  }
  frechet_row = _frechet(config, extractor, features, real_files)
  left_out = dict(LEFT_OUT)
  if isinstance(frechet_row, str):
    left_out[FRECHET.name] = frechet_row
  else:
    rows[FRECHET.name] = frechet_row
  setup = _setup(config, options, trained, batch)
  evaluation = Evaluation(setup, prompts, measured["base"], measured.get("tuned"), rows, left_out)
  _writing(lambda: report.write(evaluation, options.out), options.out)
  return evaluation


@dataclasses.dataclass(frozen=True, eq=False)
class _Batch:
  """Videos of one model on their way."""

  name: str  # of the model
  videos: UInt8[np.ndarray, "N T H W 3"]
  targets: Sequence[Target]
  pending: Sequence[Results]  # jobs, in order


class _Evaluator:
  """Makes the videos of all models, batch by batch, and measures them while the next ones are made."""

  def __init__(
    self,
    config: Config,
    models: dict[str, nnx.State | None],
    sampler: samples.Sampler,
    extractor: latent_features.Extractor | None,
    rewards: Rewards,
    out: Path,
  ):
    self._config, self._models, self._sampler, self._extractor = config, models, sampler, extractor
    self._rewards, self._out = rewards, out
    self._meter = Meter(config)
    self._measured: dict[str, list[Measured]] = {name: [] for name in models}
    self._features: dict[str, list[Float32[np.ndarray, "N F"]]] = {name: [] for name in models}
    self._shown: dict[str, list[UInt8[np.ndarray, "T H W 3"]]] = {name: [] for name in models}

  def measure(self, prompts: Sequence[str]) -> tuple[dict[str, list[Measured]], dict[str, np.ndarray]]:
    """For each model, what was measured of each prompt's video, and their latent features (where there are any)."""
    pending: collections.deque[_Batch] = collections.deque()
    with tqdm(total=len(prompts) * len(self._models), desc="evaluating", unit="video", disable=None) as bar:
      for start in range(0, len(prompts), self._sampler.batch):
        places = range(start, min(start + self._sampler.batch, len(prompts)))
        for name, lora in self._models.items():
          bar.set_postfix_str(f"{name}, prompts {places[0]} to {places[-1]}")
          pending.append(self._make(name, lora, [prompts[place] for place in places], places))
          if len(pending) > _AHEAD:
            self._collect(pending.popleft(), bar)
      while pending:
        self._collect(pending.popleft(), bar)
    _writing(lambda: self._show(prompts), self._out)
    return self._measured, {name: np.concatenate(found) for name, found in self._features.items() if found}

  def _make(self, name: str, lora: nnx.State | None, prompts: Sequence[str], places: Sequence[int]) -> _Batch:
    videos = self._sampler(lora, prompts, places)
    self._shown[name] += list(videos[: _SHOWN - len(self._shown[name])])
    if self._extractor is not None:
      self._features[name].append(self._extractor(videos))
    paths, has_path = target_paths(prompts, self._config.video.frames, self._config.camera)
    targets = [path if asked else None for path, asked in zip(paths, has_path)]
    depth = self._config.camera.scene_depth
    asked = [None if target is None else in_scene_depths(target, depth) for target in targets]
    size = _job_size(self._config)
    jobs = [slice(start, start + size) for start in range(0, len(videos), size)]
    pending = [self._rewards.submit(Job(videos[job], prompts[job], asked[job])) for job in jobs]
    return _Batch(name, videos, targets, pending)

  def _collect(self, batch: _Batch, bar: tqdm) -> None:
    results = [result for job in batch.pending for result in job.result()]
    for clip in zip(batch.videos, results, batch.targets):
      self._measured[batch.name].append(self._meter(*clip))
      bar.update()

  def _show(self, prompts: Sequence[str]) -> None:
    base, tuned = self._shown["base"], self._shown.get("tuned")
    for place, left in enumerate(base):
      right = None if tuned is None else tuned[place]
      report.write_video(self._out, place, left, right, self._config.video.fps)
    report.write_picture(self._out, prompts[: len(base)], base, tuned)


def _job_size(config: Config) -> int:
  return _CLIPS_A_SIDECAR.get(config.rewards.device, _MOST_CLIPS_A_SIDECAR) * config.rewards.replicas


def _column(videos: Sequence[Measured] | None, name: str) -> np.ndarray | None:
  return None if videos is None else np.array([video.values[name] for video in videos])


def _frechet(
  config: Config,
  extractor: latent_features.Extractor | None,
  features: dict[str, np.ndarray],
  files: Sequence[Path] | None,
) -> paired.Row | str:
  """The row of the Frechet distance, or the reason why there is none."""
  if extractor is None:
    return "it compares with real clips, which --real=FOLDER gives"
  found, problems = [], []
  for clip in tqdm(latent_features.read_real(files, config.video), "real clips", len(files), disable=None, unit="clip"):
    if isinstance(clip, str):
      problems.append(clip)
    else:
      found.append(extractor(clip[np.newaxis]))
  if problems:
    tqdm.write(f"{len(problems)} of {len(files)} real clips are left out; the first: {problems[0]}")
  if min(len(found), len(features["base"])) < frechet.FEWEST:
    problem = f" ({len(problems)} were left out, the first because {problems[0]})" if problems else ""
    return (
      f"it needs {frechet.FEWEST} videos and as many real clips; there are {len(features['base'])} and "
      f"{len(found)}{problem}"
    )
  return frechet.compare(features["base"], features.get("tuned"), np.concatenate(found), seed=config.train.seed)


def _setup(config: Config, options: Options, trained: Adapters | None, batch: int) -> dict[str, Any]:
  """What the report says about itself."""
  setup = {
    "model": config.model.path,
    "prompts": options.prompts,
    "solver": options.solver,
    "steps": config.sampling.steps,
    "guidance": config.sampling.guidance,
    "seed": config.train.seed,
    "batch": batch,
    "real": None if options.real is None else str(options.real),
  }
  if trained is not None:
    setup |= {
      "run": str(options.run),
      "iterations": trained.iterations,
      "running_average": options.ema,
      "trained_on": trained.base_model,
    }
  return {**setup, "config": config_lib.to_dict(config)}


def _make_folder(out: Path) -> None:
  _writing(lambda: out.mkdir(parents=True, exist_ok=True), out)


def _writing(write: Callable[[], None], out: Path) -> None:
  try:
    write()
  except (OSError, ValueError) as error:
    raise UserError(f"--out={out} could not be written: {error}.") from error


def _define_flags(values: flags.FlagValues) -> None:
  flags.DEFINE_string("prompts", None, "file of one prompt a line, or a name in the package", flag_values=values)
  flags.DEFINE_string("out", None, "folder for the results", flag_values=values)
  flags.DEFINE_string("run", None, "a run's folder (--workdir of the training); none: base alone", flag_values=values)
  flags.DEFINE_integer("step", None, "which checkpoint; default: the newest", flag_values=values)
  flags.DEFINE_bool("ema", False, "the running average of the adapters", flag_values=values)
  flags.DEFINE_integer("steps", None, "sampling steps; default: the config's", lower_bound=1, flag_values=values)
  flags.DEFINE_enum("solver", "euler", ["euler", "unipc"], "sampler", flag_values=values)
  flags.DEFINE_integer("batch", None, "videos made at once; default: as in training", lower_bound=1, flag_values=values)
  flags.DEFINE_string("real", None, "folder of real clips (.mp4, .npy)", flag_values=values)


def _options(values: flags.FlagValues) -> Options:
  missing = [f"--{name}" for name in ("prompts", "out") if not values[name].value]
  if missing:
    raise UserError(f"{', '.join(missing)} must be given; see the top of wr1_jax/evaluate.py.")
  if not values.run and (values.step is not None or values.ema):
    raise UserError("--step and --ema choose among a run's adapters; --run=FOLDER is missing.")
  return Options(
    prompts=values.prompts,
    out=Path(values.out),
    run=Path(values.run) if values.run else None,
    step=values.step,
    ema=values.ema,
    steps=values.steps,
    solver=values.solver,
    batch=values.batch,
    real=Path(values.real) if values.real else None,
  )


def main(argv: Sequence[str]) -> None:
  """Entry of the command line."""
  sys.stdout.reconfigure(line_buffering=True)
  with errors.reported():
    config, values = cli.parse(argv, _define_flags)
    options = _options(values)
    evaluation = evaluate(config, make_mesh(config.mesh), options)
    print(report.text(evaluation))
    print(f"done: {options.out / 'evaluation.md'}, {options.out / 'evaluation.json'}, {options.out / 'videos'}")


if __name__ == "__main__":
  main(sys.argv)
