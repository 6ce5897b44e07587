"""The error that a user can cause, and can mend."""

from typing import Any


class InputError(ValueError):
    """Something the user gave is wrong: a path, a file's content, a config value.

    The message is one line that names the file, the record and what is wrong with it. Commands print it
    without a traceback and exit with status 1.
    """


def brief(value: Any) -> str:
    """A value of a file, whatever it is, as part of a message: on one line, 80 characters at most."""
    text = " ".join((value if isinstance(value, str) else repr(value)).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
