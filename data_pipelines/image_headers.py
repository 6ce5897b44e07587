"""What the bytes of an image file say before they are decoded: the format, the size, and how to decode them.

Sizes are read here and not by the decoder because a file of a few kilobytes can declare gigabytes of pixels. OpenCV
decodes what it decodes equally in all of its versions; it applies no orientation, except for TIFF, because versions
differ in where they look for it.
"""

from __future__ import annotations

import dataclasses
import io
import os
import re
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np
import PIL.features
import PIL.Image
import PIL.ImageFile
import PIL.ImageOps
from jaxtyping import UInt8
from PIL.AvifImagePlugin import AvifImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from PIL.WebPImagePlugin import WebPImageFile

from data_pipelines.errors import InputError

FORMATS = "JPEG, PNG, WebP, BMP, TIFF, PNM, GIF and AVIF"

_ORIENTATION = 0x0112  # EXIF
_SUBFILE, _WIDTH, _HEIGHT, _BITS, _SAMPLE_FORMAT = 254, 256, 257, 258, 339  # TIFF

_AVIF = "an AVIF image"
_JPEG_END = b"\xff\xd9"
_JPEG_SCAN, _JPEG_APP1 = 0xDA, 0xE1
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
# Within a scan, a byte 255 is followed by zero; restart markers and fill bytes do not end it.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")

Pixels = UInt8[np.ndarray, "height width 3"]
Name = str | os.PathLike


@dataclasses.dataclass(frozen=True)
class Undecoded:
    """An image before decoding.

    Attributes:
      size: (height, width) in pixels as stored.
      orientation: EXIF's, 1 to 8: how the stored image is turned and mirrored for display.
      decode: returns the image, BGR and upright, or None if it is damaged; may raise anything.
    """

    size: tuple[int, int]
    orientation: int
    decode: Callable[[], Pixels | None]


def read_header(data: bytes, name: Name) -> Undecoded:
    """Reads an image file's header; `name` is for messages.

    Raises InputError if the format is not among `FORMATS`, or the file is truncated or its header damaged.
    """
    try:
        if data.startswith(b"\xff\xd8"):
            return _jpeg(data, name)
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return _png(data, name)
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            with WebPImageFile(io.BytesIO(data)) as file:
                return _by_opencv(data, file.size, _orientation(file.getexif()))
        if data.startswith(b"BM"):
            return _bmp(data)
        if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return _tiff(data, name)
        if data.startswith(b"GIF8"):
            return _by_pillow(GifImageFile(io.BytesIO(data)))
        if data[:1] == b"P" and data[1:2] in b"123456":
            with PpmImageFile(io.BytesIO(data)) as file:
                return _by_opencv(data, file.size)
        if _other_format(data) == _AVIF and PIL.features.check("avif"):
            return _by_pillow(AvifImageFile(io.BytesIO(data)))
    except InputError:
        raise
    except Exception as error:  # Pillow's parsers raise many types
        raise _undecodable(data, name) from error
    raise _undecodable(data, name)


def _undecodable(data: bytes, name: Name) -> InputError:
    kind = _other_format(data)
    if kind:
        return InputError(f"{name}: {kind}, which is not decoded here; convert it to JPEG or PNG")
    return InputError(f"{name}: not an image that can be decoded ({len(data)} bytes); {FORMATS} can be")


def _other_format(data: bytes) -> str:
    """The name of a format that people have and that is not decoded; empty if unknown."""
    if data[4:8] == b"ftyp":
        brands = data[8:64]
        if b"avif" in brands or b"avis" in brands:
            return _AVIF
        heic = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
        return "a HEIC image" if any(brand in brands for brand in heic) else "a video (MP4 or MOV)"
    known = {
        b"\xff\x0a": "a JPEG XL image",
        b"\0\0\0\x0cJXL ": "a JPEG XL image",
        b"\0\0\0\x0cjP  ": "a JPEG 2000 image",
        b"\xff\x4f\xff\x51": "a JPEG 2000 image",
        b"8BPS": "a Photoshop document",
        b"%PDF": "a PDF document",
    }
    return next((kind for start, kind in known.items() if data.startswith(start)), "")


