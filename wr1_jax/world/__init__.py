"""A toy world in which everything is known: procedural 3D scenes along the prompts' camera paths, with captions.

config = WorldConfig()
clips = sample(seed=0, indices=range(4), config=config, camera=CameraConfig())
frames = render(clips.scenes, clips.poses, config, CameraConfig())  # frames.video [4, T, H, W, 3]
"""

from wr1_jax.world.clips import HELD_OUT, Clips, sample
from wr1_jax.world.render import Frames, WorldConfig, render
from wr1_jax.world.scene import Scene

__all__ = ["HELD_OUT", "Clips", "Frames", "Scene", "WorldConfig", "render", "sample"]
