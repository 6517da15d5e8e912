"""World-R1 in JAX: reinforcement learning that makes Wan2.1 videos consistent in 3D."""
