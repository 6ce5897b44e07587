"""Models on the Hugging Face Hub: `hf://USER/REPOSITORY[@REVISION][/PATH]` (extra `hub`).

A path to a folder, or the whole repository, is a converted or exported folder or a work directory; a path to a file is
a PyTorch file. Downloaded files are kept in the Hub's own cache; `push` uploads a folder.
"""

from __future__ import annotations

import os
import pathlib
from types import ModuleType
from typing import NamedTuple

from data_pipelines.errors import InputError, extra
from hrnet_jax.weights.torch_files import SUFFIXES

_SCHEME = "hf://"


def local(path: str | os.PathLike) -> str | os.PathLike:
    """Downloads a path on the Hub and returns where it lies on the disk; returns any other path unchanged.

    Raises InputError if the path is not of that form, the extra is not installed, or the Hub does not give it.
    """
    text = os.fspath(path)
    if not text.startswith(_SCHEME):
        return path
    place, library = _parse(text), _library(text)
    try:
        if pathlib.PurePosixPath(place.inner).suffix in SUFFIXES:
            return library.hf_hub_download(place.repository, place.inner, revision=place.revision)
        patterns = [f"{place.inner}/**"] if place.inner else None
        folder = library.snapshot_download(place.repository, revision=place.revision, allow_patterns=patterns)
    except Exception as error:  # of the Hub's library and of those that it uses
        raise InputError(f"{text}: cannot be downloaded ({_reason(error)})") from None
    return os.path.join(folder, place.inner)


def check_target(target: str) -> None:
    """Raises InputError if a folder cannot be pushed to a path: it is no path on the Hub, or the extra is missing."""
    _parse(target)
    _library(target)


def push(folder: str | os.PathLike, target: str) -> str:
    """Uploads a folder's files in one commit and returns the repository's address.

    A missing repository is created with the user's default visibility. The token is that of `hf auth login` or
    HF_TOKEN.

    Raises InputError if the path is not of that form, the extra is not installed, or the Hub refuses.
    """
    place, library = _parse(target), _library(target)
    try:
        address = library.create_repo(place.repository, exist_ok=True)
        library.upload_folder(
            repo_id=place.repository,
            folder_path=folder,
            path_in_repo=place.inner or None,
            revision=place.revision,
            commit_message="Exported by hrnet_jax",
        )
    except Exception as error:  # of the Hub's library and of those that it uses
        raise InputError(
            f"{target}: cannot be uploaded ({_reason(error)}); {os.fspath(folder)} is complete, `hf upload` can retry"
        ) from None
    return str(address)


class _Place(NamedTuple):
    repository: str
    revision: str | None
    inner: str  # path in the repository


def _parse(text: str) -> _Place:
    user, _, rest = text.removeprefix(_SCHEME).partition("/")
    name, _, inner = rest.partition("/")
    name, _, revision = name.partition("@")
    if not text.startswith(_SCHEME) or not user or not name:
        raise InputError(f"{text}: must be hf://USER/REPOSITORY[@REVISION][/PATH]")
    return _Place(f"{user}/{name}", revision or None, inner.strip("/"))


def _library(text: str) -> ModuleType:
    try:
        import huggingface_hub
    except ImportError:
        raise InputError(f"{text}: needs huggingface_hub: {extra('hub')}") from None
    return huggingface_hub


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
