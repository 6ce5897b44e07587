"""The error that a user can cause, and can mend."""


class InputError(ValueError):
    """Something the user gave is wrong: a path, a file's content, a config value.

    The message is one line that names the file, the record and what is wrong with it. Commands print it
    without a traceback and exit with status 1.
    """
