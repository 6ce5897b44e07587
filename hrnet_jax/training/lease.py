"""Allows one training per work directory, by a lease that its holder renews and that expires when the holder ends.

    workdir/lease.json    the holder (host, process, start time) and a count of its renewals

If the holder's process on the same machine has ended, the lease is free at once. A holder on another machine counts as
ended if its count does not change for `EXPIRY` seconds; clocks are not compared. Files are renamed, not locked, so
that this works on network file systems and in buckets.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from etils import epath

from data_pipelines import storage
from data_pipelines.errors import InputError
from data_pipelines.json_files import read_json_if_intact
from hrnet_jax.mesh import from_main_host
from hrnet_jax.weights.checkpoint import check_name

NAME = "lease.json"
RENEWAL = 1.0  # seconds
EXPIRY = 15.0  # seconds without a renewal
_SETTLING = 0.5  # seconds to detect another process that started at the same time; longer than a write takes
_POLL = 0.1

logger = logging.getLogger(__name__)


class Lease:
    """A context in which this process holds a work directory.

    Entering raises InputError, which names the holder, if another process holds the directory. If the holder is on
    another machine, entering waits at most `EXPIRY` seconds to see whether it is alive.
    """

    def __init__(self, workdir: str | os.PathLike):
        self._workdir, self._path = os.fspath(workdir), epath.Path(workdir) / NAME
        self._mine = {**_this_process(), "since": datetime.datetime.now().astimezone().isoformat(timespec="seconds")}
        self._renewals = 0
        self._lost = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def check(self) -> None:
        """Raises InputError if the lease is lost: taken over by another process, or removed with the directory."""
        if self._lost:
            raise InputError(f"{self._workdir}: {self._lost}; nothing more is saved")

    def __enter__(self) -> Lease:
        with storage.bucket_errors(self._workdir):
            self._wait_until_free()
            self._write()
            time.sleep(_SETTLING)
            holder = self._read()
        if holder and holder.get("token") != self._mine["token"]:
            raise self._taken(holder)
        self._thread.start()
        return self

    def __exit__(self, *unused: Any) -> None:
        self._ended.set()
        self._thread.join()
        if not self._lost:
            with contextlib.suppress(Exception):  # the lease expires anyway
                self._path.unlink()

    def _wait_until_free(self) -> None:
        holder, told = self._read(), False
        while holder:
            if _is_on_this_machine(holder):
                if _is_running(holder):
                    raise self._taken(holder)
                return
            seen = time.monotonic()
            while (now := self._read()) == holder:
                waited = time.monotonic() - seen
                if waited > EXPIRY:
                    return
                if waited > 3 * RENEWAL and not told:
                    logger.info("%s: waiting to see whether %s is still running", self._workdir, _words(holder))
                    told = True
                time.sleep(_POLL)
            if now and now.get("token") == holder.get("token"):
                raise self._taken(holder)
            holder = now

    def _taken(self, holder: dict[str, Any]) -> InputError:
        return InputError(
            f"{self._workdir}: {_words(holder)} trains in this work directory; wait for it to end, stop it, or choose "
            "another --workdir"
        )

    def _renew(self) -> None:
        while not self._ended.wait(RENEWAL):
            # Errors are ignored: a full disk or an unreachable bucket is reported by the next save.
            with contextlib.suppress(Exception):
                holder = self._read()
                if holder and holder.get("token") != self._mine["token"]:
                    self._lost = (
                        f"{_words(holder)} took over this work directory, because this process did not renew its lease "
                        f"for {EXPIRY:g} s"
                    )
                elif not self._path.exists():  # writing would create the directory again
                    self._lost = f"{NAME} is gone; the work directory was moved or removed"
                if self._lost:
                    return
                self._write()

    def _write(self) -> None:
        self._renewals += 1
        content = json.dumps({**self._mine, "renewals": self._renewals}) + "\n"
        storage.write(self._path, content, sync=False)  # not needed after a power cut

    def _read(self) -> dict[str, Any] | None:
        return read_json_if_intact(self._path, dict)


@contextlib.contextmanager
def hold(workdir: epath.Path) -> Iterator[Lease]:
    """A context in which a run holds a work directory; the main host takes the lease for all hosts."""
    with contextlib.ExitStack() as stack:
        lease = Lease(workdir)

        def take() -> None:
            storage.check_bucket(workdir)
            check_name(workdir)
            stack.enter_context(lease)

        from_main_host(take)
        yield lease


def _this_process() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "machine": _machine(),
        "started": _started(os.getpid()),
        "token": uuid.uuid4().hex,
    }


def _machine() -> str:
    """Identifies the scope of process numbers: this boot of the machine and its container."""
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id")
    with contextlib.suppress(OSError):
        return f"{boot.read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    return f"unknown {uuid.uuid4()}"


def _started(process: int) -> str:
    """A process's start time in its machine's clock ticks; empty if there is no such process or it is a zombie."""
    try:
        # The name, in parentheses, may contain any character.
        fields = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _is_on_this_machine(holder: dict[str, Any]) -> bool:
    return holder.get("machine") == _machine()


def _is_running(holder: dict[str, Any]) -> bool:
    return bool(holder.get("started")) and _started(holder.get("process", -1)) == holder["started"]


def _words(holder: dict[str, Any]) -> str:
    return f"process {holder.get('process')} on {holder.get('host')} (since {holder.get('since')})"
