"""A model's state as flat dictionaries under MMPose's names.

Every published HRNet checkpoint uses these names, for example `backbone.stage2.0.branches.1.3.conv1.weight`. Our
checkpoints and converted and exported folders use them too, so that none depends on how the modules are nested here.
Arrays keep our layout: convolution kernels are [height, width, in, out].

In memory, a model with loops (`hrnet_jax.models.repeat`) stacks equal arrays: `backbone.stage3.0:4.conv1.weight` holds
`backbone.stage3.0.conv1.weight` to `backbone.stage3.3.conv1.weight` along its first axis. `unstack` and
`Network.stack` convert between the two.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from data_pipelines.errors import brief, listed

Arrays = dict[str, Any]

# MMPose's names of our attributes; its Sequentials number convolution and BatchNorm by position.
_PARTS = {
    **{"conv": "0", "bn": "1"},
    **{"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"},
}
_RANGE = re.compile(r"(?<=\.)(\d+):(\d+)(?=\.)")


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
        (path, variable.replace(jnp.array(_stacked(name_of(path), arrays))))
        for path, variable in nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat)))
    ]
    nnx.update(model, nnx.from_flat_state(filled))


def mismatches(arrays: Mapping[str, Any], shapes: Mapping[str, Any]) -> list[str]:
    """Lists the differences between arrays and a model's shapes: missing, unknown, of another shape."""
    missing = [f"missing {name}" for name in shapes if name not in arrays]
    unknown = [f"unknown {brief(name)}" for name in arrays if name not in shapes]
    reshaped = [
        f"{name} has shape {tuple(array.shape)}, the model {tuple(shapes[name].shape)}"
        for name, array in arrays.items()
        if name in shapes and tuple(array.shape) != tuple(shapes[name].shape)
    ]
    # Interleaved, so that the first few entries show every kind.
    return [problem for three in itertools.zip_longest(missing, unknown, reshaped) for problem in three if problem]


@dataclasses.dataclass(frozen=True)
class Network:
    """A model as a pure function of flat state, for use in compiled steps.

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
        """Returns heatmaps and batch statistics, which are updated if `train`.

        Arrays may be stacked or have canonical names; statistics are returned in the form given.
        """
        arrays = {**params, **stats}
        flat = [(path, kind(_stacked(name_of(path), arrays))) for path, kind in self.variables]
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
        names = [name_of(path) for path, _ in self.variables]
        loops = {name: _members(name) for name in names if _RANGE.search(name)}
        return _map_dicts(functools.partial(_stack_dict, loops=loops), tree)


def unstack(tree: Any) -> Any:
    """The inverse of `Network.stack`, for any model: arrays by canonical name, in every dictionary of a tree."""
    return _map_dicts(_unstack_dict, tree)


def _stack_dict(arrays: Arrays, loops: Mapping[str, list[str]]) -> Arrays:
    stacked = {name: _stacked(name, arrays) for name, members in loops.items() if members[0] in arrays}
    used = {member for name in stacked for member in loops[name]}
    return {name: value for name, value in arrays.items() if name not in used} | stacked


def _unstack_dict(arrays: Arrays) -> Arrays:
    result: Arrays = {}
    for name, value in arrays.items():
        if parts := _parts(name):
            result |= _unstack_dict(dict(zip(parts, _unstacked(value, len(parts)), strict=True)))
        else:
            result[name] = value
    return result


def name_of(path: tuple[Any, ...]) -> str:
    """The name of the variable at an NNX path: MMPose's, or with ranges where arrays are stacked."""
    return ".".join(_PARTS.get(str(part), str(part)) for part in path)


def _parts(name: str) -> list[str]:
    """The names covered by the first range in a name."""
    if not (found := _RANGE.search(name)):
        return []
    return [f"{name[: found.start()]}{i}{name[found.end() :]}" for i in range(int(found[1]), int(found[2]))]


def _members(name: str) -> list[str]:
    """The canonical names covered by a name."""
    return [member for part in _parts(name) for member in _members(part)] or [name]


def _stacked(name: str, arrays: Mapping[str, Any]) -> Any:
    """The named array, stacked from its members if necessary."""
    if name in arrays or not (parts := _parts(name)):
        return arrays[name]
    each = [_stacked(part, arrays) for part in parts]
    if isinstance(each[0], jax.ShapeDtypeStruct):
        return each[0].update(shape=(len(each), *each[0].shape))
    return jnp.stack(each)


def _unstacked(array: Any, count: int) -> list[Any]:
    if isinstance(array, jax.ShapeDtypeStruct):
        return [array.update(shape=array.shape[1:])] * count
    return [array[i] for i in range(count)]


def _map_dicts(function: Callable[[Arrays], Arrays], tree: Any) -> Any:
    """Applies a function to every dictionary in a tree, innermost first."""
    if hasattr(tree, "shape"):  # an array: the most common case
        return tree
    return jax.tree.map(
        lambda node: (
            function({key: _map_dicts(function, value) for key, value in node.items()})
            if isinstance(node, dict)
            else node
        ),
        tree,
        is_leaf=lambda node: isinstance(node, dict),
    )


def _flat(state: nnx.State) -> Arrays:
    return {name_of(path): variable.get_value() for path, variable in nnx.to_flat_state(state)}
