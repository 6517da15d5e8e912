"""Scorers as Ray actors: on a real cluster, whose three nodes are all on this machine."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
import os
import signal
import socket

import numpy as np
import pytest
from fake_scorers import Fragile
from sidecar_helpers import FAKES, TESTS, is_running, job, wait_for

from wr1_jax.config import RayConfig, RewardsConfig
from wr1_jax.errors import UserError
from wr1_jax.rewards.client import RewardClient
from wr1_jax.rewards.jobs import Job
from wr1_jax.rewards.transport import make_client

pytest.importorskip("ray", reason="ray is not installed")

_PROMPT = {"health_check_period_ms": 500, "health_check_failure_threshold": 3}  # a dead node is noticed in 2 s, not 15
_NODE = {"object_store_memory": 200 << 20, "include_dashboard": False}


@pytest.fixture(scope="module")
def cluster():
  """A head that runs nothing but serves the trainer, and two nodes with room for an actor each."""
  from ray.cluster_utils import Cluster

  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("PYTHONPATH", os.pathsep.join((str(TESTS), str(TESTS.parent))))  # of the nodes
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": _PROMPT, **_NODE})
    try:
      for _ in range(2):
        made.add_node(num_cpus=1, **_NODE)
      yield made
    finally:
      made.shutdown()


@pytest.fixture(scope="module")
def fakes(cluster):
  return dataclasses.replace(FAKES, transport="ray", ray=RayConfig(address=cluster.address))


def ask(client, *prompts: str, **options) -> list:
  return client.submit(job(*prompts, **options)).result(timeout=60)


def test_actors_share_every_job_on_different_nodes(fakes, tmp_path):
  handler = signal.getsignal(signal.SIGTERM)
  with make_client(dataclasses.replace(fakes, replicas=2)) as client:
    assert signal.getsignal(signal.SIGTERM) == handler
    assert {"python", "numpy", "ray"} <= client.versions.keys()
    ask(client, f"where {tmp_path}", f"where {tmp_path}")
    assert len(list(tmp_path.iterdir())) == 2
    assert [result.general for result in ask(client, *(f"score {i}" for i in range(5)))] == [0, 1, 2, 3, 4]
    assert ask(client, "modules")[0].general == 1.0  # no jax in there
    assert ask(client, "fail")[0].reasons == {"general": "the general scorer failed: RuntimeError: something broke"}


def test_a_node_that_is_killed_costs_no_reward(fakes, cluster, tmp_path):
  """In the middle of a stream of jobs; the other node goes on alone, and one that joins later takes part."""
  parts, values = ("reconstruction", "meta", "general"), range(1, 13)
  with make_client(dataclasses.replace(fakes, replicas=2)) as client:
    futures = [
      client.submit(job(f"sleep 0.1 {i}", f"sleep 0.1 {i + 100}", colours=[i, i + 100], parts=parts, frames=81))
      for i in values
    ]
    concurrent.futures.wait(futures[:2])
    assert not futures[-1].done()
    cluster.remove_node(max(cluster.worker_nodes, key=id), allow_graceful=False)
    for i, future in zip(values, futures):
      for value, result in zip((i, i + 100), future.result(timeout=60), strict=True):
        assert not result.reasons
        assert result.general == value and result.depth_unit == value and result.meta == pytest.approx(value / 255)
        assert (result.frames == value).all() and (result.rendered == 255 - value).all()
    cluster.add_node(num_cpus=1, **_NODE)

    def both_nodes_work():
      ask(client, f"where {tmp_path}", f"where {tmp_path}")
      return len(list(tmp_path.iterdir())) == 2

    wait_for(both_nodes_work)


def test_a_job_that_kills_its_actor_is_retried_and_then_given_up(fakes, tmp_path):
  with make_client(fakes) as client:
    prompts = ("score 0.1", "crash", "score 0.2", f"crash_once {tmp_path / 'mark'}", "score 0.3")
    futures = [client.submit(job(prompt)) for prompt in prompts]
    results = [future.result(timeout=60)[0] for future in futures]
  assert [result.general for result in results if not result.reasons] == [0.1, 0.2, 0.25, 0.3]
  assert math.isnan(results[1].general) and "gave up after 2 sidecars" in results[1].reasons["general"]


def test_actors_that_hang_or_answer_another_job_are_replaced(fakes, tmp_path):
  with make_client(dataclasses.replace(fakes, retries=0, job_seconds=2.0)) as client:
    for misdeed in ("hang", "stop"):
      hung = client.submit(job(f"{misdeed} {tmp_path / misdeed}"))
      fine = client.submit(job("score 0.5"))
      assert "longer than 2 s" in hung.result(timeout=60)[0].reasons["general"]
      assert fine.result(timeout=60)[0].general == 0.5
      wait_for(lambda: not is_running(int((tmp_path / misdeed).read_text())))
    assert ask(client, "forge")[0].general == 0.5
    assert "answered job 999 when asked for 5" in ask(client, "score 1")[0].reasons["general"]
    assert ask(client, "score 2")[0].general == 2


def test_two_clients_check_their_room_share_the_connection_and_get_their_own_answers(fakes):
  with make_client(fakes) as first:
    first.check_room(clips=1, frames=81, height=480, width=832)
    with pytest.raises(UserError, match="200; start the node with ray start --object-store-memory"):
      first.check_room(clips=3, frames=81, height=480, width=832)
    with make_client(fakes) as second:
      futures = [(first, second)[i % 2].submit(job(f"score {i}")) for i in range(20)]
      assert [future.result(timeout=60)[0].general for future in futures] == list(range(20))
    assert ask(first, "score 1")[0].general == 1


def test_actors_that_may_not_be_restarted_leave_nan_with_a_reason(fakes):
  config = dataclasses.replace(fakes, retries=0, ray=dataclasses.replace(fakes.ray, restarts=0))
  with make_client(config) as client:
    assert "1 sidecars" in ask(client, "crash")[0].reasons["general"]
    assert "no scoring actor is left" in ask(client, "score 1")[0].reasons["general"]


def test_an_actor_that_cannot_be_restarted_now_is_made_anew_for_the_next_job(fakes):
  with make_client(dataclasses.replace(fakes, general="fake_scorers:Fragile", retries=1)) as client:
    try:
      assert "the weights are gone" in ask(client, "spoil")[0].reasons["general"]
    finally:
      Fragile.mark().unlink()
    assert ask(client, "score 1")[0].general == 1.0


@pytest.mark.parametrize(
  "change, complaint",
  [
    ({"general": "no_such_module:General"}, "did not start: .*No module named 'no_such_module'"),
    ({"general": "fake_scorers:broken"}, "did not start: .*the weights are not there"),
    ({"ray": {"gpus": 1.0}, "start_seconds": 2.0}, "not ready after 2 s; an actor needs 1 CPUs and 1 GPUs"),
  ],
)
def test_an_actor_that_cannot_start_is_a_user_error_that_says_what_is_missing(fakes, change, complaint):
  change = change | {"ray": dataclasses.replace(fakes.ray, **change.get("ray", {}))}
  with pytest.raises(UserError, match=complaint), make_client(dataclasses.replace(fakes, **change)):
    pass


@pytest.mark.parametrize(
  "change, complaint",
  [
    ({"python": "/usr/bin/python3"}, "leave it empty"),
    ({"device": "cuda"}, "rewards.ray.gpus is 0"),
    ({"ray": RayConfig(gpus=1.5)}, "whole number"),
    ({"general": "fame_quality_proxy"}, "did you mean 'frame_quality_proxy'"),
  ],
)
def test_options_that_cannot_work_are_refused(change, complaint):
  with pytest.raises(UserError, match=complaint):
    make_client(dataclasses.replace(FAKES, transport="ray", **change))


def test_an_address_without_a_cluster_is_a_user_error():
  with socket.socket() as unused:
    unused.bind(("127.0.0.1", 0))  # nobody listens
    config = dataclasses.replace(FAKES, transport="ray", ray=RayConfig(address=f"127.0.0.1:{unused.getsockname()[1]}"))
    with pytest.raises(UserError, match="no Ray cluster to join: .*refused"), make_client(config):
      pass


def test_closing_a_client_fails_what_is_unfinished_and_ends_the_actors(fakes, tmp_path):
  pid_file = tmp_path / "pid"
  with make_client(fakes) as client:
    running, waiting = client.submit(job(f"hang {pid_file}")), client.submit(job("score 1"))
    process = int(wait_for(lambda: pid_file.exists() and pid_file.read_text()))
  for future in (running, waiting):
    with pytest.raises(RuntimeError, match="closed"):
      future.result(timeout=10)
  with pytest.raises(RuntimeError, match="closed"):
    client.submit(job("score 1"))
  wait_for(lambda: not is_running(process))


def test_results_are_those_of_the_local_transport_bit_for_bit(fakes):
  """With the scorers of the default config."""
  texture = np.random.default_rng(0).integers(0, 256, (2, 8, 12, 3), np.uint8).repeat(6, 1).repeat(6, 2)
  videos = np.stack([[np.roll(clip, shift * t, axis=1) for t in range(3)] for shift, clip in enumerate(texture)])
  asked = Job(videos[:, :, :, :64], ["one", "two"], [None, np.tile(np.eye(4), (3, 1, 1))])
  answers = []
  for config in (RewardsConfig(), RewardsConfig(transport="ray", ray=fakes.ray)):
    with make_client(config) as client:
      assert isinstance(client, RewardClient) == (config.transport == "local")
      answers.append(client.submit(asked).result(timeout=120))
  for local, remote in zip(*answers, strict=True):
    assert not local.reasons and not remote.reasons
    for name in ("frames", "rendered", "offset_view", "poses", "depth_unit", "meta", "general"):
      np.testing.assert_array_equal(getattr(local, name), getattr(remote, name), strict=True)
    assert local.seconds.keys() == remote.seconds.keys()
