"""Annotations, predictions and results as columns of arrays, checked once and in bulk.

Every error is an `InputError` that names the file, the record and what is wrong with it.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from data_pipelines.checks import FARTHEST, LARGEST, as_numbers, check_regular, check_visibility, is_crowd
from data_pipelines.errors import InputError, brief
from data_pipelines.keypoints import KeypointSet

PERSON = 1  # COCO's category

Path = str | os.PathLike[str]
Where = Callable[[int], str]  # what an error calls the record at a position


@dataclasses.dataclass(frozen=True)
class Detections:
    """n scored detections."""

    image_ids: Int[np.ndarray, " n"]
    category_ids: Int[np.ndarray, " n"]
    keypoints: Float[np.ndarray, "n k 2"]
    scores: Float[np.ndarray, " n"]
    box_areas: Float[np.ndarray, " n"]  # NaN where the box is not known
    where: Where

    @classmethod
    def read(cls, results: Path | Sequence[Any], joints: KeypointSet) -> "Detections":
        """Reads COCO results, a file or its content."""
        name, records = read_json(results, "results")
        if not isinstance(records, Sequence) or isinstance(records, str | bytes):
            raise InputError(f"{name}: not a COCO results file, which is a list of detections")

        def where(i: int) -> str:
            return f"{name}: record {i}"

        _check_mappings(records, where)
        count = len(joints)
        expected = f"{3 * count} numbers: x, y and score of the {count} keypoints of set {joints.name!r}"
        flat = _numbers(records, "keypoints", (3 * count,), expected, where)
        boxes = _boxes(records, where)
        return cls(
            image_ids=_integers(_column(records, "image_id", where), "image_id", where),
            category_ids=_integers(_column(records, "category_id", where), "category_id", where),
            keypoints=flat.reshape(-1, count, 3)[..., :2],
            scores=_numbers(records, "score", (), "a number", where),
            box_areas=boxes[:, 2] * boxes[:, 3],
            where=where,
        )

    def __len__(self) -> int:
        return len(self.scores)

    def to_pycocotools(self) -> list[dict[str, Any]]:
        """The records that pycocotools' `loadRes` would make, with arrays for keypoints."""
        if not len(self):
            return []
        extent = np.ptp(self.keypoints, axis=1)
        areas = np.where(np.isnan(self.box_areas), extent[:, 0] * extent[:, 1], self.box_areas)
        flat = np.pad(self.keypoints, ((0, 0), (0, 0), (0, 1))).reshape(len(self), -1)
        columns = (self.image_ids, self.category_ids, self.scores, areas)
        return [
            {"id": i, "image_id": image, "category_id": category, "score": score, "area": area, "keypoints": keypoints}
            for i, (keypoints, image, category, score, area) in enumerate(
                zip(flat, *(column.tolist() for column in columns), strict=True), start=1
            )
        ]


@dataclasses.dataclass(frozen=True)
class Predictions:
    """n predictions as a model makes them, one a box."""

    ids: Int[np.ndarray, " n"]
    image_ids: Int[np.ndarray, " n"]
    category_ids: Int[np.ndarray, " n"]
    keypoints: Float[np.ndarray, "n k 2"]
    keypoint_scores: Float[np.ndarray, "n k"]
    box_scores: Float[np.ndarray, " n"]
    areas: Float[np.ndarray, " n"]
    boxes: Float[np.ndarray, "n 4"]  # xyxy, NaN where not known
    where: Where

    @classmethod
    def read(cls, predictions: Sequence[Any], joints: KeypointSet) -> "Predictions":
        """Reads the records that `eval.coco.evaluate` takes."""

        def position(i: int) -> str:
            return f"prediction at position {i}"

        def where(i: int) -> str:
            return f"prediction {ids[i]}"

        _check_mappings(predictions, position)
        ids = _integers(_column(predictions, "id", position), "id", position)
        values, counts = np.unique(ids, return_counts=True)
        if (counts > 1).any():
            raise InputError(f"prediction {values[counts > 1][0]}: its id occurs more than once")
        count = len(joints)
        of_set = f"of the {count} keypoints of set {joints.name!r}"
        areas = _numbers(predictions, "area", (), "a number", where)
        if (areas < 0).any():
            raise InputError(f"{where(int(np.argmax(areas < 0)))}: area is negative")
        return cls(
            ids=ids,
            image_ids=_integers(_column(predictions, "image_id", where), "image_id", where),
            category_ids=_integers([p.get("category_id", PERSON) for p in predictions], "category_id", where),
            keypoints=_numbers(predictions, "keypoints", (count, 2), f"x and y {of_set}", where),
            keypoint_scores=_numbers(predictions, "keypoint_scores", (count,), f"a score for each {of_set}", where),
            box_scores=_numbers(predictions, "box_score", (), "a number", where),
            areas=areas,
            boxes=_boxes(predictions, where),
            where=where,
        )

    def detections(self, kept: Int[np.ndarray, " kept"], scores: Float[np.ndarray, " kept"]) -> Detections:
        """The kept ones under their final scores."""
        sides = self.boxes[kept, 2:] - self.boxes[kept, :2]
        return Detections(
            image_ids=self.image_ids[kept],
            category_ids=self.category_ids[kept],
            keypoints=self.keypoints[kept],
            scores=scores,
            box_areas=sides[:, 0] * sides[:, 1],
            where=lambda i: self.where(int(kept[i])),
        )


