"""Toy: World-R1 in the toy world, on one GPU, from wan-tiny.

    bash launch/local.sh --accelerator=cuda configs/toy.py --workdir=runs/toy
    .venv/bin/python -m wr1_jax.evaluate --config=configs/toy.py --run=runs/toy --prompts=world_heldout.txt \\
        --out=runs/toy/evaluation --config.rewards.reconstruction.max_pixels=15360 \\
        --config.rewards.reconstruction.max_frames=33 --config.rewards.general_frames=8

The last three options have it reconstruct whole clips, where training takes less of them.

The paper's ablations, and choices of the policy, are variants of it: `--config=configs/toy.py:no_noise_warp`. VARIANTS
below names them.

To expect: an iteration of 128 videos in 6 s, when two runs share an H100. 60 main iterations raise the reward by about
0.1, two standard errors of a run; the README has more about what they do, and why it takes long.

Hardware: one H100 or H200. The reconstructor runs on the same GPU; the trainer leaves it a quarter of the memory.
"""

import ml_collections

from configs import tiny


def _no_r3d(c: ml_collections.ConfigDict) -> None:
  c.rewards.recon_weight = c.rewards.traj_weight = c.rewards.meta_weight = 0.0


def _no_r_gen(c: ml_collections.ConfigDict) -> None:
  c.rewards.general_weight = 0.0
  c.train.dynamic_iterations = 0  # there would be nothing to train on


def _window_all(c: ml_collections.ConfigDict) -> None:
  c.sampling.window = c.sampling.steps - 1  # the last step of "cps" has no noise
  c.sampling.window_start_max = 0


VARIANTS = {
  "full": lambda c: None,
  # The paper's ablations.
  "no_noise_warp": lambda c: c.noise_warp.update(mode="none"),
  "no_periodic_phase": lambda c: c.train.update(dynamic_iterations=0),
  "no_s_recon": lambda c: c.rewards.update(recon_weight=0.0),
  "no_s_traj": lambda c: c.rewards.update(traj_weight=0.0),
  "no_s_meta": lambda c: c.rewards.update(meta_weight=0.0),
  "no_r_gen": _no_r_gen,
  "no_r_3d": _no_r3d,
  # Choices of the policy.
  "window_2": lambda c: c.sampling.update(window=2),
  "window_all": _window_all,
  "linear_noise": lambda c: c.sampling.update(noise="linear"),
  "sqrt_noise": lambda c: c.sampling.update(noise="sqrt"),
  "no_step_weights": lambda c: c.objective.update(step_weights=False),
}


def get_config(variant: str = "full") -> ml_collections.ConfigDict:
  if variant not in VARIANTS:
    raise ValueError(f"there is no variant {variant!r}; there are {', '.join(VARIANTS)}")
  c = tiny.get_config()

  c.model.dtype = c.model.vae_dtype = "bfloat16"
  c.sampling.noise = "cps"
  c.lora.rank, c.lora.alpha = 16, 32
  c.rewards.device, c.rewards.threads = "cuda", 8
  # Half the size and every second frame: more clips a second, and rigid ones are told from others as well.
  c.rewards.reconstruction.max_pixels, c.rewards.reconstruction.max_frames = 48 * 80, 9
  c.rewards.general_frames = 2
  c.rewards.recon_weight = 4.0
  c.objective.advantage_std = "batch"
  c.optimizer.learning_rate = 1e-3
  c.optimizer.ema_every = 1

  c.train.groups, c.train.group_size = 16, 8
  c.train.groups_per_rollout = 8
  c.train.decode_batch, c.train.update_batch = 32, 64
  c.train.iterations = 72  # 60 main, 12 dynamic
  c.train.main_iterations, c.train.dynamic_iterations = 10, 2
  c.train.checkpoint_every = 10
  c.train.video_every = 20
  c.train.compare = 8

  VARIANTS[variant](c)
  return c
