"""Metric files of a run: `metrics.jsonl`, one object a line, and TensorBoard's.

Nothing can be appended to what lies in a bucket; there, lines lie in `metrics/STEP.jsonl`.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import tensorboardX
from etils import epath

from data_pipelines import storage

_AT_ONCE = 16  # objects of a bucket that are read at a time


class MetricWriter:
    """Adds scalars by step; starting at a step drops what a previous run wrote past it."""

    def __init__(self, workdir: str | os.PathLike, start_step: int = 0, active: bool = True):
        self._active = active  # one host writes for all
        if not active:
            return
        self._lines = _lines(workdir)
        self._lines.keep_up_to(start_step)
        self._folder = storage.Mirror(epath.Path(workdir) / "tensorboard")
        self._board = tensorboardX.SummaryWriter(str(self._folder.path), purge_step=start_step + 1)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds one record and flushes it."""
        if not self._active:
            return
        self._lines.add(step, json.dumps({"step": step, **scalars}))
        for name, value in scalars.items():
            self._board.add_scalar(name, value, step)
        self._board.flush()
        self._folder.sync()

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(self, *unused: Any) -> None:
        if self._active:
            with self._folder:
                self._board.close()


def read(workdir: str | os.PathLike) -> Iterator[dict[str, Any]]:
    """The records of a run so far; a half-written last line is left out."""
    yield from _records(_lines(workdir).read())


class _File:
    """Lines of a file, in the order in which they came."""

    def __init__(self, path: epath.Path):
        self._path = path

    def add(self, step: int, line: str) -> None:
        with self._path.open("a") as file:
            file.write(line + "\n")

    def keep_up_to(self, step: int) -> None:
        kept = [record for record in _records(self.read()) if record["step"] <= step]
        self._path.write_text("".join(json.dumps(record) + "\n" for record in kept))

    def read(self) -> list[str]:
        return self._path.read_text().splitlines() if self._path.exists() else []


class _Objects:
    """Lines of objects, one a step."""

    def __init__(self, folder: epath.Path):
        self._folder = folder

    def add(self, step: int, line: str) -> None:
        path = self._folder / f"{step:09}.jsonl"
        before = path.read_text() if path.exists() else ""  # a step may be logged and evaluated
        path.write_text(before + line + "\n")

    def keep_up_to(self, step: int) -> None:
        for path in self._paths():
            if int(path.stem) > step:
                path.unlink()

    def read(self) -> list[str]:
        with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
            return [line for text in pool.map(epath.Path.read_text, self._paths()) for line in text.splitlines()]

    def _paths(self) -> list[epath.Path]:
        return sorted(self._folder.iterdir()) if self._folder.is_dir() else []


def _records(lines: list[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            return


def _lines(workdir: str | os.PathLike) -> _File | _Objects:
    folder = epath.Path(workdir)
    return _Objects(folder / "metrics") if storage.in_bucket(workdir) else _File(folder / "metrics.jsonl")
