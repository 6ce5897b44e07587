"""Image files -> pixels."""

from __future__ import annotations

import os

import cv2
import numpy as np
from jaxtyping import UInt8

from data_pipelines.errors import InputError

# Pipelines run many threads or processes of their own.
cv2.setNumThreads(0)

_JPEG_START, _JPEG_SCAN, _JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"


def read_image(path: str | os.PathLike) -> UInt8[np.ndarray, "height width 3"]:
    """Reads an image as BGR. Raises InputError that names the file when it is missing, truncated or no image."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        raise InputError(f"{path}: no such image") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    return decode_image(data, path)


def decode_image(data: bytes, name: str | os.PathLike) -> UInt8[np.ndarray, "height width 3"]:
    """Decodes an image file's bytes to BGR; `name` is for messages. Raises InputError as `read_image`."""
    # libjpeg fills what is missing of a truncated file with grey and only prints a warning. The end marker cannot
    # occur within a scan, so a whole file has one after its last scan begins.
    if data.startswith(_JPEG_START) and data.rfind(_JPEG_END) < data.rfind(_JPEG_SCAN):
        raise InputError(f"{name}: the JPEG is truncated ({len(data)} bytes without an end marker)")
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if image is None:
        raise InputError(f"{name}: not an image that can be decoded ({len(data)} bytes)")
    return image
