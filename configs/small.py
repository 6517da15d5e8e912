"""Small: World-R1 on Wan2.1-T2V-1.3B, 832x480x81.

    bash launch/local.sh configs/small.py --config.model.path=/models/Wan2.1-T2V-1.3B-Diffusers --workdir=runs/small

Hardware: the paper used 48 H200. One H200 holds the model (bf16 weights, text encoder and VAE: about 15 GiB) and a
group of videos. Up to 8 devices share the videos of a group; on more of them several groups roll out together, on 48
for example --config.train.groups_per_rollout=6. 300 iterations of 48 prompts x 8 videos: two main phases of 100 and two
dynamic ones of 50. A run lives on one host so far.

To expect (paper, 3D reconstruction of its own samples): PSNR 17.40 -> 27.63 dB, SSIM .550 -> .858, LPIPS .467 -> .201.
"""

import ml_collections

from wr1_jax import config as config_lib


def get_config() -> ml_collections.ConfigDict:
  c = config_lib.default()

  c.model.path = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
  c.lora.rank = 32
  c.lora.alpha = 64

  c.video.width, c.video.height, c.video.frames = 832, 480, 81
  c.sampling.steps = 20
  c.sampling.shift = 3.0
  c.sampling.guidance = 5.0
  c.sampling.noise = "linear"
  c.sampling.window = 1
  c.sampling.window_start_min, c.sampling.window_start_max = 0, 9

  c.noise_warp.mode = "stepwise_delta"
  c.noise_warp.strength = 0.35

  c.train.groups, c.train.group_size = 48, 8
  c.train.iterations = 300
  c.train.main_iterations = 100
  c.train.dynamic_iterations = 50
  c.train.checkpoint_every = 1  # an iteration takes minutes to hours, a checkpoint is 0.4 GB written in the background
  return c
