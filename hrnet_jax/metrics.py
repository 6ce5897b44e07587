"""Metric files of a run: `metrics.jsonl`, one object a line, and TensorBoard's."""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import tensorboardX


class MetricWriter:
    """Appends scalars by step; starting at a step drops what a previous run wrote past it."""

    def __init__(self, workdir: pathlib.Path, start_step: int = 0, active: bool = True):
        self._active = active  # one host writes for all
        if not active:
            return
        self._path = workdir / "metrics.jsonl"
        kept = [record for record in read(workdir) if record["step"] <= start_step]
        self._path.write_text("".join(json.dumps(record) + "\n" for record in kept))
        self._file = self._path.open("a")
        self._board = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=start_step + 1)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds one record and flushes it to disk."""
        if not self._active:
            return
        self._file.write(json.dumps({"step": step, **scalars}) + "\n")
        self._file.flush()
        for name, value in scalars.items():
            self._board.add_scalar(name, value, step)

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(self, *unused: Any) -> None:
        if self._active:
            with contextlib.closing(self._file), contextlib.closing(self._board):
                pass


def read(workdir: pathlib.Path) -> Iterator[dict[str, Any]]:
    """The records of a run so far; a half-written last line is left out."""
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            return
