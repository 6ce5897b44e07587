"""What the commands share: flags, config overrides, exit codes.

Exit codes: 0 done; 1 something the user gave is wrong, told in one line; 2 aborted by a guard; 75 stopped by a signal
with the state saved (EX_TEMPFAIL: run the same command again).
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

from absl import flags
from etils import epath
from ml_collections import ConfigDict, config_flags

from data_pipelines.errors import InputError, LogFormatter, printable, tell
from data_pipelines.json_files import read_json
from data_pipelines.storage import DISK_PROBLEMS
from hrnet_jax.outcomes import ABORTED, INTERRUPTED, Aborted, Interrupted

# A flag's name -> (default, or None where it must be given; help).
Options = Mapping[str, tuple[str | bool | None, str]]

DISTRIBUTED = (False, "one of several processes, on one or more hosts, that run the same command")


def run(
    doc: str | None,
    options: Options,
    main: Callable[[Mapping[str, Any], ConfigDict], None],
    config_of: Callable[[Mapping[str, Any]], ConfigDict],
) -> None:
    """Parses the command line, runs a command and ends the process with its exit code.

    Args:
      doc: the command's module docstring, for `--help`.
      options: the command's own flags.
      main: takes the flags' values and the config.
      config_of: loads the config, which `--config.KEY=VALUE` then overrides, from the flags' values.
    """
    # The compiler and TensorFlow-less libraries are chatty on standard error; a user's error is one line.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.basicConfig(level=logging.WARNING, stream=sys.stdout, force=True)
    logging.getLogger().handlers[0].setFormatter(LogFormatter())
    # Orbax logs the traceback of every error that it raises.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    for name in ("hrnet_jax", "data_pipelines", "eval"):
        logging.getLogger(name).setLevel(logging.INFO)
    logging.getLogger("__main__").setLevel(logging.INFO)
    try:
        values, config = parse(sys.argv, doc, options, config_of)
        if values.get("distributed"):
            from hrnet_jax.mesh import is_main_host, join_hosts  # with JAX, which --help does not wait for

            join_hosts()
            if not is_main_host():
                logging.disable(logging.INFO)
        main(values, config)
    except (InputError, flags.Error) as error:
        tell(error)
        sys.exit(1)
    except OSError as error:
        if error.strerror not in DISK_PROBLEMS:
            raise
        print(printable(f"error: {error.filename or 'writing'}: {error.strerror}"), file=sys.stderr)
        sys.exit(1)
    except Aborted as error:
        tell(error, "aborted")
        sys.exit(ABORTED)
    except Interrupted as error:
        print(error, file=sys.stderr)
        sys.exit(INTERRUPTED)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def help_first(name: str, doc: str | None, options: Options) -> None:
    """Answers `--help` of the command that is being started, `name` being its `__name__`, before it imports JAX."""
    if name == "__main__" and _asks_for_help(sys.argv):
        print(_help(doc, options))
        sys.exit(0)


def parse(
    argv: list[str], doc: str | None, options: Options, config_of: Callable[[Mapping[str, Any]], ConfigDict]
) -> tuple[dict[str, Any], ConfigDict]:
    """Returns the flags' values and the config with its overrides.

    Raises InputError or absl's flags.Error, one line each, for unknown flags, missing ones and unknown config keys.
    """
    argv = [argv[0], *map(_underscored, argv[1:])]
    own = flags.FlagValues()
    for name, (default, text) in options.items():
        if isinstance(default, bool):
            flags.DEFINE_boolean(name, default, text, flag_values=own)
        else:
            flags.DEFINE_string(name, default, text, flag_values=own)
    if _asks_for_help(argv):
        print(_help(doc, options))
        sys.exit(0)
    rest = own(argv, known_only=True)[1:]
    values = {name: own[name].value for name in options}
    if missing := [name for name, value in values.items() if value is None]:
        raise InputError(f"missing --{', --'.join(missing)}; --help tells more")

    config = config_of(values)
    overrides = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=overrides, sys_argv=[argv[0], *rest])
        unknown = overrides([argv[0], *rest])[1:]
    except (AttributeError, KeyError) as error:
        # ml_collections quotes the key once more for every section around it; a suggestion is on a line of its own.
        reason = re.sub(r"\\+n", "; ", str(error.args[0])).translate(str.maketrans("", "", "\\'")).strip('"')
        raise InputError(f"{' '.join(rest)}: unknown key {' '.join(reason.split())}") from None
    except (TypeError, ValueError) as error:
        raise InputError(f"{' '.join(rest)}: {' '.join(str(error.args[0]).split())}") from None
    if unknown:
        raise InputError(f"unknown arguments: {' '.join(unknown)}; --help tells more")
    return values, overrides["config"].value


def _asks_for_help(argv: list[str]) -> bool:
    return any(argument in ("--help", "-h") for argument in argv[1:])


def _underscored(argument: str) -> str:
    """Takes hyphens in a flag's name for underscores."""
    name, equals, value = argument.partition("=")
    return name[:2] + name[2:].replace("-", "_") + equals + value if name.startswith("--") else argument


def _help(doc: str | None, options: Options) -> str:
    lines = [(doc or "").strip(), "", "Flags:"]
    for name, (default, text) in options.items():
        flag = f"--[no]{name}" if isinstance(default, bool) else f"--{name}="
        note = "required" if default is None else f"default: {default}" if default != "" else "optional"
        lines.append(f"  {flag:18} {text} ({note})")
    lines.append(f"  {'--config.KEY=VALUE':18} overrides a key of the config; configs/common.py has them all")
    if "config" in options:
        with contextlib.suppress(ImportError):  # outside of a clone there are no configs
            from configs.common import VARIANTS

            lines += ["", "Variants, FILE:A,B:", *(f"  {name:18} {text}" for name, text in VARIANTS.items())]
    return "\n".join(lines)


def read_metrics(path: str | os.PathLike) -> dict[str, Any]:
    """The content of a metrics.json; empty when there is none."""
    return read_json(path) if epath.Path(path).exists() else {}
