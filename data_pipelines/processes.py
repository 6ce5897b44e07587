"""Worker processes: how they are started, and when they end."""

from __future__ import annotations

import contextlib
import importlib.machinery
import multiprocessing
import multiprocessing.resource_tracker
import os
import signal
import sys
import threading
from collections.abc import Iterator

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_starting = threading.RLock()


@contextlib.contextmanager
def starting_workers() -> Iterator[None]:
    """A context in which to spawn processes, each of which calls `become_worker` first.

    Spawned processes import the program's main module anew, and with it all that a trainer needs, unless it is some
    package's __main__, which the main module is called here. They inherit that SIGINT and SIGTERM are blocked.
    """
    # Starting this process, which must outlive the workers to remove their shared memory, unblocks the signals.
    multiprocessing.resource_tracker.ensure_running()
    with _starting:
        main = sys.modules["__main__"]
        spec = getattr(main, "__spec__", None)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        main.__spec__ = importlib.machinery.ModuleSpec("data_pipelines.__main__", None)
        try:
            yield
        finally:
            main.__spec__ = spec
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def become_worker() -> None:
    """Makes this process end when its parent is gone or sends SIGTERM, and ignore SIGINT and SIGTERM of all others.

    Terminals send SIGINT to all processes of a command, and Slurm and containers SIGTERM. What then happens is up to
    the parent, which may need its workers until it has saved.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # Linux' PR_SET_PDEATHSIG would come when the thread ends that started this process.
    parent = multiprocessing.parent_process()
    while parent and os.getppid() == parent.pid:
        heard = signal.sigtimedwait(_SIGNALS, 1)
        if heard and heard.si_signo == signal.SIGTERM and heard.si_pid == parent.pid:
            break
    os._exit(1)
