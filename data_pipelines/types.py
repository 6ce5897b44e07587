"""Types that many signatures name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

# A config or a part of one; functions take plain dicts as well.
Config = Mapping[str, Any] | ConfigDict

# Arrays by name; of one sample also NumPy scalars.
Batch = dict[str, Any]