@dataclasses.dataclass(frozen=True)
class Annotations:
    """What a COCO file says of the people in its images.

    Attributes:
      name: the file, for errors.
      image_ids: all images, with people or without.
      category_ids: those of the detections, which alone are evaluated.
      people: records for pycocotools, our own, which it may write to.
    """

    name: str
    image_ids: list[int]
    category_ids: list[int]
    people: list[dict[str, Any]]

    @classmethod
    def read(
        cls, annotations: Path | Mapping[str, Any], joints: KeypointSet, use_area: bool, detections: Detections
    ) -> "Annotations":
        """Reads a COCO file or its content; the detections' images and categories must occur in it.

        Without `use_area` a person's area is 0.53 x its box.
        """
        name, document = read_json(annotations, "annotations")
        images = _ids(document, "images", name)
        categories = _ids(document, "categories", name)
        _check_known(detections.image_ids, images, "image_id", name, detections.where)
        _check_known(detections.category_ids, categories, "category_id", name, detections.where)
        evaluated = np.unique(detections.category_ids).tolist() or [PERSON]
        return cls(name, images, evaluated, _people(document, name, joints, use_area, set(images), set(evaluated)))


def read_json(source: Any, kind: str) -> tuple[str, Any]:
    """Returns (name for errors, content); anything but a path is content already and goes by its `kind`."""
    if not isinstance(source, str | os.PathLike):
        return kind, source
    check_regular(source)
    try:
        with open(source, encoding="utf-8-sig") as file:
            return str(source), json.load(file)
    except OSError as error:
        raise InputError(f"{source}: cannot read the {kind}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source}: the {kind} are not JSON: {' '.join(str(error).split())}") from error


def _people(
    document: Mapping[str, Any], name: str, joints: KeypointSet, use_area: bool, images: set[int], categories: set[int]
) -> list[dict[str, Any]]:
    def position(i: int) -> str:
        return f"{name}: annotation at position {i}"

    def where(i: int) -> str:
        return f"{name}: annotation {brief(records[i].get('id', f'at position {i}'))}"

    records = document["annotations"]
    _check_mappings(records, position)
    image_ids = _integers(_column(records, "image_id", where), "image_id", where)
    category_ids = _integers(_column(records, "category_id", where), "category_id", where)
    # `images` says what is evaluated: a file cut down to fewer images may still hold the others' annotations.
    records = [
        record
        for record, image, category in zip(records, image_ids.tolist(), category_ids.tolist(), strict=True)
        if image in images and category in categories
    ]
    count = len(joints)
    expected = f"{3 * count} numbers: x, y and visibility of the {count} keypoints of set {joints.name!r}"
    keypoints = _numbers(records, "keypoints", (3 * count,), expected, where, FARTHEST)
    for i, points in enumerate(keypoints.reshape(-1, count, 3)):
        check_visibility(where(i), points)
    boxes = _numbers(records, "bbox", (4,), "x, y, width and height", where, FARTHEST)
    if use_area:
        areas = _numbers(
            records, "area", (), "a number; data without areas is evaluated with use_area=False (--no-use_area)", where
        )
    else:
        areas = 0.53 * boxes[:, 2] * boxes[:, 3]
    labelled = np.count_nonzero(keypoints[:, 2::3] > 0, axis=1)
    # Fresh ids from 1: pycocotools takes a match with id 0 for none, and loses records whose ids repeat.
    return [
        {
            "id": i + 1,
            "image_id": record["image_id"],
            "category_id": record["category_id"],
            "keypoints": keypoints[i],
            "bbox": boxes[i].tolist(),
            "area": float(areas[i]),
            "iscrowd": int(is_crowd(where(i), record)),
            "num_keypoints": int(labelled[i]),
        }
        for i, record in enumerate(records)
    ]


