"""Models on disk: checkpoints, converted folders, PyTorch files."""
