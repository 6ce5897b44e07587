"""Endings of a command other than success; `hrnet_jax.cli` turns them into exit codes."""

ABORTED = 2
INTERRUPTED = 75


class Aborted(Exception):
    """A guard stopped the run, because continuing would have wasted time."""


class Interrupted(Exception):
    """A signal stopped the run; its state was saved first."""
