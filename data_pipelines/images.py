"""Image files -> pixels."""

from __future__ import annotations

import dataclasses
import os
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
from jaxtyping import UInt8

from data_pipelines.errors import InputError

# Pipelines run many threads or processes of their own.
cv2.setNumThreads(0)

Pixels = UInt8[np.ndarray, "height width 3"]

_JPEG_START, _JPEG_SCAN, _JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"


@runtime_checkable
class Picture(Protocol):
    """An image that was opened; how much of it is decoded, and when, is its own affair."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        ...

    def pixels(self) -> Pixels:
        """The whole image, BGR."""
        ...

    def region(self, x0: int, y0: int, x1: int, y1: int) -> tuple[Pixels, tuple[int, int]]:
        """A part of the image, BGR, that holds what the image has of [x0, x1) x [y0, y1); and its corner's (x, y)."""
        ...


@runtime_checkable
class ImageSource(Protocol):
    """Where images come from; they are numbered."""

    def name(self, number: int, file: str) -> str:
        """What messages call an image."""
        ...

    def open(self, number: int, file: str) -> Picture:
        """Opens an image. Raises InputError that names it when it cannot be read."""
        ...


@dataclasses.dataclass(frozen=True)
class ImageFiles:
    """Images of a folder."""

    folder: str

    def name(self, number: int, file: str) -> str:
        """The file's path."""
        del number
        return os.path.join(self.folder, file)

    def open(self, number: int, file: str) -> Decoded:
        """Reads and decodes the whole file."""
        return Decoded(read_image(self.name(number, file)))


@dataclasses.dataclass(frozen=True)
class Decoded:
    """A picture all of whose pixels are there."""

    image: Pixels

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.image.shape[0], self.image.shape[1]

    def pixels(self) -> Pixels:
        """The whole image, BGR."""
        return self.image

    def region(self, x0: int, y0: int, x1: int, y1: int) -> tuple[Pixels, tuple[int, int]]:
        """The whole image."""
        del x0, y0, x1, y1
        return self.image, (0, 0)


def read_image(path: str | os.PathLike) -> Pixels:
    """Reads an image as BGR. Raises InputError that names the file when it is missing, truncated or no image."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        raise InputError(f"{path}: no such image") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    return decode_image(data, path)


def decode_image(data: bytes, name: str | os.PathLike) -> Pixels:
    """Decodes an image file's bytes to BGR; `name` is for messages. Raises InputError as `read_image`."""
    # libjpeg fills what is missing of a truncated file with grey and only prints a warning. The end marker cannot
    # occur within a scan, so a whole file has one and no scan begins after the last (a thumbnail has its own).
    if data.startswith(_JPEG_START) and ((end := data.rfind(_JPEG_END)) < 0 or _JPEG_SCAN in data[end:]):
        raise InputError(f"{name}: the JPEG is truncated ({len(data)} bytes without an end marker)")
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if image is None:
        raise InputError(f"{name}: not an image that can be decoded ({len(data)} bytes)")
    return image
