"""Reads files of person boxes: annotations, detections, tables.

Images are identified by their file name relative to the image folder. Names in a file of boxes are only compared with
the names of images in the folder; no file is opened by them.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np

from data_pipelines.checks import check_boxes, check_name, check_regular
from data_pipelines.coco_files import PERSON, AnnotationFile, is_aic, read_results
from data_pipelines.errors import InputError, brief
from data_pipelines.json_files import stream_json
from data_pipelines.keypoints import KeypointSet

_COCO_KEYS = ("info", "licenses", "images", "annotations", "categories")


@dataclasses.dataclass
class BoxFile:
    """The boxes of some images.

    Attributes:
      annotated: whether the boxes are annotations, which are clipped to the image as in an evaluation.
      boxes: (xywh, score) by image: by its name, or by the image id of detections; the numbers are unchecked.
      same: xywh [N,4] for every image, if the file does not assign boxes to images.
      ids: image ids by name, if an annotation file gives them.
      truth: annotated keypoints [K,3] with visibility, by image name.
    """

    annotated: bool = False
    boxes: dict[str | int, list[tuple[Any, float]]] = dataclasses.field(default_factory=dict)
    same: np.ndarray | None = None
    ids: dict[str, int] = dataclasses.field(default_factory=dict)
    truth: dict[str, list[np.ndarray]] = dataclasses.field(default_factory=dict)

    def of(self, name: str) -> tuple[Any, list[float]]:
        """The boxes [N,4] of an image and their scores; none if the file has none for it."""
        if self.same is not None:
            return self.same, [1.0] * len(self.same)
        stem = pathlib.PurePath(name).stem
        # COCO's file names are the ids padded with zeros.
        number = self.ids.get(name) if self.ids else int(stem) if stem.isdecimal() else None
        found = self.boxes.get(name, []) + (self.boxes.get(number, []) if number is not None else [])
        return [box for box, _ in found], [score for _, score in found]


def read_boxes(path: str, labels: KeypointSet, annotations: str = "", threshold: float = 0.0) -> BoxFile:
    """Reads a file of boxes, xywh in image pixels.

    Args:
      path: a COCO or AI Challenger annotation file; a list of detections in COCO's result format, in which `file_name`
        may replace `image_id`; a JSON object of boxes by file name (by frame number for a video); or an .npy array
        [N,4] of boxes for every image.
      labels: the keypoint set of the annotations.
      annotations: an annotation file with the image ids of the detections and the true keypoints. Without it, an
        image's id is the number in its file name.
      threshold: detections with a lower score are left out.

    Raises:
      InputError: a file has none of these formats, names a file outside the image folder, or has a record without a
        valid box or without K keypoints.
    """
    file = BoxFile(same=_array(path)) if path.endswith(".npy") else _read(path, labels, threshold)
    if annotations:
        known = _annotated(annotations, labels)
        file.ids, file.truth = known.ids, known.truth
    return file


def _read(path: str, labels: KeypointSet, threshold: float) -> BoxFile:
    file = BoxFile()
    for key, piece in stream_json(path):
        if key in _COCO_KEYS or is_aic(key, piece):
            return _annotated(path, labels)
        if key == "":
            return _detected(path, threshold)
        file.boxes.setdefault(check_name(f"{path}:", key), []).append((piece, 1.0))
    return file


def _annotated(path: str, labels: KeypointSet) -> BoxFile:
    annotations = AnnotationFile(path)
    rows: list[tuple[int, list[float], np.ndarray | None]] = []
    for people in annotations.people():
        image_ids = people.image_ids()
        # Files with all categories (instances_*.json) have no keypoints.
        shown = ~people.crowds() & (people.annotated() | (people.integers("category_id", PERSON) == PERSON))
        people = people.chosen(shown)
        boxes = people.boxes().tolist()
        points = zip(people.keypoints(labels), people.annotated(), strict=True)
        truth = [table if annotated else None for table, annotated in points]
        rows += zip(image_ids[shown].tolist(), boxes, truth, strict=True)
    names = annotations.names()
    file = BoxFile(annotated=True, ids={name: number for number, name in names.items()})
    file.truth = {name: [] for name in names.values()}
    for image_id, box, table in rows:
        file.boxes.setdefault(names[image_id], []).append((box, 1.0))
        if table is not None:
            file.truth[names[image_id]].append(table)
    return file


def _detected(path: str, threshold: float) -> BoxFile:
    file, found = BoxFile(), read_results(path, "detection")
    scores = found.numbers("score", (), "a number", default=1.0)
    kept = (found.integers("category_id", PERSON) == PERSON) & (scores >= threshold)
    images = [record.get("file_name", record.get("image_id")) for record in found.items]
    for i, image in enumerate(images):
        if isinstance(image, str):
            check_name(f"{found.where(i)}: file_name", image)
        elif not isinstance(image, int):
            raise InputError(f"{found.where(i)}: needs an 'image_id' or a 'file_name', not {brief(repr(image))}")
    for row, box in zip(np.flatnonzero(kept).tolist(), found.chosen(kept).boxes().tolist(), strict=True):
        file.boxes.setdefault(images[row], []).append((box, float(scores[row])))
    return file


def _array(path: str) -> np.ndarray:
    check_regular(path)
    try:
        # Memory-mapped, because a damaged header may declare any size.
        array = np.array(np.lib.format.open_memmap(path, mode="r"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:  # NumPy parses the header with Python's parser, which raises many types
        raise InputError(f"{path}: not an array of numbers ({' '.join(str(error).split())[:200]})") from None
    return check_boxes(array, path)
