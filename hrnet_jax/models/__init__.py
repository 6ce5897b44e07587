"""The HRNet models: `create_model` builds one from a config."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from data_pipelines.errors import InputError, brief
from data_pipelines.keypoints import keypoint_set
from data_pipelines.types import Config
from hrnet_jax.codecs import create_codec
from hrnet_jax.models.functional import FunctionalModel, fill, state_dict
from hrnet_jax.models.hrnet import VARIANTS, HRNet, Variant
from hrnet_jax.models.names import Arrays, unstack

__all__ = [
    "VARIANTS",
    "FunctionalModel",
    "HRNet",
    "Variant",
    "abstract_model",
    "array_shapes",
    "create_model",
    "fill",
    "initial_arrays",
    "state_dict",
    "unstack",
]

HEAD_STD = 0.001


def create_model(config: Config | Any, seed: int = 0) -> HRNet:
    """Builds an HRNet with fresh parameters, in inference mode.

    Args:
      config: a complete config, or only `{"model": {"variant": "w32"}, "keypoints": "coco"}`. `keypoints` (a keypoint
        set or its name) and `codec` (absent: one map per keypoint) define the outputs. `model` has `variant` (a name in
        VARIANTS), and optionally `dtype` ("float32", or "bfloat16" compute with float32 parameters), `group_size`
        (samples per BatchNorm statistics group; None: the batch) and `scan` (default False; True runs equal blocks and
        modules as loops: faster compilation, same results).
      seed: seed of the initial parameters; each array depends only on the seed and its own name.

    Returns:
      A module that maps normalised RGB images [B, H, W, 3] to float32 heatmaps [B, H/4, W/4, outputs], H and W
      multiples of 32. After `model.train()`, BatchNorm uses batch statistics and updates the running ones.

    Raises:
      InputError: for anything else, and for an unknown variant, keypoint set or dtype.
    """
    if not isinstance(config, Mapping | ConfigDict) or not {"model", "keypoints"} <= set(config):
        example = {"model": {"variant": "w32"}, "keypoints": "coco"}
        raise InputError(
            f"create_model({brief(config)}): takes a config, of hrnet_jax.config.load_config or such as {example}"
        )
    model = abstract_model(config)
    params, stats = state_dict(model)
    fill(model, initial_arrays({**params, **stats}, seed))
    return model


def abstract_model(config: Config, folded: bool = False, **changes: Any) -> HRNet:
    """The model of `create_model` with shapes instead of arrays.

    `folded`: see `hrnet_jax.models.fold`; `changes` replace keys of `config.model`.
    """
    model, outputs = _checked(config, changes)
    return nnx.eval_shape(
        lambda: HRNet(
            VARIANTS[model["variant"]],
            outputs,
            dtype=jnp.dtype(model.get("dtype", "float32")),
            group_size=model.get("group_size"),
            folded=folded,
            scan=model.get("scan", False),
        )
    )


def array_shapes(config: Config) -> tuple[Arrays, Arrays]:
    """The shapes of the parameters and statistics of `create_model`, by canonical name; raises InputError as it does.

    They depend on the variant and the outputs only, so that commands that need them several times trace them once.
    """
    model, outputs = _checked(config, {})
    params, stats = _array_shapes(VARIANTS[model["variant"]], outputs)
    return dict(params), dict(stats)


@functools.lru_cache(maxsize=8)
def _array_shapes(variant: Variant, outputs: int) -> tuple[Arrays, Arrays]:
    return state_dict(nnx.eval_shape(lambda: HRNet(variant, outputs)))


def _checked(config: Config, changes: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """The keys of `config.model` with changes, and the number of outputs. Raises InputError."""
    model = {**config["model"], **changes}
    if model["variant"] not in VARIANTS:
        raise InputError(f"config.model.variant: unknown {model['variant']!r}; there are {', '.join(VARIANTS)}")
    dtype = model.get("dtype", "float32")
    if dtype not in ("float32", "bfloat16"):
        raise InputError(f"config.model.dtype must be 'float32' or 'bfloat16', got {dtype!r}")
    keypoints = len(keypoint_set(config["keypoints"]))
    return model, create_codec(config["codec"]).channels(keypoints) if "codec" in config else keypoints


def initial_arrays(shapes: Mapping[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Draws initial values by canonical name, in NumPy: compiling HRNet's initialisation takes minutes on a CPU.

    Convolutions are He-normal (fan-in); the head has a standard deviation of 0.001, as in MMPose. BatchNorm starts as
    the identity.
    """

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) == 4:
            std = HEAD_STD if name.startswith("head.") else np.sqrt(2 / np.prod(shape[:3]))
            rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
            return (rng.standard_normal(shape) * std).astype(np.float32)
        ones = name.endswith(("weight", "running_var"))
        return np.full(shape, float(ones), np.float32)

    return {name: draw(name, tuple(array.shape)) for name, array in shapes.items()}
