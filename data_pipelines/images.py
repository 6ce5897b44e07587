"""Reads image files."""

from __future__ import annotations

import dataclasses
import math
import os
import stat
from typing import Protocol, runtime_checkable

import cv2

from data_pipelines.errors import InputError
from data_pipelines.image_headers import Pixels, read_header

# Pipelines run their own threads or processes.
cv2.setNumThreads(0)
# Damaged files are reported by InputError, not by OpenCV on standard error.
getattr(cv2.utils, "logging", cv2).setLogLevel(0)  # moved in OpenCV 4.13

# A file of a few kilobytes can declare gigabytes of pixels.
MAX_MEGAPIXELS = 50.0
_BYTES_PER_PIXEL = 8  # 16-bit RGBA
_MAX_SIDE = 32766  # pixels, OpenCV's limit for warping


@runtime_checkable
class Picture(Protocol):
    """An opened image; implementations decide when and how much of it to decode."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        ...

    def pixels(self) -> Pixels:
        """The complete image, BGR."""
        ...

    def region(self, x0: int, y0: int, x1: int, y1: int) -> tuple[Pixels, tuple[int, int]]:
        """A BGR part of the image that covers [x0, x1) x [y0, y1) within it, and the (x, y) of its corner."""
        ...


@runtime_checkable
class ImageSource(Protocol):
    """A numbered collection of images."""

    def name(self, number: int, file: str) -> str:
        """The name of an image in messages."""
        ...

    def open(self, number: int, file: str) -> Picture:
        """Opens an image. Raises InputError, which names the image, if it cannot be read."""
        ...


@dataclasses.dataclass(frozen=True)
class ImageFiles:
    """Images in a folder."""

    folder: str

    def name(self, number: int, file: str) -> str:
        """The file's path."""
        del number
        return os.path.join(self.folder, file)

    def open(self, number: int, file: str) -> Decoded:
        """Reads and decodes the complete file."""
        return Decoded(read_image(self.name(number, file)))


@dataclasses.dataclass(frozen=True)
class Decoded:
    """A fully decoded picture."""

    image: Pixels

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.image.shape[0], self.image.shape[1]

    def pixels(self) -> Pixels:
        """The complete image, BGR."""
        return self.image

    def region(self, x0: int, y0: int, x1: int, y1: int) -> tuple[Pixels, tuple[int, int]]:
        """The complete image."""
        del x0, y0, x1, y1
        return self.image, (0, 0)


def read_image(path: str | os.PathLike, max_megapixels: float = MAX_MEGAPIXELS) -> Pixels:
    """Reads an image as BGR, rotated by its EXIF orientation; the first image of an animation.

    Args:
      path: a regular file in one of `image_headers.FORMATS`.
      max_megapixels: larger images are refused without decoding.

    Raises:
      InputError: the file is missing, truncated, too large or not an image.
    """
    try:
        facts = os.stat(path)
        if not stat.S_ISREG(facts.st_mode):  # a pipe or a device may have no end
            raise InputError(f"{path}: not a regular file")
        if facts.st_size > max_megapixels * 1e6 * _BYTES_PER_PIXEL:
            raise InputError(f"{path}: {facts.st_size} bytes are more than max_megapixels={max_megapixels:g} can have")
        with open(path, "rb") as file:
            data = file.read()
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such image") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except ValueError as error:  # a null byte or a lone surrogate
        raise InputError(f"{str(path)!r}: not a file name ({error})") from None
    return decode_image(data, path, max_megapixels)


def read_rgb(path: str | os.PathLike, max_megapixels: float) -> Pixels:
    """Reads an image file as RGB; raises InputError like `read_image`."""
    return cv2.cvtColor(read_image(path, max_megapixels), cv2.COLOR_BGR2RGB)


def decode_image(data: bytes, name: str | os.PathLike, max_megapixels: float = MAX_MEGAPIXELS) -> Pixels:
    """Decodes an image file's bytes to BGR; `name` is for messages. Raises InputError like `read_image`."""
    image = read_header(data, name)
    (height, width), megapixels = image.size, math.prod(image.size) / 1e6
    if megapixels > max_megapixels:
        raise InputError(
            f"{name}: {width}x{height} are {megapixels:.1f} megapixels, above max_megapixels={max_megapixels:g}"
        )
    if max(image.size) > _MAX_SIDE:
        raise InputError(f"{name}: {width}x{height}; neither side can be above {_MAX_SIDE} pixels")
    try:
        pixels = image.decode()
    except Exception:  # OpenCV's and Pillow's decoders raise many types
        pixels = None
    if pixels is None:
        raise InputError(f"{name}: the image is damaged and cannot be decoded ({len(data)} bytes)")
    return pixels
