"""MMPose's names of a model's parameters and statistics.

Every published HRNet checkpoint uses these names, for example `backbone.stage2.0.branches.1.3.conv1.weight`. Our
checkpoints and converted and exported folders use them too, so that none depends on how the modules are nested here.
Arrays keep our layout: convolution kernels are [height, width, in, out].

In memory, a model with loops (`hrnet_jax.models.sequential`) stacks equal arrays: `backbone.stage3.0:4.conv1.weight`
holds `backbone.stage3.0.conv1.weight` to `backbone.stage3.3.conv1.weight` along its first axis. `stacked_array` and
`unstack` convert between the two.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from data_pipelines.errors import brief

Arrays = dict[str, Any]

# MMPose's names of our attributes; its Sequentials number convolution and BatchNorm by position.
_PARTS = {
    **{"conv": "0", "bn": "1"},
    **{"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"},
}
_RANGE = re.compile(r"(?<=\.)(\d+):(\d+)(?=\.)")


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


def unstack(arrays: Arrays) -> Arrays:
    """Arrays by canonical name, from those of a model with loops."""
    result: Arrays = {}
    for name, value in arrays.items():
        if parts := _parts(name):
            result |= unstack(dict(zip(parts, _unstacked(value, len(parts)), strict=True)))
        else:
            result[name] = value
    return result


def split(vector: jax.Array, shapes: Sequence[tuple[int, ...]]) -> list[jax.Array]:
    """The arrays of these shapes that lie one after the other in a vector."""
    ends = list(itertools.accumulate(map(math.prod, shapes)))
    return [part.reshape(shape) for part, shape in zip(jnp.split(vector, ends[:-1]), shapes, strict=True)]


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


def stacked_array(name: str, arrays: Mapping[str, Any]) -> Any:
    """The named array, stacked from its members if necessary."""
    if name in arrays or not (parts := _parts(name)):
        return arrays[name]
    each = [stacked_array(part, arrays) for part in parts]
    if isinstance(each[0], jax.ShapeDtypeStruct):
        return each[0].update(shape=(len(each), *each[0].shape))
    return jnp.stack(each)


def _unstacked(array: Any, count: int) -> list[Any]:
    if isinstance(array, jax.ShapeDtypeStruct):
        return [array.update(shape=array.shape[1:])] * count
    return [array[i] for i in range(count)]
