"""Annotation files -> instances: one row a person, in columns.

Three formats are told apart by their content: COCO keypoint annotations (an object), AI Challenger's own files (a
list of images with `human_annotations`), and AIC converted to COCO style (an object, with AIC's 14 keypoints).
What is dropped, and how boxes are clipped, follows MMPose 1.3.2's CocoDataset.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import logging
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from data_pipelines.errors import InputError
from data_pipelines.keypoints import KeypointMapping, KeypointSet

# AIC's file says 1 visible, 2 occluded, 3 absent; COCO says 2, 1, 0.
_AIC_VISIBILITY = np.array([0, 2, 1, 0], np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class Instances:
    """N people in columns.

    Attributes:
      name: of the source, for messages and per-source metrics.
      images: the folder that holds the image files.
      files: image file names within the folder, one a distinct image.
      file_index: for each instance, its image in `files`.
      image_id: the annotation file's image id (its position in the file where ids are not integers, as in AIC's).
      instance_id: the annotation's id (its position where there is none).
      bbox: xywh in image pixels, as annotated (clip with `transforms.clip_box` once the image's size is known).
      keypoints: x, y in image pixels and COCO visibility (0 unlabelled, 1 occluded, 2 visible).
      box_score: the detector's score; 1 for annotated boxes.
      detected: whether the boxes come from a detector, whose boxes the reference does not clip.
    """

    name: str
    images: str
    files: Sequence[str]
    file_index: Int[np.ndarray, "n"]
    image_id: Int[np.ndarray, "n"]
    instance_id: Int[np.ndarray, "n"]
    bbox: Float[np.ndarray, "n 4"]
    keypoints: Float[np.ndarray, "n keypoints 3"]
    box_score: Float[np.ndarray, "n"]
    detected: bool = False

    def __len__(self) -> int:
        return len(self.file_index)

    def path(self, row: int) -> str:
        """The image file of an instance."""
        return os.path.join(self.images, self.files[self.file_index[row]])

    def mapped(self, mapping: KeypointMapping) -> Instances:
        """The same people in another keypoint set."""
        return dataclasses.replace(self, keypoints=mapping.apply(self.keypoints))


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
    content = read_json(annotations)
    if not images.is_dir():
        raise InputError(f"{images}: no such folder; it should hold the images of {annotations}")
    if isinstance(content, dict):
        records, dropped = _coco_records(annotations, content, keypoints)
    elif _is_aic(content):
        records, dropped = _aic_records(annotations, content, keypoints)
    else:
        raise InputError(
            f"{annotations}: neither COCO annotations (an object with 'images' and 'annotations') nor AI Challenger's "
            "(a list of objects with 'human_annotations')"
        )
    if dropped:
        what = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
        logging.getLogger(__name__).info("%s: %d people; dropped %s", annotations, len(records), what)
    if not records:
        raise InputError(f"{annotations}: holds no person with labelled keypoints and a box with an area")
    instances = _columns(annotations, images, records)
    if not os.path.exists(instances.path(0)):
        raise InputError(f"{instances.path(0)}: no such file; {annotations} names it (is {images} the right folder?)")
    return instances


def load_detections(
    path: str | os.PathLike, annotations: str | os.PathLike, images: str | os.PathLike, keypoints: KeypointSet
) -> Instances:
    """Reads a detector's boxes on the images of an annotation file.

    Args:
      path: JSON list of `image_id`, `bbox` (xywh), `score`, `category_id`; boxes of other categories than 1 are left
        out. None is dropped by its score, as in the reference.
      annotations: the file that lists the images, of any format that `load_instances` takes.
      images: the folder of the images.
      keypoints: the set to give the instances, all unlabelled.

    Raises:
      InputError: as `load_instances`; also for a box without area.
    """
    path, annotations, images = pathlib.Path(path), pathlib.Path(annotations), pathlib.Path(images)
    content = read_json(annotations)
    names = _image_names(annotations, _aic_as_coco(annotations, content, keypoints) if _is_aic(content) else content)
    boxes = read_json(path)
    if not isinstance(boxes, list) or not all(isinstance(box, dict) for box in boxes):
        raise InputError(f"{path}: a detection file is a list of objects with 'image_id', 'bbox' and 'score'")
    if not images.is_dir():
        raise InputError(f"{images}: no such folder; it should hold the images of {annotations}")
    records = []
    unlabelled = np.zeros((len(keypoints), 3), np.float32)
    for i, box in enumerate(boxes):
        if box.get("category_id", 1) != 1:
            continue
        where = f"{path}: detection {i}"
        image_id = box.get("image_id")
        if image_id not in names:
            raise InputError(f"{where}: image_id {image_id!r} is not in {annotations}")
        bbox = _numbers(where, "bbox", box.get("bbox"), 4)
        if min(bbox[2:]) <= 0:
            raise InputError(f"{where}: the box {bbox.tolist()} (xywh) has no area")
        score = float(_numbers(where, "score", [box.get("score")], 1)[0])
        records.append((names[image_id], image_id, i, bbox, unlabelled, score))
    if not records:
        raise InputError(f"{path}: holds no detection of category 1 (person)")
    return dataclasses.replace(_columns(path, images, records), detected=True)


def coco_annotations(annotations: str | os.PathLike, keypoints: KeypointSet) -> pathlib.Path | dict[str, Any]:
    """What `eval.coco.evaluate` takes for an annotation file that `load_instances` takes.

    Returns:
      The path itself of a COCO file; the content of an AI Challenger file in COCO's format, with the image and
      instance ids of `load_instances` and everybody whom the file annotates. It has no areas (`use_area=False`).

    Raises:
      InputError: as `load_instances`, of an AI Challenger file.
    """
    annotations = pathlib.Path(annotations)
    content = read_json(annotations)
    return _aic_as_coco(annotations, content, keypoints) if _is_aic(content) else annotations


def read_json(path: str | os.PathLike) -> Any:
    """Parses a JSON file. Raises InputError that names the file when it is missing or is not JSON."""
    try:
        return json.loads(pathlib.Path(path).read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from None


_Record = tuple[str, int, int, np.ndarray, np.ndarray, float]  # file, image id, id, bbox, keypoints, score


def _coco_records(
    path: pathlib.Path, content: dict, keypoints: KeypointSet
) -> tuple[list[_Record], collections.Counter[str]]:
    names = _image_names(path, content)
    if not isinstance(content.get("annotations"), list):
        raise InputError(f"{path}: has no list 'annotations'")
    records, dropped = [], collections.Counter[str]()
    for i, annotation in enumerate(content["annotations"]):
        where = f"{path}: annotation {annotation.get('id', f'number {i}')}"
        if "keypoints" not in annotation:
            raise InputError(f"{where}: has no 'keypoints'; use person_keypoints_*.json, not instances_*.json")
        points = _numbers(where, "keypoints", annotation["keypoints"], 3 * len(keypoints), keypoints).reshape(-1, 3)
        bbox = _numbers(where, "bbox", annotation.get("bbox"), 4)
        if annotation.get("image_id") not in names:
            raise InputError(f"{where}: image_id {annotation.get('image_id')!r} is not among the file's images")
        labelled = annotation.get("num_keypoints", int((points[:, 2] > 0).sum()))
        if annotation.get("iscrowd", 0):
            dropped["crowds"] += 1
        elif labelled == 0 or points.max() <= 0:
            dropped["without keypoints"] += 1
        elif min(bbox[2:]) <= 0:
            dropped["with a box without area"] += 1
        else:
            image_id = annotation["image_id"]
            records.append((names[image_id], image_id, annotation.get("id", i), bbox, points, 1.0))
    return records, dropped


def _aic_records(
    path: pathlib.Path, content: list, keypoints: KeypointSet
) -> tuple[list[_Record], collections.Counter[str]]:
    records, dropped = [], collections.Counter[str]()
    files = _aic_files(path, content)
    for number, (image_id, bbox, points) in enumerate(_aic_people(path, content, keypoints)):
        if not points[:, 2].any() or points.max() <= 0:
            dropped["without keypoints"] += 1
        elif min(bbox[2:]) <= 0:
            dropped["with a box without area"] += 1
        else:
            records.append((files[image_id], image_id, number, bbox, points, 1.0))
    return records, dropped


def _aic_as_coco(path: pathlib.Path, content: list, keypoints: KeypointSet) -> dict[str, Any]:
    files = _aic_files(path, content)
    people = [
        {
            "id": number,
            "image_id": image_id,
            "category_id": 1,
            "bbox": [*bbox[:2].tolist(), *np.maximum(bbox[2:], 0).tolist()],
            "keypoints": points.ravel().tolist(),
            "num_keypoints": int((points[:, 2] > 0).sum()),
            "iscrowd": 0,
        }
        for number, (image_id, bbox, points) in enumerate(_aic_people(path, content, keypoints))
    ]
    return {
        "images": [{"id": i, "file_name": file} for i, file in enumerate(files)],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": people,
    }


def _aic_people(
    path: pathlib.Path, content: list, keypoints: KeypointSet
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Everybody of an AIC file: the image's position, the box (xywh), and keypoints with COCO's visibility."""
    for image_id, entry in enumerate(content):
        for human, box in entry["human_annotations"].items():
            where = f"{path}: image {entry['image_id']}, {human}"
            x1, y1, x2, y2 = _numbers(where, "human_annotations", box, 4)
            points = _numbers(
                where, "keypoint_annotations", entry["keypoint_annotations"].get(human), 3 * len(keypoints), keypoints
            ).reshape(-1, 3)
            if not np.isin(points[:, 2], (0, 1, 2, 3)).all():
                raise InputError(f"{where}: visibility must be 1 (visible), 2 (occluded) or 3 (absent)")
            points[:, 2] = _AIC_VISIBILITY[points[:, 2].astype(int)]
            yield image_id, np.array([x1, y1, x2 - x1, y2 - y1]), points


def _aic_files(path: pathlib.Path, content: list) -> list[str]:
    """The image files of an AIC file, whose entries it checks."""
    for i, entry in enumerate(content):
        if not isinstance(entry, dict) or not {"image_id", "human_annotations", "keypoint_annotations"} <= set(entry):
            raise InputError(f"{path}: entry {i}: needs 'image_id', 'human_annotations' and 'keypoint_annotations'")
    return [_within(f"{path}: entry {i}: image_id", f"{entry['image_id']}.jpg") for i, entry in enumerate(content)]


def _is_aic(content: Any) -> bool:
    first = content[0] if isinstance(content, list) and content else None
    return isinstance(first, dict) and "human_annotations" in first


def _image_names(path: pathlib.Path, content: Any) -> dict[int, str]:
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise InputError(f"{path}: not a COCO annotation file (no list 'images')")
    names = {}
    for i, image in enumerate(content["images"]):
        if not isinstance(image, dict) or not isinstance(image.get("id"), int) or "file_name" not in image:
            raise InputError(f"{path}: image number {i} needs an integer 'id' and a 'file_name'")
        names[image["id"]] = _within(f"{path}: image {image['id']}: file_name", str(image["file_name"]))
    return names


def _within(where: str, name: str) -> str:
    if os.path.isabs(name) or ".." in pathlib.PurePath(name).parts:
        raise InputError(f"{where} {name!r} leaves the image folder")
    return name


def _numbers(where: str, key: str, values: Any, count: int, keypoints: KeypointSet | None = None) -> np.ndarray:
    try:
        numbers = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        numbers = None
    if numbers is None or numbers.ndim != 1:
        raise InputError(f"{where}: {key!r} is not a list of numbers")
    if len(numbers) != count:
        if keypoints is not None:
            raise InputError(
                f"{where}: {len(numbers) / 3:g} keypoints (x, y, visibility), keypoint set {keypoints.name!r} "
                f"has {len(keypoints)}"
            )
        raise InputError(f"{where}: {key!r} has {len(numbers)} numbers, not {count}")
    if not np.isfinite(numbers).all():
        raise InputError(f"{where}: {key!r} holds a number that is not finite: {numbers.tolist()}")
    return numbers


def _columns(path: pathlib.Path, images: pathlib.Path, records: list[_Record]) -> Instances:
    names, image_ids, ids, boxes, points, scores = zip(*records, strict=True)
    files = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return Instances(
        name=path.stem,
        images=str(images),
        files=list(files),
        file_index=np.array([files[name] for name in names], np.int32),
        image_id=np.array(image_ids, np.int64),
        instance_id=np.array(ids, np.int64),
        bbox=np.array(boxes, np.float32),
        keypoints=np.array(points, np.float32),
        box_score=np.array(scores, np.float32),
    )
