"""People as columns, in memory or memory-mapped from a folder that worker processes share."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from data_pipelines import storage
from data_pipelines.errors import InputError
from data_pipelines.images import ImageSource, Picture
from data_pipelines.json_files import json_text, read_json
from data_pipelines.keypoints import KeypointMapping

FORMAT_VERSION = 2

_COLUMNS = ("files", "file_index", "image_id", "instance_id", "bbox", "keypoints", "box_score")
_FACTS = "index.json"


@dataclasses.dataclass(frozen=True, eq=False)
class Instances:
    """N people as columns.

    Attributes:
      name: the source's name, for messages and per-source metrics.
      images: opens the images.
      files: image file names in UTF-8, one per distinct image.
      file_index: index of each instance's image in `files`.
      image_id: the annotation file's image id (its position in the file if ids are not integers, as in AIC's).
      instance_id: the annotation's id (its position if there is none).
      bbox: xywh in image pixels, as annotated (clip with `transforms.clip_box` when the image's size is known).
      keypoints: x, y in image pixels and COCO visibility (0 unlabelled, 1 occluded, 2 visible), in the file's set.
      box_score: the detector's score; 1 for annotated boxes.
      detected: whether the boxes come from a detector; MMPose does not clip those.
      dropped: number of omitted people by reason.
      mapping: maps keypoints to the keypoint set that `points` returns.
      index: the folder that the columns are memory-mapped from; None if they are in memory.
    """

    name: str
    images: ImageSource
    files: np.ndarray
    file_index: Int[np.ndarray, " n"]
    image_id: Int[np.ndarray, " n"]
    instance_id: Int[np.ndarray, " n"]
    bbox: Float[np.ndarray, "n 4"]
    keypoints: Float[np.ndarray, "n keypoints 3"]
    box_score: Float[np.ndarray, " n"]
    detected: bool = False
    dropped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    mapping: KeypointMapping | None = None
    index: str | None = None

    def __len__(self) -> int:
        return len(self.file_index)

    def path(self, row: int) -> str:
        """The name of an instance's image, for messages."""
        return self.images.name(int(self.file_index[row]), self._file(row))

    def open(self, row: int) -> Picture:
        """Opens an instance's image. Raises InputError if it cannot be read."""
        return self.images.open(int(self.file_index[row]), self._file(row))

    def points(self, row: int) -> Float[np.ndarray, "keypoints 3"]:
        """An instance's keypoints after mapping."""
        keypoints = np.array(self.keypoints[row])
        return self.mapping.apply(keypoints) if self.mapping else keypoints

    def digest(self) -> str:
        """SHA-256 of the annotated people, independent of the location of images and columns."""
        digest = hashlib.sha256()
        for name in _COLUMNS:
            column = np.ascontiguousarray(getattr(self, name))
            digest.update(f"{name} {column.dtype.str} {column.shape}\n".encode())
            digest.update(column.reshape(-1).view(np.uint8).data)
        return digest.hexdigest()

    def mapped(self, mapping: KeypointMapping) -> Instances:
        """The same people with keypoints mapped to another set."""
        return dataclasses.replace(self, mapping=None if mapping.source == mapping.target else mapping)

    def on_images_of(self, other: Instances) -> Instances:
        """The same people with the images of another source. Raises InputError if one is missing there."""
        numbers = {file: number for number, file in enumerate(other.files.tolist())}
        if missing := [file for file in self.files.tolist() if file not in numbers]:
            raise InputError(
                f"{self.name}: {len(missing)} of its images, e.g. {missing[0].decode()}, were not prepared with those "
                f"of {other.name}; prepare again with --all_images"
            )
        file_index = np.array([numbers[file] for file in self.files.tolist()], np.int32)[self.file_index]
        return dataclasses.replace(self, images=other.images, files=np.asarray(other.files), file_index=file_index)

    def _file(self, row: int) -> str:
        return self.files[self.file_index[row]].decode()

    def __getstate__(self) -> dict[str, Any]:
        # Workers get the folder's name and map the same pages; half a million people would take 200 MB each.
        left_out = _COLUMNS if self.index else ()
        return {key: value for key, value in self.__dict__.items() if key not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.index:
            self.__dict__.update(_map_columns(pathlib.Path(self.index)))


def write_index(folder: str | os.PathLike, instances: Instances) -> None:
    """Writes instances' columns into a folder, atomically; an existing folder is kept.

    Raises InputError if writing fails.
    """
    folder = pathlib.Path(folder)
    facts = {"name": instances.name, "detected": instances.detected, "dropped": dict(instances.dropped)}
    facts["digest"] = instances.digest()
    try:
        with storage.whole(folder) as partial:
            partial.mkdir()
            for column in _COLUMNS:
                np.save(partial / f"{column}.npy", getattr(instances, column))
            (partial / _FACTS).write_text(json_text({"format_version": FORMAT_VERSION, **facts}))
    except InputError:
        if not (folder / _FACTS).exists():  # otherwise another process has written the same columns
            raise


def read_index(folder: str | os.PathLike, images: ImageSource) -> Instances:
    """Maps a folder written by `write_index`. Raises InputError or ValueError if it is damaged or missing."""
    folder = pathlib.Path(folder).absolute()
    facts = read_json(folder / _FACTS)
    if facts.pop("format_version") != FORMAT_VERSION:
        raise ValueError("of another version")
    digest = facts.pop("digest")
    instances = Instances(images=images, index=str(folder), **facts, **_map_columns(folder))
    if instances.digest() != digest:
        raise ValueError("its content is not what was written")
    return instances


def _map_columns(folder: pathlib.Path) -> dict[str, Any]:
    return {column: np.load(folder / f"{column}.npy", mmap_mode="r") for column in _COLUMNS}
