"""How a command may end otherwise than by its work being done; `hrnet_jax.cli` turns these into exit codes."""

ABORTED = 2
INTERRUPTED = 75


class Aborted(Exception):
    """A guard ended the run: going on would have wasted time."""


class Interrupted(Exception):
    """A run was stopped by a signal after its state was saved."""
