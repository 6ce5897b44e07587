"""Models on the Hugging Face Hub: `hf://USER/REPOSITORY[@REVISION][/PATH]` (extra `hub`).

A path to a folder, or the whole repository, is a converted or exported folder or a work directory; a path to a file is
a PyTorch file. Files are kept in the Hub's own cache.
"""

from __future__ import annotations

import os
import pathlib

from data_pipelines.errors import InputError
from hrnet_jax.weights.torch_files import SUFFIXES

_SCHEME = "hf://"


def local(path: str | os.PathLike) -> str | os.PathLike:
    """Downloads a path on the Hub and returns where it lies on the disk; returns any other path unchanged.

    Raises InputError if the path is not of that form, the extra is not installed, or the Hub does not give it.
    """
    text = os.fspath(path)
    if not text.startswith(_SCHEME):
        return path
    user, _, rest = text.removeprefix(_SCHEME).partition("/")
    repository, _, inner = rest.partition("/")
    repository, _, revision = repository.partition("@")
    if not user or not repository:
        raise InputError(f"{text}: must be hf://USER/REPOSITORY[@REVISION][/PATH]")
    try:
        from huggingface_hub import hf_hub_download, snapshot_download
    except ImportError:
        raise InputError(f"{text}: needs huggingface_hub: pip install hrnet-jax[hub]") from None
    name, inner = f"{user}/{repository}", inner.strip("/")
    try:
        if pathlib.PurePosixPath(inner).suffix in SUFFIXES:
            return hf_hub_download(name, inner, revision=revision or None)
        patterns = [f"{inner}/**"] if inner else None
        folder = snapshot_download(name, revision=revision or None, allow_patterns=patterns)
    except Exception as error:  # of the Hub's library and of those that it uses
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{text}: cannot be downloaded ({reason or type(error).__name__})") from None
    return os.path.join(folder, inner)
