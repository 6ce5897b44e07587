"""Sizes and orientations of image files, from their headers."""

from __future__ import annotations

import os
import pathlib

import numpy as np
from jaxtyping import Float

from data_pipelines.errors import InputError
from data_pipelines.image_headers import read_header


def header(path: str | os.PathLike) -> tuple[tuple[int, int], int] | None:
    """((height, width) as stored, EXIF orientation 1 to 8) of an image file; None if training cannot read it."""
    try:
        image = read_header(pathlib.Path(path).read_bytes(), path)
    except InputError:
        return None
    return image.size, image.orientation


def displayed_size(path: str | os.PathLike) -> tuple[int, int] | None:
    """(height, width) as displayed, after the EXIF orientation; None if the file is not an image."""
    found = header(path)
    if found is None:
        return None
    (height, width), orientation = found
    return (width, height) if orientation >= 5 else (height, width)


def turned(points: Float[np.ndarray, "n 2"], stored: tuple[int, int], orientation: int) -> Float[np.ndarray, "n 2"]:
    """Transforms points from the stored to the displayed image, for an EXIF orientation.

    Args:
      points: x and y in the stored image's pixels.
      stored: its (height, width).
      orientation: EXIF's, 1 to 8.
    """
    height, width = stored
    x, y = points[:, 0], points[:, 1]
    right, bottom = width - 1 - x, height - 1 - y
    table = {
        **{1: (x, y), 2: (right, y), 3: (right, bottom), 4: (x, bottom)},
        **{5: (y, x), 6: (bottom, x), 7: (bottom, right), 8: (y, right)},
    }
    return np.stack(table[orientation], axis=1)
