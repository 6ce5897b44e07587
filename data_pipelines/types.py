"""Common types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from ml_collections import ConfigDict

# A config or a part of one; functions take plain dicts as well.
Config = Mapping[str, Any] | ConfigDict


@runtime_checkable
class Crops(Protocol):
    """How a network's crops are cut. Every codec says it."""

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""

    @property
    def warp(self) -> str:
        """The affine transform, see `data_pipelines.transforms.warp_matrix`."""


# Arrays by name; a single sample may also hold NumPy scalars.
Batch = dict[str, Any]
