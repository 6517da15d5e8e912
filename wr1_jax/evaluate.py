"""Measures what post-training did: the same prompts and start noise, without and with a run's adapters.

    python -m wr1_jax.evaluate --config=configs/tiny.py --run=runs/tiny --prompts=FILE --out=DIR

FILE holds one prompt a line, which no training has seen. For each, the base model and the tuned one make a video from
the same start noise, deterministically; the sidecar reconstructs both. Into DIR go

    evaluation.json   the table; every number of every video, and why one is missing; the options
    evaluation.md     the table: both models, the paired difference, its standard error
    videos/           the first prompts' videos, base on the left and tuned on the right
    videos.png        frames of them

Without --run only the base model is measured. With --run=A,B,... it is measured once for all of them: each has a folder
of its own, DIR/A and so on, and DIR/runs.md compares them. All videos are made as --config says, whatever the runs' own
configs say of sampling. --real=FOLDER of real clips (mp4, or .npy with uint8 [T, H, W, 3]) adds the Frechet distance to
them. The measures are explained in `evaluation.measures` and the modules it calls.
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
BASE = "base"  # the name of the model without adapters
_AHEAD = 2  # batches that are made before the first one's results are waited for
_SHOWN = 4  # prompts whose videos are written


@dataclasses.dataclass(frozen=True)
class Options:
  """What the command line says beside the config."""

  prompts: str  # a path, or the name of a file that is shipped with the package
  out: Path
  runs: Sequence[Path] = ()  # none: the base model alone
  step: int | None = None  # iterations of the runs' checkpoints; None: the newest
  ema: bool = False  # the running average of the adapters
  steps: int | None = None  # of the sampler; None: config.sampling.steps
  solver: samples.Solver = "euler"
  batch: int | None = None  # videos that are made at once; None: as many as in training
  real: Path | None = None  # folder of real clips


def evaluate(config: Config, mesh: Mesh, options: Options) -> dict[str, Evaluation]:
  """Measures, and writes what the top of this file lists to `options.out`.

  Returns:
    What was found of each run, by the name of its folder; without runs of `BASE`.

  Raises:
    UserError: something in the input, the run's folder or the machine does not allow it.
  """
  preflight.check(config, mesh)
  prompts = prompt_files.load(options.prompts).texts
  real_files = None if options.real is None else latent_features.find_real(options.real)
  trained = _read_runs(config, options)
  folders = {name: options.out / name if len(trained) > 1 else options.out for name in trained or [BASE]}
  for folder in folders.values():
    _writing(lambda: folder.mkdir(parents=True, exist_ok=True), options.out)
  if options.steps is not None:
    config = dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, steps=options.steps))
  batch = options.batch or config.train.groups_per_rollout * config.train.group_size

  with make_client(config.rewards) as rewards:
    video = config.video
    rewards.check_room(min(batch, _job_size(config)), video.frames, video.height, video.width)
    model = pipeline.load(config, mesh, randomness.stream(config.train.seed, Purpose.INIT))
    models = {BASE: None} | {name: run.placed(model.lora) for name, run in trained.items()}
    sampler = samples.Sampler(config, model, mesh, batch=batch, solver=options.solver)
    extractor = None if real_files is None else latent_features.Extractor(config, model, mesh)
    found = _Evaluator(config, models, sampler, extractor, rewards).measure(prompts)

  real = None if extractor is None else _real_features(config, extractor, real_files)
  evaluations = {}
  for name, folder in folders.items():
    tuned = found.get(name) if name in trained else None
    setup = _setup(config, options, name, trained.get(name), batch)
    evaluations[name] = _compared(config, setup, prompts, found[BASE], tuned, real)
    _writing(lambda: _write(evaluations[name], found[BASE], tuned, config.video.fps, folder), options.out)
  if len(trained) > 1:
    _writing(lambda: report.write_runs(evaluations, options.out), options.out)
  return evaluations


def _read_runs(config: Config, options: Options) -> dict[str, Adapters]:
  """The adapters of every run, by the names of the runs' folders."""
  trained = {}
  for run in options.runs:
    name = run.resolve().name
    if name in trained or name == BASE:
      raise UserError(f"--run={run}: every run needs a folder name of its own, other than '{BASE}'.")
    trained[name] = adapters.read(run, step=options.step, ema=options.ema)
    trained[name].check(config.lora)
    if trained[name].base_model != config.model.path:
      tqdm.write(f"note: {run} was made with config.model.path = {trained[name].base_model}, not {config.model.path}")
  return trained


def _compared(
  config: Config,
  setup: dict[str, Any],
  prompts: Sequence[str],
  base: _Found,
  tuned: _Found | None,
  real: Float32[np.ndarray, "N F"] | str | None,
) -> Evaluation:
  """One model against the base model, or the latter alone."""
  column = lambda found, name: None if found is None else np.array([video.values[name] for video in found.measured])
  rows = {m.name: paired.compare(column(base, m.name), column(tuned, m.name)) for m in MEASURES}
  frechet_row = _frechet(config, base, tuned, real)
  left_out = dict(LEFT_OUT)
  if isinstance(frechet_row, str):
    left_out[FRECHET.name] = frechet_row
  else:
    rows[FRECHET.name] = frechet_row
  return Evaluation(setup, prompts, base.measured, None if tuned is None else tuned.measured, rows, left_out)


