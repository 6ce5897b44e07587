"""BatchNorm folded into the preceding convolution, for faster inference.

    network = FunctionalModel.of(abstract_model(config, folded=True))
    weights = make_fold(network, config.model.dtype, sharding)(params, stats)
    heatmaps, _ = network(weights, {}, images, train=False)

`fold` runs in its own compiled program: within the step, XLA's CPU compiler would repeat it for every batch.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.layout import Format, Layout
from jax.sharding import NamedSharding
from jaxtyping import Array

from hrnet_jax.models.batch_norm import EPSILON
from hrnet_jax.models.functional import FunctionalModel
from hrnet_jax.models.names import Arrays

_MEAN = ".running_mean"
# A BatchNorm directly follows its convolution: bn2 after conv2 in blocks, 1 after 0 in MMPose's Sequentials.
_NORM = re.compile(r"\.(?:bn(\d+)|1)$")


def make_fold(network: FunctionalModel, dtype: Any, sharding: NamedSharding) -> Callable[[Arrays, Arrays], Arrays]:
    """Compiles `fold` for a step of the folded `network`, see `abstract_weights`.

    Returns:
      f(params, stats) -> weights.
    """
    weights = abstract_weights(network, dtype, sharding)

    def folded(params: Arrays, stats: Arrays) -> Arrays:
        arrays = network.stack(fold(params, stats))
        return {name: array.astype(dtype) for name, array in arrays.items()}

    return jax.jit(folded, out_shardings={name: weight.format for name, weight in weights.items()})


def abstract_weights(network: FunctionalModel, dtype: Any, sharding: NamedSharding) -> dict[str, Any]:
    """The weights of a folded network as its step takes them without converting any: ShapeDtypeStructs by name.

    They have the compute type. On GPUs a kernel's output channels are its outermost dimension, as cuDNN reads them.
    """
    on_gpu = sharding.mesh.devices.flat[0].platform == "gpu"

    def layout(dimensions: int) -> Layout | None:
        if not on_gpu or dimensions < 4:  # a bias, or several stacked
            return None
        *stacked, height, width, features, out = range(dimensions)
        return Layout((*stacked, out, height, width, features))

    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=Format(layout(len(shape)), sharding))
        for name, shape in network.param_layout.shapes
    }


def fold(params: Arrays, stats: Arrays) -> dict[str, Array]:
    """Returns the parameters of the folded model; a pure function that can be jitted.

    Args:
      params: parameters by canonical name, float32.
      stats: all running means and variances by canonical name, float32.

    Returns:
      `CONV.weight` times BatchNorm's gain per output channel, a new `CONV.bias`, and unchanged parameters of layers
      without BatchNorm (the head).
    """
    folded = dict(params)
    for norm in [name.removesuffix(_MEAN) for name in stats if name.endswith(_MEAN)]:
        conv = convolution_before(norm)
        gain = folded.pop(f"{norm}.weight") * jax.lax.rsqrt(stats[f"{norm}.running_var"] + EPSILON)
        folded[f"{conv}.weight"] = params[f"{conv}.weight"] * gain[None, None, None]
        folded[f"{conv}.bias"] = folded.pop(f"{norm}.bias") - stats[f"{norm}{_MEAN}"] * gain
    return folded


def convolution_before(norm: str) -> str:
    """The canonical name of the convolution that precedes the named BatchNorm."""
    return _NORM.sub(lambda match: f".conv{match[1]}" if match[1] else ".0", norm)
