"""HRNet top-down human pose estimation in JAX: the model, its codecs, and the commands that train and use it."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hrnet_jax.inference.predictor import load
    from hrnet_jax.models import create_model

__all__ = ["create_model", "load"]
__version__ = "0.1.0"

# Imported on first use, so that --help and argument errors do not wait for JAX.
_HOMES = {"create_model": "hrnet_jax.models", "load": "hrnet_jax.inference.predictor"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES} - {"Any", "TYPE_CHECKING", "importlib"})
