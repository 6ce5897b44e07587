"""Annotation files -> instances: one row a person, in columns.

Three formats are told apart by their content: COCO keypoint annotations (an object), AI Challenger's own files (a
list of images with `human_annotations`), and AIC converted to COCO style (an object, with AIC's 14 keypoints).
What is dropped, and how boxes are clipped, follows MMPose 1.3.2's CocoDataset.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.checks import FARTHEST, LARGEST, as_numbers, check_visibility, is_crowd
from data_pipelines.errors import InputError, brief
from data_pipelines.images import ImageFiles, check_name
from data_pipelines.instances import FORMAT_VERSION, Instances, read_index, write_index
from data_pipelines.json_files import read_json, stream_json
from data_pipelines.keypoints import KeypointSet

# AIC's file says 1 visible, 2 occluded, 3 absent; COCO says 2, 1, 0.
_AIC_VISIBILITY = np.array([0, 2, 1, 0], np.float32)

_LONGEST_NAME = 1024

# People whose numbers are checked together.
_CHUNK = 8192

logger = logging.getLogger(__name__)


def load_instances(annotations: str | os.PathLike, images: str | os.PathLike, keypoints: KeypointSet) -> Instances:
    """Reads an annotation file and checks every record of it.

    Dropped, with a count in the log: people without labelled keypoints, crowds, boxes without area.

    Args:
      annotations: a COCO keypoint file, AIC's own file, or AIC converted to COCO style.
      images: the folder of its images.
      keypoints: the set that the file annotates.

    Raises:
      InputError: the file is missing, is not JSON, is of no known format, has a wrong number of keypoints, numbers
        that are not finite, image ids that it does not list, or nothing that is left; or the folder is missing.
    """
    annotations, images = pathlib.Path(annotations), pathlib.Path(images)
    if not images.is_dir() and annotations.exists():
        raise InputError(f"{images}: no such folder; it should hold the images of {annotations}")
    file, dropped = _File(annotations), collections.Counter[str]()
    checked = [_kept(people, keypoints, file.native, dropped) for people in _chunks(file.people())]
    file.check_names(checked)
    if not any(len(ids) for _, ids, *_ in checked):
        raise InputError(f"{annotations}: holds no person with labelled keypoints and a box with an area")
    image_ids, ids, boxes, points = (np.concatenate(column) for column in zip(*checked, strict=True))
    instances = _instances(annotations, images, file.names, image_ids, ids, boxes, points, dropped)
    if instances.dropped:
        what = ", ".join(f"{count} {reason}" for reason, count in sorted(instances.dropped.items()))
        logger.info("%s: %d people; dropped %s", annotations, len(instances), what)
    if not os.path.exists(instances.path(0)):
        raise InputError(f"{instances.path(0)}: no such file; {annotations} names it (is {images} the right folder?)")
    return instances


def cached_instances(
    cache_dir: str | os.PathLike, annotations: str | os.PathLike, images: str | os.PathLike, keypoints: KeypointSet
) -> Instances:
    """`load_instances`, memory-mapped from a cache that is filled the first time; no cache when its name is empty.

    An annotation file is known again by its path, size and time of change.
    """
    annotations, images = pathlib.Path(annotations), pathlib.Path(images)
    if not cache_dir or not annotations.is_file() or not images.is_dir():
        return load_instances(annotations, images, keypoints)
    stat = annotations.stat()
    facts = [FORMAT_VERSION, str(annotations.resolve()), stat.st_size, stat.st_mtime_ns, keypoints.names]
    digest = hashlib.blake2b(json.dumps(facts).encode(), digest_size=8).hexdigest()
    folder = pathlib.Path(cache_dir) / "annotations" / f"{annotations.stem}-{digest}"
    if folder.exists():
        try:
            return read_index(folder, ImageFiles(str(images)))
        except (ValueError, OSError, TypeError, LookupError) as error:
            logger.warning("%s: damaged (%s); %s is read again", folder, brief(str(error)), annotations)
            shutil.rmtree(folder, ignore_errors=True)
    instances = load_instances(annotations, images, keypoints)
    try:
        write_index(folder, instances)
    except InputError as error:
        logger.warning("the annotations of %s are not cached: %s", annotations, error)
        return instances
    return read_index(folder, instances.images)


def load_detections(
    path: str | os.PathLike, annotations: str | os.PathLike, images: str | os.PathLike | None, keypoints: KeypointSet
) -> Instances:
    """Reads a detector's boxes on the images of an annotation file.

    Args:
      path: JSON list of `image_id`, `bbox` (xywh), `score`, `category_id`; boxes of other categories than 1 are left
        out. None is dropped by its score, as in the reference.
      annotations: the file that lists the images, of any format that `load_instances` takes.
      images: the folder of the images; None when they are elsewhere (see `Instances.on_images_of`).
      keypoints: the set to give the instances, all unlabelled.

    Raises:
      InputError: as `load_instances`; also for a box without area.
    """
    path, annotations, folder = pathlib.Path(path), pathlib.Path(annotations), pathlib.Path(images or "")
    file = _File(annotations)
    file.read_names()
    boxes = read_json(path)
    if not isinstance(boxes, list) or not all(isinstance(box, dict) for box in boxes):
        raise InputError(f"{path}: a detection file is a list of objects with 'image_id', 'bbox' and 'score'")
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; it should hold the images of {annotations}")
    image_ids, bboxes, scores, numbers = [], [], [], []
    for i, box in enumerate(boxes):
        if box.get("category_id", 1) != 1:
            continue
        where = f"{path}: detection {i}"
        image_id = box.get("image_id")
        if not _is_integer(image_id) or image_id not in file.names:
            raise InputError(f"{where}: image_id {brief(repr(image_id))} is not in {annotations}")
        bbox = _numbers(where, "bbox", box.get("bbox"), 4)
        if min(bbox[2:]) <= 0:
            raise InputError(f"{where}: the box {bbox.tolist()} (xywh) has no area")
        scores.append(_numbers(where, "score", [box.get("score")], 1, largest=LARGEST)[0])
        image_ids.append(image_id)
        bboxes.append(bbox)
        numbers.append(i)
    if not numbers:
        raise InputError(f"{path}: holds no detection of category 1 (person)")
    unlabelled = np.zeros((len(numbers), len(keypoints), 3))
    people = _instances(
        path, folder, file.names, np.array(image_ids), np.array(numbers), np.array(bboxes), unlabelled, {}
    )
    return dataclasses.replace(people, box_score=np.array(scores, np.float32), detected=True)


def coco_annotations(annotations: str | os.PathLike, keypoints: KeypointSet) -> pathlib.Path | dict[str, Any]:
    """What `eval.coco.evaluate` takes for an annotation file that `load_instances` takes.

    Returns:
      The path itself of a COCO file; the content of an AI Challenger file in COCO's format, with the image and
      instance ids of `load_instances` and everybody whom the file annotates. It has no areas (`use_area=False`).

    Raises:
      InputError: as `load_instances`, of an AI Challenger file.
    """
    file = _File(pathlib.Path(annotations))
    if next(stream_json(annotations), ("", None))[0]:
        return file.path
    people = [
        {
            "id": person.id,
            "image_id": person.image_id,
            "category_id": 1,
            "bbox": [*box[:2].tolist(), *np.maximum(box[2:], 0).tolist()],
            "keypoints": points.ravel().tolist(),
            "num_keypoints": int((points[:, 2] > 0).sum()),
            "iscrowd": 0,
        }
        for chunk in _chunks(file.people())
        for person, box, points in zip(chunk, *_checked_numbers(chunk, keypoints, file.native), strict=True)
    ]
    return {
        "images": [{"id": image_id, "file_name": name} for image_id, name in file.names.items()],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": people,
    }


class _Person(NamedTuple):
    """A record of a file, its numbers unchecked."""

    where: str
    image_id: int
    id: int
    bbox: Any
    keypoints: Any
    crowd: bool
    labelled: int | None  # how many keypoints the file says there are


class _File:
    """An annotation file of either layout, read piece by piece."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.names: dict[int, str] = {}  # file names by image id, complete once all is read
        self.native = False  # AI Challenger's own layout

    def people(self) -> Iterator[_Person]:
        """Everybody, in the file's order."""
        count = 0
        for key, piece in stream_json(self.path):
            self._take_name(key, piece)
            if key == "annotations":
                yield self._coco_person(count, piece)
                count += 1
            elif key == "":
                for human, box in piece["human_annotations"].items():
                    where = f"{self.path}: image {brief(piece['image_id'])}, {brief(human)}"
                    points = piece["keypoint_annotations"].get(human)
                    yield _Person(where, len(self.names) - 1, count, box, points, False, None)
                    count += 1
        self._check_layout()

    def read_names(self) -> None:
        """Reads the images only."""
        for key, piece in stream_json(self.path):
            self._take_name(key, piece)
        self._check_layout()

    def check_names(self, checked: list[tuple[np.ndarray, ...]]) -> None:
        """Raises InputError when a person's image is not in the file."""
        for image_ids, ids, *_ in checked:
            for image_id, number in zip(image_ids.tolist(), ids.tolist(), strict=True):
                if image_id not in self.names:
                    raise InputError(
                        f"{self.path}: annotation {number}: image_id {image_id} is not among the file's images"
                    )

    def _take_name(self, key: str, piece: Any) -> None:
        number = len(self.names)
        if key == "images":
            if not isinstance(piece, dict) or not _is_integer(piece.get("id")) or "file_name" not in piece:
                raise InputError(f"{self.path}: image number {number} needs an integer 'id' and a 'file_name'")
            where = f"{self.path}: image {piece['id']}: file_name"
            self.names[piece["id"]] = check_name(where, _text(where, piece["file_name"]))
        elif key == "":
            needed = ("human_annotations", "keypoint_annotations")
            if not isinstance(piece, dict) or not all(isinstance(piece.get(k), dict) for k in needed):
                raise InputError(
                    f"{self.path}: entry {number}: not AI Challenger's annotation of an image (needs 'image_id', "
                    "'human_annotations' and 'keypoint_annotations'), nor is the file COCO's (an object)"
                )
            where, name = f"{self.path}: entry {number}: image_id", piece.get("image_id")
            self.names[number] = check_name(where, _text(where, str(name) if _is_integer(name) else name) + ".jpg")
            self.native = True

    def _coco_person(self, number: int, annotation: Any) -> _Person:
        if not isinstance(annotation, dict):
            raise InputError(f"{self.path}: annotation number {number} is not an object")
        where = f"{self.path}: annotation {brief(annotation.get('id', f'number {number}'))}"
        if "keypoints" not in annotation:
            raise InputError(f"{where}: has no 'keypoints'; use person_keypoints_*.json, not instances_*.json")
        image_id: Any = annotation.get("image_id")
        number = annotation.get("id", number)
        if not _is_integer(image_id):
            raise InputError(f"{where}: image_id {brief(repr(image_id))} is not among the file's images")
        if not _is_integer(number):
            raise InputError(f"{where}: 'id' must be an integer")
        crowd, labelled = is_crowd(where, annotation), annotation.get("num_keypoints")
        if labelled is not None and not _is_integer(labelled):
            raise InputError(f"{where}: 'num_keypoints' must be an integer, not {brief(repr(labelled))}")
        return _Person(where, image_id, number, annotation.get("bbox"), annotation["keypoints"], crowd, labelled)

    def _check_layout(self) -> None:
        if not self.names:
            raise InputError(
                f"{self.path}: not a COCO annotation file (no list 'images'), nor AI Challenger's (a list of objects "
                "with 'human_annotations')"
            )


