"""The second training: transformer and text encoder, on clips that the finished autoencoder has encoded."""

from __future__ import annotations

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, UInt8
from transformers import AutoTokenizer

from wr1_jax import randomness
from wr1_jax.models import make_tiny, vae
from wr1_jax.pretraining import flops, loop, pictures
from wr1_jax.pretraining.bank import Bank
from wr1_jax.pretraining.clips import Block, renderer, to_float
from wr1_jax.pretraining.draws import Draw
from wr1_jax.pretraining.flow import Entries, Flow, Weights
from wr1_jax.pretraining.network import rounded
from wr1_jax.pretraining.report import Part
from wr1_jax.training.run_log import RunLog
from wr1_jax.world import HELD_OUT

_TOGETHER = 16  # clips that are encoded at once, at most
_CAPTIONS = 2048  # that the tokenizer is trained on
_SHOWN = 8  # clips of a contact sheet, at most
_REPEATS = 3  # of a measurement


class FlowStage:
  """Programs of the stage, compiled."""

  def __init__(self, run: loop.Run):
    self._run, self._config = run, run.config.flow
    report = run.report
    if not (run.out / "tokenizer" / "tokenizer_config.json").exists():
      captions = run.sampler.block(0, _CAPTIONS).captions
      make_tiny.write_tokenizer(run.out, [*captions, *make_tiny.shipped_prompts()], run.config.text_encoder.vocab_size)
    self._tokenizer = AutoTokenizer.from_pretrained(run.out / "tokenizer", local_files_only=True)
    report["flow: tokens known"] = len(self._tokenizer)
    self._flow = Flow(run.config, self._tokenizer)
    self._vae, self._vae_state = nnx.split(vae.load(run.out / "vae", dtype=jnp.dtype(run.config.dtype)))

    block = run.sampler.block(HELD_OUT, self._config.fresh)
    self._captions = block.captions
    self._prompts = self._flow.tokenize(self._captions[:_SHOWN])
    self._validation_key = randomness.stream(run.config.seed, Draw.VALIDATION)
    weights = self._flow.load(run.start) if run.start else self._flow.init()
    self._compile(block, weights)
    self._state = self._begin(weights)
    self._held_out = self._make(block)
    shape = self._held_out.latents[:_SHOWN].shape
    self._noise = jax.random.normal(randomness.stream(run.config.seed, Draw.SAMPLES), shape)
    self._measure_speed(block)

  def _compile(self, block: Block, weights: Weights) -> None:
    run, flow, config = self._run, self._flow, self._config
    start = functools.partial(loop.init_state, config=config)
    render, train_state = renderer(run.config), jax.eval_shape(start, weights)
    average = jax.eval_shape(_rounded, train_state.ema)
    videos = jax.eval_shape(render, block.scenes, block.poses)
    latents = jax.eval_shape(self._encode_videos, self._vae_state, videos)
    some = Entries(latents, *flow.tokenize(block.captions))
    entries = jax.tree.map(lambda x: jax.ShapeDtypeStruct((config.bank, *x.shape[1:]), x.dtype), some)
    noise = jax.ShapeDtypeStruct((len(self._prompts[0]), *latents.shape[1:]), jnp.float32)
    key = randomness.stream(run.config.seed, Draw.FLOW_STEP)

    plain = Flow(run.config, self._tokenizer, attention="xla")  # a library's kernel does not tell its operations
    forward = flops.count(plain.loss, train_state.lora, key, entries, jax.ShapeDtypeStruct((), jnp.int32))
    run.report["flow: step: TFLOP a step"] = 3 * forward / 1e12
    self._render, self._encode, self._validate, self._sample, self._begin, self._step = run.report.compile(
      Part("flow: render", render, (block.scenes, block.poses)),
      Part("flow: encode", self._encode_videos, (self._vae_state, videos)),
      Part("flow: validate", flow.mismatch, (average, self._validation_key, some)),
      Part("flow: sample", self._sample_videos, (average, self._vae_state, *self._prompts, noise)),
      Part("flow: begin", start, (weights,)),
      Part(
        "flow: step",
        loop.make_step(flow.loss, config, key),
        (train_state, loop.no_sums(), entries, np.int32(0)),
        donate=(0, 1),
      ),
    )

  def run(self) -> None:
    """Trains; the model folder is complete from the first evaluation on."""
    run, config, report = self._run, self._config, self._run.report
    bank = Bank(config, run.sampler, self._make, run.patience.check)
    stage = loop.Stage("flow", config, ((config.steps, self._step),), self._evaluate)
    ema = loop.train(run, stage, self._state, loop.no_sums(), bank)
    run.patience.check()
    report["flow: held-out loss"] = self._validation_loss(_rounded(ema))
    self._write(_rounded(ema))
    report["model folder (MB)"] = sum(file.stat().st_size for file in run.out.rglob("*") if file.is_file()) / 1e6

  def _encode_videos(self, vae_state: nnx.State, videos: UInt8[Array, "n T H W 3"]) -> Float[Array, "n T2 H2 W2 C"]:
    model = nnx.merge(self._vae, vae_state)
    together = max(n for n in range(1, _TOGETHER + 1) if len(videos) % n == 0)
    encode = lambda some: model.encode(to_float(some), frames_per_chunk=some.shape[1]).astype(jnp.bfloat16)
    latents = jax.lax.map(encode, rearrange(videos, "(k m) ... -> k m ...", m=together))
    return rearrange(latents, "k m ... -> (k m) ...")

  def _sample_videos(
    self, weights: Weights, vae_state: nnx.State, tokens: Array, mask: Array, noise: Float[Array, "n T2 H2 W2 C"]
  ) -> UInt8[Array, "n T H W 3"]:
    latents = self._flow.sample(weights, tokens, mask, noise)
    model = nnx.merge(self._vae, vae_state)
    return jax.lax.map(lambda x: vae.to_uint8(model.decode(x[None], frames_per_chunk=len(x))[0]), latents)

  def _make(self, block: Block) -> Entries:
    latents = self._encode(self._vae_state, self._render(block.scenes, block.poses))
    return Entries(latents, *map(jnp.asarray, self._flow.tokenize(block.captions)))

  def _measure_speed(self, block: Block) -> None:
    """Clips a second of what fills the bank."""
    videos = jax.block_until_ready(self._render(block.scenes, block.poses))
    calls = {
      "render": lambda: self._render(block.scenes, block.poses),
      "encode": lambda: self._encode(self._vae_state, videos),
      "tokenize": lambda: self._flow.tokenize(block.captions),
    }
    for name, call in calls.items():
      started = time.perf_counter()
      for _ in range(_REPEATS):
        jax.block_until_ready(call())
      self._run.report[f"{name}: clips a second"] = _REPEATS * len(videos) / (time.perf_counter() - started)

  def _validation_loss(self, weights: Weights) -> float:
    return float(self._validate(weights, self._validation_key, self._held_out))

  def _evaluate(self, ema: Weights, log: RunLog, done: int) -> dict[str, float]:
    weights = _rounded(ema)
    started = time.perf_counter()
    videos = jax.device_get(self._sample(weights, self._vae_state, *self._prompts, self._noise))
    self._run.report.quiet(f"flow: seconds for {len(videos)} guided samples", time.perf_counter() - started)
    log.picture(done, "samples", pictures.contact_sheet(videos, self._captions[:_SHOWN]))
    self._write(weights)
    return {"held_out_loss": self._validation_loss(weights)}

  def _write(self, weights: Weights) -> None:
    config, out = self._run.config, self._run.out
    make_tiny.write_transformer(out, config.transformer_sizes(), weights.transformer)
    make_tiny.write_text_encoder(out, config.text_encoder_sizes(), weights.text_encoder)
    make_tiny.write_index(out)


def _rounded(weights: Weights) -> Weights:
  return Weights(*map(rounded, weights))
