"""Annotation and result files in the formats of COCO and AI Challenger: streamed, and checked record by record."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from data_pipelines.checks import FARTHEST, Records, check_name
from data_pipelines.errors import InputError, brief
from data_pipelines.json_files import read_json, stream_json
from data_pipelines.keypoints import KeypointSet

PERSON = 1  # COCO's category
AREA_SHARE = 0.53  # of the box, where there are no areas: about what people fill of theirs in COCO

Path = str | os.PathLike[str]

# AI Challenger: 1 visible, 2 occluded, 3 absent; COCO: 2, 1, 0.
_AIC_VISIBILITY = np.array([0, 2, 1, 0], np.float64)

# The fields that are kept of a person's record; polygons would take ten times the memory.
_FIELDS = ("id", "image_id", "category_id", "bbox", "area", "keypoints", "num_keypoints", "iscrowd")

# Number of people whose records are in memory together.
_CHUNK = 1024


class People(Records):
    """Records of annotated people, of COCO's format or AI Challenger's (`native`)."""

    def __init__(self, items: Sequence[Any], file: AnnotationFile, start: int):
        self.file, self.native = file, file.native
        super().__init__(items, self._called, start)
        self.points_key = "keypoint_annotations" if self.native else "keypoints"

    def ids(self) -> Int[np.ndarray, " n"]:
        """Ids; positions in the file where there are none."""
        return self.integers("id", self.positions)

    def image_ids(self) -> Int[np.ndarray, " n"]:
        """The ids of their images. Raises InputError if the file does not list one."""
        ids = self.integers("image_id")
        for i, number in enumerate(ids.tolist()):
            if number not in self.file.images:
                raise InputError(f"{self.where(i)}: image_id {number} is not among the file's images")
        return ids

    def annotated(self) -> Bool[np.ndarray, " n"]:
        """Which have keypoints, labelled or not."""
        return self.has(self.points_key)

    def boxes(self) -> Float[np.ndarray, "n 4"]:
        """Boxes, xywh in image pixels."""
        if not self.native:
            return super().boxes()
        boxes = self.numbers("human_annotations", (4,), "the box's left, top, right and bottom in pixels", FARTHEST)
        boxes[:, 2:] = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
        return boxes

    def areas(self) -> Float[np.ndarray, " n"]:
        """Areas in square pixels; NaN where there is none."""
        areas, known = np.full(len(self), np.nan), self.has("area")
        areas[known] = self.chosen(known).numbers("area", (), "a number")
        return areas

    def keypoints(self, joints: KeypointSet) -> Float[np.ndarray, "n k 3"]:
        """x and y in image pixels, and COCO's visibility; zeros, i.e. unlabelled, for people without keypoints."""
        if not (annotated := self.annotated()).all():
            points = np.zeros((len(self), len(joints), 3))
            points[annotated] = self.chosen(annotated).keypoints(joints)
            return points
        expected = _expected(joints)
        points = self.numbers(self.points_key, (3 * len(joints),), expected, FARTHEST).reshape(-1, len(joints), 3)
        shown = points[..., 2]
        known = np.isin(shown, (0, 1, 2, 3) if self.native else (0, 1, 2))
        if not known.all():
            row, column = np.argwhere(~known)[0].tolist()
            kinds = "1 (visible), 2 (occluded) or 3 (absent)"
            kinds = kinds if self.native else "0 (unlabelled), 1 (occluded) or 2 (visible)"
            raise InputError(f"{self.where(row)}: visibility must be {kinds}, not {shown[row, column]:g}")
        if self.native:
            points[..., 2] = _AIC_VISIBILITY[shown.astype(int)]
        return points

    def _called(self, position: int, item: Any) -> str:
        if self.native:
            return f"{self.file.name}: image {brief(item['image'])}, {brief(item['human'])}"
        known = isinstance(item, Mapping) and "id" in item
        return f"{self.file.name}: annotation {brief(item['id']) if known else f'at position {position}'}"


