"""Models and their arrays: reading and filling them by canonical name, and models as pure functions of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from data_pipelines.errors import listed
from hrnet_jax.models.names import Arrays, mismatches, name_of, split, stacked_array, unstack


def state_dict(model: nnx.Module) -> tuple[Arrays, Arrays]:
    """Returns a model's parameters and batch statistics by canonical name."""
    return unstack(_flat(nnx.state(model, nnx.Param))), unstack(_flat(nnx.state(model, nnx.BatchStat)))


def fill(model: nnx.Module, arrays: Mapping[str, Any], source: str = "the given arrays") -> None:
    """Sets every parameter and statistic of a model, in place, from arrays by canonical name.

    Raises ValueError when arrays are missing, unknown or of another shape; the model is then unchanged.
    """
    params, stats = state_dict(model)
    if problems := mismatches(arrays, {**params, **stats}):
        raise ValueError(f"{source} and the model do not fit in {len(problems)} entries: {listed(problems)}")
    filled = [
        (path, variable.replace(jnp.array(stacked_array(name_of(path), arrays))))
        for path, variable in nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat)))
    ]
    nnx.update(model, nnx.from_flat_state(filled))


@dataclasses.dataclass(frozen=True)
class Layout:
    """How named arrays lie one after the other in a vector: convolution kernels first.

    A training step with a few vectors as its state needs fewer kernels and less time to compile and to start than one
    with thousands of arrays.

    Attributes:
      shapes: the arrays' names and shapes, in order.
      kernels: the number of values that belong to kernels.
    """

    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    kernels: int

    @classmethod
    def of(cls, variables: Iterable[tuple[tuple[Any, ...], Any]]) -> Layout:
        """The layout of variables by NNX path."""
        kernels: list[tuple[str, tuple[int, ...]]] = []
        others: list[tuple[str, tuple[int, ...]]] = []
        for path, variable in variables:
            (kernels if path[-1] == "kernel" else others).append((name_of(path), tuple(variable.shape)))
        return cls((*kernels, *others), sum(math.prod(shape) for _, shape in kernels))

    def vector(self, arrays: Mapping[str, Any]) -> Float[Array, " values"]:
        """Concatenates arrays, given by the layout's names or by canonical ones."""
        return jnp.concatenate([stacked_array(name, arrays).ravel() for name, _ in self.shapes])

    def arrays(self, vector: Float[Array, " values"]) -> Arrays:
        """The inverse of `vector`, by the layout's names."""
        names, shapes = zip(*self.shapes, strict=True)
        return dict(zip(names, split(vector, shapes), strict=True))


@dataclasses.dataclass(frozen=True)
class FunctionalModel:
    """A model as a pure function of its arrays by name (`nnx.split` and `nnx.merge`), for use in compiled steps.

    `FunctionalModel.of(model)` keeps the structure and drops the arrays. Rebuilding the module costs time only while
    tracing.

    Attributes:
      graph: the structure.
      variables: path and type of each array.
      param_layout: of the parameters in a vector.
      stat_layout: of the batch statistics.
    """

    graph: nnx.GraphDef
    variables: tuple[tuple[tuple[Any, ...], type], ...]
    param_layout: Layout
    stat_layout: Layout

    @classmethod
    def of(cls, model: nnx.Module) -> FunctionalModel:
        """The structure of a model."""
        graph, state = nnx.split(model)
        flat = nnx.to_flat_state(state)
        params, stats = (
            Layout.of((path, variable) for path, variable in flat if isinstance(variable, kind))
            for kind in (nnx.Param, nnx.BatchStat)
        )
        return cls(graph, tuple((path, type(variable)) for path, variable in flat), params, stats)

    def __call__(
        self, params: Arrays, stats: Arrays, images: Float[Array, "batch height width 3"], *, train: bool
    ) -> tuple[Float[Array, "batch h w outputs"], Arrays]:
        """Returns heatmaps and batch statistics, which are updated if `train`.

        Arrays may be stacked or have canonical names; statistics are returned in the form given.
        """
        arrays = {**params, **stats}
        flat = [(path, kind(stacked_array(name_of(path), arrays))) for path, kind in self.variables]
        model = nnx.merge(self.graph, nnx.from_flat_state(flat))
        # Not model.train(): it also walks attributes for dropout, which HRNet does not have.
        model.set_attributes(use_running_average=not train, raise_if_not_found=False)  # none when folded
        heatmaps = model(images)
        new_stats = _flat(nnx.state(model, nnx.BatchStat))
        return heatmaps, new_stats if new_stats.keys() == stats.keys() else unstack(new_stats)

    @property
    def layouts(self) -> dict[str, Layout]:
        """Both layouts, by the names of a state's vectors."""
        return {"params": self.param_layout, "stats": self.stat_layout}

    def stack(self, arrays: Mapping[str, Any]) -> Arrays:
        """Stacks arrays, given by canonical name, as this model's loops need them; a step then need not do it."""
        names = (name_of(path) for path, _ in self.variables)
        return {name: stacked_array(name, arrays) for name in names}


def _flat(state: nnx.State) -> Arrays:
    return {name_of(path): variable.get_value() for path, variable in nnx.to_flat_state(state)}
