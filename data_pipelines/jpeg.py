"""JPEGs that can be decoded region by region.

A baseline JPEG's scan can only be decoded from its start, unless it has restart markers: the data between two of them,
here called a *cell*, can be decoded independently. `encode_cells` writes cells about 64 pixels wide in each row of
blocks. `Cells` decodes a region by passing libjpeg the header and the region's cells as if they were an image.
"""

from __future__ import annotations

import functools
import io
import math
from typing import Any

import cv2
import numpy as np
import PIL.Image
import PIL.JpegImagePlugin
from jaxtyping import UInt8

from data_pipelines.errors import InputError

_CELL_WIDTH = 64  # pixels, approximately: narrower cells need more bytes, wider ones more decoding
_MARGIN = 4  # pixels; see Cells.region
_ORIENTATION = 0x0112  # EXIF

Image = UInt8[np.ndarray, "height width 3"]


def encode_cells(data: bytes, pixels: Image) -> bytes:
    """Re-encodes an image file as a baseline JPEG of cells.

    A JPEG keeps its quantisation tables, so that its coefficients are unchanged after rounding, and its chroma
    sampling; pixels change by 0.05 grey levels on average, because decoding rounds and clips. Other files are encoded
    at quality 95 without subsampling. The result has three components, the EXIF orientation applied and no metadata.

    Args:
      data: the file's content.
      pixels: the image as decoded by OpenCV, BGR.
    """
    file = PIL.Image.open(io.BytesIO(data))
    settings: dict[str, Any]
    if isinstance(file, PIL.JpegImagePlugin.JpegImageFile) and _is_plain(file, pixels):
        # Grey images have no chroma to lose; samplings unknown to Pillow are rare.
        sampling = 2 if file.mode == "L" else max(PIL.JpegImagePlugin.get_sampling(file), 0)
        settings = {"qtables": file.quantization, "subsampling": sampling}
        file.draft("YCbCr", None)  # without conversion to RGB, which would round and clip again
        image = file.convert("YCbCr")
    else:
        sampling = 0
        settings = {"quality": 95, "subsampling": sampling}
        image = PIL.Image.fromarray(np.ascontiguousarray(pixels[..., ::-1]))
    mcu_width = 16 if sampling else 8
    settings["restart_marker_blocks"] = _interval(-(-image.width // mcu_width), mcu_width)
    # Pillow's buffer for optimised Huffman tables has two bytes per pixel.
    settings["optimize"] = len(data) < 1.5 * image.width * image.height
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", comment=b"", **settings)
    return jpeg.getvalue()


class Cells:
    """An image written by `encode_cells`. Can be shared by threads.

    Attributes:
      size: (height, width) in pixels.
    """

    def __init__(self, jpeg: bytes, name: str):
        """Finds the cells of a JPEG; `name` is for messages. Raises InputError if it is damaged or has no cells."""
        self._jpeg, self._name = jpeg, name
        try:
            scan = self._parse_header()
        except IndexError:
            raise InputError(f"{name}: the JPEG is truncated within its header ({len(jpeg)} bytes)") from None
        # Within a scan, a byte 255 that is not followed by a zero is a marker.
        stream = np.frombuffer(jpeg, np.uint8)[scan:]
        at = np.flatnonzero(stream[:-1] == 0xFF)
        code = stream[at + 1]
        is_restart = (code & 0xF8) == 0xD0
        restarts = at[is_restart]
        # Restart markers count modulo 8.
        in_order = not ((code[is_restart] - np.arange(len(restarts), dtype=np.uint8)) & 7).any()
        rows, columns = self._grid
        if len(restarts) != rows * columns - 1 or not in_order or jpeg[-2:] != b"\xff\xd9":
            raise InputError(f"{name}: the JPEG is damaged: not {rows} x {columns} cells, in order, and an end marker")
        # A cell extends from the end of one marker to the end of the next.
        ends = np.concatenate([[0], restarts + 2, [len(stream)]]) + scan
        self._starts, self._ends = ends[:-1].reshape(rows, columns), ends[1:].reshape(rows, columns)

    def region(self, x0: int, y0: int, x1: int, y1: int) -> tuple[Image, tuple[int, int]]:
        """Decodes the cells that cover the pixels with x0 <= x < x1 and y0 <= y < y1 within the image.

        Returns:
          The pixels, BGR, at least one, and the first one's (x, y) in the image. Those in the rectangle are identical
          to decoding the complete image; others may differ at the edges, where chroma upsampling lacks neighbours.
        """
        (height, width), (cell_height, cell_width) = self.size, self._cell
        top, bottom = _cover(y0, y1, height, cell_height)
        # One pixel would suffice for upsampling, but libjpeg upsamples widths up to four differently.
        left, right = _cover(x0, x1, width, cell_width)
        starts, ends = self._starts[top:bottom, left:right], self._ends[top:bottom, left:right]
        x, y = left * cell_width, top * cell_height
        size = (min(bottom * cell_height, height) - y, min(right * cell_width, width) - x)

        header = self._header(*size)
        runs = [self._jpeg[a:b] for a, b in zip(starts[:, 0].tolist(), ends[:, -1].tolist(), strict=True)]
        spliced = bytearray().join([header, *runs])
        markers = np.cumsum(ends - starts) + (len(header) - 1)
        np.frombuffer(spliced, np.uint8)[markers] = _marker_codes(len(markers))
        image = cv2.imdecode(np.frombuffer(spliced, np.uint8), cv2.IMREAD_COLOR)
        if image is None or image.shape[:2] != size:
            raise InputError(f"{self._name}: the JPEG cannot be decoded")
        return image, (x, y)

    def _parse_header(self) -> int:
        """Sets `size`, `_cell` and `_grid`; returns the scan's start."""
        jpeg, interval, size_at = self._jpeg, 0, 0
        at = 2
        while True:
            marker, length = jpeg[at + 1], jpeg[at + 2] << 8 | jpeg[at + 3]
            if jpeg[at] != 0xFF:
                raise InputError(f"{self._name}: not a JPEG, or its header is damaged at byte {at}")
            if marker in (0xC0, 0xC1):  # the frame: precision, height, width, components
                size_at = at + 5
                height, width = (jpeg[i] << 8 | jpeg[i + 1] for i in (size_at, size_at + 2))
                factors = [jpeg[at + 11 + 3 * i] for i in range(jpeg[at + 9])]
            elif marker == 0xDD:
                interval = jpeg[at + 4] << 8 | jpeg[at + 5]
            at += 2 + length
            if marker == 0xDA:
                break
        if not size_at:
            raise InputError(f"{self._name}: not a baseline JPEG")
        mcu_width, mcu_height = 8 * max(f >> 4 for f in factors), 8 * max(f & 15 for f in factors)
        columns, rest = divmod(-(-width // mcu_width), interval) if interval else (0, 1)
        if rest:
            raise InputError(f"{self._name}: a JPEG without cells (restart interval {interval})")
        self.size = (height, width)
        self._cell = (mcu_height, mcu_width * interval)
        self._grid = (-(-height // mcu_height), columns)
        self._before, self._after = jpeg[:size_at], jpeg[size_at + 4 : at]
        return at

    def _header(self, height: int, width: int) -> bytes:
        return self._before + height.to_bytes(2, "big") + width.to_bytes(2, "big") + self._after


def _is_plain(file: PIL.JpegImagePlugin.JpegImageFile, pixels: Image) -> bool:
    """Whether the JPEG's own components can be re-encoded: YCbCr or grey, and not rotated."""
    return (
        file.mode in ("RGB", "L")
        and file.info.get("adobe_transform") != 0
        and file.getexif().get(_ORIENTATION, 1) == 1
        and file.size == (pixels.shape[1], pixels.shape[0])
    )


@functools.lru_cache
def _interval(mcus: int, mcu_width: int) -> int:
    """The number of MCUs per cell: a divisor of a row's, so that cells do not continue in the next row."""
    divisors = [n for n in range(1, mcus + 1) if mcus % n == 0 and n * mcu_width <= 2 * _CELL_WIDTH]
    return min(divisors, key=lambda n: abs(math.log(n * mcu_width / _CELL_WIDTH)))


def _cover(start: int, stop: int, pixels: int, cell: int) -> tuple[int, int]:
    """The cells along one axis that contain the pixels from start to stop and a margin; at least one."""
    first = min(max(start, 0), pixels - 1)
    last = min(max(stop - 1, first), pixels - 1)
    return max(first - _MARGIN, 0) // cell, min(last + _MARGIN, pixels - 1) // cell + 1


def _marker_codes(count: int) -> UInt8[np.ndarray, " count"]:
    """The second bytes of the markers after each cell: RST0 to RST7 in turn, finally the end of the image."""
    codes = (np.arange(count) & 7 | 0xD0).astype(np.uint8)
    codes[-1] = 0xD9
    return codes