def _jpeg(data: bytes, name: Name) -> Undecoded:
    """libjpeg fills the missing part of a truncated file with grey; the image ends at the first end marker.

    Phones append a video, a depth map or a second JPEG (a gain map), so the image need not end the file.
    """
    size, orientation, at = None, 1, 2
    while found := _JPEG_MARKER.search(data, at):
        marker, start = data[found.end() - 1], found.end() + 2
        if marker == _JPEG_END[1] or (marker == _JPEG_SCAN and data.endswith(_JPEG_END)):
            if size is None:
                raise _undecodable(data, name)
            return _by_opencv(data, size, orientation)
        end = found.end() + int.from_bytes(data[found.end() : start], "big")
        if marker in _JPEG_FRAMES and size is None and start + 5 <= len(data):
            height, width = struct.unpack_from(">HH", data, start + 1)
            size = width, height
        elif marker == _JPEG_APP1 and orientation == 1 and data.startswith(b"Exif\0\0", start):
            orientation = _exif_orientation(data[start:end])
        at = max(start, end)
    raise InputError(f"{name}: the JPEG is truncated ({len(data)} bytes without an end marker)")


def _png(data: bytes, name: Name) -> Undecoded:
    """Only the chunks that pixels depend on are decoded: libpng refuses or warns of large texts and colour profiles."""
    view, at, kind, kept, orientation = memoryview(data), 8, b"", [memoryview(data)[:8]], 1
    while kind != b"IEND":
        content, kind = at + 8, data[at + 4 : at + 8]
        end = content + int.from_bytes(data[at : at + 4], "big") + 4
        if len(kind) < 4 or end > len(data):
            raise InputError(f"{name}: the PNG is truncated ({len(data)} bytes without an end)")
        if kind[:1].isupper() or kind == b"tRNS":
            if zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
                raise InputError(f"{name}: the PNG is damaged: the checksum of its chunk at byte {at} is wrong")
            kept.append(view[at:end])
        elif kind == b"eXIf":
            orientation = _exif_orientation(data[content : end - 4])
        at = end
    if data[12:16] != b"IHDR":
        raise _undecodable(data, name)
    return _by_opencv(b"".join(kept), struct.unpack_from(">II", data, 16), orientation)


def _bmp(data: bytes) -> Undecoded:
    # The first version's header has 12 bytes, with sides of two bytes. A negative height is of rows from the top.
    width, height = struct.unpack_from("<HH" if data[14] == 12 else "<ii", data, 18)
    return _by_opencv(data, (width, abs(height)))


def _tiff(data: bytes, name: Name) -> Undecoded:
    file = io.BytesIO(data)
    tags = ImageFileDirectory_v2(file.read(16 if 43 in data[2:4] else 8))
    file.seek(tags.next)
    tags.load(file)
    if tags.get(_SUBFILE, 0) & 1:
        raise InputError(f"{name}: begins with a thumbnail, as cameras' raw files do; convert it to JPEG or PNG")
    if {*_tuple(tags.get(_SAMPLE_FORMAT, 1))} != {1} or max(_tuple(tags.get(_BITS, 1))) > 16:
        raise InputError(f"{name}: a TIFF of signed, real or 32-bit numbers; convert it to unsigned 8 or 16 bits")
    image = _by_opencv(data, (tags[_WIDTH], tags[_HEIGHT]))
    return dataclasses.replace(image, orientation=_orientation(tags))  # applied by OpenCV


def _tuple(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)


def _exif_orientation(exif: bytes) -> int:
    file = PIL.Image.Exif()
    try:
        file.load(exif)
        return _orientation(file)
    except Exception:  # damaged metadata; the pixels may be whole
        return 1


def _orientation(tags: Mapping[int, Any]) -> int:
    value = tags.get(_ORIENTATION, 1)
    return value if value in range(1, 9) else 1


def _by_opencv(data: bytes, size: tuple[int, int], orientation: int = 1) -> Undecoded:
    """An image of (width, height) that OpenCV decodes."""

    def decode() -> Pixels | None:
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        return image if image is None else _upright(image, orientation)

    return Undecoded(size[::-1], orientation, decode)


def _by_pillow(file: PIL.ImageFile.ImageFile) -> Undecoded:
    """An image that Pillow decodes; the first of an animation."""

    def decode() -> Pixels:
        with file:
            return np.asarray(PIL.ImageOps.exif_transpose(file).convert("RGB"))[..., ::-1].copy()

    return Undecoded(file.size[::-1], _orientation(file.getexif()), decode)


def _upright(image: Pixels, orientation: int) -> UInt8[np.ndarray, "rows columns 3"]:
    """Applies EXIF's orientation."""
    if orientation in (5, 6, 7, 8):
        image = cv2.transpose(image)
    mirrored = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(orientation)  # cv2.flip's axes
    return image if mirrored is None else cv2.flip(image, mirrored)
