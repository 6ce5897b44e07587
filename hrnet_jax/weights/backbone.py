"""Initialising training from a stored backbone (`config.init`)."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from data_pipelines.errors import InputError, listed
from hrnet_jax.models import VARIANTS
from hrnet_jax.models.names import Arrays, mismatches
from hrnet_jax.weights import checkpoint
from hrnet_jax.weights.folder import Model

# A tensor whose output width is that of the high-resolution branch.
WIDTH = "backbone.transition1.0.0.weight"


def initial_model(path: str) -> Model:
    """Loads the model in `config.init`: a converted folder, with or without a head, or a work directory.

    Raises InputError if there is none.
    """
    where = f"config.init={path}"
    if pathlib.Path(path).is_file():
        raise InputError(f"{where}: is a file; convert it first: python -m hrnet_jax.convert --input {path} --help")
    if not checkpoint.locate(path)[0].is_dir():
        raise InputError(f"{where}: no such folder; it must be a converted folder or a work directory")
    return checkpoint.load(path, whole=False)


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


def backbone_of(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The backbone's arrays by canonical name."""
    return {name: array for name, array in arrays.items() if name.startswith("backbone.")}


def variant_of_width(width: int) -> str:
    """The name of the variant with this width."""
    names = [name for name, variant in VARIANTS.items() if variant.width == width]
    return f"{names[0]} (width {width})" if names else f"an HRNet of width {width}"
