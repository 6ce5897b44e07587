"""From annotation files and images to batches of crops, on the host."""

from typing import TYPE_CHECKING, Any

from data_pipelines.errors import InputError

if TYPE_CHECKING:
    from data_pipelines.pipeline import create_eval_dataset, create_train_dataset

__all__ = ["InputError", "create_eval_dataset", "create_train_dataset"]


def __getattr__(name: str) -> Any:
    # Loaded on first use: the pipeline imports Grain, and Grain imports JAX, which who only wants a keypoint set or an
    # AP should not wait for.
    if name in ("create_eval_dataset", "create_train_dataset"):
        from data_pipelines import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
