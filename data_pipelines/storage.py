"""Files on a disk or in a bucket (`gs://...`, extra `gcs`).

Paths are `etils.epath.Path`s, which reach both. `whole` writes a file or folder atomically; `append` adds a line to a
file on a disk. Buckets cannot append; files that libraries append to are written through a `Mirror`.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import math
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

from etils import epath

from data_pipelines.errors import DISK_PROBLEMS, InputError, extra

PARTIAL = ".partial"  # part of the names of unfinished files

_numbers = itertools.count()


@contextlib.contextmanager
def whole(target: str | os.PathLike, *, sync: bool = True) -> Iterator[pathlib.Path]:
    """Yields a path to write a file or a folder at, which is renamed to `target` when the context ends without error.

    Readers see either the previous or the complete new content, also after a kill or a power cut. Missing parent
    folders are created. A file is replaced; a folder must be missing or empty.

    Args:
      target: a file or folder, on a disk or in a bucket.
      sync: whether to flush the content to the device before renaming.

    Yields:
      A path that does not exist yet, with `target`'s suffix; next to `target`, or on a disk if that is in a bucket.

    Raises:
      InputError: the disk or the bucket refuses; the message names `target` and the reason.
    """
    with write_errors(target):
        if in_bucket(target):
            with tempfile.TemporaryDirectory(prefix="hrnet_jax_") as folder, bucket_errors(target):
                partial = pathlib.Path(folder) / pathlib.PurePosixPath(target).name
                yield partial
                if partial.is_dir():
                    upload(partial, epath.Path(target))
                else:
                    epath.Path(target).write_bytes(partial.read_bytes())
            return
        target = pathlib.Path(target)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError:  # a file
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
        number = f"{os.getpid()}-{next(_numbers)}"
        # At most 4 bytes per character, and 255 per name.
        partial = target.with_name(f".{target.stem[:30]}.{number}{PARTIAL}{target.suffix[:20]}")
        try:
            yield partial
            if sync:
                for path in (*partial.rglob("*"), partial) if partial.is_dir() else (partial,):
                    _sync(path)
            _publish(partial, target)
            if sync:
                _sync(target.parent)
        finally:
            if partial.is_dir():
                shutil.rmtree(partial, ignore_errors=True)
            else:
                partial.unlink(missing_ok=True)


def write(target: str | os.PathLike, content: str | bytes, *, sync: bool = True) -> None:
    """Writes a file atomically, see `whole`."""
    with whole(target, sync=sync) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def check_output(path: str | os.PathLike, *, flag: str = "--output", folder: bool = False) -> None:
    """Raises InputError unless a file can be written at a path. Commands call it before they work; it leaves no files.

    Args:
      path: where the command will write, on a disk or in a bucket.
      flag: the command's flag for it.
      folder: whether it is a folder to write files into.
    """
    kind = "folder" if folder else "file"
    if not os.fspath(path):
        raise InputError(f"{flag} is empty; give it the name of a {kind}")
    if in_bucket(path):
        check_bucket(path)
        return
    target = pathlib.Path(path)
    with write_errors(path):
        there = target.exists()
        if there and target.is_dir() != folder:
            raise InputError(f"{path}: is a {'file' if folder else 'folder'}; {flag} takes a {kind}")
        parent = target if there and folder else target.parent
        while not _is_there(parent):
            parent = parent.parent
        for missing in target.relative_to(parent).parts:
            _is_there(parent / missing)  # an error for a name that is too long
        with tempfile.TemporaryFile(dir=parent):
            pass


def append(target: str | os.PathLike, line: str) -> None:
    """Appends a line to a file on a disk, completely or not at all. Raises InputError if writing fails."""
    with write_errors(target), open(target, "ab", buffering=0) as file:
        before, content = file.tell(), (line + "\n").encode()
        try:
            if file.write(content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(before)
            raise


@contextlib.contextmanager
def write_errors(target: str | os.PathLike, remark: str = "") -> Iterator[None]:
    """A context that turns disk errors into an InputError that names `target`; other errors pass.

    Libraries wrap disk errors in their own types, so they are recognised by their text.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = next((reason for reason in DISK_PROBLEMS if reason in str(error)), None)
        if reason is None and isinstance(error, OSError):
            reason = error.strerror or str(error)
        if reason is None:
            raise
        raise InputError(f"{os.fspath(target)}: cannot be written ({reason}){remark}") from None


