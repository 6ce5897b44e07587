"""JSON files: read completely or in pieces, written atomically."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from typing import IO, Any, TypeVar

from etils import epath

from data_pipelines import storage
from data_pipelines.checks import check_regular
from data_pipelines.errors import InputError

T = TypeVar("T")

_skip_whitespace = re.compile(r"[ \t\n\r]*").match
_decode = json.JSONDecoder().raw_decode
_WINDOW = 2**20  # characters


def read_json(path: str | os.PathLike) -> Any:
    """Parses a JSON file. Raises InputError, which names the file, if it is missing or not JSON."""
    check_regular(path)
    with _errors_named(path):
        return json.loads(epath.Path(path).read_bytes())


def read_json_if_intact(path: str | os.PathLike, kind: type[T]) -> T | None:
    """The content of a JSON file; None if the file is missing or damaged, or its content is not of this kind."""
    try:
        content = read_json(path)
    except InputError:
        return None
    return content if isinstance(content, kind) else None


def stream_json(path: str | os.PathLike, keys: set[str] | None = None) -> Iterator[tuple[str, Any]]:
    """Parses a JSON file piece by piece, and reads no more than the pieces that were asked for need.

    Args:
      path: of the file.
      keys: a set that takes the keys of the lists that were reached; a list may be empty, and has no pieces then.

    Yields:
      (key, element) for each element of the lists of a top-level object, (key, value) for its other values, and
      ("", element) for each element of a top-level list.

    Raises:
      InputError: like `read_json`, when the error's position is reached.
    """
    check_regular(path)
    with _errors_named(path), open(path, encoding="utf-8-sig", newline="") as file:
        yield from _Text(file).pieces(set() if keys is None else keys)


def write_json(path: str | os.PathLike, content: Any, indent: int | None = 2) -> None:
    """Writes JSON atomically (`storage.whole`). Raises InputError if writing fails."""
    storage.write(path, json_text(content, indent))


def json_text(content: Any, indent: int | None = 2) -> str:
    """The text that `write_json` writes. Raises ValueError for numbers that JSON does not have, e.g. NaN."""
    separators = None if indent else (",", ":")
    return json.dumps(content, indent=indent, separators=separators, allow_nan=False) + "\n"


class _Text:
    """A position in a JSON text, of which a window is in memory."""

    def __init__(self, file: IO[str]):
        self._file, self._text, self._at = file, "", 0
        self._line, self._column, self._behind = 1, 0, 0  # of the window's start; characters read before it

    def pieces(self, keys: set[str]) -> Iterator[tuple[str, Any]]:
        match self._next():
            case "[":
                for element in self._elements():
                    yield "", element
            case "{":
                yield from self._members(keys)
            case _:
                self._value()  # a single value has no pieces
        if self._next():
            raise self._error("Extra data", self._at)

    def _members(self, keys: set[str]) -> Iterator[tuple[str, Any]]:
        self._take("{")
        more = self._next() != "}"
        while more:
            key = self._value() if self._next() == '"' else self._take('"')
            self._take(":")
            if self._next() == "[":
                keys.add(key)
                for element in self._elements():
                    yield key, element
            else:
                yield key, self._value()
            if more := self._next() != "}":
                self._take(",")
        self._take("}")

    def _elements(self) -> Iterator[Any]:
        self._take("[")
        more = self._next() != "]"
        while more:
            yield self._value()
            if more := self._next() != "]":
                self._take(",")
        self._take("]")

    def _next(self) -> str:
        while True:
            self._at = _skip_whitespace(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text) or not self._read_on():
                return self._text[self._at : self._at + 1]

    def _take(self, character: str) -> str:
        if self._next() != character:
            raise self._error(f"Expecting {character!r}", self._at)
        self._at += 1
        return character

    def _value(self) -> Any:
        self._next()
        while True:
            try:
                value, end = _decode(self._text, self._at)
            except json.JSONDecodeError as error:  # at the window's end, perhaps
                if not self._read_on():
                    raise self._error(error.msg, error.pos) from None
            else:
                # A number's last characters may be beyond the window, "e+10" of 1.5e+10 for one.
                if end + 2 < len(self._text) or not self._read_on():
                    self._at = end
                    return value

    def _read_on(self) -> bool:
        """Moves the window's start here and its end on, by at least as much as is left; False at the file's end."""
        more = self._file.read(max(_WINDOW, len(self._text) - self._at))
        if more:
            (self._line, self._column), self._behind = self._place(self._at), self._behind + self._at
            self._text, self._at = self._text[self._at :] + more, 0
        return bool(more)

    def _place(self, at: int) -> tuple[int, int]:
        """Line, from 1, and column, from 0."""
        lines = self._text.count("\n", 0, at)
        return self._line + lines, at - self._text.rindex("\n", 0, at) - 1 if lines else self._column + at

    def _error(self, message: str, at: int) -> ValueError:
        line, column = self._place(at)
        return ValueError(f"{message}: line {line} column {column + 1} (char {self._behind + at})")


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
        raise InputError(f"{path}: not JSON that can be read (nested too deeply)") from None
