"""Training logs of other projects: loss, accuracy and AP by epoch.

    log                                     epochs   loss of a line              accuracy of a line    boxes of its AP
    MMPose 1.x, TIME.log                    from 1   mean of 50 iterations       of one iteration      not stated
    MMPose 1.x, scalars.json or TIME.json   from 1   mean of 50 iterations       of one iteration      not stated
    MMPose 0.x, TIME.log.json or TIME.log   from 1   mean since the last line    mean, like the loss   not stated
    official HRNet, *_train.log             from 0   mean of the epoch so far    mean, like the loss   annotated boxes

`read` returns the value of each epoch, counted from 1: the mean of its lines, or the last of official HRNet's, whose
loss is doubled (JointsMSELoss has a factor of 0.5). In scalars.json `step` is the iteration of a training record and
the epoch of an evaluation. Learning rates are not read: 0.x rounds them to five digits. A log that goes back to an
earlier iteration was resumed there: what it had logged from there on is dropped, so the logs of several starts can be
concatenated. Formats: MMEngine 0.10 (LogProcessor, LoggerHook), MMCV 1.x (TextLoggerHook) and lib/core/function.py of
official HRNet.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping
from typing import Any

from etils import epath

from data_pipelines.checks import check_regular
from data_pipelines.errors import InputError

LOSS, ACCURACY, AP = "loss", "acc_pose", "AP"

# Values by epoch, by metric.
Curves = Mapping[str, Mapping[int, float]]

_NUMBER = r"([-+.\deE]+|nan|inf)"
_MMPOSE = re.compile(r"\bEpoch(\(train\)|\(val\))?\s*\[\s*(\d+)\]\s*\[\s*(\d+)(?:/\d+)?\]")
_VALUES = {key: re.compile(rf"(?<!\w){key}:\s*{_NUMBER}") for key in (LOSS, ACCURACY, AP)}
_OFFICIAL = re.compile(rf"Epoch: \[(\d+)\]\[(\d+)/\d+\].*\sLoss \S+ \({_NUMBER}\)\s+Accuracy \S+ \({_NUMBER}\)")
_BOXES = re.compile(r"use_gt_bbox['\"]?\s*[=:]\s*(true|false)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Reference:
    """A log's content.

    Attributes:
      kind: the project and its version.
      curves: values by metric and epoch, the loss as MMPose and this project define it.
      rounding: half a unit of the last digit of its losses.
      sampled: whether accuracies are of single iterations.
      annotated: whether its AP uses annotated boxes; None if the log does not tell.
    """

    kind: str
    curves: Curves
    rounding: float
    sampled: bool
    annotated: bool | None


def read(path: str | os.PathLike) -> Reference:
    """Reads a training log.

    Raises:
      InputError: the file is missing, of another format, or trained by iterations instead of epochs.
    """
    check_regular(path)
    try:
        text = epath.Path(path).read_bytes().decode(errors="replace")
    except OSError as error:
        raise InputError(f"{os.fspath(path)}: cannot be read ({error.strerror or error})") from None
    log = _Log(os.fspath(path))
    for number, line in enumerate(text.splitlines(), start=1):
        log.add(line, number)
    if not log.kind:
        raise InputError(
            f"{os.fspath(path)}: no log of MMPose (.log, .log.json, scalars.json) or official HRNet that counts epochs"
        )
    return log.reference()


class _Log:
    """Collects the lines of a log."""

    def __init__(self, path: str):
        self.kind, self._path = "", path
        self._steps: dict[tuple[int, int], dict[str, str]] = {}  # by epoch and iteration
        self._evaluated: dict[int, str] = {}
        self._columns: list[str] = []  # of official HRNet's table of results
        self._annotated: bool | None = None

    def add(self, line: str, number: int) -> None:
        if match := _BOXES.search(line):
            self._annotated = match[1].lower() == "true"
        if line.startswith("{"):
            self._add_json(line, number)
        elif match := _OFFICIAL.search(line):
            self.kind = "official HRNet"
            self._step(int(match[1]) + 1, int(match[2]), {LOSS: match[3], ACCURACY: match[4]})
        elif match := _MMPOSE.search(line):
            found = {
                key: value[1] for key, pattern in _VALUES.items() if (value := pattern.search(line[match.end() :]))
            }
            self.kind = "MMPose 1.x" if match[1] == "(train)" else self.kind or "MMPose 0.x"
            self._record(int(match[2]), int(match[3]), found, match[1] == "(val)")
        elif "| Arch " in line:
            self._columns = _cells(line)
        elif self._columns and "|---" not in line:
            row = dict(zip(self._columns, _cells(line), strict=False))
            self._columns = []
            if self._steps and AP in row:
                self._evaluated[next(reversed(self._steps))[0]] = row[AP]

    def _add_json(self, line: str, number: int) -> None:
        try:
            record = json.loads(line)
        except ValueError:
            return  # the incomplete line of a run that was killed
        if not isinstance(record, dict) or not ("mode" in record or "step" in record):
            return
        values = {key.rpartition("/")[2]: repr(value) for key, value in reversed(record.items()) if _is_number(value)}
        found = {key: values[key] for key in _VALUES if key in values}
        if not found:
            return
        epoch = record.get("epoch", record.get("step") if AP in found else None)
        if not isinstance(epoch, int):
            raise InputError(f"{self._path}: line {number}: has no epoch; give the text log of the same run (TIME.log)")
        self.kind = "MMPose 0.x" if "mode" in record else "MMPose 1.x"
        iteration = record.get("iter", record.get("step"))
        self._record(epoch, iteration if isinstance(iteration, int) else 0, found, record.get("mode") == "val")

    def _record(self, epoch: int, iteration: int, found: dict[str, str], is_evaluation: bool) -> None:
        if AP in found:
            self._evaluated[epoch] = found[AP]
        elif LOSS in found and not is_evaluation:  # 0.x may log a loss of the validation set
            self._step(epoch, iteration, found)

    def _step(self, epoch: int, iteration: int, found: dict[str, str]) -> None:
        if self._steps and (epoch, iteration) <= next(reversed(self._steps)):  # resumed
            self._steps = {key: value for key, value in self._steps.items() if key < (epoch, iteration)}
            self._evaluated = {key: value for key, value in self._evaluated.items() if key < epoch}
        self._steps[epoch, iteration] = found

    def reference(self) -> Reference:
        is_official = self.kind == "official HRNet"
        digits = max((_digits(found[LOSS]) for found in self._steps.values()), default=0)
        factor = 2 if is_official else 1
        return Reference(
            kind=self.kind,
            curves={
                LOSS: {epoch: factor * value for epoch, value in self._by_epoch(LOSS, is_official).items()},
                ACCURACY: self._by_epoch(ACCURACY, is_official),
                AP: {e: value for e, text in sorted(self._evaluated.items()) if math.isfinite(value := _value(text))},
            },
            rounding=factor * 0.5 * 10.0**-digits,
            sampled=self.kind == "MMPose 1.x",
            annotated=True if is_official and self._annotated is None else self._annotated,
        )

    def _by_epoch(self, key: str, last: bool) -> dict[int, float]:
        """An epoch's mean, or its last value."""
        epochs: dict[int, list[float]] = {}
        for (epoch, _), found in self._steps.items():
            if math.isfinite(value := _value(found.get(key, "nan"))):
                epochs.setdefault(epoch, []).append(value)
        return {epoch: values[-1] if last else math.fsum(values) / len(values) for epoch, values in epochs.items()}


def _cells(line: str) -> list[str]:
    """The cells of a Markdown row that follows a time."""
    return [cell.strip() for cell in line[line.find("|") :].strip().strip("|").split("|")]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _value(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _digits(text: str) -> int:
    """The number of decimals of a finite number."""
    if not math.isfinite(_value(text)):
        return 0
    mantissa, _, exponent = text.lower().partition("e")
    return len(mantissa.partition(".")[2]) - int(exponent or 0)