def _chunks(people: Iterable[_Person]) -> Iterator[list[_Person]]:
    people = iter(people)
    while chunk := list(itertools.islice(people, _CHUNK)):
        yield chunk


def _kept(
    people: list[_Person], keypoints: KeypointSet, native: bool, dropped: collections.Counter[str]
) -> tuple[np.ndarray, ...]:
    """Image ids, ids, boxes and keypoints of those who are not dropped; counts the others by reason."""
    boxes, points = _checked_numbers(people, keypoints, native)
    counts = (points[..., 2] > 0).sum(1).tolist()
    labelled = [count if p.labelled is None else p.labelled for p, count in zip(people, counts, strict=True)]
    kept = np.ones(len(people), bool)
    for reason, applies in {
        "crowds": np.array([person.crowd for person in people]),
        "without keypoints": (np.array(labelled) == 0) | (points.max((1, 2)) <= 0),
        "with a box without area": boxes[:, 2:].min(1) <= 0,
    }.items():
        dropped[reason] += int((kept & applies).sum())
        kept &= ~applies
    image_ids = np.array([person.image_id for person in people], np.int64)
    ids = np.array([person.id for person in people], np.int64)
    return image_ids[kept], ids[kept], boxes[kept], points[kept]


def _checked_numbers(people: list[_Person], keypoints: KeypointSet, native: bool) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (xywh) float32 [N,4] and keypoints with COCO's visibility float32 [N,K,3]; names the first bad record."""
    length = 3 * len(keypoints)
    boxes, points = _table([p.bbox for p in people], 4), _table([p.keypoints for p in people], length)
    if boxes is None or points is None:
        box_key, points_key = ("human_annotations", "keypoint_annotations") if native else ("bbox", "keypoints")
        points = np.array([_numbers(p.where, points_key, p.keypoints, length, keypoints) for p in people])
        boxes = np.array([_numbers(p.where, box_key, p.bbox, 4) for p in people])
    points = points.reshape(len(people), -1, 3)
    if native:
        known = np.isin(points[..., 2], (0, 1, 2, 3)).all(1)
        if not known.all():
            i = int(known.argmin())
            odd = next(v for v in points[i, :, 2].tolist() if v not in (0, 1, 2, 3))
            raise InputError(
                f"{people[i].where}: visibility must be 1 (visible), 2 (occluded) or 3 (absent), not {odd:g}"
            )
        points[..., 2] = _AIC_VISIBILITY[points[..., 2].astype(int)]
        boxes[:, 2:] -= boxes[:, :2]
    elif not (known := np.isin(points[..., 2], (0, 1, 2)).all(1)).all():
        i = int(known.argmin())
        check_visibility(people[i].where, points[i])
    return boxes.astype(np.float32), points.astype(np.float32)


