"""A model's state as flat dictionaries under the reference's names.

`backbone.stage2.0.branches.1.3.conv1.weight` is what that array is called in every published HRNet checkpoint. The
same names stand in the training state, in checkpoints and in converted and exported folders, so that none of them
depends on how the modules here are nested. Arrays keep our layout: convolution kernels are [height, width, in, out].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

Arrays = dict[str, Any]

# What the reference calls our attributes; inside its Sequentials convolution and BatchNorm go by position.
_PARTS = {
    **{"conv": "0", "bn": "1"},
    **{"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"},
}


def canonical_name(path: tuple[Any, ...]) -> str:
    """The reference's name of the variable at an NNX path."""
    return ".".join(_PARTS.get(str(part), str(part)) for part in path)


def state_dict(model: nnx.Module) -> tuple[Arrays, Arrays]:
    """Returns a model's parameters and batch statistics by canonical name."""
    return _flat(nnx.state(model, nnx.Param)), _flat(nnx.state(model, nnx.BatchStat))


def fill(model: nnx.Module, arrays: Mapping[str, Any], source: str = "the given arrays") -> None:
    """Sets every parameter and statistic of a model, in place.

    Raises ValueError with one line that lists all that is missing, unknown or of another shape; nothing is set then.
    """
    variables = {canonical_name(path): v for path, v in nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat)))}
    if problems := mismatches(arrays, variables):
        raise ValueError(f"{source} and the model do not fit in {len(problems)} entries: {'; '.join(problems)}")
    filled = [
        (path, v.replace(jnp.array(arrays[canonical_name(path)])))
        for path, v in nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat)))
    ]
    nnx.update(model, nnx.from_flat_state(filled))


def mismatches(arrays: Mapping[str, Any], shapes: Mapping[str, Any]) -> list[str]:
    """Lists all in which arrays by name differ from those that a model has: missing, unknown, of another shape."""
    problems = [f"missing {name}" for name in shapes if name not in arrays]
    problems += [f"unknown {name}" for name in arrays if name not in shapes]
    problems += [
        f"{name} has shape {tuple(array.shape)}, the model {tuple(shapes[name].shape)}"
        for name, array in arrays.items()
        if name in shapes and tuple(array.shape) != tuple(shapes[name].shape)
    ]
    return problems


@dataclasses.dataclass(frozen=True)
class Network:
    """A model as a pure function of flat state: what a compiled step calls.

    `Network.of(model)` keeps the structure and drops the arrays. Rebuilding the module costs time only while tracing.
    """

    graph: nnx.GraphDef
    variables: tuple[tuple[tuple[Any, ...], type], ...]

    @classmethod
    def of(cls, model: nnx.Module) -> Network:
        """The structure of a model."""
        graph, state = nnx.split(model)
        return cls(graph, tuple((path, type(variable)) for path, variable in nnx.to_flat_state(state)))

    def __call__(
        self, params: Arrays, stats: Arrays, images: Float[Array, "batch height width 3"], *, train: bool
    ) -> tuple[Float[Array, "batch h w outputs"], Arrays]:
        """Returns heatmaps and batch statistics; the latter have moved when `train`."""
        arrays = {**params, **stats}
        flat = [(path, kind(arrays[canonical_name(path)])) for path, kind in self.variables]
        model = nnx.merge(self.graph, nnx.from_flat_state(flat))
        # Not model.train(): it also walks attributes for dropout, which HRNet does not have.
        model.set_attributes(use_running_average=not train)
        heatmaps = model(images)
        return heatmaps, _flat(nnx.state(model, nnx.BatchStat))


def _flat(state: nnx.State) -> Arrays:
    return {canonical_name(path): variable.get_value() for path, variable in nnx.to_flat_state(state)}
