"""Models and their arrays: reading and filling them by canonical name, and models as pure functions of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from data_pipelines.errors import listed
from hrnet_jax.models.names import Arrays, mismatches, name_of, stack, stacked_array, unstack


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
class FunctionalModel:
    """A model as a pure function of its arrays by name (`nnx.split` and `nnx.merge`), for use in compiled steps.

    `FunctionalModel.of(model)` keeps the structure and drops the arrays. Rebuilding the module costs time only while
    tracing.
    """

    graph: nnx.GraphDef
    variables: tuple[tuple[tuple[Any, ...], type], ...]

    @classmethod
    def of(cls, model: nnx.Module) -> FunctionalModel:
        """The structure of a model."""
        graph, state = nnx.split(model)
        return cls(graph, tuple((path, type(variable)) for path, variable in nnx.to_flat_state(state)))

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
        moved = _flat(nnx.state(model, nnx.BatchStat))
        return heatmaps, moved if moved.keys() == stats.keys() else unstack(moved)

    def stack(self, tree: Any) -> Any:
        """Stacks the arrays of every dictionary (by canonical name) in a tree, as this model's loops need them.

        A compiled step then does not need to stack them. Without loops, the tree is unchanged.
        """
        return stack(tree, [name_of(path) for path, _ in self.variables])


def _flat(state: nnx.State) -> Arrays:
    return {name_of(path): variable.get_value() for path, variable in nnx.to_flat_state(state)}