def _write(evaluation: Evaluation, base: _Found, tuned: _Found | None, fps: int, folder: Path) -> None:
  report.write(evaluation, folder)
  for place, left in enumerate(base.shown):
    report.write_video(folder, place, left, None if tuned is None else tuned.shown[place], fps)
  report.write_picture(folder, evaluation.prompts[: len(base.shown)], base.shown, tuned and tuned.shown)


@dataclasses.dataclass(frozen=True, eq=False)
class _Found:
  """What is known of one model's videos."""

  measured: list[Measured] = dataclasses.field(default_factory=list)  # one a prompt
  features: list[Float32[np.ndarray, "N F"]] = dataclasses.field(default_factory=list)  # of latents; batch by batch
  shown: list[UInt8[np.ndarray, "T H W 3"]] = dataclasses.field(default_factory=list)  # the first videos


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
  ):
    self._config, self._models, self._sampler, self._extractor = config, models, sampler, extractor
    self._rewards = rewards
    self._meter = Meter(config)
    self._found = {name: _Found() for name in models}

  def measure(self, prompts: Sequence[str]) -> dict[str, _Found]:
    """What is found of each model's videos of `prompts`."""
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
    return self._found

  def _make(self, name: str, lora: nnx.State | None, prompts: Sequence[str], places: Sequence[int]) -> _Batch:
    videos = self._sampler(lora, prompts, places)
    found = self._found[name]
    found.shown.extend(videos[: _SHOWN - len(found.shown)])
    if self._extractor is not None:
      found.features.append(self._extractor(videos))
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
      self._found[batch.name].measured.append(self._meter(*clip))
      bar.update()


def _job_size(config: Config) -> int:
  return _CLIPS_A_SIDECAR.get(config.rewards.device, _MOST_CLIPS_A_SIDECAR) * config.rewards.replicas


def _real_features(
  config: Config, extractor: latent_features.Extractor, files: Sequence[Path]
) -> Float32[np.ndarray, "N F"] | str:
  """Features of the real clips, or the reason why there are too few."""
  found, problems = [], []
  for clip in tqdm(latent_features.read_real(files, config.video), "real clips", len(files), disable=None, unit="clip"):
    if isinstance(clip, str):
      problems.append(clip)
    else:
      found.append(extractor(clip[np.newaxis]))
  if problems:
    tqdm.write(f"{len(problems)} of {len(files)} real clips are left out; the first: {problems[0]}")
  if len(found) < frechet.FEWEST:
    problem = f" ({len(problems)} were left out, the first because {problems[0]})" if problems else ""
    return f"it needs {frechet.FEWEST} real clips; there are {len(found)}{problem}"
  return np.concatenate(found)


def _frechet(
  config: Config, base: _Found, tuned: _Found | None, real: Float32[np.ndarray, "N F"] | str | None
) -> paired.Row | str:
  """The row of the Frechet distance, or the reason why there is none."""
  if real is None:
    return "it compares with real clips, which --real=FOLDER gives"
  if isinstance(real, str):
    return real
  if len(base.measured) < frechet.FEWEST:
    return f"it needs {frechet.FEWEST} videos; there are {len(base.measured)}"
  features = np.concatenate(base.features), None if tuned is None else np.concatenate(tuned.features)
  return frechet.compare(*features, real, seed=config.train.seed)


def _setup(config: Config, options: Options, name: str, trained: Adapters | None, batch: int) -> dict[str, Any]:
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
      "run": str(next(run for run in options.runs if run.resolve().name == name)),
      "iterations": trained.iterations,
      "running_average": options.ema,
      "trained_on": trained.base_model,
    }
  return {**setup, "config": config_lib.to_dict(config)}


def _writing(write: Callable[[], None], out: Path) -> None:
  try:
    write()
  except (OSError, ValueError) as error:
    raise UserError(f"--out={out} could not be written: {error}.") from error


def _define_flags(values: flags.FlagValues) -> None:
  flags.DEFINE_string("prompts", None, "file of one prompt a line, or a name in the package", flag_values=values)
  flags.DEFINE_string("out", None, "folder for the results", flag_values=values)
  flags.DEFINE_list("run", [], "runs' folders (--workdir of the trainings); none: base alone", flag_values=values)
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
    runs=tuple(map(Path, values.run)),
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
    evaluations = evaluate(config, make_mesh(config.mesh), options)
    for name, evaluation in evaluations.items():
      print(f"{name}\n{report.text(evaluation)}" if len(evaluations) > 1 else report.text(evaluation))
    where = ("runs.md",) if len(evaluations) > 1 else ("evaluation.md", "evaluation.json", "videos")
    print(f"done: {', '.join(str(options.out / name) for name in where)}")


if __name__ == "__main__":
  main(sys.argv)
