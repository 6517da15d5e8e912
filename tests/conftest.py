"""The whole test process sees eight CPU devices; a test that needs fewer takes a slice of `jax.devices()`."""

import os

import pytest

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"


def pytest_configure(config):
  config.addinivalue_line("markers", "gpu: needs an NVIDIA GPU")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
  """What `make_tiny` writes."""
  from wr1_jax.models import make_tiny  # imports jax, which reads the flags above

  folder = tmp_path_factory.mktemp("tiny")
  make_tiny.make(folder, seed=0)
  return folder


@pytest.fixture(scope="module")
def one_thread():
  """PyTorch computes in one thread, so that its sums do not depend on the machine's cores."""
  import torch

  before = torch.get_num_threads()
  torch.set_num_threads(1)
  yield
  torch.set_num_threads(before)
