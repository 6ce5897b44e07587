"""Annotations, predictions and results as columns of arrays, checked once and in bulk.

Every error is an `InputError` that names the file, the record and what is wrong with it.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from data_pipelines.checks import Records
from data_pipelines.coco_files import PERSON, AnnotationFile, Path, read_results
from data_pipelines.errors import InputError
from data_pipelines.keypoints import KeypointSet

# COCO's ten numbers, in pycocotools' order; here, where their names do not cost the import of pycocotools.
METRICS = ("AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL")


@dataclasses.dataclass(frozen=True)
class Detections:
    """n scored detections."""

    image_ids: Int[np.ndarray, " n"]
    category_ids: Int[np.ndarray, " n"]
    keypoints: Float[np.ndarray, "n k 2"]
    scores: Float[np.ndarray, " n"]
    box_areas: Float[np.ndarray, " n"]  # NaN where the box is not known
    where: Callable[[int], str]  # what an error calls the record at a position

    @classmethod
    def read(cls, results: Path | Sequence[Any], joints: KeypointSet) -> "Detections":
        """Reads COCO results, a file or its content."""
        records = read_results(results)
        count = len(joints)
        expected = f"x, y and score of the {count} keypoints of set {joints.name!r}"
        boxes = _boxes(records)
        return cls(
            image_ids=records.integers("image_id"),
            category_ids=records.integers("category_id"),
            keypoints=records.numbers("keypoints", (3 * count,), expected).reshape(-1, count, 3)[..., :2],
            scores=records.numbers("score", (), "a number"),
            box_areas=boxes[:, 2] * boxes[:, 3],
            where=records.where,
        )

    def __len__(self) -> int:
        return len(self.scores)

    def check(self, annotations: AnnotationFile) -> None:
        """Raises InputError when an image or a category of a detection is not in an annotation file."""
        for key, ids, known in (
            ("image_id", self.image_ids, list(annotations.images)),
            ("category_id", self.category_ids, annotations.categories()),
        ):
            if not (found := np.isin(ids, known)).all():
                i = int(found.argmin())
                raise InputError(f"{self.where(i)}: {key} {ids[i]} does not occur in {annotations.name}")

    def to_pycocotools(self) -> list[dict[str, Any]]:
        """The records that pycocotools' `loadRes` would make, with arrays for keypoints."""
        if not len(self):
            return []
        extent = np.ptp(self.keypoints, axis=1)
        areas = np.where(np.isnan(self.box_areas), extent[:, 0] * extent[:, 1], self.box_areas)
        flat = np.pad(self.keypoints, ((0, 0), (0, 0), (0, 1))).reshape(len(self), -1)
        return _rows(
            image_id=self.image_ids, category_id=self.category_ids, score=self.scores, area=areas, keypoints=flat
        )


@dataclasses.dataclass(frozen=True)
class Predictions:
    """n predictions as a model makes them, one a box."""

    ids: Int[np.ndarray, " n"]
    areas: Float[np.ndarray, " n"]
    keypoint_scores: Float[np.ndarray, "n k"]
    detections: Detections  # under their boxes' scores

    @classmethod
    def read(cls, predictions: Sequence[Any], joints: KeypointSet) -> "Predictions":
        """Reads the records that `eval.coco.evaluate` takes."""
        ids = Records(predictions, lambda i, _: f"prediction at position {i}").integers("id")
        records = Records(predictions, lambda i, _: f"prediction {ids[i]}")
        values, counts = np.unique(ids, return_counts=True)
        if (counts > 1).any():
            raise InputError(f"prediction {values[counts > 1][0]}: its id occurs more than once")
        count = len(joints)
        of_set = f"of the {count} keypoints of set {joints.name!r}"
        areas = records.numbers("area", (), "a number")
        if (areas < 0).any():
            raise InputError(f"{records.where(int(np.argmax(areas < 0)))}: 'area' is negative")
        boxes = _boxes(records)
        detections = Detections(
            image_ids=records.integers("image_id"),
            category_ids=records.integers("category_id", PERSON),
            keypoints=records.numbers("keypoints", (count, 2), f"x and y {of_set}"),
            scores=records.numbers("box_score", (), "a number"),
            box_areas=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
            where=records.where,
        )
        scores = records.numbers("keypoint_scores", (count,), f"a score for each {of_set}")
        return cls(ids, areas, scores, detections)

    def chosen(self, kept: Int[np.ndarray, " kept"], scores: Float[np.ndarray, " kept"]) -> Detections:
        """The kept ones under their final scores."""
        found = self.detections
        return Detections(
            image_ids=found.image_ids[kept],
            category_ids=found.category_ids[kept],
            keypoints=found.keypoints[kept],
            scores=scores,
            box_areas=found.box_areas[kept],
            where=lambda i: found.where(int(kept[i])),
        )


