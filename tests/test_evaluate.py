"""The evaluation from the command line's options to its files, on the tiny model with fake scorers."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from wr1_jax import cli, evaluate, randomness
from wr1_jax import config as config_lib
from wr1_jax.camera.start_noise import StartNoise
from wr1_jax.camera.trajectory import target_paths
from wr1_jax.config import Config, LoRAConfig
from wr1_jax.data.video_files import read_mp4
from wr1_jax.errors import UserError
from wr1_jax.evaluation import adapters, frechet, report
from wr1_jax.evaluation.measures import LEFT_OUT, MEASURES
from wr1_jax.evaluation.samples import Sampler, sample
from wr1_jax.models import pipeline
from wr1_jax.models.pipeline import WanModel
from wr1_jax.parallel.mesh import make_mesh
from wr1_jax.randomness import Purpose
from wr1_jax.sampling import solvers
from wr1_jax.sampling.guidance import guided
from wr1_jax.sampling.injection import Injection, injection_weights
from wr1_jax.sampling.schedule import Schedule
from wr1_jax.training import checkpoint, state

TESTS = Path(__file__).parent
TINY = TESTS.parent / "configs" / "tiny.py"
PROMPTS = ("Camera push in. A jug.", "Camera pan left. A pier.", "A market.")


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
  """Evaluations share what they compile, as repeated starts of a program may."""
  options = {"jax_compilation_cache_dir": str(tmp_path_factory.mktemp("cache"))}
  options["jax_persistent_cache_min_compile_time_secs"] = 0
  before = {name: getattr(jax.config, name) for name in options}
  for values in (options, before):
    for name, value in values.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()
    if values is options:
      yield


@pytest.fixture(autouse=True)
def fakes_can_be_imported(monkeypatch):
  monkeypatch.setenv("PYTHONPATH", str(TESTS))


@pytest.fixture(scope="module")
def config(tiny_folder) -> Config:
  """Tiny clips, few steps; the general judge reads no prompts."""
  options = {
    "model.path": tiny_folder,
    "video.height": 64,
    "video.width": 64,
    "video.frames": 5,
    "sampling.steps": 3,
    "sampling.text_length": 16,
    "sampling.window_start_max": 2,
    "noise_warp.mode": "stepwise_delta",
    "lora.rank": 4,
    "train.group_size": 2,
    "train.decode_batch": 1,
    "rewards.reconstructor": "fake_scorers:Reconstructor",
    "rewards.meta": "fake_scorers:Meta",
    "rewards.general": "fake_scorers:indifferent",
  }
  arguments = ["test", f"--config={TINY}", *(f"--config.{name}={value}" for name, value in options.items())]
  return cli.parse(arguments, lambda values: None)[0]


@pytest.fixture(scope="module")
def mesh(config):
  return make_mesh(config.mesh, jax.devices()[:1])


@pytest.fixture(scope="module")
def model(config, mesh) -> WanModel:
  return pipeline.load(config, mesh, randomness.stream(0, Purpose.INIT))


@pytest.fixture(scope="module")
def run(config, model, tmp_path_factory) -> Path:
  """The folder of a run: after 1 iteration new adapters, which change nothing, and after 2 some that do."""
  folder = tmp_path_factory.mktemp("run")
  (folder / "config.json").write_text(json.dumps(config_lib.to_dict(config)))
  new = state.init(model.lora, state.make_optimizer(config.optimizer))
  with checkpoint.Checkpoints(folder / "checkpoints", keep=5) as checkpoints:
    checkpoints.save(1, new)
    checkpoints.save(2, new._replace(lora=jax.tree.map(lambda x: x + 0.05, model.lora)))
  return folder


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> str:
  file = tmp_path_factory.mktemp("prompts") / "prompts.txt"
  file.write_text("\n".join(PROMPTS))
  return str(file)


def read_json(folder: Path) -> dict:
  def refuse(name):
    raise AssertionError(f"{name} is not JSON")

  return json.loads((folder / "evaluation.json").read_text(), parse_constant=refuse)


# --- videos -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sampler(config, model, mesh) -> Sampler:
  return Sampler(config, model, mesh, batch=2)


def test_a_video_is_a_function_of_prompt_place_and_adapters(sampler, model):
  both = sampler(None, PROMPTS[:2], [0, 1])
  assert both.shape == (2, 5, 64, 64, 3) and both.dtype == np.uint8
  np.testing.assert_array_equal(sampler(None, PROMPTS[1:2], [1])[0], both[1])  # whatever is beside it
  assert not np.array_equal(sampler(None, PROMPTS[:1], [7])[0], both[0])  # another place, another noise
  np.testing.assert_array_equal(sampler(model.lora, PROMPTS[:2], [0, 1]), both)  # new adapters are base
  changed = jax.tree.map(lambda x: x + 0.05, model.lora)
  assert not np.array_equal(sampler(changed, PROMPTS[:2], [0, 1]), both)
  assert sampler._make._cache_size() == 1  # one program for all of them
  for prompts, places in ((PROMPTS, [0, 1, 2]), ([], []), (PROMPTS[:2], [0])):
    with pytest.raises(ValueError, match="do not go with batches of 2"):
      sampler(None, prompts, places)


def test_videos_are_those_of_their_parts(config, model, sampler):
  """Start noise and injection of training, and the reference network, which has no adapters, put together by hand."""
  places = np.array([4, 5], np.int32)
  paths, has_path = target_paths(PROMPTS[:2], 5, config.camera)
  start = sampler._start(*map(sampler._put, (np.int32(2**31 - 1), places, paths, has_path)))
  keys = lambda purpose: randomness.at_each(randomness.at(randomness.stream(0, purpose), 2**31 - 1), places)
  np.testing.assert_array_equal(
    start.latents[0], jax.random.normal(keys(Purpose.START_NOISE)[0], model.latent_shape(config.video))
  )
  embed = lambda prompts: sampler._embed(model.text.state, *map(sampler._put, model.text.tokenize(prompts)))
  text, negative = embed(PROMPTS[:2]), embed(["", ""])[:1]

  @jax.jit
  def by_hand(start, text, negative):
    velocity = guided(model.transformer.reference(model.base), config.sampling.guidance)
    injection = Injection(start.delta, injection_weights(3, config.noise_warp))
    field = lambda x, timestep: velocity(x, timestep, text, negative)
    latents = solvers.euler(field, Schedule.make(3, 3.0), start.latents, after_step=injection)
    return model.decode(model.vae_state, latents, frames_per_chunk=1)

  found = sampler(None, PROMPTS[:2], places).astype(int)
  assert np.abs(found - by_hand(start, text, negative)).max() <= 1  # a pixel may round the other way


@pytest.mark.parametrize("solver", ["euler", "unipc"])
def test_latents_are_those_of_the_solver_with_injection(solver, config):
  rng = np.random.default_rng(0)
  start = StartNoise(*jnp.asarray(rng.normal(size=(2, 2, 2, 4, 4, 3)), jnp.float32))
  schedule, warp = Schedule.make(4, 3.0), config.noise_warp
  velocity = lambda x, timestep, text, negative: 0.7 * x - jnp.sin(1.7 * x) + text[:, None, None] - negative
  text, negative = jnp.asarray(rng.normal(size=(2, 4, 3))), jnp.asarray(rng.normal(size=(1, 4, 3)))[:, None, None]
  found = sample(velocity, schedule, start, text, negative, solver=solver, warp=warp)
  expected = getattr(solvers, solver)(
    lambda x, timestep: velocity(x, timestep, text, negative),
    schedule,
    start.latents,
    after_step=Injection(start.delta, injection_weights(4, warp)),
  )
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
  plain = sample(velocity, schedule, start._replace(delta=None), text, negative, solver=solver, warp=warp)
  assert np.abs(plain - found).max() > 0.01


# --- the whole --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluated(config, mesh, run, prompts, tmp_path_factory) -> Path:
  """The newest adapters against the base model, and real clips."""
  real, out = tmp_path_factory.mktemp("real"), tmp_path_factory.mktemp("out") / "new" / "folder"
  rng = np.random.default_rng(0)
  for index in range(9):
    np.save(real / f"{index}.npy", rng.integers(0, 256, (5, 64, 64, 3), np.uint8))
  np.save(real / "short.npy", np.zeros((4, 64, 64, 3), np.uint8))
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("PYTHONPATH", str(TESTS))
    patch.setattr(frechet, "FEWEST", 3)
    evaluate.evaluate(config, mesh, evaluate.Options(prompts, out, runs=[run], real=real))
  return out


def test_files_are_complete(evaluated):
  assert {path.name for path in evaluated.iterdir()} == {"evaluation.json", "evaluation.md", "videos", "videos.png"}
  assert read_mp4(evaluated / "videos" / "002.mp4").shape == (5, 64, 128, 3)
  content = read_json(evaluated)
  assert content["iterations"] == 2 and content["steps"] == 3 and content["config"]["lora"]["rank"] == 4
  assert content["metrics"].keys() == {*(measure.name for measure in MEASURES), "frechet/vae"}
  assert content["left_out"] == LEFT_OUT
  assert [video["prompt"] for video in content["videos"]] == list(PROMPTS)
  text = (evaluated / "evaluation.md").read_text()
  assert "| reward R | higher |" in text and "Not measured" in text and "nan" not in text


def test_rows_follow_from_the_videos(evaluated):
  content = read_json(evaluated)
  for measure in MEASURES:
    row = content["metrics"][measure.name]
    pairs = [(video["base"][measure.name], video["tuned"][measure.name]) for video in content["videos"]]
    for video in content["videos"]:
      for name in ("base", "tuned"):  # every gap has a reason, and nothing else has
        assert (video[name][measure.name] is None) == (measure.name in video[name]["reasons"])
    known = np.array([pair for pair in pairs if None not in pair])
    assert row["count"] == len(known)
    if len(known):
      np.testing.assert_allclose([row["base"], row["tuned"]], known.mean(axis=0), rtol=1e-9)
      np.testing.assert_allclose(row["difference"], (known[:, 1] - known[:, 0]).mean(), rtol=1e-6, atol=1e-12)
  # The fake reconstructor answers with the path asked for; of three prompts two name moves, and one of those a pan.
  assert content["metrics"]["camera/rot_err"]["count"] == 2 and content["metrics"]["camera/rot_err"]["base"] < 1e-5
  assert content["metrics"]["camera/trans_err"]["count"] == 1
  assert content["metrics"]["reward/traj"]["base"] == pytest.approx(1, abs=1e-4)
  assert content["metrics"]["motion/lk_flow"]["difference"] != 0
  assert content["metrics"]["frechet/vae"]["count"] == 3 and content["metrics"]["frechet/vae"]["base"] > 0


def test_new_adapters_change_nothing_and_numbers_repeat(config, mesh, run, prompts, evaluated, tmp_path):
  """Base and tuned are then the same videos, and the base model's numbers are those of the evaluation before."""
  evaluate.evaluate(config, mesh, evaluate.Options(prompts, tmp_path, runs=[run], step=1))
  now, before = read_json(tmp_path), read_json(evaluated)
  for here, there in zip(now["videos"], before["videos"]):
    assert here["base"] == here["tuned"] == there["base"]
  for name, row in now["metrics"].items():
    assert row["difference"] == (0 if row["count"] else None) and row["z"] is None, name
  assert "--real" in now["left_out"]["frechet/vae"]


