"""Modules in sequence; equal ones run as a loop."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


class Sequential(nnx.Module):
    """Applies modules in sequence: module i is attribute `i`.

    With `scan`, consecutive equal modules a to b - 1 become one module, attribute `a:b`, whose arrays are stacked along
    a new first axis and which runs in a `lax.scan`, so that it compiles once. Input and output must match in shape.

    Args:
      modules: modules in order of application.
      scan: whether to stack equal modules.
    """

    def __init__(self, modules: Iterable[nnx.Module], *, scan: bool = False):
        self.names: tuple[str, ...] = ()
        first = 0
        for run in [list(equal) for _, equal in itertools.groupby(modules, _kind)] if scan else [list(modules)]:
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
        """Returns the output of the last module."""
        for name in self.names:
            module = getattr(self, name)
            x = loop(module, x) if ":" in name else module(x)
        return x


def loop(stacked: nnx.Module, x: Any) -> Any:
    """Applies modules stacked into one, and updates their batch statistics in place."""
    graph, arrays = nnx.split(stacked)

    def body(x: Any, arrays: nnx.State) -> tuple[Any, nnx.State]:
        module = nnx.merge(graph, arrays)
        return module(x), nnx.state(module, nnx.BatchStat)

    x, stats = jax.lax.scan(body, x, arrays)
    nnx.update(stacked, stats)
    return x


def _kind(module: nnx.Module) -> tuple[Any, ...]:
    """Equal for modules that differ only in array values."""
    graph, state = nnx.split(module)
    return graph, tuple((path, variable.shape) for path, variable in nnx.to_flat_state(state))
