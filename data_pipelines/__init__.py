"""From annotation files and images to batches of crops, on the host."""

from data_pipelines.errors import InputError
from data_pipelines.pipeline import create_eval_dataset, create_train_dataset

__all__ = ["InputError", "create_eval_dataset", "create_train_dataset"]
