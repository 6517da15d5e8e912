"""The reward process, and what happens when either side misbehaves."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import errno
import math
import os
import signal
import struct
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from sidecar_helpers import FAKES, TESTS, group_of, is_running, job, names_in_shm, path, shm_free, sidecars_of, wait_for

from wr1_jax.errors import UserError
from wr1_jax.rewards.client import RewardClient
from wr1_jax.rewards.transport import make_client
from wr1_jax.sidecar import messages
from wr1_jax.sidecar.channel import MAX_BYTES
from wr1_jax.sidecar.messages import ClipScores, Ready, Scored


@pytest.fixture(scope="module", autouse=True)
def fakes_can_be_imported():
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("PYTHONPATH", str(TESTS))
    yield


@pytest.fixture(scope="module")
def client(fakes_can_be_imported):
  """One sidecar for all tests that leave it in peace."""
  with RewardClient(FAKES) as started:
    yield started


@pytest.fixture(autouse=True)
def nothing_stays_behind():
  """Checks after every test that it left no shared memory and no sidecar."""
  before = sidecars_of(os.getpid())
  yield
  assert names_in_shm() == []
  assert sidecars_of(os.getpid()) == before


# --- room in shared memory --------------------------------------------------------------------------------------------


def test_a_client_checks_the_room_for_its_jobs(client):
  client.check_room(clips=1, frames=5, height=64, width=64)
  with pytest.raises(UserError, match="shared memory"):
    client.check_room(clips=10**6, frames=81, height=480, width=832)


def test_a_job_for_which_there_is_no_room_is_nan_with_a_reason(client, monkeypatch):
  def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")

  with monkeypatch.context() as patch:
    patch.setattr(os, "posix_fallocate", full)
    (result,) = client.submit(job("mean")).result()
  assert math.isnan(result.general) and "--shm-size" in result.reasons["general"]
  assert client.submit(job("mean")).result()[0].general == 0.5


# --- choosing scorers and the interpreter -----------------------------------------------------------------------------


def test_an_interpreter_that_does_not_exist_is_refused():
  with pytest.raises(UserError, match="no program"):
    RewardClient(dataclasses.replace(FAKES, python="/nowhere/python"))


@pytest.mark.parametrize(
  "change, complaint",
  [
    ({"general": "fake_scorers:Generol"}, "has no Generol"),
    ({"general": "no_such_module:General"}, "No module named 'no_such_module'"),
    ({"general": "fake_scorers:broken"}, "the weights are not there"),
  ],
)
def test_a_sidecar_that_cannot_start_is_a_user_error_with_its_last_words(change, complaint):
  with pytest.raises(UserError, match=complaint), RewardClient(dataclasses.replace(FAKES, **change)):
    pass


def test_an_interpreter_without_the_libraries_is_a_user_error(tmp_path):
  bare = tmp_path / "python"
  bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')  # without site-packages
  bare.chmod(0o755)
  with pytest.raises(UserError, match="did not start.*No module named.*torch"):
    with RewardClient(dataclasses.replace(FAKES, python=str(bare))):
      pass


def test_a_program_that_is_no_python_is_a_user_error(tmp_path):
  with pytest.raises(UserError, match="did not start"), RewardClient(dataclasses.replace(FAKES, python="/bin/false")):
    pass
  broken = tmp_path / "python"
  broken.write_text("no program")
  broken.chmod(0o755)
  with pytest.raises(UserError, match="cannot be run"), RewardClient(dataclasses.replace(FAKES, python=str(broken))):
    pass


def test_a_sidecar_that_is_never_ready_is_a_user_error(tmp_path):
  slow = tmp_path / "python"
  slow.write_text("#!/bin/sh\nsleep 1000\n")
  slow.chmod(0o755)
  config = dataclasses.replace(FAKES, python=str(slow), start_seconds=0.2)
  with pytest.raises(UserError, match="not ready after 0.2 s"), RewardClient(config):
    pass


def test_ray_that_is_not_installed_is_a_user_error(monkeypatch):
  for module in ("wr1_jax.rewards.ray_client", "wr1_jax.rewards.ray_dispatcher"):
    monkeypatch.delitem(sys.modules, module, raising=False)
  monkeypatch.setitem(sys.modules, "ray", None)
  assert isinstance(make_client(FAKES), RewardClient)
  with pytest.raises(UserError, match="pip install .ray"):
    make_client(dataclasses.replace(FAKES, transport="ray"))


# --- answers ----------------------------------------------------------------------------------------------------------


def test_every_clip_gets_its_own_answers_in_order(client):
  asked = [path(0), None, path(2)]
  batch = dataclasses.replace(
    job("score 0.25", "score 0.5", "score 0.75", colours=[40, 90, 200], parts=("reconstruction", "meta", "general")),
    paths=asked,
  )
  results = client.submit(batch).result()
  for i, (result, colour) in enumerate(zip(results, (40, 90, 200))):
    assert result.frames.shape == (3, 64, 96, 3) and result.offset_view.shape == (64, 96, 3)
    assert (result.frames == colour).all() and (result.rendered == 255 - colour).all()
    expected = np.tile(np.eye(4), (3, 1, 1)) if asked[i] is None else asked[i].astype(np.float64)
    expected[:, :3, 3] *= colour  # the fake scene is so deep
    np.testing.assert_allclose(result.poses, expected, rtol=1e-6)
    assert result.poses.dtype == np.float32
    assert result.depth_unit == colour
    assert result.meta == pytest.approx(colour / 255)
    assert result.general == 0.25 * (i + 1)
    assert not result.reasons
    assert result.seconds.keys() == {"reconstruction", "meta", "general"}


def test_only_what_is_asked_for_is_computed(client):
  (result,) = client.submit(job("score 0.5", parts=("general",))).result()
  assert result.general == 0.5 and result.frames is None and result.poses is None
  assert math.isnan(result.meta) and math.isnan(result.depth_unit) and not result.reasons
  (result,) = client.submit(job("score 0.5", colours=[51], parts=("meta",))).result()
  assert result.meta == pytest.approx(0.2) and math.isnan(result.general) and not result.reasons


def test_jax_stays_out_of_the_sidecar(client):
  (result,) = client.submit(job("modules")).result()
  assert result.general == 1.0


def test_jax_stays_out_of_all_modules_of_the_sidecar():
  """Also of those with the real scorers."""
  program = """
      import importlib, pkgutil, sys
      import wr1_jax.sidecar
      for module in pkgutil.walk_packages(wr1_jax.sidecar.__path__, "wr1_jax.sidecar."):
        importlib.import_module(module.name)
      assert not {"jax", "jaxlib", "flax"} & sys.modules.keys()
  """
  subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)


@pytest.mark.parametrize(
  "prompt, reason",
  [("score nan", "nan"), ("score inf", "inf"), ("refuse", "no wish to"), ("fail", "RuntimeError: something broke")],
)
def test_a_score_that_fails_is_nan_with_a_reason_and_costs_nothing_else(client, prompt, reason):
  (result,) = client.submit(job(prompt, colours=[51], parts=("reconstruction", "meta", "general"))).result()
  assert math.isnan(result.general) and reason in result.reasons["general"]
  assert result.reasons.keys() == {"general"} and result.meta == pytest.approx(0.2)


def test_a_clip_without_reconstruction_does_not_harm_its_neighbours(client):
  batch = job("score 0.1", "score 0.2", colours=[0, 51], parts=("reconstruction", "meta", "general"))
  lost, fine = client.submit(batch).result()
  assert lost.frames is None and math.isnan(lost.meta) and lost.general == 0.1
  assert lost.reasons == {"reconstruction": "a black clip", "meta": "there is no reconstruction to judge"}
  assert fine.meta == pytest.approx(0.2) and not fine.reasons


def test_many_jobs_are_in_flight_and_only_a_few_in_shared_memory(client, tmp_path):
  mark, room = tmp_path / "mark", shm_free()
  prompts = [f"wait {mark} 0.25"] + [f"score {i}" for i in range(100)]
  futures = [client.submit(job(prompt, frames=81)) for prompt in prompts]
  time.sleep(0.3)
  assert not any(future.done() for future in futures)
  assert room - shm_free() < 50 * 81 * 64 * 96 * 3  # tests that run beside this one may need a little too
  mark.touch()
  assert [future.result()[0].general for future in futures] == [0.25, *range(100)]


def test_nothing_has_a_name_while_a_job_is_on_its_way(client, tmp_path):
  mark = tmp_path / "mark"
  future = client.submit(job(f"wait {mark} 1"))
  wait_for(Path(f"{mark}.waiting").exists)
  assert names_in_shm() == []
  mark.touch()
  future.result()


def test_prompts_that_fit_no_message_are_a_user_error(client):
  with pytest.raises(UserError, match="too long"):
    client.submit(job("x" * MAX_BYTES))


def test_many_threads_and_two_clients_get_their_own_answers(client):
  def ask(asked, value):
    (result,) = asked.submit(job(f"score {value}", colours=[value], parts=("meta", "general"))).result()
    return result.general, round(result.meta * 255)

  with RewardClient(FAKES) as other, concurrent.futures.ThreadPoolExecutor(8) as pool:
    answers = [pool.submit(ask, (client, other)[value % 2], value) for value in range(1, 101)]
    assert [answer.result() for answer in answers] == [(value, value) for value in range(1, 101)]


CLIENT_PROGRAM = """
    import numpy as np, sys
    from wr1_jax.config import RewardsConfig
    from wr1_jax.rewards.client import RewardClient
    from wr1_jax.rewards.jobs import Job
    config = RewardsConfig(reconstructor="fake_scorers:Reconstructor", meta="fake_scorers:Meta",
                           general="fake_scorers:General")
    with RewardClient(config) as client:
      videos = np.full((1, 3, 64, 96, 3), 10, np.uint8)
      futures = [client.submit(Job(videos, [prompt], [None])) for prompt in sys.argv[1:]]
      print(*(future.result()[0].general for future in futures))