def _publish(partial: pathlib.Path, target: pathlib.Path) -> None:
    """Renames a finished file or folder to its final name."""
    os.replace(partial, target)


def _is_there(path: pathlib.Path) -> bool:
    """Whether a path exists. Raises OSError if it cannot exist: below a file, or with a too long name."""
    try:
        path.stat()
    except FileNotFoundError:
        return False
    return True


def remove_partial(folder: str | os.PathLike) -> None:
    """Removes unfinished files of killed processes from a folder on a disk."""
    for path in pathlib.Path(folder).glob(f".*{PARTIAL}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _sync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def in_bucket(path: str | os.PathLike) -> bool:
    """Whether a path is in a bucket."""
    return "://" in os.fspath(path)


class Mirror:
    """A folder on a disk to write into: the folder itself, or a temporary one if the folder is in a bucket.

    `sync` and the end of the context copy the temporary folder's files to the bucket.
    """

    def __init__(self, folder: str | os.PathLike):
        self._target = epath.Path(folder)
        self._temporary = tempfile.TemporaryDirectory(prefix="hrnet_jax_") if in_bucket(folder) else None
        self.path = pathlib.Path(self._temporary.name if self._temporary else folder)

    def sync(self) -> None:
        """Copies the current files to the bucket."""
        if self._temporary:
            upload(self.path, self._target)

    def __enter__(self) -> Mirror:
        return self

    def __exit__(self, *unused: Any) -> None:
        if self._temporary:
            with self._temporary:
                self.sync()


def upload(folder: pathlib.Path, target: epath.Path, last: str = "") -> None:
    """Copies a folder's files, except dotted ones, to a path that `etils.epath` can write; the file `last` last."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    for path in sorted(files, key=lambda path: path.name == last):
        copy = target / path.relative_to(folder).as_posix()
        copy.parent.mkdir(parents=True, exist_ok=True)
        epath.Path(path).copy(copy, overwrite=True)


def files_below(folder: epath.Path) -> Iterator[epath.Path]:
    """All files in a folder and its subfolders."""
    for path in folder.iterdir():
        if path.is_dir():
            yield from files_below(path)
        else:
            yield path


def free_bytes(folder: str | os.PathLike) -> float:
    """The free space."""
    return math.inf if in_bucket(folder) else float(shutil.disk_usage(folder).free)


def absolute(path: str | os.PathLike) -> epath.Path:
    """The absolute path, on a disk or in a bucket."""
    return epath.Path(path) if in_bucket(path) else epath.Path(path).resolve()


def cache_on_disk(cache_dir: str) -> str:
    """The folder for caches that must be on a disk: `cache_dir`, or the user's cache if that is in a bucket."""
    return user_cache() if in_bucket(cache_dir) else cache_dir


def user_cache() -> str:
    """The user's cache folder: $HRNET_JAX_CACHE, or hrnet_jax in $XDG_CACHE_HOME or ~/.cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.environ.get("HRNET_JAX_CACHE") or os.path.join(cache, "hrnet_jax")


def check_bucket(path: str | os.PathLike) -> None:
    """Raises InputError if a path is in a bucket that does not exist. Disks are not checked."""
    if not in_bucket(path):
        return
    # Other writers (e.g. TensorStore in this process) change the bucket, so listings must not be cached.
    import fsspec

    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    with bucket_errors(path):
        scheme, _, rest = os.fspath(path).partition("://")
        if not epath.Path(f"{scheme}://{rest.partition('/')[0]}").exists():
            raise FileNotFoundError("no such bucket, or no right to see it")


@contextlib.contextmanager
def bucket_errors(target: str | os.PathLike, remark: str = "") -> Iterator[None]:
    """A context that turns all bucket errors into an InputError of one line; disk errors pass."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # from any library that accesses the bucket
        if not in_bucket(target):
            raise
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"{os.fspath(target)}: cannot be reached ({reason}); buckets need the extra gcs ({extra('gcs')}) and "
            f"credentials{remark}"
        ) from None
