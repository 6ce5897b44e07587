"""What all commands share: a table of options, exit codes, progress. Parsing needs only the standard library.

Exit codes: 0 done; 1 the user gave something wrong, described in one line; 130 interrupted. `hrnet_jax.cli` has more.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from data_pipelines.errors import DISK_PROBLEMS, InputError, tell

_SILENCE = 10  # seconds without a terminal

# An option's name -> (default, or None for text that must be given; help). The default tells the type; numbers must be
# 0 or more. On the command line: `--NAME=VALUE`, `--NAME VALUE`, `--[no]NAME`; hyphens may stand for underscores.
Options = Mapping[str, tuple[str | bool | int | float | None, str]]


def parse(arguments: Sequence[str], doc: str | None, options: Options, first: str = "") -> dict[str, Any]:
    """The values of a command's options, see `parse_known`. Raises InputError also for any other argument."""
    values, rest = parse_known(arguments, doc, options, first)
    if rest:
        raise InputError(f"unknown arguments: {' '.join(rest)}; --help tells more")
    return values


def parse_known(
    arguments: Sequence[str], doc: str | None, options: Options, first: str = "", notes: Sequence[str] = ()
) -> tuple[dict[str, Any], list[str]]:
    """Returns the options' values and the arguments that are no options, or answers `--help`.

    `first` names an option whose value may be the first argument, without its name. For `doc` and `notes` see
    `answer_help`. Raises InputError if an option is missing or has an impossible value.
    """
    answer_help(arguments, doc, options, notes)
    parser = _Parser(add_help=False, allow_abbrev=False)
    for name, (default, _) in options.items():
        if isinstance(default, bool):
            parser.add_argument(f"--{name}", action="store_true", default=default)
            parser.add_argument(f"--no{name}", f"--no_{name}", action="store_false", dest=name)
        else:
            parser.add_argument(f"--{name}", type=str if default is None else type(default), default=default)
    found, rest = parser.parse_known_args([_underscored(argument) for argument in arguments])
    values = vars(found)
    if first and values[first] is None:
        # The first argument that is neither an unknown flag nor the value of one.
        flags = [argument.startswith("-") for argument in rest]
        values_of_flags = [False, *(flag and "=" not in argument for flag, argument in zip(flags, rest, strict=True))]
        place = next((i for i, flag in enumerate(flags) if not flag and not values_of_flags[i]), None)
        values[first] = None if place is None else rest.pop(place)
    for name, value in values.items():
        if isinstance(value, (int, float)) and not 0 <= value < math.inf:
            raise InputError(f"--{name}={value}: must be 0 or more")
    if missing := [name for name, value in values.items() if value is None]:
        raise InputError(f"missing --{', --'.join(missing)}; --help tells more")
    return values, rest


def answer_help(arguments: Sequence[str], doc: str | None, options: Options, notes: Sequence[str] = ()) -> None:
    """If asked for help, prints a command's docstring, its options and further lines, and ends the process."""
    if not {"--help", "-h"} & {*arguments}:
        return
    lines = [(doc or "").strip(), "", "Flags:"]
    for name, (default, text) in options.items():
        flag = f"--[no]{name}" if isinstance(default, bool) else f"--{name}="
        note = "required" if default is None else f"default: {default}" if default != "" else "optional"
        lines.append(f"  {flag:18} {text} ({note})")
    print("\n".join([*lines, *notes]))
    sys.exit(0)


def status(command: Callable[[], int | None], interrupted: str = "interrupted") -> int:
    """Runs a command and returns its exit code. Prints errors of the user and of the disk in one line."""
    try:
        return command() or 0
    except InputError as error:
        tell(error)
    except OSError as error:
        if error.strerror not in DISK_PROBLEMS:
            raise
        tell(OSError(f"{error.filename or 'writing'}: {error.strerror}"))
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 128 + signal.SIGINT
    return 1


@contextlib.contextmanager
def progress(total: int | None, unit: str = " images", *, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """Yields a function that counts.

    Shows a bar with the estimated time to the end on stderr; without a terminal, one line every ten seconds.

    Args:
      total: the count at the end; None: unknown.
      unit: what is counted.
      shown: False on the hosts of a run that print nothing.
    """
    import tqdm

    with tqdm.tqdm(total=total, unit=unit, disable=None if shown else True) as bar:
        start = told = time.monotonic()
        done = last = 0

        def tell() -> None:
            nonlocal told, last
            told, last = time.monotonic(), done
            print(bar.format_meter(done, total, told - start, unit=unit), file=sys.stderr, flush=True)

        def advance(count: int) -> None:
            nonlocal done
            done += count
            bar.update(count)
            if shown and bar.disable and time.monotonic() - told > _SILENCE:
                tell()

        yield advance
        if 0 < last < done:  # the last line says that all is done
            tell()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message.removeprefix('argument ')}; --help tells more")


def _underscored(argument: str) -> str:
    name, equals, value = argument.partition("=")
    return name[:2] + name[2:].replace("-", "_") + equals + value if name.startswith("--") else argument
