"""The model that is shipped as "wan-tiny": pre-trained on the toy world, which is rendered while it trains.

    python -m wr1_jax.pretrain --config=configs/pretrain.py --workdir=runs/first --config.flow.unsound_share=0
    python -m wr1_jax.pretrain --config=configs/pretrain.py --workdir=runs/wan-tiny \\
        --config.start=runs/first/wan-tiny --config.flow.steps=9000

The first trains everything on a rigid world, the second the transformer further on one that is half unsound.
--minutes=9 ends a run earlier, to go on later; --stages=vae leaves the transformer for then.

Hardware: one H100 or H200. For a first look at speed and quality, at most two minutes:

    --config.vae.steps=60 --config.flow.steps=60 --config.flow.bank=2048 --config.flow.bank_first=1024

To expect: DIR/wan-tiny, a complete diffusers folder of at most 16 MB; report.json and a table of what every program
takes; in DIR/vae and DIR/flow checkpoints, metrics, and contact sheets of reconstructions and of guided samples. The
shipped model took 16 minutes on an H200 and then 7 on an H100: the autoencoder 39 steps a second and 30.3 dB on
held-out clips, the transformer 31 and 27 steps a second and a held-out loss of 0.652 and then 0.615.
"""

import ml_collections

from wr1_jax.pretraining import config


def get_config() -> ml_collections.ConfigDict:
  c = config.default()

  # Small crops and many steps: the time goes into the convolutions at full resolution.
  c.vae.steps, c.vae.batch, c.vae.crop = 20000, 8, 64
  c.vae.full_size_share = 0.0
  c.vae.mse_weight = 10.0
  c.vae.fresh_every = 60

  c.flow.steps, c.flow.batch = 8000, 128
  c.flow.warmup_steps = 200
  c.flow.ema_decay = 0.999
  c.flow.bank_first = 8192
  # As in videos from the web, not all that it sees is one rigid world; this is what RL is to mend.
  c.flow.unsound_share = 0.5

  c.workers = 12
  return c
