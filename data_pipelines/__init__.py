"""Turns annotation files and images into batches of crops, on the host."""

from typing import TYPE_CHECKING, Any

from data_pipelines.errors import InputError

if TYPE_CHECKING:
    from data_pipelines.pipeline import create_eval_dataset, create_train_dataset

__all__ = ["InputError", "create_eval_dataset", "create_train_dataset"]


def __getattr__(name: str) -> Any:
    # Imported on first use: the pipeline imports Grain, which imports JAX; keypoint sets and AP do not need them.
    if name in ("create_eval_dataset", "create_train_dataset"):
        from data_pipelines import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
