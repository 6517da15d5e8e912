"""The whole test process sees eight CPU devices; a test that needs fewer takes a slice of `jax.devices()`."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"


def pytest_configure(config):
  config.addinivalue_line("markers", "gpu: needs an NVIDIA GPU")