def test_runs_side_by_side(config, mesh, run, prompts, evaluated, tmp_path):
  """The base model is measured once, and every run has the numbers that it has alone."""
  other = shutil.copytree(run, tmp_path / "other")
  out = tmp_path / "out"
  evaluate.evaluate(config, mesh, evaluate.Options(prompts, out, runs=[run, other]))
  assert {path.name for path in out.iterdir()} == {run.name, "other", "runs.md"}
  alone = read_json(evaluated)["videos"]
  for name in (run.name, "other"):
    assert read_json(out / name)["videos"] == alone
    assert read_mp4(out / name / "videos" / "002.mp4").shape == (5, 64, 128, 3)
  table = (out / "runs.md").read_text().splitlines()
  assert [row.split(" | ")[0] for row in table[4:]] == ["| run", "| ---", "| base", f"| {run.name}", "| other"]
  assert table[-1].partition(" | ")[2] == table[-2].partition(" | ")[2]


def test_the_base_model_alone_and_rewards_that_fail(config, mesh, prompts, evaluated, tmp_path):
  """A judge that fails on every clip: its rewards are counted as missing, and never replaced."""
  rewards = dataclasses.replace(config.rewards, general="fake_scorers:General")  # obeys prompts, which do not command
  options = evaluate.Options(prompts, tmp_path, steps=3)
  found = evaluate.evaluate(dataclasses.replace(config, rewards=rewards), mesh, options)["base"]
  content = read_json(tmp_path)
  assert found.tuned is None and "run" not in content
  assert all(video.keys() == {"prompt", "base"} for video in content["videos"])
  assert read_mp4(tmp_path / "videos" / "000.mp4").shape == (5, 64, 64, 3)
  assert "standard error" in report.text(found) and "tuned" not in report.text(found)
  row = content["metrics"]["reward/recon"]
  assert row.keys() == {"title", "better", "count", "missing_base", "base", "base_error"} and row["count"] == 3
  for name in ("reward/general", "reward/total"):
    row = content["metrics"][name]
    assert row["count"] == 0 and row["missing_base"] == 3 and row["base"] is None
  assert "* reward R_gen: 2 times" in (tmp_path / "evaluation.md").read_text()


