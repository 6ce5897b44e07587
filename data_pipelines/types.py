"""Common types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

# A config or a part of one; functions take plain dicts as well.
Config = Mapping[str, Any] | ConfigDict

# Arrays by name; a single sample may also hold NumPy scalars.
Batch = dict[str, Any]
