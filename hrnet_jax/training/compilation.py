"""The cache of compiled programs."""

from __future__ import annotations

import collections
import os

import jax
from etils import epath

_EVENTS = {"/jax/compilation_cache/cache_hits": "found", "/jax/compilation_cache/cache_misses": "compiled"}
_counts = collections.Counter[str]()


def use_cache(cache_dir: str | os.PathLike) -> None:
    """Caches compiled programs in a folder, unless JAX_COMPILATION_CACHE_DIR names another."""
    if not _folder():
        jax.config.update("jax_compilation_cache_dir", str(epath.Path(cache_dir) / "compiled"))


def summary() -> str:
    """How many programs this process compiled and how many it found in the cache."""
    return f"{_counts['compiled']} programs compiled, {_counts['found']} found in {_folder()}"


def _folder() -> str | None:
    return getattr(jax.config, "jax_compilation_cache_dir")  # noqa: B009 (jax does not declare it to type checkers)


def _count(event: str, **unused: str | int) -> None:
    if kind := _EVENTS.get(event):
        _counts[kind] += 1


jax.monitoring.register_event_listener(_count)
