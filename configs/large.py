"""Large: World-R1 on Wan2.1-T2V-14B, 832x480x81.

    bash launch/local.sh configs/large.py --config.model.path=/models/Wan2.1-T2V-14B-Diffusers --workdir=runs/large

Hardware: the paper used 96 H200. The weights (28 GB in bf16) are sharded over pairs of devices (mesh.fsdp = 2), and
videos are dealt out over all of them as in small.py; on 96 devices, --config.train.groups_per_rollout=12. A run
lives on one host so far.

To expect (paper, 3D reconstruction of its own samples): PSNR 19.76 -> 27.67 dB, SSIM .629 -> .865, LPIPS .405 -> .162.
"""

import ml_collections

from configs import small


def get_config() -> ml_collections.ConfigDict:
  c = small.get_config()
  c.model.path = "Wan-AI/Wan2.1-T2V-14B-Diffusers"
  c.noise_warp.strength = 0.40
  c.mesh.data, c.mesh.fsdp, c.mesh.sequence = -1, 2, 1
  return c
