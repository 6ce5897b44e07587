"""Metric files of a run: `metrics.jsonl`, one object per line, and TensorBoard's.

Objects in a bucket cannot be appended to; there, the lines are in `metrics/STEP.jsonl`.
"""

from __future__ import annotations

import concurrent.futures
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from etils import epath
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from data_pipelines import storage

EVALUATION = "eval/"  # prefix of an evaluation's scalars

_AT_ONCE = 16  # objects read from a bucket in parallel

logger = logging.getLogger(__name__)


class MetricWriter:
    """Writes scalars by step.

    Starting at a step removes records of later steps from previous starts and, unless `is_evaluated`, evaluation
    records of this step. Raises InputError if writing fails.
    """

    def __init__(self, workdir: str | os.PathLike, start_step: int = 0, is_evaluated: bool = True, active: bool = True):
        self._active = active  # only one host writes
        if not active:
            return

        def is_kept(record: dict[str, Any]) -> bool:
            last = record["step"] == start_step
            return record["step"] < start_step or (last and (is_evaluated or EVALUATION + "AP" not in record))

        self._lines = _lines(workdir)
        self._lines.keep(is_kept)
        self._board = _Board(workdir, start_step)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes one record and flushes it."""
        if not self._active:
            return
        self._lines.add(step, json.dumps({"step": step, **scalars}))
        self._board.add(step, scalars)

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(self, *unused: Any) -> None:
        if self._active:
            self._board.close()


def read(workdir: str | os.PathLike) -> Iterator[dict[str, Any]]:
    """The records of a run so far, in file order, without damaged or incomplete lines."""
    yield from _records(_lines(workdir).read())


class _Board:
    """TensorBoard's event files, written in this thread so that disk errors are raised here."""

    def __init__(self, workdir: str | os.PathLike, start_step: int):
        self._target = epath.Path(workdir) / "tensorboard"
        self._folder = storage.Mirror(self._target)
        with storage.write_errors(self._target):
            self._folder.path.mkdir(parents=True, exist_ok=True)
            self._events = EventsWriter(str(self._folder.path / "events"), f".{os.getpid()}")
        # Tells TensorBoard to discard events of later steps from previous starts.
        self._write(Event(step=start_step + 1, session_log=SessionLog(status=SessionLog.START)))

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self._write(Event(step=step, summary=scalar(name, value)))
        with storage.write_errors(self._target):
            self._events.flush()
            self._folder.sync()

    def close(self) -> None:
        with storage.write_errors(self._target), self._folder:
            self._events.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        with storage.write_errors(self._target):
            self._events.write_event(event)


class _File:
    """Lines of a file, in order of writing."""

    def __init__(self, path: epath.Path):
        self._path = path

    def add(self, step: int, line: str) -> None:
        storage.append(self._path, line)

    def keep(self, is_kept: Callable[[dict[str, Any]], bool]) -> None:
        lines = self.read()
        records = list(_records(lines))
        if len(records) < len(lines):
            logger.warning("%s: %d damaged lines are dropped", self._path, len(lines) - len(records))
        if lines:
            storage.write(self._path, _text(filter(is_kept, records)))

    def read(self) -> list[str]:
        return self._path.read_bytes().decode(errors="replace").splitlines() if self._path.exists() else []


class _Objects:
    """Lines of objects, one object per step."""

    def __init__(self, folder: epath.Path):
        self._folder = folder

    def add(self, step: int, line: str) -> None:
        path = self._folder / f"{step:09}.jsonl"
        before = path.read_text() if path.exists() else ""  # a step may have a log and an evaluation record
        storage.write(path, before + line + "\n")

    def keep(self, is_kept: Callable[[dict[str, Any]], bool]) -> None:
        for path in self._paths():
            records = list(_records(path.read_text().splitlines()))
            kept = [record for record in records if is_kept(record)]
            if not kept:
                path.unlink()
            elif len(kept) < len(records):
                storage.write(path, _text(kept))

    def read(self) -> list[str]:
        with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
            return [line for text in pool.map(epath.Path.read_text, self._paths()) for line in text.splitlines()]

    def _paths(self) -> list[epath.Path]:
        return sorted(path for path in self._folder.iterdir() if path.stem.isdecimal()) if self._folder.is_dir() else []


def _records(lines: list[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            yield record


def _text(records: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def _lines(workdir: str | os.PathLike) -> _File | _Objects:
    folder = epath.Path(workdir)
    return _Objects(folder / "metrics") if storage.in_bucket(workdir) else _File(folder / "metrics.jsonl")
