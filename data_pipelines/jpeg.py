"""JPEGs of which a region can be decoded by itself.

A baseline JPEG's scan can only be read from its start, unless it holds restart markers: what lies between two of them,
here a *cell*, depends on nothing outside. `encode_cells` writes a cell for every 64 or so pixels of a row of blocks,
and `Cells` decodes a region by handing libjpeg the header and the cells of that region as if they were an image.
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

_CELL_WIDTH = 64  # pixels aimed at: narrower cells cost bytes, wider ones are decoded in vain
_MARGIN = 4  # pixels; see Cells.region
_ORIENTATION = 0x0112  # EXIF

Image = UInt8[np.ndarray, "height width 3"]


def encode_cells(data: bytes, pixels: Image) -> bytes:
    """Re-encodes an image file as a baseline JPEG of cells.

    A JPEG keeps its quantisation tables, so that its coefficients round to what they were, and its chroma sampling:
    the pixels change by 0.05 grey levels on average, since decoding rounds and clips. Other files are encoded at
    quality 95 without subsampling. All get three components; metadata goes, once the EXIF orientation is applied.

    Args:
      data: the file.
      pixels: what OpenCV decodes it to, BGR.
    """
    file = PIL.Image.open(io.BytesIO(data))
    settings: dict[str, Any]
    if isinstance(file, PIL.JpegImagePlugin.JpegImageFile) and _is_plain(file, pixels):
        # Grey has no chroma to lose; samplings without a name here are rare.
        sampling = 2 if file.mode == "L" else max(PIL.JpegImagePlugin.get_sampling(file), 0)
        settings = {"qtables": file.quantization, "subsampling": sampling}
        file.draft("YCbCr", None)  # no detour by RGB, which would round and clip once more
        image = file.convert("YCbCr")
    else:
        sampling = 0
        settings = {"quality": 95, "subsampling": sampling}
        image = PIL.Image.fromarray(np.ascontiguousarray(pixels[..., ::-1]))
    mcu_width = 16 if sampling else 8
    settings["restart_marker_blocks"] = _interval(-(-image.width // mcu_width), mcu_width)
    # Pillow's buffer for optimised Huffman tables has two bytes a pixel.
    settings["optimize"] = len(data) < 1.5 * image.width * image.height
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", comment=b"", **settings)
    return jpeg.getvalue()


class Cells:
    """An image that `encode_cells` wrote. Threads may share one.

    Attributes:
      size: (height, width) in pixels.
    """

    def __init__(self, jpeg: bytes, name: str):
        """Finds the cells of a JPEG; `name` is for messages. Raises InputError when it is damaged or has none."""
        self._jpeg, self._name = jpeg, name
        try:
            scan = self._parse_header()
        except IndexError:
            raise InputError(f"{name}: the JPEG is truncated within its header ({len(jpeg)} bytes)") from None
        # Within a scan only markers have a byte 255 without a zero after it.
        stream = np.frombuffer(jpeg, np.uint8)[scan:]
        at = np.flatnonzero(stream[:-1] == 0xFF)
        code = stream[at + 1]
        is_restart = (code & 0xF8) == 0xD0
        restarts = at[is_restart]
        # Modulo 8, they count.
        in_order = not ((code[is_restart] - np.arange(len(restarts), dtype=np.uint8)) & 7).any()
        rows, columns = self._grid
        if len(restarts) != rows * columns - 1 or not in_order or jpeg[-2:] != b"\xff\xd9":
            raise InputError(f"{name}: the JPEG is damaged: not {rows} x {columns} cells, in order, and an end marker")
        # A cell is what lies behind one marker up to the end of the next.
        ends = np.concatenate([[0], restarts + 2, [len(stream)]]) + scan
        self._starts, self._ends = ends[:-1].reshape(rows, columns), ends[1:].reshape(rows, columns)

    def region(self, x0: int, y0: int, x1: int, y1: int) -> tuple[Image, tuple[int, int]]:
        """Decodes the cells that cover the pixels with x0 <= x < x1 and y0 <= y < y1, as far as there are such.

        Returns:
          The pixels, BGR, at least one, and (x, y) in the image of the first. Those in the rectangle are, bit for
          bit, what decoding the whole image gives; at the other edges chroma upsampling may have missed neighbours.
        """
        (height, width), (cell_height, cell_width) = self.size, self._cell
        top, bottom = _cover(y0, y1, height, cell_height)
        # One pixel would do for upsampling, but libjpeg upsamples what is no wider than four in another way.
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
        """Sets `size`, `_cell` and `_grid`; returns where the scan starts."""
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
    """Whether the JPEG's own components can be encoded again: YCbCr or grey, and not turned."""
    return (
        file.mode in ("RGB", "L")
        and file.info.get("adobe_transform") != 0
        and file.getexif().get(_ORIENTATION, 1) == 1
        and file.size == (pixels.shape[1], pixels.shape[0])
    )


@functools.lru_cache
def _interval(mcus: int, mcu_width: int) -> int:
    """How many MCUs to a cell: a divisor of a row's, so that no cell runs on into the next row."""
    divisors = [n for n in range(1, mcus + 1) if mcus % n == 0 and n * mcu_width <= 2 * _CELL_WIDTH]
    return min(divisors, key=lambda n: abs(math.log(n * mcu_width / _CELL_WIDTH)))


def _cover(start: int, stop: int, pixels: int, cell: int) -> tuple[int, int]:
    """The cells, of one axis, that hold the pixels from start to stop and a margin; at least one."""
    first = min(max(start, 0), pixels - 1)
    last = min(max(stop - 1, first), pixels - 1)
    return max(first - _MARGIN, 0) // cell, min(last + _MARGIN, pixels - 1) // cell + 1


def _marker_codes(count: int) -> UInt8[np.ndarray, " count"]:
    """The second bytes of the markers behind that many cells: RST0 to RST7 in turn, at last the end of the image."""
    codes = (np.arange(count) & 7 | 0xD0).astype(np.uint8)
    codes[-1] = 0xD9
    return codes
