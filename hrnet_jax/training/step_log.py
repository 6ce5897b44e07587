"""Logs a run's progress and aborts runs with too many failures."""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import Array
from ml_collections import ConfigDict

from data_pipelines import storage
from data_pipelines.errors import InputError
from data_pipelines.types import Batch
from hrnet_jax.outcomes import Aborted
from hrnet_jax.training import compilation

logger = logging.getLogger(__name__)

# Steps that the host prepares while the device works.
_AHEAD = 2


class StepLog:
    """Collects the measurements of steps and logs them; results are read two steps late, to keep the device busy.

    `progress`, which is stored in checkpoints, counts all samples and the unreadable ones.
    """

    def __init__(
        self,
        config: ConfigDict,
        sources: list[str],
        step: int,
        total_steps: int,
        steps_per_epoch: int,
        schedule: Callable[[Any], Array],
        progress: dict[str, Any],
    ):
        self._config, self._sources, self._schedule, self._progress = config, sources, schedule, progress
        self._step, self.total_steps, self.steps_per_epoch = step, total_steps, steps_per_epoch
        self._measured: list[dict[str, Array]] = []
        self._unchecked = collections.deque[tuple[int, dict[str, Array], Batch]]()
        self._compiled = False
        self._timed = 0  # steps since `_time`, without the one that compiled
        self._started = self._time = time.monotonic()
        self._paused_at: float | None = None
        self._waited = self._productive = 0.0

    @property
    def pending(self) -> bool:
        """Whether steps were added since the last flush."""
        return bool(self._measured)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """A context whose time counts as waiting for data."""
        start = time.monotonic()
        yield
        self._waited += time.monotonic() - start

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A context whose time is not counted."""
        jax.block_until_ready(self._measured)
        self._paused_at = time.monotonic()
        yield
        self._time += time.monotonic() - self._paused_at
        self._paused_at = None

    def add(self, step: int, measured: dict[str, Array], batch: Batch) -> None:
        """Adds a step's measurements. Raises InputError or Aborted if too many samples or steps failed."""
        self._step = step
        self._measured.append(measured)
        self._unchecked.append((step, measured, batch))
        if not self._compiled:
            jax.block_until_ready(measured)
            seconds = time.monotonic() - self._time
            logger.info("first step after %.0f s, compilation included (%s)", seconds, compilation.summary())
            self._compiled, self._waited, self._time = True, 0.0, time.monotonic()
        else:
            self._timed += 1
        while len(self._unchecked) > _AHEAD:
            self._check_finite(*self._unchecked.popleft())
        self._progress["samples"] += len(batch["valid"])
        if not batch["valid"].all():
            self._progress["unreadable"] += int((~batch["valid"]).sum())
            self._check_unreadable()

    def flush(self) -> dict[str, float]:
        """Returns the means since the last call and logs them in one line."""
        while self._unchecked:
            self._check_finite(*self._unchecked.popleft())
        measured = jax.device_get(self._measured)
        now = self._paused_at or time.monotonic()
        seconds = max(now - self._time, 1e-9)
        steps_per_second = self._timed / seconds
        self._productive += seconds - self._waited
        finite = [m for m in measured if m["finite"]] or measured
        sums, counts = (np.sum([m[key] for m in finite], axis=0) for key in ("loss_sum", "samples"))
        by_source = {n: float(s / c) for n, s, c in zip(self._sources, sums, counts, strict=True) if c}
        rate, skipped = float(self._schedule(self._step - 1)), int(measured[-1]["skipped"])
        scalars = {
            "loss": float(np.mean([m["loss"] for m in finite])),
            **{f"loss/{name}": loss for name, loss in by_source.items()},
            "acc_pose": float(np.mean([m["acc_pose"] for m in finite])),
            "learning_rate": rate,
            "gradient_norm": float(np.mean([m["gradient_norm"] for m in finite])),
            "steps_per_second": steps_per_second,
            "samples_per_second": steps_per_second * self._config.batch_size,
            "data_wait": self._waited / seconds,
            "goodput": self._productive / max(now - self._started, 1e-9),
            "unreadable": self._progress["unreadable"],
            "skipped": skipped,
            **_memory(),
        }
        logger.info(
            "step %d/%d epoch %.1f loss %.3e (%s) acc_pose %.3f lr %.1e | "
            "%.2f steps/s %.0f samples/s data wait %.0f%%%s%s | ETA %s",
            *(self._step, self.total_steps, self._step / self.steps_per_epoch, scalars["loss"]),
            " ".join(f"{name} {loss:.3e}" for name, loss in by_source.items()),
            *(scalars["acc_pose"], rate),
            *(scalars["steps_per_second"], scalars["samples_per_second"], 100 * scalars["data_wait"]),
            f" unreadable {scalars['unreadable']}" if scalars["unreadable"] else "",
            f" skipped {skipped}" if skipped else "",
            _clock((self.total_steps - self._step) / steps_per_second) if self._timed else "unknown",
        )
        self._measured, self._timed, self._waited, self._time = [], 0, 0.0, now
        return scalars

    def _check_finite(self, step: int, measured: dict[str, Array], batch: Batch) -> None:
        """Waits for a step; warns if it was skipped, and raises Aborted if too many were."""
        if measured["finite"]:
            return
        what = f"step {step}: loss {float(measured['loss'])}, gradient norm {float(measured['gradient_norm'])}"
        rate, skipped, limit = float(self._schedule(step - 1)), int(measured["skipped"]), self._config.max_skipped
        logger.warning("%s: skipped, the %d. step of this run", what, skipped)
        if skipped > limit:
            names = [self._sources[number] for number in batch["source"].tolist()]
            people = " ".join(f"{n}:{i}" for n, i in zip(names, batch["instance_id"].tolist(), strict=True))
            raise Aborted(
                f"{what}: {skipped} steps were not finite, more than config.max_skipped={limit}; learning rate "
                f"{rate:.3e}; samples {batch['index'][0]} to {batch['index'][-1]}: {people}"
            )

    def _check_unreadable(self) -> None:
        unreadable, samples = self._progress["unreadable"], self._progress["samples"]
        share, limit = unreadable / samples, self._config.data.max_unreadable
        # The share is meaningful only after a thousand samples or one epoch.
        if share > limit and samples >= min(1000, self.steps_per_epoch * self._config.batch_size):
            raise InputError(
                f"{unreadable} of {samples} samples could not be read and were replaced, more than "
                f"config.data.max_unreadable={limit:g}; the warnings above name the files"
            )


class Profiler:
    """Profiles steps `first` to `last` into `profile/` of a work directory, for TensorBoard; (0, 0): no profile."""

    def __init__(self, workdir: str | os.PathLike, window: tuple[int, int]):
        self._folder, (self._first, self._last) = epath.Path(workdir) / "profile", window
        self._traced: storage.Mirror | None = None

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """A context around a step."""
        if step == self._first:
            self._traced = storage.Mirror(self._folder)
            jax.profiler.start_trace(str(self._traced.path))
        if not self._traced:
            yield
            return
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield
        if step >= self._last:
            self._stop()

    def __enter__(self) -> Profiler:
        return self

    def __exit__(self, *unused: Any) -> None:
        self._stop()

    def _stop(self) -> None:
        if not self._traced:
            return
        with self._traced:
            jax.profiler.stop_trace()
        self._traced = None
        logger.info("profile of steps %d to %d in %s", self._first, self._last, self._folder)


def _memory() -> dict[str, float]:
    """The peak memory in use on any of this host's devices, if available."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    return {"device_memory_gib": max(peak for peak in peaks if peak) / 2**30} if any(peaks) else {}


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
