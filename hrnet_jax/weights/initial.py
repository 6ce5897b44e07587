"""Initialising training from a stored model (`config.init`)."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from data_pipelines.errors import InputError, listed
from data_pipelines.keypoints import KeypointSet, keypoint_set
from hrnet_jax.models.names import Arrays, mismatches
from hrnet_jax.weights import checkpoint
from hrnet_jax.weights.folder import Model
from hrnet_jax.weights.torch_models import WIDTH, backbone_of, variant_of_width

_HEAD = ("head.final_layer.weight", "head.final_layer.bias")


def initial_model(path: str) -> Model:
    """Loads the model in `config.init`: any path or name that `checkpoint.load` takes, with or without a head.

    Raises InputError if there is none.
    """
    try:
        return checkpoint.load(path, whole=False)
    except InputError as error:
        raise InputError(f"config.init: {error}") from None


def initialised(
    model: Model, keypoints: KeypointSet, params: Arrays, stats: Arrays
) -> tuple[Arrays, Arrays, tuple[str, ...]]:
    """Replaces new parameters and statistics by those of a stored model (`config.init`).

    The complete backbone is copied, and the head's channels of keypoints that both sets have by name: all for a model
    of the same set, none for a backbone or other keypoints.

    Args:
      model: from `initial_model`.
      keypoints: the new model's set.
      params: new parameters by canonical name.
      stats: new batch statistics by canonical name.

    Returns:
      New dicts of parameters and statistics, and the names of the keypoints whose channels were copied.

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
    head, taken = _head(model, keypoints, params)
    arrays = {name: jnp.array(array) for name, array in {**backbone, **head}.items()}
    return {name: arrays.get(name, array) for name, array in params.items()}, {n: arrays[n] for n in stats}, taken


def _head(model: Model, keypoints: KeypointSet, params: Arrays) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The head's arrays with the stored channels of equally named keypoints, and these keypoints."""
    if not model.has_head:
        return {}, ()
    theirs = keypoint_set(model.config.keypoints)
    outputs, stored = params[_HEAD[1]].shape[0], model.params[_HEAD[1]].shape[0]
    taken = tuple(name for name in keypoints.names if name in theirs.names)
    maps = outputs // len(keypoints)
    if not taken or maps != stored // len(theirs):  # maps of another kind of codec
        return {}, ()

    def channels(joints: KeypointSet) -> np.ndarray:
        first = np.array([joints.index(name) for name in taken]) * maps
        return (first[:, None] + np.arange(maps)).ravel()

    head = {}
    for name in _HEAD:
        head[name] = np.array(params[name])
        head[name][..., channels(keypoints)] = np.asarray(model.params[name])[..., channels(theirs)]
    return head, taken
