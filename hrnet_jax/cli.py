"""What the commands with a config share: flags, config overrides, exit codes.

Exit codes: 0 done; 1 something the user gave is wrong, told in one line; 2 aborted by a guard; 75 stopped by a signal
with the state saved (EX_TEMPFAIL: run the same command again).
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from data_pipelines import command_line
from data_pipelines.command_line import Options
from data_pipelines.errors import InputError, LogFormatter, tell
from hrnet_jax.outcomes import ABORTED, INTERRUPTED, Aborted, Interrupted

CHECKPOINT = (None, "work directory, converted or exported folder, PyTorch file or name of a published model")
_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "2", "HF_HUB_VERBOSITY": "error", "TRANSFORMERS_VERBOSITY": "error"}
DISTRIBUTED = (False, "one of several processes, on one or more hosts, that run the same command")


def run(
    doc: str | None,
    options: Options,
    main: Callable[[Mapping[str, Any], ConfigDict], None],
    config_of: Callable[[Mapping[str, Any]], ConfigDict],
    first: str = "",
) -> None:
    """Parses the command line, runs a command and ends the process with its exit code.

    Args:
      doc: the command's module docstring, for `--help`.
      options: the command's own flags.
      main: takes the flags' values and the config.
      config_of: loads the config, which `--config.KEY=VALUE` then overrides, from the flags' values.
      first: see `command_line.parse_known`.
    """
    # The compiler and TensorFlow-less libraries are chatty on standard error; a user's error is one line.
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    logging.basicConfig(level=logging.WARNING, stream=sys.stdout, force=True)
    logging.getLogger().handlers[0].setFormatter(LogFormatter())
    # Orbax logs the traceback of every error that it raises.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    for name in ("hrnet_jax", "data_pipelines", "eval", "__main__"):
        logging.getLogger(name).setLevel(logging.INFO)

    def command() -> int:
        values, config = parse(sys.argv[1:], doc, options, config_of, first)
        if values.get("distributed"):
            from hrnet_jax.mesh import is_main_host, join_hosts  # with JAX, which --help does not wait for

            join_hosts()
            if not is_main_host():
                logging.disable(logging.INFO)
        try:
            main(values, config)
        except Aborted as error:
            tell(error, "aborted")
            return ABORTED
        except Interrupted as error:
            print(error, file=sys.stderr)
            return INTERRUPTED
        return 0

    if code := command_line.status(command):
        sys.exit(code)


def help_first(name: str, doc: str | None, options: Options) -> None:
    """Answers `--help` of the command that is being started, `name` being its `__name__`, before it imports JAX."""
    if name == "__main__":
        command_line.answer_help(sys.argv, doc, options, _notes(options))


def parse(
    arguments: list[str],
    doc: str | None,
    options: Options,
    config_of: Callable[[Mapping[str, Any]], ConfigDict],
    first: str = "",
) -> tuple[dict[str, Any], ConfigDict]:
    """Returns the flags' values and the config with its overrides.

    Raises InputError for flags that are unknown, missing or impossible, and for unknown config keys.
    """
    values, rest = command_line.parse_known(arguments, doc, options, first, _notes(options))
    config = config_of(values)
    overrides = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=overrides, sys_argv=["", *rest])
        unknown = overrides(["", *rest])[1:]
    except flags.UnrecognizedFlagError as error:
        from hrnet_jax.config import leaves  # with JAX

        meant = _similar(error.flagname, [*options, *(f"config.{key}" for key in leaves(config))])
        hint = f", did you mean {' or '.join(f'--{name}' for name in meant)}?" if meant else ""
        raise InputError(f"unknown flag --{error.flagname}{hint}; --help tells more") from None
    except flags.Error as error:
        raise InputError(str(error)) from None
    except (AttributeError, KeyError) as error:
        # ml_collections quotes the key once more for every section around it; a suggestion is on a line of its own.
        reason = re.sub(r"\\+n", "; ", str(error.args[0])).translate(str.maketrans("", "", "\\'")).strip('"')
        raise InputError(f"{' '.join(rest)}: unknown key {' '.join(reason.split())}") from None
    except (TypeError, ValueError) as error:
        raise InputError(f"{' '.join(rest)}: {' '.join(str(error.args[0]).split())}") from None
    if unknown:
        raise InputError(f"unknown arguments: {' '.join(unknown)}; --help tells more")
    return values, overrides["config"].value


def _similar(name: str, names: list[str]) -> list[str]:
    """Of names with sections, `config.eval.batch_size`, those whose last part is the most like `name`."""
    lasts = {full: full.rpartition(".")[2] for full in names}
    best = difflib.get_close_matches(name, lasts.values(), n=1)
    return [full for full, last in lasts.items() if last in best]


def _notes(options: Options) -> list[str]:
    """The lines of `--help` about configs."""
    lines = [f"  {'--config.KEY=VALUE':18} overrides a key of the config; configs/common.py has them all"]
    if "config" in options:
        with contextlib.suppress(ImportError):  # outside of a clone there are no configs
            from configs.common import VARIANTS

            lines += ["", "Variants, FILE:A,B:", *(f"  {name:18} {text}" for name, text in VARIANTS.items())]
    return lines
