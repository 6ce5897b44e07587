"""Experiments, one file a family."""