"""


def program(*prompts: str) -> subprocess.Popen:
  """A trainer of its own that submits one job a prompt and prints the general scores."""
  command = [sys.executable, "-W", "error", "-c", textwrap.dedent(CLIENT_PROGRAM), *prompts]
  return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def test_two_trainers_get_their_own_answers_and_end_without_a_word():
  trainers = [program(*(f"score {10 * i + k}" for k in range(5))) for i in range(2)]
  for i, trainer in enumerate(trainers):
    output, errors = trainer.communicate(timeout=60)
    assert output.split() == [str(float(10 * i + k)) for k in range(5)]
    assert errors == "" and trainer.returncode == 0


def test_replicas_share_every_job_and_its_order_is_kept():
  """Five clips on two sidecars, one of them killed by its part: only that part is lost."""
  scores, others = [f"score {value}" for value in range(5)], sidecars_of(os.getpid())
  with RewardClient(dataclasses.replace(FAKES, replicas=2, retries=0)) as client:
    assert len(sidecars_of(os.getpid())) == len(others) + 2
    futures = [client.submit(job(*scores)), client.submit(job("score 1")), client.submit(job(*scores[:4], "crash"))]
    whole, single, half = (future.result() for future in futures)
  assert [result.general for result in whole] == [0, 1, 2, 3, 4]
  assert [result.general for result in single] == [1]
  assert [result.general for result in half if not result.reasons] == [0, 1]
  assert all("SIGKILL" in result.reasons["general"] for result in half[2:])


def test_replicas_that_cannot_start_are_a_user_error():
  with pytest.raises(UserError, match="did not start"):
    with RewardClient(dataclasses.replace(FAKES, replicas=2, python="/bin/false")):
      pass


def test_closing_a_client_of_replicas_fails_what_is_unfinished():
  with RewardClient(dataclasses.replace(FAKES, replicas=2)) as client:
    future = client.submit(job("hang", "score 1"))
  with pytest.raises(RuntimeError, match="closed"):
    future.result(timeout=10)


# --- misbehaviour -----------------------------------------------------------------------------------------------------


def test_a_job_that_kills_its_sidecar_is_retried_and_then_given_up(tmp_path):
  """Its neighbours, in flight at the same time, all get their answers."""
  with RewardClient(dataclasses.replace(FAKES, retries=1)) as client:
    prompts = ("score 0.1", "crash", "score 0.2", f"crash_once {tmp_path / 'mark'}", "score 0.3")
    results = [future.result()[0] for future in [client.submit(job(prompt)) for prompt in prompts]]
  assert [result.general for result in results if not result.reasons] == [0.1, 0.2, 0.25, 0.3]
  assert math.isnan(results[1].general)
  assert "2 sidecars" in results[1].reasons["general"]
  assert "SIGKILL" in results[1].reasons["general"] and "about to crash" in results[1].reasons["general"]


def test_no_retries_means_one_attempt(tmp_path):
  with RewardClient(dataclasses.replace(FAKES, retries=0)) as client:
    (result,) = client.submit(job(f"crash_once {tmp_path / 'mark'}")).result()
  assert "1 sidecars" in result.reasons["general"]


@pytest.mark.parametrize("misdeed", ["hang", "stop"])
def test_a_hung_sidecar_is_killed(tmp_path, misdeed):
  with RewardClient(dataclasses.replace(FAKES, retries=0, job_seconds=2.0)) as client:
    hung = client.submit(job(f"{misdeed} {tmp_path / 'pid'}"))
    fine = client.submit(job("score 0.5"))
    assert "longer than 2 s" in hung.result()[0].reasons["general"]
    assert not is_running(int((tmp_path / "pid").read_text()))
    assert fine.result()[0].general == 0.5


def test_the_clock_of_a_job_starts_when_its_turn_comes():
  with RewardClient(dataclasses.replace(FAKES, retries=0, job_seconds=2.5)) as client:
    futures = [client.submit(job("sleep 1 0.5")) for _ in range(3)]
    assert [future.result()[0].general for future in futures] == [0.5] * 3


def wire(message) -> str:
  """The hexadecimal of a message with its length, as `General.write` takes it."""
  data = message if isinstance(message, bytes) else messages.encode(message)
  return (struct.pack(">I", len(data)) + data).hex()


def answer(job, **scores) -> Scored:
  return Scored(job, (ClipScores(**{"depth_unit": None, "meta": None, "general": 0.5, "reasons": {}} | scores),), {})


NONSENSE = [  # what the sidecar writes in place of its answer to a job, and the complaint
  (lambda job: b"hello", "not JSON"),
  (lambda job: answer(999), "no open job"),
  (lambda job: Ready({}), "no open job"),
  (lambda job: Scored(job, (), {}), "0 clips to a job of 1"),
  (lambda job: answer(job, general=None), "neither a value"),
  (lambda job: answer(job, meta=0.5), "nobody asked"),
  (lambda job: answer(job, general=0.5, reasons={"general": "x"}), "both a value"),
]


def test_a_sidecar_that_answers_nonsense_is_replaced():
  """Each time by a fresh one; the jobs in between get their answers."""
  with RewardClient(dataclasses.replace(FAKES, retries=0)) as client:
    for i, (nonsense, complaint) in enumerate(NONSENSE):
      spoiled = client.submit(job(f"write {wire(nonsense(2 * i))}"))
      fine = client.submit(job(f"score {i}"))
      reason = spoiled.result()[0].reasons["general"]
      assert "nonsense" in reason and complaint in reason
      assert fine.result()[0].general == i


def test_a_sidecar_that_announces_too_much_is_replaced():
  with RewardClient(dataclasses.replace(FAKES, retries=0)) as client:
    (result,) = client.submit(job(f"write {struct.pack('>I', MAX_BYTES + 1).hex()}")).result()
  assert "at most" in result.reasons["general"]


def test_a_sidecar_killed_at_rest_is_replaced_for_the_next_job():
  with RewardClient(dataclasses.replace(FAKES, retries=0)) as client:
    process = max(sidecars_of(os.getpid()))
    os.kill(process, signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{process}").exists())
    assert client.submit(job("score 0.5")).result()[0].general == 0.5


def test_closing_a_client_fails_what_is_unfinished():
  with RewardClient(FAKES) as client:
    future = client.submit(job("hang"))
  with pytest.raises(RuntimeError, match="closed"):
    future.result()
  with pytest.raises(RuntimeError, match="closed"):
    client.submit(job("mean"))


@pytest.mark.parametrize("misdeed", ["hang", "stop"])
def test_a_killed_trainer_leaves_nothing_behind(tmp_path, misdeed):
  """Even if the sidecar computes, or is stopped."""
  pid_file = tmp_path / "pid"
  trainer = program("score 1", f"{misdeed} {pid_file}", "score 2")
  sidecar = int(wait_for(lambda: pid_file.exists() and pid_file.read_text()))
  family = group_of(trainer.pid)
  assert sidecar in sidecars_of(trainer.pid)
  trainer.kill()
  trainer.communicate()
  wait_for(lambda: not is_running(sidecar) and not any(map(is_running, family)))
  assert names_in_shm() == []
