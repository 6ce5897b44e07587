"""Reads image files."""

from __future__ import annotations

import dataclasses
import io
import os
import stat
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
import PIL.ImageFile
from jaxtyping import UInt8
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from data_pipelines.errors import InputError

# Pipelines run their own threads or processes.
cv2.setNumThreads(0)
# Damaged files are reported by InputError, not by OpenCV on standard error.
cv2.setLogLevel(0)

Pixels = UInt8[np.ndarray, "height width 3"]

# A file of a few kilobytes can declare gigabytes of pixels.
MAX_MEGAPIXELS = 50.0
_BYTES_PER_PIXEL = 8  # 16-bit RGBA
_MAX_SIDE = 32766  # pixels, OpenCV's limit for warping

_JPEG_START, _JPEG_SCAN, _JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"
# By magic bytes. PIL.Image.open knows more formats than OpenCV decodes, and warns about sizes.
_FORMATS: dict[bytes, type[PIL.ImageFile.ImageFile]] = {
    _JPEG_START: JpegImageFile,
    b"\x89PNG": PngImageFile,
    b"RIFF": WebPImageFile,
    b"BM": BmpImageFile,
    **{start: TiffImageFile for start in (b"II*\0", b"MM\0*")},
    **{b"P%d" % kind: PpmImageFile for kind in range(1, 7)},
}


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
    """Reads an image as BGR, rotated by its EXIF orientation.

    Args:
      path: a regular file: JPEG, PNG, WebP, BMP, TIFF or PNM.
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
    # libjpeg fills the missing part of a truncated file with grey and only prints a warning. The end marker cannot
    # occur within a scan, so a complete file has one, and no scan starts after the last (a thumbnail has its own).
    if data.startswith(_JPEG_START) and ((end := data.rfind(_JPEG_END)) < 0 or _JPEG_SCAN in data[end:]):
        raise InputError(f"{name}: the JPEG is truncated ({len(data)} bytes without an end marker)")
    if size := _size(data):
        megapixels = size[0] * size[1] / 1e6
        if megapixels > max_megapixels:
            raise InputError(
                f"{name}: {size[1]}x{size[0]} are {megapixels:.1f} megapixels, above max_megapixels={max_megapixels:g}"
            )
        if max(size) > _MAX_SIDE:
            raise InputError(f"{name}: {size[1]}x{size[0]}; neither side can be above {_MAX_SIDE} pixels")
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if size else None
    if image is None:
        raise InputError(
            f"{name}: not an image that can be decoded ({len(data)} bytes); JPEG, PNG, WebP, BMP, TIFF and PNM can be"
        )
    return image


def _size(data: bytes) -> tuple[int, int] | None:
    """(height, width) from an image file's header, before rotation; None if the header is invalid."""
    for start, kind in _FORMATS.items():
        if data.startswith(start):
            try:
                with kind(io.BytesIO(data)) as file:
                    width, height = file.size
                    if kind is PngImageFile:
                        file.verify()  # checksums; libpng would print errors to standard error
            except Exception:  # Pillow's parsers raise many types
                return None
            return height, width
    return None
