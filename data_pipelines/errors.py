"""The error that a user can cause, and can mend; and how messages reach the terminal."""

import logging
import sys
from collections.abc import Sequence
from typing import Any

_LISTED = 5


class InputError(ValueError):
    """Something the user gave is wrong: a path, a file's content, a config value.

    The message is one line that names the file, the record and what is wrong with it. Commands print it
    without a traceback and exit with status 1.
    """


def brief(value: Any) -> str:
    """A value of a file, whatever it is, as part of a message: on one line, 80 characters at most."""
    text = " ".join((value if isinstance(value, str) else repr(value)).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def printable(text: str, keep: str = "") -> str:
    """The text with escapes for what is not to be printed, but for the characters of `keep`.

    Names of files may hold newlines, a terminal's control sequences, and bytes that are not UTF-8.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else _escaped(c) for c in text)


def utf8(name: str) -> str:
    """A file's name with escapes for the bytes that are not UTF-8, for files that must be."""
    return "".join(_escaped(c) if "\ud800" <= c <= "\udfff" else c for c in name)


def tell(error: Exception, kind: str = "error") -> None:
    """Prints what ended a command, on one line."""
    print(printable(f"{kind}: {error}"), file=sys.stderr)


class LogFormatter(logging.Formatter):
    """Messages alone, printable; those below a warning may have several lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The message of a record."""
        return printable(record.message, keep="\n\t" if record.levelno < logging.WARNING else "")


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte that is not UTF-8, as Python decodes names
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def listed(items: Sequence[str]) -> str:
    """Items as part of a message: the first few, and how many more there are."""
    more = [f"and {len(items) - _LISTED} more"] if len(items) > _LISTED else []
    return "; ".join([*items[:_LISTED], *more])
