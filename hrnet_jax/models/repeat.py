"""Modules in a row, and equal ones as a loop."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


class Repeat(nnx.Module):
    """Applies modules in turn: module i is attribute `i`.

    With `scan`, equal neighbours a to b - 1 become one module, attribute `a:b`, whose arrays are stacked along a new
    first axis and over which a `lax.scan` runs: the compiler meets it once. What they take must be what they return.

    Args:
      modules: what to apply, first to last.
      scan: whether to stack.
    """

    def __init__(self, modules: Iterable[nnx.Module], *, scan: bool):
        self.names: tuple[str, ...] = ()
        first = 0
        for _, equal in itertools.groupby(modules, _kind):
            run = list(equal)
            if scan and len(run) > 1:
                arrays = jax.tree.map(lambda *each: jnp.stack(each), *map(nnx.state, run))
                named = {f"{first}:{first + len(run)}": nnx.merge(nnx.graphdef(run[0]), arrays)}
            else:
                named = {str(i): module for i, module in enumerate(run, first)}
            for name, module in named.items():
                setattr(self, name, module)
            self.names += tuple(named)
            first += len(run)

    def __call__(self, x: Any) -> Any:
        """Returns what the last module makes of it."""
        for name in self.names:
            module = getattr(self, name)
            x = loop(module, x) if ":" in name else module(x)
        return x


def loop(stacked: nnx.Module, x: Any) -> Any:
    """Applies the modules whose arrays are stacked in one; their new batch statistics replace the old."""
    graph, arrays = nnx.split(stacked)

    def body(x: Any, arrays: nnx.State) -> tuple[Any, nnx.State]:
        module = nnx.merge(graph, arrays)
        return module(x), nnx.state(module, nnx.BatchStat)

    x, stats = jax.lax.scan(body, x, arrays)
    nnx.update(stacked, stats)
    return x


def _kind(module: nnx.Module) -> tuple[Any, ...]:
    """Equal for modules that differ only in their arrays' values."""
    graph, state = nnx.split(module)
    return graph, tuple((path, variable.shape) for path, variable in nnx.to_flat_state(state))
