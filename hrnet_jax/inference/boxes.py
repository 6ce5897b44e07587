"""Files of person boxes, by the images they are on: annotations, detections, tables.

Images are known by their file name below the image folder. Names that a file gives are only ever compared with those
of images that the folder holds; none is opened.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float

from data_pipelines.annotations import coco_annotations
from data_pipelines.checks import FARTHEST, LARGEST, as_numbers, check_regular, check_visibility, is_crowd
from data_pipelines.errors import InputError, brief
from data_pipelines.images import check_name
from data_pipelines.json_files import stream_json
from data_pipelines.keypoints import KeypointSet

PERSON = 1  # COCO's category

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
        known = _read(annotations, labels, threshold)
        if not known.annotated:
            raise InputError(f"{annotations}: not an annotation file (no lists 'images' and 'annotations')")
        file.ids, file.truth = known.ids, known.truth
    return file


def _read(path: str, labels: KeypointSet, threshold: float) -> BoxFile:
    file, people, names = BoxFile(), [], {}
    counts = collections.Counter[str]()
    for key, piece in _pieces(path, labels):
        where = f"{path}: {brief(key) or 'detection'} {counts[key]}"
        counts[key] += 1
        if key in ("images", "annotations", "") and not isinstance(piece, dict):
            raise InputError(f"{where}: not an object; a detection needs 'image_id' or 'file_name', 'bbox' and 'score'")
        if key == "images":
            names[_integer(where, "id", piece)] = check_name(where, str(piece.get("file_name")))
        elif key == "annotations":
            people.append((where, piece))
        elif key == "":
            _add_detection(file, where, piece, threshold)
        elif key not in _COCO_KEYS:
            file.boxes.setdefault(check_name(where, key), []).append((piece, 1.0))
    if not names:
        return file
    file = BoxFile(annotated=True, ids={name: number for number, name in names.items()})
    file.truth = {name: [] for name in names.values()}
    for where, person in people:
        _add_person(file, where, person, names, labels)
    return file


def _pieces(path: str, labels: KeypointSet) -> Iterator[tuple[str, Any]]:
    pieces = stream_json(path)
    first = next(pieces, None)
    if first is None:
        return
    if first[0] == "" and isinstance(first[1], dict) and "human_annotations" in first[1]:
        content = coco_annotations(path, labels)
        assert isinstance(content, dict)
        for key in ("images", "annotations"):
            yield from ((key, element) for element in content[key])
        return
    yield first
    yield from pieces


def _add_detection(file: BoxFile, where: str, detection: dict[str, Any], threshold: float) -> None:
    score = detection.get("score", 1.0)
    if not isinstance(score, (int, float)) or not abs(score) <= LARGEST:
        raise InputError(f"{where}: 'score' is {brief(repr(score))}, not a number that float32 can hold")
    image = detection.get("file_name", detection.get("image_id"))
    if isinstance(image, str):
        image = check_name(where, image)
    elif not isinstance(image, int):
        raise InputError(f"{where}: a detection needs an 'image_id' or a 'file_name'; this has {brief(repr(image))}")
    if detection.get("category_id", PERSON) == PERSON and score >= threshold:
        file.boxes.setdefault(image, []).append((_box(where, detection), float(score)))


def _add_person(file: BoxFile, where: str, person: dict[str, Any], names: dict[int, str], labels: KeypointSet) -> None:
    image_id, points = _integer(where, "image_id", person), person.get("keypoints")
    if image_id not in names:
        raise InputError(f"{where}: image_id {image_id} is not among the file's images")
    # Files of all categories (instances_*.json) have no keypoints.
    if is_crowd(where, person) or (points is None and person.get("category_id", PERSON) != PERSON):
        return
    file.boxes.setdefault(names[image_id], []).append((_box(where, person), 1.0))
    if points is None:
        return
    numbers = as_numbers(points)
    if numbers is None or numbers.size % 3:
        raise InputError(f"{where}: 'keypoints' is not a list of (x, y, visibility)")
    table: Float[np.ndarray, "k 3"] = numbers.reshape(-1, 3)
    if len(table) != len(labels):
        raise InputError(
            f"{where}: {len(table)} keypoints, not the {len(labels)} of the set {labels.name!r} "
            "(--config.data.eval.keypoints)"
        )
    if not (np.abs(table) <= FARTHEST).all():
        odd = next(v for v in table.ravel().tolist() if not abs(v) <= FARTHEST)
        raise InputError(f"{where}: 'keypoints' holds a number that is not finite or too large: {odd:g}")
    check_visibility(where, table)
    file.truth[names[image_id]].append(table)


def _box(where: str, record: dict[str, Any]) -> Any:
    numbers = as_numbers(record.get("bbox"))
    if numbers is None or numbers.shape != (4,) or not (np.abs(numbers) <= FARTHEST).all():
        value = brief(repr(record.get("bbox")))
        raise InputError(f"{where}: 'bbox' is {value}, not x, y, width and height of at most {FARTHEST:g} pixels")
    return record["bbox"]


def _integer(where: str, key: str, record: dict[str, Any]) -> int:
    if not isinstance(record.get(key), int):
        raise InputError(f"{where}: {key!r} is {brief(repr(record.get(key)))}, not an integer")
    return record[key]


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
