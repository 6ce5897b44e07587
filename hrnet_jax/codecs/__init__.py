"""Codecs encode keypoints as heatmap targets and decode heatmaps, on the accelerator.

    codec = create_codec({"name": "udp", "input_size": (256, 192), "sigma": 2.0})
    targets, weights = codec.encode(keypoints, visible)
    loss = codec.loss(prediction, targets, weights).mean()
    keypoints, scores = codec.decode(prediction)

All functions are float32 `jax.numpy` with static shapes and can be jitted; a codec is hashable and may be closed over
or passed as a static argument.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from typing import Any

import ml_collections

from data_pipelines.errors import InputError
from data_pipelines.types import Config
from hrnet_jax.codecs.base import STRIDE, Codec
from hrnet_jax.codecs.msra import Dark, Msra
from hrnet_jax.codecs.udp import Udp, UdpCombined

__all__ = ["CODECS", "Codec", "Dark", "Msra", "Udp", "UdpCombined", "create_codec"]

CODECS: dict[str, type[Codec]] = {"msra": Msra, "dark": Dark, "udp": Udp, "udp_combined": UdpCombined}


def create_codec(config: Config | ml_collections.ConfigDict) -> Codec:
    """Builds the codec that a config describes.

    Args:
      config: has `name`, one of `CODECS`; `input_size`, the crop's (height, width) in pixels; and optionally the
        codec's own settings: `sigma` in heatmap cells (msra, dark, udp), `blur_kernel` in cells (dark, udp),
        `radius_factor`, the disc's radius divided by the heatmap's longer side (udp_combined). None: the default.

    Raises:
      InputError: for an unknown name, a setting that the codec does not have, or an invalid value.
    """
    settings = {key: value for key, value in dict(config).items() if value is not None}
    name = settings.pop("name", None)
    if name not in CODECS:
        raise InputError(f"codec: unknown name {name!r}; there are {', '.join(CODECS)}")
    known = [field.name for field in dataclasses.fields(CODECS[name])]
    if unknown := sorted(set(settings) - set(known)):
        raise InputError(f"codec {name!r} has no setting {', '.join(unknown)}; its settings are {', '.join(known)}")
    size = _size(settings.pop("input_size", None))
    return CODECS[name](size, **{key: _positive(key, value) for key, value in settings.items()})


def _size(value: Any) -> tuple[int, int]:
    """Parses the input's (height, width), a tuple or (from JSON) a list."""
    try:
        height, width = (int(side) for side in value)
    except (TypeError, ValueError):
        raise InputError(f"codec: input_size is {value!r}; it must be (height, width) in pixels") from None
    if min(height, width) < 2 * STRIDE or height % STRIDE or width % STRIDE:
        raise InputError(f"codec: input_size is {height}x{width}; both must be multiples of {STRIDE}, at least 8")
    return height, width


def _positive(key: str, value: Any) -> int | float:
    """Parses a setting other than `input_size`."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not (is_number and 0 < value < math.inf):
        raise InputError(f"codec: {key} is {value!r}; it must be a number above 0")
    if key != "blur_kernel":
        return float(value)
    if value % 2 != 1:
        raise InputError(f"codec: blur_kernel is {value!r}; it must be an odd number of cells")
    return int(value)
