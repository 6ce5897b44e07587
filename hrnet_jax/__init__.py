"""HRNet top-down human pose estimation in JAX: the model, its codecs, and the commands that train and use it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hrnet_jax.inference.predictor import load
    from hrnet_jax.models import create_model

__all__ = ["create_model", "load"]


def __getattr__(name: str) -> Any:
    # Imported on first use, so that --help and argument errors do not wait for JAX.
    if name == "create_model":
        from hrnet_jax.models import create_model

        return create_model
    if name == "load":
        from hrnet_jax.inference.predictor import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
