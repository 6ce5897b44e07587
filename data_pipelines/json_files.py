"""JSON files: read completely or in pieces, written atomically."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import re
from collections.abc import Iterator
from typing import Any

from etils import epath

from data_pipelines import storage
from data_pipelines.checks import check_regular
from data_pipelines.errors import InputError

_skip_whitespace = re.compile(r"[ \t\n\r]*").match
_decode = json.JSONDecoder().raw_decode


def read_json(path: str | os.PathLike) -> Any:
    """Parses a JSON file. Raises InputError, which names the file, if it is missing or not JSON."""
    check_regular(path)
    with _errors_named(path):
        return json.loads(epath.Path(path).read_bytes())


def stream_json(path: str | os.PathLike) -> Iterator[tuple[str, Any]]:
    """Parses a JSON file in pieces, so that a 250 MB file is never in memory as Python objects.

    Yields:
      (key, element) for each element of the lists of a top-level object, (key, value) for its other values, and
      ("", element) for each element of a top-level list.

    Raises:
      InputError: like `read_json`, when the error's position is reached.
    """
    check_regular(path)
    with _errors_named(path):
        yield from _Text(_read_text(path)).pieces()


def write_json(path: str | os.PathLike, content: Any, indent: int | None = 2) -> None:
    """Writes JSON atomically (`storage.whole`). Raises InputError if writing fails."""
    storage.write(path, json_text(content, indent))


def json_text(content: Any, indent: int | None = 2) -> str:
    """The text that `write_json` writes. Raises ValueError for numbers that JSON does not have, e.g. NaN."""
    separators = None if indent else (",", ":")
    return json.dumps(content, indent=indent, separators=separators, allow_nan=False) + "\n"


class _Text:
    """A position in a JSON text."""

    def __init__(self, text: str):
        self._text, self._at = text, 0

    def pieces(self) -> Iterator[tuple[str, Any]]:
        match self._next():
            case "[":
                for element in self._elements():
                    yield "", element
            case "{":
                yield from self._members()
            case _:
                self._value()  # a single value has no pieces
        if self._next():
            raise json.JSONDecodeError("Extra data", self._text, self._at)

    def _members(self) -> Iterator[tuple[str, Any]]:
        self._take("{")
        while self._next() != "}":
            key = self._value() if self._next() == '"' else self._take('"')
            self._take(":")
            if self._next() == "[":
                for element in self._elements():
                    yield key, element
            else:
                yield key, self._value()
            if self._next() != "}":
                self._take(",")
        self._take("}")

    def _elements(self) -> Iterator[Any]:
        self._take("[")
        while self._next() != "]":
            yield self._value()
            if self._next() != "]":
                self._take(",")
        self._take("]")

    def _next(self) -> str:
        self._at = _skip_whitespace(self._text, self._at).end()  # type: ignore[union-attr]
        return self._text[self._at : self._at + 1]

    def _take(self, character: str) -> str:
        if self._next() != character:
            raise json.JSONDecodeError(f"Expecting {character!r}", self._text, self._at)
        self._at += 1
        return character

    def _value(self) -> Any:
        self._next()
        value, self._at = _decode(self._text, self._at)
        return value


def _read_text(path: str | os.PathLike) -> str:
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return ""
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            return str(mapped, "utf-8-sig")  # type: ignore[call-overload]


@contextlib.contextmanager
def _errors_named(path: str | os.PathLike) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    except RecursionError:
        raise InputError(f"{path}: JSON is nested too deeply to be read") from None
