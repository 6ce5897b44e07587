"""Stopping a run from outside: finish the step, save, leave."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

logger = logging.getLogger(__name__)


class StopRequest:
    """A context in which the first SIGINT or SIGTERM sets `requested`; the second acts as it did before.

    Outside of the main thread, where Python delivers no signals, it never becomes true. Of several hosts each may be
    told to stop; JAX hears SIGTERM, and the notice of a preemption, and lets all agree on the step.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread() and jax.process_count() == 1:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *unused: Any) -> None:
        self._restore()

    def agreed(self, step: int) -> bool:
        """Whether to stop before this step; all hosts must ask, and get the same answer."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.requested = True
        return self.requested

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        logger.info("%s: finishing the step and saving; again to exit at once", signal.Signals(number).name)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
