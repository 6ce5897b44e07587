"""Checks of files and records that are common to all commands."""

from __future__ import annotations

import contextlib
import copy
import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int

from data_pipelines.errors import InputError, brief

# Largest valid coordinate, in pixels from an image's corner; float32 resolves it to 1/16 pixel.
FARTHEST = 1e6

# Limit of numbers that are not coordinates.
LARGEST = float(np.finfo(np.float32).max)

_LONGEST_NAME = 1024

_Records = TypeVar("_Records", bound="Records")


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


class Records:
    """JSON objects whose fields are checked column by column; an error names the first record that is wrong."""

    def __init__(self, items: Iterable[Any], name: Callable[[int, Any], str], start: int = 0):
        """Takes items that errors call `name(position, item)`. Raises InputError when one is not an object."""
        self.items, self._name = list(items), name
        self.positions: Sequence[int] = range(start, start + len(self.items))
        for i, item in enumerate(self.items):
            if not isinstance(item, Mapping):
                raise InputError(f"{self.where(i)}: not an object with named fields, but {type(item).__name__}")

    def __len__(self) -> int:
        return len(self.items)

    def where(self, i: int) -> str:
        """What errors call a record."""
        return self._name(self.positions[i], self.items[i])

    def chosen(self: _Records, mask: Bool[np.ndarray, " n"]) -> _Records:
        """Some of the records."""
        part, rows = copy.copy(self), np.flatnonzero(mask).tolist()
        part.items, part.positions = [self.items[i] for i in rows], [self.positions[i] for i in rows]
        return part

    def has(self, key: str) -> Bool[np.ndarray, " n"]:
        """Which of them have a field that is neither null nor an empty list."""
        values = [item.get(key) for item in self.items]
        return np.array([not (v is None or (isinstance(v, Sized) and len(v) == 0)) for v in values], bool)

    def values(self, key: str, expected: str, default: float | None = None) -> list[Any]:
        """A field, which all must have if there is no default."""
        if default is not None:
            return [item.get(key, default) for item in self.items]
        try:
            return [item[key] for item in self.items]
        except KeyError:
            i = next(i for i, item in enumerate(self.items) if key not in item)
            raise InputError(f"{self.where(i)}: no {key!r}; expected {expected}") from None

    def integers(self, key: str, default: int | Sequence[int] | np.ndarray | None = None) -> Int[np.ndarray, " n"]:
        """A field of integers; where it is absent or null, the default, if there is one."""
        if default is None:
            values = self.values(key, "an integer")
        else:
            values = [item.get(key) for item in self.items]
            if any(value is None for value in values):
                defaults = np.broadcast_to(default, len(self)).tolist()
                values = [d if value is None else value for value, d in zip(values, defaults, strict=True)]
        with contextlib.suppress(ValueError):
            if (column := np.asarray(values)).dtype == np.int64 and column.ndim == 1:
                return column
        for i, value in enumerate(values):
            if not isinstance(value, int | np.integer) or not -(2**63) <= value < 2**63:
                raise InputError(f"{self.where(i)}: {key!r} must be an integer, not {brief(repr(value))}")
        return np.array(values, np.int64)

    def numbers(
        self,
        key: str,
        shape: tuple[int, ...],
        expected: str,
        largest: float = LARGEST,
        default: float | None = None,
    ) -> Float[np.ndarray, "n ..."]:
        """A field of numbers as float64 [n, *shape], finite and at most `largest`; `expected` says what they are."""
        values = self.values(key, expected, default)
        table = as_numbers(values) if values else np.zeros((0, *shape))
        if table is None or table.shape[1:] != shape:
            table = np.array([self._row(i, key, value, shape, expected) for i, value in enumerate(values)])
        sizes = np.abs(table).max(axis=tuple(range(1, table.ndim)))
        if not (fits := sizes <= largest).all():
            i = int(fits.argmin())
            fault = f"too large: {sizes[i]:g}" if np.isfinite(sizes[i]) else "not finite: NaN, infinite or null"
            raise InputError(f"{self.where(i)}: {key!r} holds a number that is {fault}")
        return table

    def boxes(self) -> Float[np.ndarray, "n 4"]:
        """The field `bbox`."""
        return self.numbers("bbox", (4,), "x, y, width and height in pixels", FARTHEST)

    def crowds(self) -> Bool[np.ndarray, " n"]:
        """Which annotations are of crowds."""
        values = [item.get("iscrowd", 0) for item in self.items]
        for i, value in enumerate(values):
            if not isinstance(value, int | float) or value not in (0, 1):
                raise InputError(f"{self.where(i)}: 'iscrowd' must be 0 or 1, not {brief(repr(value))}")
        return np.array(values, bool)

    def _row(self, i: int, key: str, value: Any, shape: tuple[int, ...], expected: str) -> np.ndarray:
        row = as_numbers(value)
        if row is None or row.ndim != len(shape):
            raise InputError(f"{self.where(i)}: {key!r} is {brief(repr(value))}, not {expected}")
        if row.shape != shape:
            found, needed = ("x".join(map(str, sizes)) for sizes in (row.shape, shape))
            raise InputError(f"{self.where(i)}: {key!r} has {found} numbers, not {needed}: {expected}")
        return row


def from_corners(boxes: Float[np.ndarray, "n 4"], box_format: str = "xyxy") -> Float[np.ndarray, "n 4"]:
    """Boxes xyxy as xywh; boxes of format "xywh" unchanged. Raises InputError for another format."""
    if box_format == "xywh":
        return boxes
    if box_format != "xyxy":
        raise InputError(f"box_format={box_format!r}: must be xywh or xyxy")
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def check_boxes(boxes: Any, name: str, box_format: str = "xywh") -> Float[np.ndarray, "n 4"]:
    """Returns boxes as xywh in pixels.

    Args:
      boxes: a table of numbers [N,4], or [4] for one box, xywh or xyxy.
      name: of their origin, for messages.
      box_format: "xywh" or "xyxy".

    Raises:
      InputError: names a box that cannot be used.
    """
    array = as_numbers(boxes)
    if array is not None and array.shape == (4,):
        array = array[None]
    if array is None:
        raise InputError(f"{name}: boxes must be a table of numbers with four columns, {box_format}")
    if not array.size:
        return np.zeros((0, 4), np.float32)
    if array.ndim != 2 or array.shape[1] != 4:
        raise InputError(f"{name}: boxes have the shape {list(array.shape)}; it must be [N, 4], {box_format}")
    xywh = from_corners(array, box_format)
    for number, (box, given) in enumerate(zip(xywh, array, strict=True)):
        where = f"{name}: box {number}: {given.tolist()} ({box_format})"
        if not np.isfinite(box).all():
            raise InputError(f"{where} is not finite")
        if min(box[2:]) <= 0:
            raise InputError(f"{where} has no area")
        if max(abs(box)) > FARTHEST:
            raise InputError(f"{where} lies outside any image")
    return xywh.astype(np.float32)


def check_name(where: str, name: Any) -> str:
    """Returns the file name that a data file gives. Raises InputError when it is none, or leads out of its folder."""
    if not isinstance(name, str) or len(name) > _LONGEST_NAME or name.encode(errors="ignore").decode() != name:
        raise InputError(f"{where} {brief(repr(name))} cannot be the name of a file")
    if name.startswith("/") or ".." in name.split("/") or "\0" in name:
        raise InputError(f"{where} {name!r} leaves the image folder")
    return name
