"""Counts the parameters and the multiply-adds of the recipes' networks, without running them.

    python -m benchmarks.size

Multiply-adds are those of all convolutions for one image and one view, products with padding included. Papers call
them FLOPs; the flip test doubles them.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from hrnet_jax.codecs import create_codec
from hrnet_jax.config import load_config
from hrnet_jax.models import FunctionalModel, abstract_model, state_dict
from hrnet_jax.weights.published import record


def size(config: ConfigDict) -> tuple[int, int]:
    """The numbers of parameters and of multiply-adds per image of a config's network."""
    model = abstract_model(config, scan=False)  # the bodies of loops would be counted once
    params, stats = state_dict(model)
    network = FunctionalModel.of(model)
    image = jax.ShapeDtypeStruct((1, *create_codec(config.codec).input_size, 3), jnp.float32)
    traced = jax.make_jaxpr(lambda p, s, x: network(p, s, x, train=False))(params, stats, image)
    return sum(math.prod(array.shape) for array in params.values()), sum(_multiply_adds(traced.jaxpr))


def _multiply_adds(jaxpr: Any) -> Iterator[int]:
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
            yield math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // outputs
        elif equation.primitive.name == "dot_general":
            raise NotImplementedError("a product of matrices is not counted")
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from _multiply_adds(inner)


def main() -> None:
    """Prints one line per network."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    networks = {}
    for entry in record():
        config = load_config(entry.config_spec)
        height, width = create_codec(config.codec).input_size
        networks.setdefault(f"{config.model.variant} {height}x{width}", config)
    for name, config in networks.items():
        parameters, products = size(config)
        print(f"{name}: {parameters / 1e6:.1f} million parameters, {products / 1e9:.1f} billion multiply-adds")


if __name__ == "__main__":
    main()
