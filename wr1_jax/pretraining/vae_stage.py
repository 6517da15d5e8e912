"""The first training: the autoencoder, on rendered clips."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, UInt8

from wr1_jax import randomness
from wr1_jax.models import make_tiny
from wr1_jax.pretraining import flops, loop, pictures
from wr1_jax.pretraining.autoencoding import TERMS, Autoencoding
from wr1_jax.pretraining.bank import Bank
from wr1_jax.pretraining.clips import Block, renderer
from wr1_jax.pretraining.draws import Draw
from wr1_jax.pretraining.network import rounded
from wr1_jax.pretraining.report import Part
from wr1_jax.training.run_log import RunLog
from wr1_jax.training.state import TrainState
from wr1_jax.world import HELD_OUT

_MEASURED_BLOCKS = 4  # of clips that the latents' mean and deviation are measured on
_SHOWN = 4  # clips of a contact sheet, at most


class VAEStage:
  """The programs of the stage, compiled."""

  def __init__(self, run: loop.Run):
    self._run, self._config, self._report = run, run.config.vae, run.report
    self._model = Autoencoding(run.config)
    block = run.sampler.block(HELD_OUT, self._config.fresh)
    weights = self._model.init()
    start = functools.partial(loop.init_state, config=self._config)
    render, train_state = renderer(run.config), jax.eval_shape(start, weights)
    videos = jax.eval_shape(render, block.scenes, block.poses)
    self._render, self._reconstruct, begin, *self._steps = run.report.compile(
      Part("vae: render", render, (block.scenes, block.poses)),
      Part("vae: reconstruct", self._model.reconstruct, (jax.eval_shape(rounded, train_state.ema), videos)),
      Part("vae: begin", start, (weights,)),
      *self._step_parts(train_state, jax.ShapeDtypeStruct((self._config.bank, *videos.shape[1:]), videos.dtype)),
    )
    self._state = begin(weights)
    self._held_out, self._captions = self._make(block), block.captions

  def run(self) -> None:
    """Trains, measures the latents and writes the folder `vae`."""
    config = self._config
    bank = Bank(config, self._run.sampler, self._make, self._run.patience.check)
    untils = sorted({config.steps - self._whole_steps, config.steps} - {0})
    stage = loop.Stage("vae", config, tuple(zip(untils, self._steps)), self._evaluate)
    ema = loop.train(self._run, stage, self._state, loop.no_sums(*TERMS), bank)
    self._run.patience.check()
    self._finish(rounded(ema))

  @property
  def _whole_steps(self) -> int:
    """How many steps, the last ones, see whole frames."""
    return round(self._config.full_size_share * self._config.steps) if self._config.crop else self._config.steps

  def _step_parts(self, train_state: TrainState, entries: jax.ShapeDtypeStruct) -> list[Part]:
    config, key = self._config, randomness.stream(self._run.config.seed, Draw.VAE_STEP)
    kinds = [("vae: cropped", config.crop, config.batch), ("vae: whole", 0, config.full_size_batch)]
    if not config.crop or self._whole_steps == config.steps:
      kinds = kinds[1:]
    elif not self._whole_steps:
      kinds = kinds[:1]
    parts = []
    for name, side, batch in kinds:
      loss = functools.partial(self._model.loss, side, batch)
      forward = flops.count(loss, train_state.lora, key, entries, jax.ShapeDtypeStruct((), jnp.int32))
      self._report[f"{name}: TFLOP a step"] = 3 * forward / 1e12
      arguments = (train_state, loop.no_sums(*TERMS), entries, np.int32(0))
      parts.append(Part(name, loop.make_step(loss, config, key), arguments, donate=(0, 1)))
    return parts

  def _make(self, block: Block) -> UInt8[Array, "n T H W 3"]:
    return self._render(block.scenes, block.poses)

  def _evaluate(self, ema: nnx.State, log: RunLog, done: int) -> dict[str, float]:
    found = self._reconstruct(rounded(ema), self._held_out)
    originals, copies = jax.device_get((self._held_out[:_SHOWN], found.video[:_SHOWN]))
    pairs = [clip for pair in zip(originals, copies) for clip in pair]
    captions = [line for caption in self._captions[:_SHOWN] for line in (caption, "reconstructed")]
    log.picture(done, "reconstructions", pictures.contact_sheet(pairs, captions))
    return {"held_out_psnr": float(found.psnr.mean())}

  def _finish(self, weights: nnx.State) -> None:
    sampler, size = self._run.sampler, self._config.fresh
    blocks = [sampler.block(i * size, size) for i in range(_MEASURED_BLOCKS)]
    moments = np.mean([self._reconstruct(weights, self._make(block)).moments for block in blocks], axis=0)
    psnr = np.asarray(self._reconstruct(weights, self._held_out).psnr)
    sizes = self._model.normalised(moments)
    report = self._report
    report["vae: held-out PSNR (dB), mean"] = float(psnr.mean())
    report["vae: held-out PSNR (dB), worst clip"] = float(psnr.min())
    report["vae: latents' mean"] = " ".join(f"{x:.2f}" for x in sizes.latents_mean)
    report["vae: latents' standard deviation"] = " ".join(f"{x:.2f}" for x in sizes.latents_std)
    make_tiny.write_vae(self._run.out, sizes, weights)
