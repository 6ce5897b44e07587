"""Metadata that makes a folder of shards a TensorFlow Datasets data set."""

from __future__ import annotations

import pathlib
import re
import tempfile
from collections.abc import Sequence

import numpy as np

from data_pipelines import storage
from data_pipelines.keypoints import KeypointSet

# The file that TFDS reads first; it marks a folder as finished.
FINISHED = "dataset_info.json"


def dataset_name(output: pathlib.Path) -> tuple[str, str]:
    """The names of the data set and its split, from the folder's name `NAME_SPLIT`; letters, digits and _."""
    words = re.sub(r"\W+", "_", output.absolute().name.lower()).strip("_")
    name, _, split = words.rpartition("_")
    return (name if name[:1].isalpha() else f"images_{name}".strip("_")), split or "train"


def shard_name(output: pathlib.Path, number: int, shards: int) -> str:
    """The file name of a shard, as TFDS expects it."""
    name, split = dataset_name(output)
    return f"{name}-{split}.array_record-{number:05d}-of-{shards:05d}"


def write_tfds_metadata(output: pathlib.Path, labels: KeypointSet, lengths: Sequence[int], size: int) -> None:
    """Writes features.json and, last, dataset_info.json.

    Args:
      output: the folder.
      labels: the people's keypoint set.
      lengths: number of records per shard.
      size: total size of the shards in bytes.
    """
    import tensorflow_datasets as tfds  # takes a second

    name, split = dataset_name(output)
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=name, version=tfds.core.Version("1.0.0"), data_dir=str(output), module_name=""
    )
    person = {
        "id": np.int64,
        "bbox": tfds.features.Tensor(shape=(4,), dtype=np.float32, doc="x, y, width, height in pixels"),
        "keypoints": tfds.features.Tensor(
            shape=(len(labels), 3), dtype=np.float32, doc=f"x, y, visibility (0, 1, 2) of {', '.join(labels.names)}"
        ),
    }
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "file_name": tfds.features.Text(),
            "image_id": np.int64,
            "height": np.int64,
            "width": np.int64,
            "crc32": tfds.features.Scalar(np.int64, doc="of the encoded image"),
            "cells": tfds.features.Scalar(np.bool_, doc="whether regions of the image can be decoded by themselves"),
            "people": tfds.features.Sequence(person),
        }
    )
    description = f"Images, and people with {len(labels)} keypoints ({labels.name})."
    info = tfds.core.DatasetInfo(builder=identity, features=features, description=description, disable_shuffling=True)
    info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
    splits = [tfds.core.SplitInfo(name=split, shard_lengths=list(lengths), num_bytes=size, filename_template=None)]
    info.set_splits(tfds.core.splits.SplitDict(splits))
    with storage.write_errors(output), tempfile.TemporaryDirectory() as folder:
        info.write_to_directory(folder)
        for path in sorted(pathlib.Path(folder).iterdir(), key=lambda path: path.name == FINISHED):
            storage.write(output / path.name, path.read_bytes())
