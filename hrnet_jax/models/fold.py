"""BatchNorm folded into the preceding convolution, for faster inference.

    network = FunctionalModel.of(abstract_model(config, folded=True))
    weights = jax.jit(fold)(params, stats)
    heatmaps, _ = network(weights, {}, images, train=False)

Call `fold` in its own compiled program: within the step, XLA's CPU compiler would repeat it for every batch.
"""

from __future__ import annotations

import re

import jax
from jaxtyping import Array

from hrnet_jax.models.batch_norm import EPSILON
from hrnet_jax.models.names import Arrays

_MEAN = ".running_mean"
# A BatchNorm directly follows its convolution: bn2 after conv2 in blocks, 1 after 0 in MMPose's Sequentials.
_NORM = re.compile(r"\.(?:bn(\d+)|1)$")


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
