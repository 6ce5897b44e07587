"""Converts annotations and image files to shards of records, which training reads with far less decoding.

The output folder is a TensorFlow Datasets data set of one split, with a report and an index of the people for training.
If stopped, the same command continues with the first unfinished shard.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import fcntl
import importlib.metadata
import multiprocessing
import os
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from data_pipelines import command_line, storage
from data_pipelines.annotations import load_instances
from data_pipelines.coco_files import AnnotationFile
from data_pipelines.errors import InputError
from data_pipelines.instances import Instances, write_index
from data_pipelines.json_files import write_json
from data_pipelines.keypoints import KEYPOINT_SETS, KeypointSet, keypoint_set
from data_pipelines.prepare_report import FACTS, make_report, sources, summary
from data_pipelines.prepared import INDEX, REPORT
from data_pipelines.processes import starting_workers
from data_pipelines.shards import ListedImage, Shard, start_worker, write_shard
from data_pipelines.tfds_metadata import FINISHED, shard_name, write_tfds_metadata

IMAGES_PER_SHARD = 800

OPTIONS: command_line.Options = {
    "annotations": (None, "COCO keypoint file, or AI Challenger's own"),
    "images": (None, "folder of the images"),
    "keypoints": (None, f"keypoint set of the file: {', '.join(KEYPOINT_SETS)}"),
    "output": (None, "folder to write, NAME_SPLIT; may be in a bucket, gs://..."),
    "original": (False, "stores the files unchanged; regions cannot be decoded"),
    "all_images": (False, "includes images without people, for detected boxes"),
    "processes": (os.cpu_count() or 1, "number of processes"),
    "against": ("", "prepared folders to check for the same images, separated by commas"),
    "max_unreadable": (0.01, "maximum share of unusable images"),
    "images_per_shard": (IMAGES_PER_SHARD, "number of images per file"),
    "scratch": ("", "local folder for output to a bucket; default: the system's temporary folder"),
}

_PACKAGES = ("array-record", "numpy", "opencv-python-headless", "pillow", "tensorflow-datasets")


def prepare(
    annotations: str | os.PathLike,
    images: str | os.PathLike,
    keypoints: str | KeypointSet,
    output: str | os.PathLike,
    *,
    original: bool = False,
    all_images: bool = False,
    processes: int = 1,
    against: Sequence[str | os.PathLike] = (),
    max_unreadable: float = 0.01,
    images_per_shard: int = IMAGES_PER_SHARD,
) -> dict[str, Any]:
    """Prepares one split.

    Args:
      annotations: see `annotations.load_instances`.
      images: the folder of the images.
      keypoints: the file's keypoint set, or its name.
      output: the folder to write, `NAME_SPLIT`, on a local disk; finished shards of an earlier run are kept.
      original: store the image files unchanged instead of as cells.
      all_images: include images without people.
      processes: number of processes; 1: this process.
      against: folders prepared earlier, to check for the same images.
      max_unreadable: maximum share of unusable images.
      images_per_shard: number of images per file.

    Returns:
      The report, which is also written to the folder.

    Raises:
      InputError: the annotations are invalid, too many images are unusable, or the folder cannot be written.
    """
    if min(processes, images_per_shard) < 1:
        raise InputError(f"--processes={processes}, --images_per_shard={images_per_shard}: both must be at least 1")
    storage.check_output(output, folder=True)
    start = time.time()
    annotations, output, labels = pathlib.Path(annotations), pathlib.Path(output), keypoint_set(keypoints)
    others = {str(folder): sources(folder) for folder in against}
    instances = load_instances(annotations, images, labels)
    run = _source_images(annotations, instances, all_images)
    shards = _plan(output, pathlib.Path(images), run, original, images_per_shard)
    with _locked(output):
        (output / FINISHED).unlink(missing_ok=True)
        _remove_others(output, shards)
        facts = _write_shards(shards, processes, max_unreadable)
        kept = _kept(instances, [image["file"] for shard in facts for image in shard["images"]])
        shutil.rmtree(output / INDEX, ignore_errors=True)
        write_index(output / INDEX, kept)
        report = make_report(facts, instances, kept, others) | {
            "mode": "original" if original else "cells",
            "annotations": str(annotations),
            "image_folder": str(images),
            "keypoints": labels.name,
            "all_images": all_images,
            "versions": {package: importlib.metadata.version(package) for package in _PACKAGES},
            "seconds": round(time.time() - start, 1),
        }
        write_json(output / REPORT, report)
        lengths = [shard["records"] for shard in report["shards"]]
        write_tfds_metadata(output, labels, lengths, report["bytes_after"])
    return report


def upload(folder: pathlib.Path, target: epath.Path) -> None:
    """Copies a prepared folder to a path that `etils.epath` can write, e.g. in a bucket; the completion marker last."""
    (target / FINISHED).unlink(missing_ok=True)
    storage.upload(folder, target, last=FINISHED)


def _source_images(annotations: pathlib.Path, instances: Instances, all_images: bool) -> list[ListedImage]:
    """The images to prepare: those with people in the order of `instances.files`, then with `all_images` the others."""
    listed: dict[str, tuple[int, tuple[int, int] | None]] = {}
    file = AnnotationFile(annotations)
    file.read_images()
    for image_id, name in file.names().items():
        size = file.sizes.get(image_id, (None, None))
        listed.setdefault(name, (image_id, size if all(size) else None))
    order = np.argsort(instances.file_index, kind="stable")
    cuts = np.searchsorted(instances.file_index[order], np.arange(1, len(instances.files)))
    people = dict(zip([file.decode() for file in instances.files], np.split(order, cuts), strict=True))
    nobody = order[:0]
    return [
        ListedImage(name, *listed[name], *(getattr(instances, c)[rows] for c in ("instance_id", "bbox", "keypoints")))
        for name in [*people, *([name for name in listed if name not in people] if all_images else [])]
        for rows in [people.get(name, nobody)]
    ]


def _plan(
    output: pathlib.Path, folder: pathlib.Path, images: list[ListedImage], original: bool, size: int
) -> list[Shard]:
    runs = [tuple(images[i : i + size]) for i in range(0, len(images), size)]
    return [
        Shard(
            path=output / shard_name(output, number, len(runs)),
            facts=output / FACTS / f"{number:05d}.json",
            folder=folder,
            original=original,
            images=run,
        )
        for number, run in enumerate(runs)
    ]


def _write_shards(shards: list[Shard], processes: int, max_unreadable: float) -> list[dict[str, Any]]:
    total = sum(len(shard.images) for shard in shards)
    finished: dict[str, dict[str, Any]] = {}
    with command_line.progress(total) as advance:

        def take(shard: Shard, facts: dict[str, Any]) -> None:
            finished[shard.path.name] = facts
            unreadable = [reason for facts in finished.values() for reason in facts["unreadable"].values()]
            if len(unreadable) > max_unreadable * total:
                raise InputError(
                    f"{shard.folder}: {len(unreadable)} of {total} images cannot be used, more than the share of "
                    f"{max_unreadable:g} that --max_unreadable allows; the first: {unreadable[0]}"
                )
            advance(len(shard.images))

        if processes == 1:
            for shard in shards:
                take(shard, write_shard(shard))
        else:
            _in_processes(shards, processes, take)
    return [finished[shard.path.name] for shard in shards]


def _in_processes(shards: list[Shard], processes: int, take: Callable[[Shard, dict[str, Any]], None]) -> None:
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    pool = concurrent.futures.ProcessPoolExecutor(min(processes, len(shards)), context, start_worker, (stop,))
    with pool:
        try:
            with starting_workers():
                futures = {pool.submit(write_shard, shard): shard for shard in shards}
            for future in concurrent.futures.as_completed(futures):
                take(futures[future], future.result())
        except concurrent.futures.process.BrokenProcessPool:
            raise InputError(
                "a worker process was killed, probably because memory ran out; run the same command with fewer "
                f"--processes than {processes}, it continues and needs less"
            ) from None
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def _kept(instances: Instances, files: list[str]) -> Instances:
    """The people whose images have records; `files` becomes that of the records, in their order."""
    if not files:
        raise InputError(f"{instances.name}: none of its images can be used")
    numbers = {file: number for number, file in enumerate(files)}
    record = np.array([numbers.get(file.decode(), -1) for file in instances.files], np.int32)[instances.file_index]
    columns = {
        field.name: column[record >= 0]
        for field in dataclasses.fields(instances)
        if isinstance(column := getattr(instances, field.name), np.ndarray) and field.name != "files"
    }
    columns["file_index"] = record[record >= 0]
    return dataclasses.replace(instances, files=np.array([file.encode() for file in files]), **columns)


@contextlib.contextmanager
def _locked(output: pathlib.Path) -> Iterator[None]:
    """Creates the folder, or opens one created by this command, and locks it against other commands."""
    lock_file = output / ".lock"
    with storage.write_errors(output):
        output.mkdir(parents=True, exist_ok=True)
        if any(output.iterdir()) and not lock_file.exists() and not (output / REPORT).exists():
            raise InputError(f"{output}: holds other files; choose a new or empty folder")
        with open(lock_file, "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"{output}: another command is preparing this folder") from None
            yield


def _remove_others(output: pathlib.Path, shards: list[Shard]) -> None:
    """Removes leftovers of interrupted runs, and of runs with other numbers of shards, from the folder."""
    ours = {path for shard in shards for path in (shard.path, shard.facts)}
    stem = shards[0].path.name.split(".")[0]
    of_shards = [*output.glob(f"{stem}.array_record-*"), *(output / FACTS).glob("*.json")]
    for path in of_shards:
        if path not in ours:
            path.unlink()
    for folder in (output, output / FACTS):
        storage.remove_partial(folder)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns 0, 1 after printing an error, or 130 if interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    interrupted = "stopped; the same command continues with the first shard that is not finished"
    return command_line.status(lambda: _prepare(arguments), interrupted)


def _prepare(arguments: list[str]) -> None:
    flags = command_line.parse(arguments, __doc__, OPTIONS)
    scratch, target = flags.pop("scratch") or tempfile.gettempdir(), flags["output"]
    flags["against"] = [folder for folder in flags["against"].split(",") if folder]
    if not storage.in_bucket(target):
        print(summary(prepare(**flags), target))
        return
    flags["output"] = os.path.join(scratch, "prepared", os.path.basename(target.rstrip("/")))
    storage.check_bucket(target)
    report = prepare(**flags)
    with storage.bucket_errors(target, f"; the data set is in {flags['output']}"):
        upload(pathlib.Path(flags["output"]), epath.Path(target))
    print(summary(report, target))


if __name__ == "__main__":
    sys.exit(main())
