"""Files of person boxes, by the images they are on: annotations, detections, tables.

Images are known by their file name below the image folder. Names that a file gives are only ever compared with those
of images that the folder holds; none is opened.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np

from data_pipelines.checks import FARTHEST, check_name, check_regular
from data_pipelines.coco_files import PERSON, AnnotationFile, is_aic, read_results
from data_pipelines.errors import InputError, brief
from data_pipelines.json_files import stream_json
from data_pipelines.keypoints import KeypointSet

_COCO_KEYS = ("info", "licenses", "images", "annotations", "categories")


@dataclasses.dataclass
class BoxFile:
    """The boxes of some images.

    Attributes:
      annotated: whether people drew the boxes, which are then clipped as in an evaluation.
      boxes: (xywh, score) by image: its name, or the id that detections call it by; the numbers are unchecked.
      same: xywh [N,4] on every image, of a file that is not by image.
      ids: the images' ids by name, where an annotation file tells them.
      truth: keypoints [K,3] with visibility by image name, for everybody who is annotated.
    """

    annotated: bool = False
    boxes: dict[str | int, list[tuple[Any, float]]] = dataclasses.field(default_factory=dict)
    same: np.ndarray | None = None
    ids: dict[str, int] = dataclasses.field(default_factory=dict)
    truth: dict[str, list[np.ndarray]] = dataclasses.field(default_factory=dict)

    def of(self, name: str) -> tuple[Any, list[float]]:
        """The boxes [N,4] of an image and their scores; none for an image that the file does not know."""
        if self.same is not None:
            return self.same, [1.0] * len(self.same)
        stem = pathlib.PurePath(name).stem
        # COCO's file names are the ids, padded with zeros.
        number = self.ids.get(name) if self.ids else int(stem) if stem.isdecimal() else None
        found = self.boxes.get(name, []) + (self.boxes.get(number, []) if number is not None else [])
        return [box for box, _ in found], [score for _, score in found]


def read_boxes(path: str, labels: KeypointSet, annotations: str = "", threshold: float = 0.0) -> BoxFile:
    """Reads a file of boxes, xywh in image pixels.

    Args:
      path: a COCO or AI Challenger annotation file; a list of detections, COCO's result format, where `file_name` may
        stand for `image_id`; a JSON object of boxes by file name (by frame number, of a video); or an .npy array
        [N,4] of boxes that are on every image.
      labels: the keypoint set of the annotations.
      annotations: tells detections' image ids and the true keypoints. Without it, an id is the number that the
        image is called by.
      threshold: detections with a lower score are left out.

    Raises:
      InputError: when a file is none of these, names a file outside of the image folder, or holds a record that is no
        box or no list of K keypoints.
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
        # Files of all categories (instances_*.json) have no keypoints.
        shown = ~people.crowds() & (people.annotated() | (people.integers("category_id", PERSON) == PERSON))
        people = people.chosen(shown)
        boxes, annotated = people.boxes().tolist(), people.annotated()
        points = iter(people.chosen(annotated).keypoints(labels))
        truth = [next(points) if there else None for there in annotated]
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
        # Mapped, because a damaged header may claim any size.
        array = np.array(np.lib.format.open_memmap(path, mode="r"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:  # NumPy parses the header with Python's own parser
        raise InputError(f"{path}: not an array of numbers ({' '.join(str(error).split())[:200]})") from None
    if array.dtype.kind not in "iuf" or array.ndim != 2 or array.shape[1] != 4:
        raise InputError(f"{path}: {array.dtype} {list(array.shape)}; boxes are numbers [N, 4], xywh")
    for number, box in enumerate(array.astype(np.float64)):
        if not (np.abs(box) <= FARTHEST).all() or min(box[2:]) <= 0:
            raise InputError(f"{path}: box {number}: {box.tolist()} (xywh) has no area, or lies outside of any image")
    return array