# --- wrong input ------------------------------------------------------------------------------------------------------


def test_wrong_input_is_said_before_any_work(config, mesh, run, prompts, tmp_path):
  def complain(match: str, **options) -> None:
    options = {"prompts": prompts, "out": tmp_path / "out", **options}
    with pytest.raises(UserError, match=match) as error:
      evaluate.evaluate(options.pop("config", config), mesh, evaluate.Options(**options))
    assert "\n" not in str(error.value)

  complain("no such file", prompts=str(tmp_path / "nowhere.txt"))
  (tmp_path / "empty.txt").write_text("\n")
  complain("is empty", prompts=str(tmp_path / "empty.txt"))
  complain("--run=.*is no run's folder", runs=[tmp_path])
  complain(r"has no checkpoint 7; it has 1, 2\.", runs=[run], step=7)
  other = dataclasses.replace(config, lora=LoRAConfig(rank=8, alpha=16))
  complain("rank 4.*--config.lora.rank=4", runs=[run], config=other)
  complain("folder name of its own", runs=[run, run])
  complain("--real=.*no such folder", real=tmp_path / "nowhere")
  complain("--out=.*could not be written", out=tmp_path / "empty.txt")
  assert not (tmp_path / "out").exists()


def test_damaged_and_foreign_checkpoints_are_said(config, model, tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(config_lib.to_dict(config)))
  with pytest.raises(UserError, match="there are no checkpoints"):
    adapters.read(tmp_path)
  (tmp_path / "checkpoints" / "3").mkdir(parents=True)
  with pytest.raises(UserError, match="is damaged"):
    adapters.read(tmp_path)
  other_network = {("blocks", "attn1", "to_q", "lora_a"): np.zeros((2, 8, 4), np.float32)}
  foreign = adapters.Adapters(other_network, 3, config.lora, "elsewhere")
  with pytest.raises(UserError, match="do not fit.*elsewhere"):
    foreign.placed(model.lora)


def test_average_and_adapters_are_told_apart(run, config, model):
  new, changed = (adapters.read(run, ema=ema).placed(model.lora) for ema in (True, False))
  jax.tree.map(np.testing.assert_array_equal, new, model.lora)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b + 0.05, rtol=1e-6), changed, model.lora)


def test_the_command_line_says_what_is_missing(capsys):
  for options, complaint in (
    (["--out=x"], "--prompts must be given"),
    (["--prompts=x", "--out=y", "--step=3"], "--run=FOLDER is missing"),
    (["--prompts=x", "--out=y", "--solver=heun"], "solver"),
  ):
    with pytest.raises(SystemExit) as stop:
      evaluate.main(["evaluate", f"--config={TINY}", *options])
    assert stop.value.code == 2 and complaint in capsys.readouterr().err
