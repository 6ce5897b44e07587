"""Detections and annotations as columns of arrays, checked in bulk.

Every error is an `InputError` that names the file, the record and the problem.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from data_pipelines.checks import Records, from_corners
from data_pipelines.coco_files import AREA_SHARE, PERSON, AnnotationFile, Path, no_keypoints, read_results
from data_pipelines.errors import InputError
from data_pipelines.keypoints import KeypointSet

# COCO's ten numbers, in pycocotools' order; here, where their names do not cost the import of pycocotools.
METRICS = ("AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL")


@dataclasses.dataclass(frozen=True, eq=False)
class Detections:
    """n detected people.

    Attributes:
      image_ids: ids of their images.
      category_ids: ids of their categories.
      keypoints: x, y in image pixels.
      keypoint_scores: scores of the keypoints.
      scores: scores of the people.
      boxes: xywh in image pixels; NaN where the box is unknown.
      where: returns the name, for messages, of the record at a position.
    """

    image_ids: Int[np.ndarray, " n"]
    category_ids: Int[np.ndarray, " n"]
    keypoints: Float[np.ndarray, "n k 2"]
    keypoint_scores: Float[np.ndarray, "n k"]
    scores: Float[np.ndarray, " n"]
    boxes: Float[np.ndarray, "n 4"]
    where: Callable[[int], str]

    @classmethod
    def from_results(cls, results: Path | Sequence[Any], joints: KeypointSet) -> Detections:
        """Reads COCO results, a file or its content."""
        records = read_results(results)
        count = len(joints)
        expected = f"x, y and score of the {count} keypoints of set {joints.name!r}"
        table = records.numbers("keypoints", (3 * count,), expected).reshape(-1, count, 3)
        return Detections(
            image_ids=records.integers("image_id"),
            category_ids=records.integers("category_id"),
            keypoints=table[..., :2],
            keypoint_scores=table[..., 2],
            scores=records.numbers("score", (), "a number"),
            boxes=_boxes(records),
            where=records.where,
        )

    def __len__(self) -> int:
        return len(self.scores)

    def check(self, truth: Annotations) -> None:
        """Raises InputError if the annotation file lacks an image or a category of a detection."""
        for key, ids, known in (
            ("image_id", self.image_ids, truth.images),
            ("category_id", self.category_ids, truth.known_categories),
        ):
            if not (found := np.isin(ids, known)).all():
                i = int(found.argmin())
                raise InputError(f"{self.where(i)}: {key} {ids[i]} does not occur in {truth.name}")

    def to_pycocotools(self) -> list[dict[str, Any]]:
        """The records that pycocotools' `loadRes` would make, with arrays for keypoints."""
        if not len(self):
            return []
        extent, size = np.ptp(self.keypoints, axis=1), self.boxes[:, 2:]
        areas = np.where(np.isnan(size[:, 0]), extent[:, 0] * extent[:, 1], size[:, 0] * size[:, 1])
        flat = np.pad(self.keypoints, ((0, 0), (0, 0), (0, 1))).reshape(len(self), -1)
        return _rows(
            image_id=self.image_ids, category_id=self.category_ids, score=self.scores, area=areas, keypoints=flat
        )

    def to_results(self) -> list[dict[str, Any]]:
        """COCO results of plain Python numbers; `bbox` only where the box is known."""
        flat = np.concatenate([self.keypoints, self.keypoint_scores[..., None]], axis=-1).reshape(len(self), -1)
        columns = (self.image_ids, self.category_ids, flat, self.scores, self.boxes)
        results = []
        for image_id, category_id, keypoints, score, box in zip(*(c.tolist() for c in columns), strict=True):
            result = {"image_id": image_id, "category_id": category_id, "keypoints": keypoints, "score": score}
            results.append(result if np.isnan(box[0]) else {**result, "bbox": box})
        return results


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions(Detections):
    """n predictions of a model, one per box.

    Attributes:
      ids: distinct.
      box_scores: scores of the boxes; they are also the `scores` of predictions that were not selected yet.
      areas: of the padded boxes with the crop's aspect ratio, in square pixels.
    """

    ids: Int[np.ndarray, " n"]
    box_scores: Float[np.ndarray, " n"]
    areas: Float[np.ndarray, " n"]

    @classmethod
    def from_records(cls, predictions: Sequence[Any], joints: KeypointSet) -> Predictions:
        """Reads the records that `eval.coco.evaluate` accepts."""
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
        scores = records.numbers("box_score", (), "a number")
        return cls(
            image_ids=records.integers("image_id"),
            category_ids=records.integers("category_id", PERSON),
            keypoints=records.numbers("keypoints", (count, 2), f"x and y {of_set}"),
            keypoint_scores=records.numbers("keypoint_scores", (count,), f"a score for each {of_set}"),
            scores=scores,
            boxes=from_corners(_boxes(records)),
            where=records.where,
            ids=ids,
            box_scores=scores,
            areas=areas,
        )

    def chosen(self, rows: Int[np.ndarray, " m"], scores: Float[np.ndarray, " m"]) -> Predictions:
        """The predictions at some positions, with these scores."""
        columns = {**_chosen(self, rows), "scores": scores}
        return dataclasses.replace(self, **columns, where=lambda i: self.where(int(rows[i])))


