"""Files on a disk or in a bucket (`gs://...`, extra `gcs`).

Paths are `etils.epath.Path`s, which reach both. What a bucket cannot do is append and rename; an object is there whole
or not at all. Files that are grown, renamed or written by libraries that know disks only go by way of a `Mirror`.
"""

from __future__ import annotations

import contextlib
import math
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

from etils import epath

from data_pipelines.errors import InputError


def in_bucket(path: str | os.PathLike) -> bool:
    """Whether a path is a bucket's, not a disk's."""
    return "://" in os.fspath(path)


class Mirror:
    """A folder on a disk to write into: the folder itself, or for one in a bucket a temporary one.

    `sync`, and the end of the context, copies the temporary one's files to the bucket.
    """

    def __init__(self, folder: str | os.PathLike):
        self._target = epath.Path(folder)
        self._temporary = tempfile.TemporaryDirectory(prefix="hrnet_jax_") if in_bucket(folder) else None
        self.path = pathlib.Path(self._temporary.name if self._temporary else folder)

    def sync(self) -> None:
        """Copies what is there to the bucket."""
        if self._temporary:
            upload(self.path, self._target)

    def __enter__(self) -> Mirror:
        return self

    def __exit__(self, *unused: Any) -> None:
        if self._temporary:
            with self._temporary:
                self.sync()


def upload(folder: pathlib.Path, target: epath.Path, last: str = "") -> None:
    """Copies a folder's files, dotted ones apart, to where `etils.epath` writes; one named `last` after the others."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    for path in sorted(files, key=lambda path: path.name == last):
        copy = target / path.relative_to(folder).as_posix()
        copy.parent.mkdir(parents=True, exist_ok=True)
        epath.Path(path).copy(copy, overwrite=True)


def files_below(folder: epath.Path) -> Iterator[epath.Path]:
    """All files of a folder and the folders in it."""
    for path in folder.iterdir():
        if path.is_dir():
            yield from files_below(path)
        else:
            yield path


def free_bytes(folder: str | os.PathLike) -> float:
    """How much room there is."""
    return math.inf if in_bucket(folder) else float(shutil.disk_usage(folder).free)


def absolute(path: str | os.PathLike) -> epath.Path:
    """The path from the root of the disk, or of all buckets, on."""
    return epath.Path(path) if in_bucket(path) else epath.Path(path).resolve()


def cache_on_disk(cache_dir: str) -> str:
    """Where to cache what must be on a disk: in `cache_dir`, if that is, else in the user's own cache."""
    if not in_bucket(cache_dir):
        return cache_dir
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "hrnet_jax")


def check_bucket(path: str | os.PathLike) -> None:
    """Raises InputError when a path is in a bucket that is not there. Nothing is asked of disks."""
    if not in_bucket(path):
        return
    # Others write to the bucket too, TensorStore in this process for one: no listing may be remembered.
    import fsspec

    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    with bucket_errors(path):
        scheme, _, rest = os.fspath(path).partition("://")
        if not epath.Path(f"{scheme}://{rest.partition('/')[0]}").exists():
            raise FileNotFoundError("no such bucket, or no right to see it")


@contextlib.contextmanager
def bucket_errors(target: str | os.PathLike, remark: str = "") -> Iterator[None]:
    """A context in which any error with a bucket becomes an InputError of one line; errors with disks stay."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # of whatever library talks to the bucket
        if not in_bucket(target):
            raise
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"{os.fspath(target)}: cannot be reached ({reason}); buckets need `pip install hrnet-jax[gcs]` and "
            f"credentials{remark}"
        ) from None
