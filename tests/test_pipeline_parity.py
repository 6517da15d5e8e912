"""A whole guided 20-step sample from given latents, against diffusers' WanPipeline."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import channels_first, channels_last, diffusers_transformer, error
from transformer_helpers import LORA, inputs, save_folder, small_config

from wr1_jax.models import transformer
from wr1_jax.models.attention import Attention
from wr1_jax.sampling import solvers
from wr1_jax.sampling.guidance import guided
from wr1_jax.sampling.schedule import Schedule

STEPS, SHIFT, GUIDANCE = 20, 3.0, 5.0


def _pipeline_sample(folder, scheduler, latents, text, negative):
  """Latents [B, T, H, W, C] in and out."""
  torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
  pipeline = diffusers.WanPipeline(
    tokenizer=None, text_encoder=None, vae=None, transformer=diffusers_transformer(folder), scheduler=scheduler
  )
  pipeline.set_progress_bar_config(disable=True)
  frames, height, width = latents.shape[1:4]
  out = pipeline(
    prompt_embeds=torch.from_numpy(text),
    negative_prompt_embeds=torch.from_numpy(np.repeat(negative, len(text), axis=0)),
    latents=channels_first(latents),
    num_frames=4 * (frames - 1) + 1,
    height=8 * height,
    width=8 * width,
    num_inference_steps=STEPS,
    guidance_scale=GUIDANCE,
    output_type="latent",
  ).frames
  return channels_last(out)


def _schedulers():
  """diffusers' UniPC as Wan2.1 ships it, and its Euler scheduler on the same grid."""
  diffusers = pytest.importorskip("diffusers")
  unipc = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT)

  class Euler(diffusers.FlowMatchEulerDiscreteScheduler):
    def set_timesteps(self, count, device):
      unipc.set_timesteps(count, device)
      self.sigmas, self.timesteps = unipc.sigmas, unipc.timesteps.float()

  return {"unipc": (unipc, solvers.unipc), "euler": (Euler(), solvers.euler)}


@pytest.mark.parametrize("name", ["unipc", "euler"])
def test_a_whole_sample_is_that_of_the_pipeline(tmp_path, name):
  config = small_config(2, 16)
  save_folder(tmp_path, config)
  latents, _, text = inputs(config, sizes=(3, 6, 10))
  negative = np.random.default_rng(1).standard_normal((1, *text.shape[1:]), np.float32)
  scheduler, solver = _schedulers()[name]
  expected = _pipeline_sample(tmp_path, scheduler, latents, text, negative)

  policy, lora, base = transformer.load(
    tmp_path, dtype=jnp.float32, lora=LORA, lora_key=jax.random.key(0), attention=Attention(), remat="full"
  )

  @jax.jit
  def sample(lora, base, x):
    velocity = guided(policy.velocity(lora, base), GUIDANCE)
    return solver(lambda x, timestep: velocity(x, timestep, text, negative), Schedule.make(STEPS, SHIFT), x)

  got = sample(lora, base, latents)
  assert np.abs(expected - latents).mean() > 0.1
  assert np.abs(got - expected).max() <= 1e-3
  assert error(got, expected) <= 1e-4