@dataclasses.dataclass(frozen=True)
class Annotations:
    """What an annotation file says of the n people in its images.

    Attributes:
      images: ids of all images, with people or without.
      categories: ids of those of the detections, which alone are evaluated.
      image_ids: of the people, as all that follow.
      category_ids: of the people.
      boxes: xywh in image pixels.
      areas: square pixels.
      keypoints: x, y in image pixels and visibility.
      crowds: who is a crowd.
    """

    images: list[int]
    categories: list[int]
    image_ids: Int[np.ndarray, " n"]
    category_ids: Int[np.ndarray, " n"]
    boxes: Float[np.ndarray, "n 4"]
    areas: Float[np.ndarray, " n"]
    keypoints: Float[np.ndarray, "n k 3"]
    crowds: Bool[np.ndarray, " n"]

    @classmethod
    def read(
        cls, annotations: Path | Mapping[str, Any], joints: KeypointSet, use_area: bool, detections: Detections
    ) -> "Annotations":
        """Reads an annotation file, or COCO's content of one; the detections' images and categories must occur in it.

        Without `use_area` a person's area is 0.53 x its box.
        """
        file = AnnotationFile(annotations)
        evaluated = np.unique(detections.category_ids).tolist() or [PERSON]
        columns = []
        for people in file.people():
            # `images` says what is evaluated: a file cut down to fewer images may still hold the others' annotations.
            images, categories = people.integers("image_id"), people.integers("category_id")
            counted = np.isin(images, list(file.images)) & np.isin(categories, evaluated)
            people = people.chosen(counted)
            keypoints, boxes = people.keypoints(joints), people.boxes()
            expected = "a number; data without areas is evaluated with use_area=False (--no-use_area)"
            areas = people.numbers("area", (), expected) if use_area else 0.53 * boxes[:, 2] * boxes[:, 3]
            columns.append((images[counted], categories[counted], boxes, areas, keypoints, people.crowds()))
        file.require("annotations")
        file.require("categories")
        detections.check(file)
        return cls(list(file.images), evaluated, *(np.concatenate(column) for column in zip(*columns, strict=True)))

    @functools.cached_property
    def counted(self) -> Bool[np.ndarray, " n"]:
        """Who has labelled keypoints and is no crowd."""
        return (self.keypoints[..., 2] > 0).any(axis=1) & ~self.crowds

    def to_pycocotools(self) -> list[dict[str, Any]]:
        """Records for pycocotools, which it may write to."""
        return _rows(
            image_id=self.image_ids,
            category_id=self.category_ids,
            keypoints=self.keypoints.reshape(len(self.keypoints), -1),
            bbox=self.boxes,
            area=self.areas,
            iscrowd=self.crowds.astype(int),
            num_keypoints=np.count_nonzero(self.keypoints[..., 2] > 0, axis=1),
        )


def _rows(**columns: np.ndarray) -> list[dict[str, Any]]:
    """Columns as records; only vectors stay arrays.

    Their ids start at 1: pycocotools takes a match with id 0 for none, and loses records whose ids repeat.
    """
    values = [column.tolist() if column.ndim == 1 else column for column in columns.values()]
    names = ("id", *columns)
    return [dict(zip(names, row, strict=True)) for row in zip(range(1, len(values[0]) + 1), *values, strict=True)]


def _boxes(records: Records) -> Float[np.ndarray, "n 4"]:
    """The field `bbox`; NaN where it is absent, None or empty."""
    boxes = [record.get("bbox") for record in records.items]
    known = np.array([not (box is None or (isinstance(box, Sized) and len(box) == 0)) for box in boxes], bool)
    table = np.full((len(records), 4), np.nan)
    table[known] = records.chosen(known).numbers("bbox", (4,), "four numbers")
    return table
