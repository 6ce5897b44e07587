"""Checks of files and records that are common to all commands."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from data_pipelines.errors import InputError, brief

# Largest valid coordinate, in pixels from an image's corner; float32 resolves it to 1/16 pixel.
FARTHEST = 1e6

# Limit of numbers that are not coordinates.
LARGEST = float(np.finfo(np.float32).max)

_VISIBILITY = (0, 1, 2)


def check_regular(path: str | os.PathLike) -> None:
    """Raises InputError for a pipe or a device, which may have no end. Missing files are reported elsewhere."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InputError(f"{path}: not a regular file")


def as_numbers(values: Any) -> np.ndarray | None:
    """JSON numbers as float64, null as NaN; None if there are other values, including strings of digits."""
    try:
        array = np.asarray(values)
        if array.dtype.kind == "O" and all(isinstance(v, int | float | None) for v in array.flat):
            return np.asarray(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    return array.astype(np.float64) if array.dtype.kind in "iuf" else None


def check_visibility(where: str, points: Float[np.ndarray, "keypoints 3"]) -> None:
    """Raises InputError if a keypoint's visibility is not 0, 1 or 2."""
    if unknown := [v for v in points[:, 2].tolist() if v not in _VISIBILITY]:
        raise InputError(f"{where}: visibility must be 0 (unlabelled), 1 (occluded) or 2 (visible), not {unknown[0]:g}")


def is_crowd(where: str, record: Mapping[str, Any]) -> bool:
    """Whether an annotation is a crowd. Raises InputError if `iscrowd` is not 0 or 1."""
    value = record.get("iscrowd", 0)
    if not isinstance(value, int | float) or value not in (0, 1):
        raise InputError(f"{where}: 'iscrowd' must be 0 or 1, not {brief(repr(value))}")
    return bool(value)
