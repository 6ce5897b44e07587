"""Experiments, one file per family."""
