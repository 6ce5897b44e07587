"""Common types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from ml_collections import ConfigDict

# A config or a part of one; functions take plain dicts as well.
Config = Mapping[str, Any] | ConfigDict


@runtime_checkable
class Crops(Protocol):
    """How crops are cut, which each codec says: (height, width) in pixels, and the warp of `transforms.warp_matrix`."""

    @property
    def input_size(self) -> tuple[int, int]: ...  # noqa: D102
    @property
    def warp(self) -> str: ...  # noqa: D102


# Arrays by name; a single sample may also hold NumPy scalars.
Batch = dict[str, Any]
