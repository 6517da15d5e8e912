"""Writes clips of the toy world with all that is known of them, or its prompt files.

    python -m wr1_jax.world clips --out=DIR [--count=8] [--seed=0] [--static | --dynamic]
    python -m wr1_jax.world prompts --out=DIR

`clips` makes, for each of the first held-out clips, NAME.mp4 and NAME.npz (video uint8 [T, H, W, 3]; depth float32
[T, H, W] in scene depths; moving bool [T, H, W]; poses float32 [T, 4, 4], camera-to-world in scene depths; intrinsics
[3, 3] in pixels, the centre of the first at 0), and prompts.txt with their captions: what `wr1_jax.score` and
`wr1_jax.evaluate` read. `prompts` makes the captions that are shipped with the package: world_static.txt,
world_dynamic.txt, world_heldout.txt.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import numpy as np
import tqdm

from wr1_jax import world
from wr1_jax.camera.flow import intrinsics
from wr1_jax.config import CameraConfig, VideoConfig
from wr1_jax.data.video_files import write_mp4
from wr1_jax.errors import UserError, reported
from wr1_jax.models.vae import to_uint8

# Name: (seed, dynamic, number). Pre-training's seed is another, and so is that of the prompts to evaluate with.
_PROMPT_FILES = {
  "world_static.txt": (1_000_000, False, 480),
  "world_dynamic.txt": (1_000_000, True, 120),
  "world_heldout.txt": (2_000_000, False, 64),
}
_FPS = 8


def write_clips(out: Path, count: int, seed: int, dynamic: bool | None) -> None:
  """Renders the first `count` held-out clips of the world of `seed` into the folder `out`."""
  config, camera = world.WorldConfig(), CameraConfig()
  out.mkdir(parents=True, exist_ok=True)
  captions = []
  for index in tqdm.trange(count, desc="rendering", unit="clip", disable=None):
    clips = world.sample(seed, [world.HELD_OUT + index], config, camera, dynamic)
    frames = jax.device_get(world.render(clips.scenes, clips.poses, config, camera))
    video, name = np.asarray(to_uint8(frames.video[0])), f"{index:05d}"
    write_mp4(out / f"{name}.mp4", video, _FPS)
    np.savez_compressed(
      out / f"{name}.npz",
      video=video,
      depth=frames.depth[0],
      moving=frames.moving[0],
      poses=clips.poses[0],
      intrinsics=intrinsics(config.height, config.width, camera.focal),
    )
    captions += clips.captions
  (out / "prompts.txt").write_text("\n".join(captions) + "\n", encoding="utf-8")


def prompts(name: str) -> list[str]:
  """The lines of one of the shipped prompt files: captions of the world, each once."""
  seed, dynamic, count = _PROMPT_FILES[name]
  config, camera = world.WorldConfig(frames=VideoConfig().frames), CameraConfig()
  found: dict[str, None] = {}
  index = 0
  while len(found) < count:
    found[world.sample(seed, [index], config, camera, dynamic).captions[0]] = None
    index += 1
  return list(found)


def write_prompts(out: Path) -> None:
  """Writes the prompt files into the folder `out`."""
  out.mkdir(parents=True, exist_ok=True)
  for name in _PROMPT_FILES:
    (out / name).write_text("\n".join(prompts(name)) + "\n", encoding="utf-8")


def main() -> None:
  """The command line."""
  parser = argparse.ArgumentParser(prog="python -m wr1_jax.world", description=__doc__.splitlines()[0])
  what = parser.add_subparsers(dest="what", required=True)
  clips = what.add_parser("clips", help="rendered clips and their ground truth")
  clips.add_argument("--count", type=int, default=8)
  clips.add_argument("--seed", type=int, default=0)
  kind = clips.add_mutually_exclusive_group()
  kind.add_argument(
    "--static", dest="dynamic", action="store_false", default=None, help="only scenes in which nothing moves"
  )
  kind.add_argument("--dynamic", dest="dynamic", action="store_true", help="only scenes in which something does")
  for command in (clips, what.add_parser("prompts", help="the prompt files shipped with the package")):
    command.add_argument("--out", type=Path, required=True, help="folder to write")
  arguments = parser.parse_args()
  with reported():
    try:
      if arguments.what == "clips":
        write_clips(arguments.out, arguments.count, arguments.seed, arguments.dynamic)
      else:
        write_prompts(arguments.out)
    except OSError as error:
      raise UserError(f"--out={arguments.out} cannot be written: {error}.") from error


if __name__ == "__main__":
  main()
