"""Downloads published files into a cache.

    $HRNET_JAX_CACHE/weights/FILE    default: ~/.cache/hrnet_jax/weights/FILE

A file appears there complete and with the hash of the record. Until then its bytes are kept beside it, also when the
process is killed, and the next attempt asks for the missing ones only, at the same or another address. A file that was
put there by hand is used like a downloaded one.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import logging
import os
import pathlib
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence

from tqdm import tqdm

from data_pipelines import storage
from data_pipelines.errors import InputError
from hrnet_jax.weights.published import Weights, sha256

TIMEOUT = 30.0  # seconds without an answer or a byte
WAITS = (1.0, 2.0, 4.0, 8.0)  # seconds before each attempt after one that received no byte

_CHUNK = 1 << 18  # bytes
_COMPLETE = 416  # the answer to a request that starts at the end of the file
# Temporary errors: too many requests, and errors of the server or a proxy.
_PASSING = (408, 425, 429, 500, 502, 503, 504)

logger = logging.getLogger(__name__)


def fetch(weights: Weights, *, timeout: float = TIMEOUT, waits: Sequence[float] = WAITS) -> pathlib.Path:
    """Returns the local path of a published file: from the cache, or downloaded into it.

    Processes that need the same file at the same time download it once.

    Args:
      weights: the file, from `hrnet_jax.weights.published`.
      timeout: seconds without an answer or a byte after which an attempt has failed.
      waits: seconds before each further attempt at one address; an attempt that received bytes restarts them.

    Raises:
      InputError: no address gives the file; the line names the file, its addresses and where to put it.
    """
    if path := cached(weights):
        return path
    target = _target(weights)
    if not weights.urls:
        raise InputError(f"{weights.file}: no address is known; download it from {weights.page} and put it at {target}")
    partial = target.with_name(f".{target.name}{storage.PARTIAL}")
    with storage.write_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target.with_name(f".{target.name}.lock"), weights.file):
            if _is_whole(target, weights):
                return target
            problems = []
            for url in weights.urls:
                if problem := _from_address(url, partial, weights, timeout, waits):
                    problems.append(f"{url}: {problem}")
                    continue
                os.replace(partial, target)
                return target
    raise InputError(
        f"{weights.file} (SHA-256 {weights.sha256}...) cannot be downloaded: {'; '.join(problems)}; fetch it in "
        f"another way and put it at {target}"
    )


def cached(weights: Weights) -> pathlib.Path | None:
    """The local path of a published file that is in the cache; None if it is not, or if it is another file."""
    target = _target(weights)
    return target if _is_whole(target, weights) else None


def _target(weights: Weights) -> pathlib.Path:
    return pathlib.Path(storage.user_cache()) / "weights" / weights.file


def _is_whole(path: pathlib.Path, weights: Weights) -> bool:
    """Whether the cache holds the file; a file of another hash counts as missing."""
    if not path.is_file():
        return False
    digest = sha256(path)
    if not weights.is_hash(digest):
        logger.warning(
            "%s: is another file than the published one (SHA-256 %s..., not %s...)",
            path,
            digest[: len(weights.sha256)],
            weights.sha256,
        )
        return False
    return True


@contextlib.contextmanager
def _alone(lock: pathlib.Path, name: str) -> Iterator[None]:
    """A context that one process at a time enters. The lock ends with the process."""
    with open(lock, "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("%s: another process is downloading it; waiting", name)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _from_address(url: str, partial: pathlib.Path, weights: Weights, timeout: float, waits: Sequence[float]) -> str:
    """Completes a partial file from one address; returns what is wrong with the address, or "" if it is complete."""
    left = iter(waits)
    while True:
        before = _size(partial)
        problem = ""
        try:
            _receive(url, partial, weights.file, timeout)
        except urllib.error.HTTPError as error:
            if error.code != _COMPLETE:
                problem = f"{error.code} {error.reason}"
                if error.code not in _PASSING:
                    return problem
        except urllib.error.URLError as error:
            problem = f"{getattr(error.reason, 'strerror', None) or error.reason}"
            if isinstance(error.reason, socket.gaierror):
                return problem
        except TimeoutError:
            problem = f"no byte for {timeout:g} s"
        except (OSError, http.client.HTTPException) as error:
            problem = f"connection lost ({error or type(error).__name__})"
        if not problem:
            digest = sha256(partial)
            if weights.is_hash(digest):
                return ""
            partial.unlink()
            if not before:
                return f"sends a file whose SHA-256 starts with {digest[: len(weights.sha256)]}"
            continue  # the bytes from before may have been of another file
        if _size(partial) > before:
            left = iter(waits)
        if (wait := next(left, None)) is None:
            return problem
        logger.info("%s: %s; trying again in %g s", url, problem, wait)
        time.sleep(wait)


def _receive(url: str, partial: pathlib.Path, name: str, timeout: float) -> None:
    """Appends the missing bytes of an address to a partial file.

    Raises what urllib raises, and ConnectionError if fewer bytes came than were announced.
    """
    start = _size(partial)
    headers = {"User-Agent": "hrnet_jax", **({"Range": f"bytes={start}-"} if start else {})}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout) as response:
        if start and not _continues(response, start):
            start = 0  # the server sends the file from its beginning
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdecimal() else None
        size = f" ({total / 1e6:.1f} MB)" if total else ""
        logger.info("%s: %s%s", "continuing" if start else "downloading", url, size)
        # Nothing is drawn unless a terminal watches.
        bar = tqdm(total=total, initial=start, desc=name, unit="B", unit_scale=True, disable=None, leave=False)
        with bar, open(partial, "ab" if start else "wb", buffering=0) as file:
            while chunk := response.read1(_CHUNK):  # what has arrived, kept if the connection breaks
                with storage.write_errors(partial):
                    file.write(chunk)
                bar.update(len(chunk))
            os.fsync(file.fileno())
    if total is not None and _size(partial) < total:
        raise ConnectionError(f"{_size(partial)} of {total} bytes")


def _continues(response: http.client.HTTPResponse, start: int) -> bool:
    span = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return response.status == http.client.PARTIAL_CONTENT and span is not None and int(span[1]) == start


def _size(path: pathlib.Path) -> int:
    return path.stat().st_size if path.exists() else 0
