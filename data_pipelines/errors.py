"""The error that a user can cause, and can mend."""

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


def listed(items: Sequence[str]) -> str:
    """Items as part of a message: the first few, and how many more there are."""
    more = [f"and {len(items) - _LISTED} more"] if len(items) > _LISTED else []
    return "; ".join([*items[:_LISTED], *more])
