"""Reconstruction by Depth Anything 3: camera path and Gaussian scene of a clip from one pass of a trained network."""