def _table(rows: list[Any], width: int) -> np.ndarray | None:
    """Rows of coordinates as one array; None when any row is something else."""
    table = as_numbers(rows)
    if table is None or table.shape != (len(rows), width):
        return None
    return table if (np.abs(table) <= FARTHEST).all() else None


def _numbers(
    where: str,
    key: str,
    values: Any,
    count: int,
    keypoints: KeypointSet | None = None,
    largest: float = FARTHEST,
) -> np.ndarray:
    numbers = as_numbers(values)
    if numbers is None or numbers.ndim != 1:
        raise InputError(f"{where}: {key!r} is not a list of numbers: {brief(values)}")
    if len(numbers) != count:
        if keypoints is not None:
            raise InputError(
                f"{where}: {len(numbers) / 3:g} keypoints (x, y, visibility), keypoint set {keypoints.name!r} "
                f"has {len(keypoints)}"
            )
        raise InputError(f"{where}: {key!r} has {len(numbers)} numbers, not {count}")
    if not np.isfinite(numbers).all():
        raise InputError(f"{where}: {key!r} holds a number that is not finite: {brief(numbers.tolist())}")
    if numbers.size and (size := np.abs(numbers).max()) > largest:
        raise InputError(f"{where}: {key!r} holds a number that is too large: {size:g}")
    return numbers


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST_NAME or value.encode(errors="ignore").decode() != value:
        raise InputError(f"{where} {brief(repr(value))} cannot be the name of a file")
    return value


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and abs(value) < 2**63


def _instances(
    path: pathlib.Path,
    images: pathlib.Path,
    names: Mapping[int, str],
    image_ids: np.ndarray,
    ids: np.ndarray,
    boxes: np.ndarray,
    points: np.ndarray,
    dropped: Mapping[str, int],
) -> Instances:
    numbers: dict[str, int] = {}  # of the files, in order of first use
    file_index = [numbers.setdefault(names[image_id], len(numbers)) for image_id in image_ids.tolist()]
    return Instances(
        name=path.stem,
        images=ImageFiles(str(images)),
        files=np.array([name.encode() for name in numbers]),
        file_index=np.array(file_index, np.int32),
        image_id=image_ids.astype(np.int64),
        instance_id=ids.astype(np.int64),
        bbox=boxes.astype(np.float32),
        keypoints=points.astype(np.float32),
        box_score=np.ones(len(ids), np.float32),
        dropped={reason: count for reason, count in dropped.items() if count},
    )
