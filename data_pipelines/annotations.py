"""Reads annotation files and detector boxes into `Instances`.

The format follows from the content: COCO keypoint annotations (an object) or AI Challenger's own files (a list of
images with `human_annotations`). The rules for dropping people follow MMPose 1.3.2's CocoDataset.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Mapping

import numpy as np

from data_pipelines import command_line
from data_pipelines.coco_files import AnnotationFile, People, no_keypoints
from data_pipelines.detections import people_of, read_detections
from data_pipelines.errors import InputError, brief
from data_pipelines.images import ImageFiles
from data_pipelines.instances import FORMAT_VERSION, Instances, read_index, write_index
from data_pipelines.keypoints import KeypointSet

logger = logging.getLogger(__name__)


def load_instances(annotations: str | os.PathLike, images: str | os.PathLike, keypoints: KeypointSet) -> Instances:
    """Reads an annotation file and checks every record of it.

    People without labelled keypoints, crowds and boxes without area are dropped; the log gives their numbers.

    Args:
      annotations: a COCO keypoint file (for example AIC converted to it) or AIC's own file.
      images: the folder of its images.
      keypoints: the keypoint set of the annotations.

    Raises:
      InputError: the file is missing, is not JSON or has an unknown format; a record has a wrong number of keypoints,
        a number that is not finite, or an image id that the file does not list; no person is left; or the image folder
        is missing.
    """
    annotations, images = pathlib.Path(annotations), pathlib.Path(images)
    if not images.is_dir() and annotations.exists():
        raise InputError(f"{images}: no such folder; it should hold the images of {annotations}")
    file, dropped = AnnotationFile(annotations), collections.Counter[str]()
    kept, annotated = [], False
    with command_line.progress(None, " people") as advance:
        for people in file.people():
            kept.append(_kept(people, keypoints, dropped))
            annotated |= bool(people.annotated().any())
            advance(len(people))
    if not annotated:
        raise no_keypoints(str(annotations), keypoints)
    image_ids, ids, boxes, points = (np.concatenate(column) for column in zip(*kept, strict=True))
    instances = _instances(annotations, images, file.names(), image_ids, ids, boxes, points, dropped)
    if not len(instances):
        raise InputError(f"{annotations}: holds no person with labelled keypoints and a box with an area")
    if instances.dropped:
        what = ", ".join(f"{count} {reason}" for reason, count in sorted(instances.dropped.items()))
        logger.info("%s: %d people; dropped %s", annotations, len(instances), what)
    if not os.path.exists(instances.path(0)):
        raise InputError(f"{instances.path(0)}: no such file; {annotations} names it (is {images} the right folder?)")
    return instances


def cached_instances(
    cache_dir: str | os.PathLike, annotations: str | os.PathLike, images: str | os.PathLike, keypoints: KeypointSet
) -> Instances:
    """`load_instances`, memory-mapped from a cache that the first call fills; an empty `cache_dir` means no cache.

    The cache identifies an annotation file by path, size and modification time.
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
            logger.warning("%s: damaged (%s); reading %s again", folder, brief(str(error)), annotations)
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
      path: a file, or folder, of a format in `data_pipelines.detections`, with scores. Boxes of categories that have no
        keypoints in the annotation file are left out; none is left out for its score, as in MMPose.
      annotations: the file that lists the images, of any format that `load_instances` accepts.
      images: the folder of the images; None if they are not files (see `Instances.on_images_of`).
      keypoints: the keypoint set of the instances, whose keypoints are all unlabelled.

    Raises:
      InputError: like `load_instances` and `read_detections`; a box has no area or no score, or is on an unknown image.
    """
    path, annotations, folder = pathlib.Path(path), pathlib.Path(annotations), pathlib.Path(images or "")
    file = AnnotationFile(annotations)
    file.read_images()
    names, people = file.names(), people_of(file.listed_categories)
    found = read_detections(path, people)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; it should hold the images of {annotations}")
    if not len(found):
        raise InputError(
            f"{path}: holds no detection of category {min(people[0])} ({', '.join(people[1]) or 'unnamed'})"
        )
    ids: dict[str | int, int] = {}
    for image_id, name in names.items():
        stem = os.path.splitext(name)[0]
        ids |= {name: image_id, stem: image_id}
        if found.frames and os.path.basename(stem).isdecimal():
            ids[int(os.path.basename(stem))] = image_id
    if not found.frames:
        ids |= {image_id: image_id for image_id in names}
    boxes, image_ids = found.boxes.copy(), np.empty(len(found), np.int64)
    for i, image in enumerate(found.images):
        if image not in ids:
            raise InputError(f"{found.where(i)}: image_id {brief(str(image))} is not in {annotations}")
        image_ids[i] = ids[image]
        if found.relative:
            boxes[i] *= _size(file, ids[image], found.where(i))
        if min(boxes[i, 2:]) <= 0:
            raise InputError(f"{found.where(i)}: the box {boxes[i].tolist()} (xywh) has no area")
    if (lacking := np.isnan(found.scores)).any():
        where = found.where(int(lacking.argmax()))
        raise InputError(f"{where}: no 'score'; AP needs the detector's scores (Ultralytics: save_conf=True)")
    unlabelled = np.zeros((len(found), len(keypoints), 3))
    instances = _instances(path, folder, names, image_ids, np.arange(len(found)), boxes, unlabelled, {})
    return dataclasses.replace(instances, box_score=found.scores.astype(np.float32), detected=True)


def _size(file: AnnotationFile, image_id: int, where: str) -> np.ndarray:
    """Width, height, width, height of an image, in pixels."""
    height, width = file.sizes.get(image_id, (None, None))
    if not all(isinstance(side, int) and side > 0 for side in (height, width)):
        raise InputError(f"{where}: is relative to the image, whose 'width' and 'height' {file.name} does not give")
    return np.array([width, height, width, height])


def _kept(people: People, keypoints: KeypointSet, dropped: collections.Counter[str]) -> tuple[np.ndarray, ...]:
    """Image ids, ids, boxes and keypoints of the people to keep; counts the others by reason."""
    points = people.keypoints(keypoints).astype(np.float32)
    ids, image_ids, boxes = people.ids(), people.image_ids(), people.boxes().astype(np.float32)
    labelled = people.integers("num_keypoints", (points[..., 2] > 0).sum(1))
    kept = np.ones(len(people), bool)
    for reason, applies in {
        "crowds": people.crowds(),
        "without keypoints": (labelled == 0) | (points.max((1, 2)) <= 0),
        "with a box without area": boxes[:, 2:].min(1) <= 0,
    }.items():
        dropped[reason] += int((kept & applies).sum())
        kept &= ~applies
    return image_ids[kept], ids[kept], boxes[kept], points[kept]


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
    numbers: dict[str, int] = {}  # by file name, in order of first use
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
