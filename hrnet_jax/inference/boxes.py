"""Reads files of person boxes: annotations, detections, tables.

Images are identified by their file name relative to the image folder. Names in a file of boxes are only compared with
the names of images in the folder; no file is opened by them.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipelines.checks import check_boxes, check_regular
from data_pipelines.coco_files import PERSON, AnnotationFile, is_aic
from data_pipelines.detections import read_detections
from data_pipelines.errors import InputError
from data_pipelines.json_files import stream_json
from data_pipelines.keypoints import KeypointSet

_COCO_KEYS = ("info", "licenses", "images", "annotations", "categories")


@dataclasses.dataclass
class BoxFile:
    """The boxes of some images.

    Attributes:
      annotated: whether the boxes are annotations, which are clipped to the image as in an evaluation.
      boxes: (xywh, score) by image: by its name, with or without suffix, or by the image id of detections.
      same: xywh [N,4] for every image, if the file does not assign boxes to images.
      ids: image ids by name, if an annotation file gives them.
      truth: annotated keypoints [K,3] with visibility, by image name.
      relative: whether boxes are shares of the image's width and height instead of pixels.
      frames: whether numbers of images count frames from 1.
    """

    annotated: bool = False
    boxes: dict[str | int, list[tuple[Any, float]]] = dataclasses.field(default_factory=dict)
    same: np.ndarray | None = None
    ids: dict[str, int] = dataclasses.field(default_factory=dict)
    truth: dict[str, list[np.ndarray]] = dataclasses.field(default_factory=dict)
    relative: bool = False
    frames: bool = False

    def of(self, name: str, size: tuple[int, int] = (1, 1)) -> tuple[Any, list[float]]:
        """The boxes [N,4] of an image of size (height, width) and their scores; none if the file has none for it."""
        if self.same is not None:
            return self.same, [1.0] * len(self.same)
        whole, suffix = os.path.splitext(name)
        stem = os.path.basename(whole)
        # COCO's file names are the ids padded with zeros.
        number = self.ids.get(name) if self.ids and not self.frames else int(stem) if stem.isdecimal() else None
        if self.frames and number is not None and not suffix:
            number += 1  # frames of a video count from 0 here
        keys = dict.fromkeys(key for key in (name, whole, stem, number) if key is not None)
        found = [pair for key in keys for pair in self.boxes.get(key, [])]
        zoom = np.array([size[1], size[0]] * 2) if self.relative else None
        return [box if zoom is None else (box * zoom).tolist() for box, _ in found], [score for _, score in found]

    def unknown(self, names: Sequence[str]) -> list[str]:
        """The names in the file that match no image, even without suffix or folder."""
        wholes = [os.path.splitext(name)[0] for name in names]
        known = {*names, *wholes, *map(os.path.basename, wholes)}
        return sorted(name for name in self.boxes if isinstance(name, str) and name not in known)


def read_boxes(
    path: str, labels: KeypointSet, annotations: str = "", threshold: float = 0.0, box_format: str = "xywh"
) -> BoxFile:
    """Reads a file of boxes.

    Args:
      path: a COCO or AI Challenger annotation file; a file or folder of a format in `data_pipelines.detections`, where
        a video's images are called by frame numbers from 0; or an .npy array [N,4] of boxes for every image.
      labels: the keypoint set of the annotations.
      annotations: an annotation file with the image ids of the detections and the true keypoints. Without it, an
        image's id is the number in its file name.
      threshold: detections with a lower score are left out.
      box_format: "xywh" or "xyxy", of detections, boxes by file name and arrays.

    Raises:
      InputError: a file has none of these formats, names a file outside the image folder, or has a record without a
        valid box or without K keypoints.
    """
    file = _read(path, labels, threshold, box_format)
    if annotations:
        known = _annotated(annotations, labels)
        file.ids, file.truth = known.ids, known.truth
    return file


def _read(path: str, labels: KeypointSet, threshold: float, box_format: str) -> BoxFile:
    if path.endswith(".npy"):
        return BoxFile(same=_array(path, box_format))
    if not os.path.isdir(path) and not path.lower().endswith(".txt"):
        key, piece = next(stream_json(path), ("", None))
        if key in _COCO_KEYS or is_aic(key, piece):
            return _annotated(path, labels)
    return _detected(path, threshold, box_format)


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


def _detected(path: str, threshold: float, box_format: str) -> BoxFile:
    found = read_detections(path, box_format=box_format)
    file = BoxFile(relative=found.relative, frames=found.frames)
    scores = np.where(np.isnan(found.scores), 1.0, found.scores)
    for image, box, score in zip(found.images, found.boxes.tolist(), scores.tolist(), strict=True):
        if score >= threshold:
            file.boxes.setdefault(image, []).append((box, score))
    return file


def _array(path: str, box_format: str) -> np.ndarray:
    check_regular(path)
    try:
        # Memory-mapped, because a damaged header may declare any size.
        array = np.array(np.lib.format.open_memmap(path, mode="r"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:  # NumPy parses the header with Python's parser, which raises many types
        raise InputError(f"{path}: not an array of numbers ({' '.join(str(error).split())[:200]})") from None
    return check_boxes(array, path, box_format)
