"""The record of a run's starts: command, machine, versions, output and outcome.

workdir/starts.json           one record per start
workdir/logs/TIME.txt         the output of that start
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import logging
import os
import pathlib
import platform
import socket
import subprocess
import sys
import time
import traceback
from types import TracebackType
from typing import Any

import jax
from etils import epath

from data_pipelines import storage
from data_pipelines.errors import InputError
from data_pipelines.json_files import read_json_if_intact, write_json
from hrnet_jax.mesh import describe_devices
from hrnet_jax.outcomes import Aborted, Interrupted

NAME = "starts.json"
LOGS = "logs"

_PACKAGES = (
    *("hrnet-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pycocotools"),
    *("opencv-python-headless", "ml-collections", "jax-cuda13-plugin", "jax-cuda12-plugin", "libtpu"),
)
_EVERY = 30.0  # seconds between copies of the log to a bucket

logger = logging.getLogger(__name__)


class RunRecord:
    """A context around a start: writes its record on entry and with its outcome on exit, and keeps its log.

    `facts`, a JSON-serialisable dict, becomes part of the record. Nothing is written if `active` is False. A start
    that was killed has no `end`; `logs/` shows how far it came.
    """

    def __init__(self, workdir: str | os.PathLike, active: bool = True):
        self._path, self._active = epath.Path(workdir) / NAME, active
        self._log = _LogFile(epath.Path(workdir) / LOGS)
        self.facts: dict[str, Any] = {}

    def write(self) -> None:
        """Writes the current record. Raises InputError if writing fails."""
        if self._active and self._path.parent.is_dir():  # the directory may have been moved
            starts = read_starts(self._path.parent)
            write_json(self._path, [s for s in starts if s.get("start") != self.facts["start"]] + [self.facts])

    def __enter__(self) -> RunRecord:
        if self._active:
            self.facts = {"start": _now(), "end": None, "outcome": None, **_surroundings()}
            self.write()
            self._log.open(self.facts["start"])
            logging.getLogger().addHandler(self._log)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if not self._active:
            return
        expected = (InputError, Aborted, Interrupted, KeyboardInterrupt)
        outcome = "done" if error is None else f"{kind.__name__ if kind else ''}: {error}"
        known = error is None or isinstance(error, expected)
        self._log.write(f"ended: {outcome}" if known else "".join(traceback.format_exception(kind, error, trace)))
        logging.getLogger().removeHandler(self._log)
        self._log.close()
        self.facts |= {"end": _now(), "outcome": outcome}
        try:
            self.write()
        except InputError:
            if error is None:  # otherwise the error that ends the run is the one to report
                raise


def read_starts(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """The records of a run's starts, oldest first; empty if the file is missing or unreadable."""
    starts = read_json_if_intact(epath.Path(workdir) / NAME, list) or []
    return [start for start in starts if isinstance(start, dict)]


class _LogFile(logging.Handler):
    """Writes log messages to a file in `logs/`, line by line; write errors end the log, not the run."""

    def __init__(self, folder: epath.Path):
        super().__init__(logging.INFO)
        self._mirror, self._path = storage.Mirror(folder), pathlib.Path()
        self._synced = time.monotonic()
        self._failed = False

    def open(self, start: str) -> None:
        name = f"{start[:19].replace(':', '-')}_{os.getpid()}.txt"
        self._path = self._mirror.path / name
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)

    def emit(self, record: logging.LogRecord) -> None:
        self.write(self.format(record))

    def write(self, text: str) -> None:
        if self._failed:
            return
        try:
            storage.append(self._path, f"{_now()[:19]} {text}")
            if time.monotonic() - self._synced > _EVERY:
                self._synced = time.monotonic()
                self._mirror.sync()
        except Exception:  # from the disk, or from any library that accesses a bucket
            self._failed = True

    def close(self) -> None:
        super().close()
        with contextlib.suppress(Exception), self._mirror:
            pass


def _surroundings() -> dict[str, Any]:
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "command": sys.argv,
        "host": socket.gethostname(),
        "process": os.getpid(),
        "hosts": jax.process_count(),
        "devices": describe_devices(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The commit of the clone that this code runs from, with `-dirty` if modified; None outside a clone."""
    root = pathlib.Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    return None


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="milliseconds")
