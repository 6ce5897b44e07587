"""Writes the synthetic data set in the layout of COCO 2017 and AI Challenger."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import json
import multiprocessing
import os
import pathlib
from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np

from data_pipelines import command_line, storage
from data_pipelines.errors import InputError
from data_pipelines.json_files import write_json
from data_pipelines.processes import become_worker, starting_workers
from data_pipelines.synthetic import formats, render

MARKER = "synthetic.json"
COCO_ANNOTATIONS = "coco/annotations/person_keypoints_{split}2017.json"
COCO_IMAGES = "coco/{split}2017"
DETECTIONS = "coco/person_detection_results/COCO_val2017_detections_AP_H_56_person.json"
AIC_FOLDER = "aic/ai_challenger_keypoint_train_20170902"
AIC_ANNOTATIONS = f"{AIC_FOLDER}/keypoint_train_annotations_20170909.json"
AIC_IMAGES = f"{AIC_FOLDER}/keypoint_train_images_20170902"


def write_dataset(
    root: str | os.PathLike[str],
    *,
    seed: int = 0,
    coco_train: int = 2400,
    coco_val: int = 300,
    aic_train: int = 1000,
    image_size: tuple[int, int] = (240, 320),
    processes: int = 2,
) -> dict[str, Any]:
    """Renders the data set under `root`, unless it is there already.

    An image is a function of (seed, split, position): the same parameters give the same bytes for any number of
    processes, and more images extend a split without changing the existing ones. The files under `root` have COCO's and
    AI Challenger's layout, with boxes as from a person detector for the validation images. `synthetic.json` states the
    parameters and the counts; it is written last and marks the data set as complete.

    Args:
      root: the folder; created if missing.
      seed: at least 0.
      coco_train, coco_val, aic_train: numbers of images, each at least 0.
      image_size: (height, width) of landscape images in pixels; upright ones exchange the two.
      processes: worker processes; 1 renders in this process.

    Returns:
      {"seed", "image_size", "images": images per split, "people": people with keypoints per split, "detections"}.

    Raises:
      InputError: `root` holds other files, or a parameter is out of range.
    """
    storage.check_output(root, flag="--root", folder=True)
    root = pathlib.Path(root)
    counts = {"coco_train": coco_train, "coco_val": coco_val, "aic_train": aic_train}
    parameters = {"format": FORMAT, "seed": seed, "image_size": list(image_size), "images": counts}
    _check(parameters)
    if (summary := _claim(root, parameters)) is not None:
        return summary

    jobs = [_Job(str(root), seed, split, i, tuple(image_size)) for split, n in counts.items() for i in range(n)]
    results: dict[str, list[Any]] = {split: [] for split in counts}
    with storage.write_errors(root):
        for folder in (COCO_IMAGES.format(split="train"), COCO_IMAGES.format(split="val"), AIC_IMAGES):
            (root / folder).mkdir(parents=True, exist_ok=True)
    with command_line.progress(len(jobs)) as advance:
        for job, result in zip(jobs, _map(jobs, processes), strict=True):
            results[job.split].append(result)
            advance(1)

    people = {}
    for split in ("train", "val"):
        images, annotations, _ = _columns(results[f"coco_{split}"], 3)
        annotations = [record for records in annotations for record in records]
        content = {"info": _INFO, "licenses": _LICENSES, "images": images, "annotations": annotations}
        content["categories"] = formats.COCO_CATEGORIES
        write_json(root / COCO_ANNOTATIONS.format(split=split), content, indent=None)
        people[f"coco_{split}"] = sum(record["num_keypoints"] > 0 for record in annotations)
    boxes = [box for _, _, found in results["coco_val"] for box in found]
    write_json(root / DETECTIONS, boxes, indent=None)
    write_json(root / AIC_ANNOTATIONS, results["aic_train"], indent=None)
    people["aic_train"] = sum(len(record["keypoint_annotations"]) for record in results["aic_train"])

    summary = parameters | {"people": people, "detections": len(boxes)}
    write_json(root / MARKER, summary, indent=None)
    (root / _UNFINISHED).unlink(missing_ok=True)
    return summary


FORMAT = 7  # Increased whenever the same parameters give other bytes.

_UNFINISHED = "synthetic.unfinished.json"
_INFO = {"description": "Synthetic people in the format of COCO 2017", "version": "1.0", "year": 2026}
_LICENSES = [{"id": 1, "name": "Apache License 2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"}]
_SPLITS = {"coco_train": 0, "coco_val": 1, "aic_train": 2}
_FIRST_ID = {"coco_train": 1, "coco_val": 10_000_001}


@dataclasses.dataclass(frozen=True)
class _Job:
    root: str
    seed: int
    split: str
    index: int
    image_size: tuple[int, ...]


def _check(parameters: dict[str, Any]) -> None:
    counts = parameters["images"]
    if parameters["seed"] < 0 or min(counts.values()) < 0:
        raise InputError(f"synthetic data set: seed {parameters['seed']} and counts {counts} must not be negative")
    if min(parameters["image_size"]) < 64:
        raise InputError(f"synthetic data set: image size {parameters['image_size']} is below 64 pixels")


def _claim(root: pathlib.Path, parameters: dict[str, Any]) -> dict[str, Any] | None:
    """The summary if `root` holds this data set, finished; else claims `root`, or raises InputError."""
    for name in (MARKER, _UNFINISHED):
        if not (root / name).is_file():
            continue
        try:
            found = json.loads((root / name).read_text())
            same = {key: found[key] for key in parameters} == parameters
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{root / name}: not a synthetic data set's marker; choose another folder") from error
        if not same:
            raise InputError(
                f"{root}: holds a synthetic data set of other parameters; choose another folder or delete it"
            )
        if name == MARKER:
            return found
        return None
    if taken := [name for name in ("coco", "aic") if (root / name).exists()]:
        raise InputError(f"{root / taken[0]}: exists but is not a synthetic data set's; choose another folder")
    write_json(root / _UNFINISHED, parameters, indent=None)
    return None


def _map(jobs: list[_Job], processes: int) -> Iterable[Any]:
    """The jobs' results, in order."""
    processes = min(processes, len(jobs) // 16)
    if processes <= 1:
        yield from map(_run, jobs)
        return
    # Spawned, not forked: forking would break the caller's threads (JAX has some).
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(processes, context, _start_worker) as pool:
        with starting_workers():
            results = pool.map(_run, jobs, chunksize=8)
        yield from results


def _start_worker() -> None:
    become_worker()
    cv2.setNumThreads(1)


def _run(job: _Job) -> Any:
    """Renders and writes one image. Returns (image record, annotations, detections), or AIC's record."""
    rng = np.random.default_rng([job.seed, _SPLITS[job.split], job.index])
    height, width = job.image_size
    settings = render.AIC_SETTINGS if job.split == "aic_train" else render.COCO_SETTINGS
    scene = render.render_scene(rng, (height, width), settings)
    height, width = scene.image.shape[:2]
    quality = int(rng.integers(85, 96))
    _, jpeg = cv2.imencode(".jpg", scene.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    root = pathlib.Path(job.root)
    if job.split == "aic_train":
        name = hashlib.sha1(f"{job.seed}/{job.index}".encode()).hexdigest()
        _write_image(root / AIC_IMAGES / f"{name}.jpg", jpeg.tobytes())
        return formats.aic_record(scene, name)
    image_id = _FIRST_ID[job.split] + job.index
    name = f"{image_id:012d}.jpg"
    _write_image(root / COCO_IMAGES.format(split=job.split.removeprefix("coco_")) / name, jpeg.tobytes())
    image = {"license": 1, "file_name": name, "height": height, "width": width, "id": image_id}
    annotations = formats.coco_annotations(scene, image_id)
    found = formats.detections(rng, annotations, image_id, width, height) if job.split == "coco_val" else []
    return image, annotations, found


def _columns(rows: list[tuple[Any, ...]], width: int) -> list[list[Any]]:
    return [[row[i] for row in rows] for i in range(width)]


def _write_image(path: pathlib.Path, jpeg: bytes) -> None:
    # Not synced, because there are thousands of small files; after a power cut they are rendered again.
    storage.write(path, jpeg, sync=False)
