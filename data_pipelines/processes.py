"""How many worker processes, and starting and ending them."""

from __future__ import annotations

import contextlib
import importlib.machinery
import logging
import multiprocessing
import multiprocessing.resource_tracker
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator

from data_pipelines.errors import InputError

# What stops a run: from a terminal, from a scheduler, and from a terminal that is closed.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# Python runs one thread of a process at a time, for 0.3 ms per sample: four cores come close to that limit. Eight
# workers are enough for 25,000 samples/s, and each takes memory for its batches.
_CORES_PER_WORKER, _MOST_WORKERS = 4, 8

AHEAD = 2  # batches that a worker prefetches
_BATCHES_PER_WORKER = AHEAD + 2  # in shared memory: those, one that is written and one that is read

_starting = threading.RLock()

logger = logging.getLogger(__name__)


def cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0))


def division(threads: int, workers: int, batch_bytes: int, available: int, shared_memory: int) -> tuple[int, int]:
    """What `config.data.loader` means on a host.

    Args:
      threads: of the host; 0: one per core.
      workers: processes; 0: none; -1: one per four cores, at most eight, and none below eight cores or if their batches
        do not fit into shared memory.
      batch_bytes: size of a batch.
      available: cores.
      shared_memory: free bytes of it.

    Returns:
      Threads per process, and the number of worker processes.

    Raises:
      InputError: the batches of so many workers do not fit into shared memory. They would be killed by SIGBUS.
    """
    threads = threads or available
    automatic = workers < 0
    if automatic:
        workers = min(available // _CORES_PER_WORKER, _MOST_WORKERS) if available >= 2 * _CORES_PER_WORKER else 0
    if (needed := workers * _BATCHES_PER_WORKER * batch_bytes) > shared_memory:
        problem = (
            f"/dev/shm has {shared_memory / 1e6:.0f} MB free, the batches of {workers} worker processes take "
            f"{needed / 1e6:.0f} MB; containers get more by --shm-size"
        )
        if not automatic:
            raise InputError(f"config.data.loader.workers={workers}: {problem}; 0 uses threads only")
        logger.warning("%s; threads load the data instead, and may not keep up with an accelerator", problem)
        workers = 0
    return -(-threads // max(workers, 1)), workers


def shared_memory() -> int:
    """Free bytes of /dev/shm, where workers leave their batches; without such a folder more than any batch."""
    try:
        return shutil.disk_usage("/dev/shm").free
    except OSError:
        return sys.maxsize


@contextlib.contextmanager
def starting_workers() -> Iterator[None]:
    """A context for spawning processes, each of which must call `become_worker` first.

    Spawned processes import the program's main module, with all that a trainer needs, unless it is a package's
    __main__; so the main module is renamed here. They inherit blocked signals.
    """
    # Starting the resource tracker, which must outlive the workers to remove their shared memory, unblocks the signals.
    multiprocessing.resource_tracker.ensure_running()
    with _starting:
        main = sys.modules["__main__"]
        spec = getattr(main, "__spec__", None)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        main.__spec__ = importlib.machinery.ModuleSpec("data_pipelines.__main__", None)
        try:
            yield
        finally:
            main.__spec__ = spec
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def become_worker() -> None:
    """Ends this process when its parent ends or sends it SIGTERM; other SIGINT, SIGTERM and SIGHUP are ignored.

    Terminals send SIGINT and, when they are closed, SIGHUP, and Slurm and containers send SIGTERM, to all processes of
    a command. The parent decides what happens then, because it may need its workers until it has saved.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # Linux's PR_SET_PDEATHSIG would fire when the thread ends that started this process.
    parent = multiprocessing.parent_process()
    while parent and os.getppid() == parent.pid:
        heard = signal.sigtimedwait(SIGNALS, 1)
        if heard and heard.si_signo == signal.SIGTERM and heard.si_pid == parent.pid:
            break
    os._exit(1)
