"""Tiny: the whole loop on a laptop. Every part is the real one, only small.

    bash launch/local.sh                       # = python -m wr1_jax.train --config=configs/tiny.py --workdir=runs/tiny

Hardware: 2 CPU cores, 4 GiB of memory; about 6 minutes. The model is wan-tiny, which is shipped with the package and
makes 160x96 clips of 17 frames of a toy world: six iterations of the main phase and two of the dynamic one.

To expect: metrics, videos and a picture of target against recovered path under runs/tiny, and at the end clips before
and after training and a plot of the rewards. Eight iterations show that every part works, not that much was learnt:
configs/toy.py is for that.
"""

import ml_collections

from configs import small


def get_config() -> ml_collections.ConfigDict:
  c = small.get_config()

  c.model.path = "wan-tiny"
  c.model.dtype = c.model.vae_dtype = "float32"
  c.lora.rank, c.lora.alpha = 8, 16

  c.video.width, c.video.height, c.video.frames = 160, 96, 17
  c.sampling.steps = 10
  c.sampling.text_length = 64
  c.sampling.window_start_min, c.sampling.window_start_max = 0, 4

  c.noise_warp.mode = "initial"

  c.data.static_prompts, c.data.dynamic_prompts = "world_static.txt", "world_dynamic.txt"

  c.train.iterations = 8
  c.train.main_iterations, c.train.dynamic_iterations = 3, 1
  c.train.groups, c.train.group_size = 2, 4
  c.train.decode_batch = c.train.update_batch = 4
  c.train.checkpoint_every = 2
  c.train.video_every = 2
  return c
