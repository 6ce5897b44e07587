"""Stopping a run by a signal: finish the step, save, exit."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from data_pipelines.processes import SIGNALS

logger = logging.getLogger(__name__)

TOGETHER = 1.0  # seconds


class StopRequest:
    """A context in which the first SIGINT, SIGTERM or SIGHUP sets `requested`, and a second ends the process at once.

    One stop may arrive as several signals, forwarded by a wrapper or sent to every process of a job: those within
    `TOGETHER` seconds of the first count as one.

    Outside the main thread, where Python delivers no signals, `requested` stays False. With several hosts, JAX handles
    SIGTERM and preemption notices, and all hosts agree on the step.
    """

    def __init__(self) -> None:
        self.requested = False
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread() and jax.process_count() == 1:
            # Python runs signal handlers between bytecodes, which may be minutes apart while a step compiles. The
            # wakeup socket receives signal numbers immediately.
            self._heard, self._hears = socket.socketpair()
            self._hears.setblocking(False)
            self._wakeup = signal.set_wakeup_fd(self._hears.fileno(), warn_on_full_buffer=False)
            threading.Thread(target=_leave_at_the_second, args=(self._heard,), daemon=True).start()
            # nohup ignores SIGHUP.
            heard = [s for s in SIGNALS if s != signal.SIGHUP or signal.getsignal(s) != signal.SIG_IGN]
            self._handlers = {number: signal.signal(number, self._handle) for number in heard}
        return self

    def __exit__(self, *unused: Any) -> None:
        if self._handlers:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._wakeup)
            self._hears.close()  # ends the thread

    def agreed(self, step: int) -> bool:
        """Whether to stop before this step; all hosts must call it, and get the same answer."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.requested = True
        return self.requested

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            return
        self.requested = True
        name = signal.Signals(number).name
        logger.info("%s: finishing the step (the first after its compilation) and saving; again to exit at once", name)


def _leave_at_the_second(heard: socket.socket) -> None:
    with heard:
        first = None
        while number := heard.recv(1):
            if number[0] not in SIGNALS:
                continue
            first = first or time.monotonic()
            if time.monotonic() - first > TOGETHER:
                os._exit(128 + number[0])
