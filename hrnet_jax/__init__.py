"""HRNet human pose estimation in JAX."""