def _ids(document: Any, key: str, name: str) -> list[int]:
    for needed in ("images", "annotations", "categories"):
        if not isinstance(document, Mapping) or not isinstance(document.get(needed), Sequence):
            raise InputError(f"{name}: not a COCO annotation file: it has no list {needed!r}")

    def where(i: int) -> str:
        return f"{name}: {key}: record {i}"

    _check_mappings(document[key], where)
    return _integers(_column(document[key], "id", where), "id", where).tolist()


def _check_known(ids: Int[np.ndarray, " n"], known: list[int], key: str, name: str, where: Where) -> None:
    unknown = ~np.isin(ids, known)
    if unknown.any():
        i = int(np.argmax(unknown))
        raise InputError(f"{where(i)}: {key} {ids[i]} does not occur in {name}")


def _check_mappings(records: Sequence[Any], where: Where) -> None:
    for i, record in enumerate(records):
        if not isinstance(record, Mapping):
            raise InputError(f"{where(i)}: expected an object with named fields, not {type(record).__name__}")


def _column(records: Sequence[Any], key: str, where: Where, expected: str = "") -> list[Any]:
    try:
        return [record[key] for record in records]
    except KeyError:
        i = next(i for i, record in enumerate(records) if key not in record)
        raise InputError(f"{where(i)}: no {key!r}" + (f"; expected {expected}" if expected else "")) from None


def _integers(values: list[Any], key: str, where: Where) -> Int[np.ndarray, " n"]:
    for i, value in enumerate(values):
        if not isinstance(value, int | np.integer) or not -(2**63) <= value < 2**63:
            raise InputError(f"{where(i)}: {key} must be an integer, not {str(value)[:40]!r}")
    return np.array(values, np.int64)


def _numbers(
    records: Sequence[Any],
    key: str,
    shape: tuple[int, ...],
    expected: str,
    where: Where,
    largest: float = LARGEST,
) -> Float[np.ndarray, "n ..."]:
    """The field as float64 [n, *shape], finite and at most `largest`."""
    return _array(_column(records, key, where, expected), key, shape, expected, where, largest)


def _boxes(records: Sequence[Any], where: Where) -> Float[np.ndarray, "n 4"]:
    """The field `bbox`; NaN where it is absent, None or empty."""
    values = [record.get("bbox") for record in records]
    boxes = np.full((len(values), 4), np.nan)
    known = [i for i, box in enumerate(values) if box is not None and not (isinstance(box, Sized) and len(box) == 0)]
    boxes[known] = _array([values[i] for i in known], "bbox", (4,), "four numbers", lambda i: where(known[i]))
    return boxes


def _array(
    values: list[Any], key: str, shape: tuple[int, ...], expected: str, where: Where, largest: float = LARGEST
) -> np.ndarray:
    if not values:
        return np.zeros((0, *shape))
    array = as_numbers(values)
    if array is None or array.shape[1:] != shape:
        for i, value in enumerate(values):
            row = as_numbers(value)
            if row is None or row.shape != shape:
                found = "something else" if row is None else f"{row.size} numbers of shape {row.shape}"
                raise InputError(f"{where(i)}: {key}: expected {expected}, not {found}")
    assert array is not None
    finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
    if not finite.all():
        raise InputError(f"{where(int(np.argmin(finite)))}: {key} holds a number that is NaN or infinite, or a null")
    sizes = np.abs(array).reshape(len(array), -1).max(axis=1)
    if sizes.max() > largest:
        raise InputError(f"{where(int(sizes.argmax()))}: {key} holds a number that is too large: {sizes.max():g}")
    return array
