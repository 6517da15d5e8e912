"""What a run changed, to be seen at once: clips before training above those after it, from the same noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from flax import nnx
from jax.sharding import Mesh

from wr1_jax.config import Config
from wr1_jax.evaluation.samples import Sampler
from wr1_jax.models.pipeline import WanModel
from wr1_jax.parallel.mesh import batch_shards
from wr1_jax.training import curves
from wr1_jax.training.run_log import RunLog


def show(
  log: RunLog,
  workdir: Path,
  done: int,
  config: Config,
  model: WanModel,
  mesh: Mesh,
  lora: nnx.State,
  prompts: Sequence[str],
) -> list[Path]:
  """Writes the clips of `prompts` before (above) and after training (below), and the plot of the rewards.

  Args:
    done: iterations so far; names the files.
    lora: the trained adapters.
    prompts: no clips are made where there are none.

  Returns:
    the files.
  """
  files = []
  if prompts:
    sampler = Sampler(config, model, mesh, batch=batch_shards(mesh))
    rows = []
    for adapters in (None, lora):
      clips = []
      for start in range(0, len(prompts), sampler.batch):
        part = prompts[start : start + sampler.batch]
        clips += list(sampler(adapters, part, range(start, start + len(part))))
      rows.append(clips)
    files.append(log.video(done, "before_after", np.array(rows), config.video.fps))
  files.append(log.picture(done, "rewards", curves.rewards(curves.read(workdir / "metrics.jsonl"))))
  return files