class AnnotationFile:
    """An annotation file of either format, or the content of a COCO file.

    Its attributes are complete after `people` was exhausted; after `read_images`, only images and categories are.

    Attributes:
      name: of the file, for messages.
      sizes: unchecked (height, width) by image id, where the file gives them.
      listed_categories: the unchecked categories of a COCO file.
      images: unchecked file names by image id, which in AI Challenger's format is the position in the file.
      native: whether it has AI Challenger's own format.
      lists: the names of the lists in a COCO file.
    """

    def __init__(self, source: Path | Mapping[str, Any]):
        self._source = source
        self.name = "annotations" if isinstance(source, Mapping) else str(source)
        self.images: dict[int, Any] = {}
        self.sizes: dict[int, tuple[Any, Any]] = {}
        self.listed_categories: list[Any] = []
        self.native = False
        self.lists: set[str] = set()

    def people(self) -> Iterator[People]:
        """Yields all people in the order of the file, about a thousand at a time; `images` is complete from the start.

        Raises InputError if the file has no images, or two images with one id.
        """
        self.images, self.listed_categories = {}, []
        batch: list[Any] = []
        count = 0
        for key, piece in self._pieces():
            self._take_listed(key, piece)
            if key == "annotations":
                if not self.images:  # the list of images comes later
                    self.read_images()
                batch.append({k: piece[k] for k in _FIELDS if k in piece} if isinstance(piece, Mapping) else piece)
            elif key == "":
                batch += self._humans(count + len(batch), piece)
            if len(batch) >= _CHUNK:
                yield People(batch, self, count)
                count, batch = count + len(batch), []
        self.require("images")
        if batch or not count:
            yield People(batch, self, count)

    def read_images(self) -> None:
        """Reads only the images and the categories; raises InputError as `people` does."""
        self.images, self.listed_categories = {}, []
        for key, piece in self._pieces():
            self._take_listed(key, piece)
        self.require("images")

    def require(self, key: str) -> None:
        """Raises InputError if a COCO file lacks this list, or any file lists no image."""
        if not self.images if key == "images" else not self.native and key not in self.lists:
            raise InputError(
                f"{self.name}: not a COCO annotation file: it has no list {key!r}; nor AI Challenger's, which is a "
                "list of objects with 'human_annotations'"
            )

    def names(self) -> dict[int, str]:
        """The images' file names by id. Raises InputError if one is not a file name."""
        where = "entry {}: image_id" if self.native else "image {}: file_name"
        return {i: check_name(f"{self.name}: {where.format(i)}", name) for i, name in self.images.items()}

    def categories(self) -> list[int]:
        """The ids of the listed categories. Raises InputError if one has none."""
        return (
            [PERSON]
            if self.native
            else Records(self.listed_categories, self._naming("category")).integers("id").tolist()
        )

    def _pieces(self) -> Iterator[tuple[str, Any]]:
        if not isinstance(self._source, Mapping):
            yield from stream_json(self._source, self.lists)
            return
        for key, value in self._source.items():
            if isinstance(value, Sequence) and not isinstance(value, str):
                self.lists.add(key)
                yield from ((key, element) for element in value)

    def _take_listed(self, key: str, piece: Any) -> None:
        number = len(self.images)
        if key == "images":
            image_id = piece.get("id") if isinstance(piece, dict) else None
            if type(image_id) is not int or abs(image_id) >= 2**63:
                image_id = Records([piece], self._naming("image"), number).integers("id").tolist()[0]
            name = piece.get("file_name")
            self.sizes[image_id] = piece.get("height"), piece.get("width")
            if (other := self.images.setdefault(image_id, name)) != name:
                raise InputError(
                    f"{self.name}: images {brief(other)} and {brief(name)} both have id {image_id}; give each its own "
                    "id, also in the annotations"
                )
        elif key == "categories":
            if piece not in self.listed_categories:
                self.listed_categories.append(piece)
        elif key == "":
            needed = ("human_annotations", "keypoint_annotations")
            if not isinstance(piece, dict) or not all(isinstance(piece.get(k), dict) for k in needed):
                raise InputError(
                    f"{self.name}: entry {number}: not AI Challenger's annotation of an image (needs 'image_id', "
                    "'human_annotations' and 'keypoint_annotations'), nor is the file COCO's (an object)"
                )
            self.native, name = True, piece.get("image_id")
            self.images[number] = f"{name}.jpg" if isinstance(name, int | str) else name

    def _naming(self, kind: str) -> Callable[[int, Any], str]:
        return lambda position, _: f"{self.name}: {kind} at position {position}"

    def _humans(self, start: int, entry: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        for number, (human, box) in enumerate(entry["human_annotations"].items(), start):
            yield {
                "id": number,
                "image_id": len(self.images) - 1,
                "category_id": PERSON,
                "image": entry.get("image_id"),
                "human": human,
                "human_annotations": box,
                "keypoint_annotations": entry["keypoint_annotations"].get(human),
            }


def no_keypoints(name: str, joints: KeypointSet) -> InputError:
    """The error for a file that annotates no keypoints."""
    return InputError(f"{name}: no annotation has keypoints; expected {_expected(joints)}")


def is_aic(key: str, piece: Any) -> bool:
    """Whether a piece of a JSON file is AI Challenger's annotation of an image."""
    return key == "" and isinstance(piece, dict) and "human_annotations" in piece


def read_results(source: Path | Sequence[Any], kind: str = "record") -> Records:
    """Reads a list of detections with boxes or keypoints, a file or its content.

    Messages call a record `kind` and its number. Raises InputError if it is not such a list.
    """
    name, items = "results", source
    if isinstance(source, str | os.PathLike):
        name, items = str(source), read_json(source)
    if not isinstance(items, Sequence) or isinstance(items, str | bytes):
        raise InputError(f"{name}: not a COCO results file, which is a list of detections")
    return Records(items, lambda i, _: f"{name}: {kind} {i}")


def _expected(joints: KeypointSet) -> str:
    return (
        f"x, y and visibility of the {len(joints)} keypoints of set {joints.name!r} (person_keypoints_*.json has them, "
        "instances_*.json has not)"
    )
