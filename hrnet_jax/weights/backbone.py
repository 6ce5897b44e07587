"""Initialising training from a stored backbone (`config.init`)."""

from __future__ import annotations

import jax.numpy as jnp

from data_pipelines.errors import InputError, listed
from hrnet_jax.models.names import Arrays, mismatches
from hrnet_jax.weights import checkpoint
from hrnet_jax.weights.folder import Model
from hrnet_jax.weights.torch_models import WIDTH, backbone_of, variant_of_width


def initial_model(path: str) -> Model:
    """Loads the model in `config.init`: any path or name that `checkpoint.load` takes, with or without a head.

    Raises InputError if there is none.
    """
    try:
        return checkpoint.load(path, whole=False)
    except InputError as error:
        raise InputError(f"config.init: {error}") from None


def with_backbone(model: Model, params: Arrays, stats: Arrays) -> tuple[Arrays, Arrays]:
    """Replaces the backbone of new parameters and statistics by a stored one (`config.init`).

    Args:
      model: from `initial_model`.
      params: parameters by canonical name; the head's are kept.
      stats: batch statistics by canonical name.

    Returns:
      New dicts of parameters and statistics.

    Raises:
      InputError: the stored backbone has another architecture.
    """
    where = f"config.init={model.origin}"
    backbone = backbone_of({**model.params, **model.stats})
    shapes = backbone_of({**params, **stats})
    kernel = shapes.get(WIDTH)
    if kernel is not None and WIDTH in backbone and backbone[WIDTH].shape != kernel.shape:
        raise InputError(
            f"{where}: holds {variant_of_width(backbone[WIDTH].shape[-1])}, config.model.variant is "
            f"{variant_of_width(kernel.shape[-1])}"
        )
    if problems := mismatches(backbone, shapes):
        raise InputError(f"{where}: its backbone differs in {len(problems)} entries: {listed(problems)}")
    arrays = {name: jnp.array(array) for name, array in backbone.items()}
    return {name: arrays.get(name, array) for name, array in params.items()}, {name: arrays[name] for name in stats}
