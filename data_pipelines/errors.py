"""The error for invalid user input, and the formatting of messages for the terminal."""

import errno
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

# Messages of a full disk, a quota, missing rights or a failing device; libraries include them in their own messages.
DISK_PROBLEMS = tuple(
    os.strerror(number)
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG)
)

_LISTED = 5


class InputError(ValueError):
    """The user gave an invalid path, file or config value.

    The message is one line that names the file, the record and the problem. Commands print it without a traceback and
    exit with status 1.
    """


def brief(value: Any) -> str:
    """Formats any value for a message: on one line, at most 80 characters."""
    text = " ".join((value if isinstance(value, str) else repr(value)).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, at most 200 characters; its type if it has none."""
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__


def printable(text: str, keep: str = "") -> str:
    """Escapes non-printable characters, except those in `keep`.

    File names may contain newlines, terminal control sequences and bytes that are not UTF-8.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else _escaped(c) for c in text)


def utf8(name: str) -> str:
    """A file name with non-UTF-8 bytes escaped, for files that must be UTF-8."""
    return "".join(_escaped(c) if "\ud800" <= c <= "\udfff" else c for c in name)


def extra(name: str) -> str:
    """How to install an optional part of this project, for messages."""
    return f"in the clone, pip install --constraint requirements.txt -e '.[{name}]'"


def tell(error: Exception, kind: str = "error") -> None:
    """Prints the error that ended a command, on one line."""
    print(printable(f"{kind}: {error}"), file=sys.stderr)


class LogFormatter(logging.Formatter):
    """Formats only the message, printable; messages below a warning may have several lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The message of a record."""
        return printable(record.message, keep="\n\t" if record.levelno < logging.WARNING else "")


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a non-UTF-8 byte, as Python decodes file names
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def listed(items: Sequence[str]) -> str:
    """Formats items for a message: the first few, and the number of others."""
    more = [f"and {len(items) - _LISTED} more"] if len(items) > _LISTED else []
    return "; ".join([*items[:_LISTED], *more])