@dataclasses.dataclass(frozen=True, eq=False)
class Annotations:
    """The n people that an annotation file has in its images.

    Attributes:
      name: the file's, for messages.
      images: ids of all images, with or without people.
      known_categories: ids of all categories of the file.
      categories: ids of the categories that are evaluated.
      ids: of the people; positions in the file if it gives none.
      image_ids: ids of their images.
      category_ids: ids of their categories.
      boxes: xywh in image pixels.
      areas: square pixels.
      keypoints: x, y in image pixels and visibility.
      crowds: whether each is a crowd.
    """

    name: str
    images: list[int]
    known_categories: list[int]
    categories: list[int]
    ids: Int[np.ndarray, " n"]
    image_ids: Int[np.ndarray, " n"]
    category_ids: Int[np.ndarray, " n"]
    boxes: Float[np.ndarray, "n 4"]
    areas: Float[np.ndarray, " n"]
    keypoints: Float[np.ndarray, "n k 3"]
    crowds: Bool[np.ndarray, " n"]

    @classmethod
    def read(
        cls,
        annotations: Path | Mapping[str, Any],
        joints: KeypointSet,
        use_area: bool,
        detections: Detections | None = None,
    ) -> Annotations:
        """Reads an annotation file, or the content of a COCO file.

        People whom the file annotates without keypoints are unlabelled; those who have no box either are left out.

        Args:
          annotations: a COCO or AI Challenger file. Annotations of images that the file does not list are left out.
          joints: the keypoint set of the annotations.
          use_area: whether a person's area is the annotation's; otherwise it is 0.53 x its box.
          detections: their categories are evaluated, and their images and categories must be in the file; None: the
            categories that have keypoints are evaluated.
        """
        file = AnnotationFile(annotations)
        categories = None if detections is None else np.unique(detections.category_ids).tolist() or [PERSON]
        chunks, there, occurring = [], [], set[int]()
        for people in file.people():
            category_ids = people.integers("category_id", PERSON)
            occurring |= set(category_ids.tolist())
            image_ids, has_keypoints = people.integers("image_id"), people.annotated()
            read = np.array([image_id in file.images for image_id in image_ids.tolist()], bool)
            read &= has_keypoints | people.has("bbox")
            if categories:
                read &= np.isin(category_ids, categories)
            people = people.chosen(read)
            boxes = people.boxes()
            areas = people.areas() if use_area else AREA_SHARE * boxes[:, 2] * boxes[:, 3]
            ids = people.ids(), image_ids[read], category_ids[read]
            chunks.append((*ids, boxes, areas, people.keypoints(joints), people.crowds()))
            there.append(has_keypoints[read])
        file.require("annotations")
        columns, annotated = [np.concatenate(column) for column in zip(*chunks, strict=True)], np.concatenate(there)
        if len(annotated) and not annotated.any():
            raise no_keypoints(file.name, joints)
        if categories is None:
            categories = np.unique(columns[2][annotated]).tolist()
            columns = [column[np.isin(columns[2], categories)] for column in columns]
        known = file.categories() if file.native or "categories" in file.lists else sorted(occurring)
        truth = cls(file.name, list(file.images), known, categories, *columns)
        if detections is not None:
            detections.check(truth)
        if (lacking := np.isnan(truth.areas)).any():
            raise InputError(
                f"{file.name}: annotation {truth.ids[lacking.argmax()]}: no 'area'; set use_area=False to use 0.53 x "
                "the box (--config.eval.use_area=False, or --no-use_area of eval.coco)"
            )
        return truth

    def __len__(self) -> int:
        return len(self.ids)

    @functools.cached_property
    def counted(self) -> Bool[np.ndarray, " n"]:
        """Whether each has labelled keypoints and is not a crowd."""
        return (self.keypoints[..., 2] > 0).any(axis=1) & ~self.crowds

    def chosen(self, rows: Int[np.ndarray, " m"]) -> Annotations:
        """Some of the people."""
        return dataclasses.replace(self, **_chosen(self, rows))

    def to_pycocotools(self) -> list[dict[str, Any]]:
        """Records for pycocotools, which may write to them."""
        return _rows(
            image_id=self.image_ids,
            category_id=self.category_ids,
            keypoints=self.keypoints.reshape(len(self), -1),
            bbox=self.boxes,
            area=self.areas,
            iscrowd=self.crowds.astype(int),
            num_keypoints=np.count_nonzero(self.keypoints[..., 2] > 0, axis=1),
        )


def _chosen(table: Detections | Annotations, rows: Int[np.ndarray, " m"]) -> dict[str, Any]:
    """Rows of all columns of a table."""
    columns = ((field.name, getattr(table, field.name)) for field in dataclasses.fields(table))
    return {name: column[rows] for name, column in columns if isinstance(column, np.ndarray)}


def _rows(**columns: np.ndarray) -> list[dict[str, Any]]:
    """Columns as records, in which only vectors stay arrays.

    Their ids start at 1: pycocotools treats a match with id 0 as none, and loses records with repeated ids.
    """
    values = [column.tolist() if column.ndim == 1 else column for column in columns.values()]
    names = ("id", *columns)
    return [dict(zip(names, row, strict=True)) for row in zip(range(1, len(values[0]) + 1), *values, strict=True)]


def _boxes(records: Records) -> Float[np.ndarray, "n 4"]:
    """The field `bbox`; NaN where it is absent, null or empty."""
    table = np.full((len(records), 4), np.nan)
    known = records.has("bbox")
    table[known] = records.chosen(known).numbers("bbox", (4,), "four numbers")
    return table
