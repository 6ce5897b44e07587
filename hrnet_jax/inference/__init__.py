"""Inference: compiled steps, the predictor and its inputs."""
