"""One shard of a prepared data set: a run of images -> records in an ArrayRecord file, by one worker process."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import zlib
from typing import Any

import cv2
import numpy as np
import PIL.features
from array_record.python.array_record_module import ArrayRecordWriter
from jaxtyping import Float, Int

from data_pipelines import storage
from data_pipelines.errors import InputError
from data_pipelines.example import encode_example
from data_pipelines.images import Pixels, decode_image
from data_pipelines.jpeg import Cells, encode_cells
from data_pipelines.json_files import read_json, write_json
from data_pipelines.processes import become_worker

# An image that re-encoding changes more than this, in grey levels on average, is stored as it is.
_LARGEST_CHANGE = 1.5
# One record to a chunk, for random access. JPEGs do not compress, and are read faster when nobody tries.
_WRITER = "group_size:1,uncompressed"

_stop: Any = None


@dataclasses.dataclass(frozen=True)
class SourceImage:
    """An image file, and what its annotations say: its id, its (height, width) where they tell, its people."""

    file: str
    image_id: int
    size: tuple[int, int] | None
    ids: Int[np.ndarray, " n"]
    boxes: Float[np.ndarray, "n 4"]
    keypoints: Float[np.ndarray, "n keypoints 3"]


@dataclasses.dataclass(frozen=True)
class Shard:
    """What to write, and where; `original` keeps the files' own bytes."""

    path: pathlib.Path
    facts: pathlib.Path
    folder: pathlib.Path
    original: bool
    images: tuple[SourceImage, ...]


class StoppedError(Exception):
    """The command is ending; the shard was not finished."""


def start_worker(stop: Any) -> None:
    """Makes this process a worker, which stops soon after `stop` is set."""
    global _stop
    become_worker()
    _stop = stop


def write_shard(shard: Shard) -> dict[str, Any]:
    """Writes a shard and beside it its facts, or finds both there, made from the same files in the same way.

    Either file appears whole or not at all. The facts are a dict: `key` of what went in; `file`, `records`, `bytes` and
    `sha256` of the shard; `images`, for each record the `file`, `sha256` and `bytes` of its source, and `change`, the
    mean error in grey levels, None when it is stored as it was; `unreadable`, reasons by file name.
    """
    key = _key(shard)
    if facts := _finished(shard, key):
        return facts
    images: list[dict[str, Any]] = []
    unreadable: dict[str, str] = {}
    with storage.whole(shard.path) as partial:
        writer = ArrayRecordWriter(str(partial), _WRITER)
        for image in shard.images:
            if _stop and _stop.is_set():
                raise StoppedError
            try:
                record, source = _record(shard, image)
            except InputError as error:
                unreadable[image.file] = str(error)
            else:
                writer.write(record)
                images.append(source)
        writer.close()
        with open(partial, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = partial.stat().st_size
    facts = {"key": key, "file": shard.path.name, "records": len(images), "bytes": size, "sha256": digest}
    facts |= {"images": images, "unreadable": unreadable}
    write_json(shard.facts, facts, indent=None)
    return facts


def _record(shard: Shard, image: SourceImage) -> tuple[bytes, dict[str, Any]]:
    """An image's record, and what the facts say of it. Raises InputError when the image cannot be used."""
    path = shard.folder / image.file
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such image") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    pixels = decode_image(data, path)
    height, width = pixels.shape[:2]
    if image.size not in (None, (height, width)):
        there = f"{image.size[1]} x {image.size[0]}" if image.size else ""
        raise InputError(f"{path}: the image is {width} x {height}, the annotation file says {there}")
    stored, change = (data, None) if shard.original else _cells(data, pixels)
    source = {"file": image.file, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), "change": change}
    record = encode_example(
        {
            "image": stored,
            "file_name": image.file.encode(),
            "image_id": image.image_id,
            "height": height,
            "width": width,
            "crc32": zlib.crc32(stored),
            "cells": change is not None,
            "people/id": image.ids,
            "people/bbox": image.boxes,
            "people/keypoints": image.keypoints,
        }
    )
    return record, source


def _cells(data: bytes, pixels: Pixels) -> tuple[bytes, float | None]:
    """The image as cells, and by how much they differ; the image as it is, and None, if they do too much."""
    try:
        cells = encode_cells(data, pixels)
        decoded, _ = Cells(cells, "").region(0, 0, pixels.shape[1], pixels.shape[0])
    except (OSError, InputError):  # what OpenCV reads and Pillow does not
        return data, None
    change = round(cv2.norm(pixels, decoded, cv2.NORM_L1) / pixels.size, 4)
    return (cells, change) if change <= _LARGEST_CHANGE else (data, None)


def _key(shard: Shard) -> str:
    """A digest of all that a shard's bytes depend on; of the image files, their size and time of change."""
    digest = hashlib.sha256()
    versions = [cv2.__version__, PIL.__version__, PIL.features.version("jpg")]
    digest.update(json.dumps([1, shard.path.name, shard.original, versions]).encode())
    for image in shard.images:
        try:
            stat = (shard.folder / image.file).stat()
            source = [stat.st_size, stat.st_mtime_ns]
        except OSError:
            source = []
        digest.update(json.dumps([image.file, image.image_id, image.size, source, image.ids.tolist()]).encode())
        digest.update(image.boxes.tobytes() + image.keypoints.tobytes())
    return digest.hexdigest()


def _finished(shard: Shard, key: str) -> dict[str, Any] | None:
    """The facts of a shard that is there already and whole."""
    try:
        facts = read_json(shard.facts)
        if facts["key"] != key:
            return None
        with open(shard.path, "rb") as file:
            return facts if hashlib.file_digest(file, "sha256").hexdigest() == facts["sha256"] else None
    except (InputError, OSError, LookupError, TypeError):
        return None
