"""Writes one shard of a prepared data set: a sequence of images as records of an ArrayRecord file."""

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

# An image that re-encoding changes by more than this (mean, in grey levels) is stored unchanged.
_LARGEST_CHANGE = 1.5
# One record per chunk, for random access. Uncompressed, because JPEGs do not compress.
_WRITER = "group_size:1,uncompressed"

_stop: Any = None


@dataclasses.dataclass(frozen=True)
class ListedImage:
    """An image file and its annotations: id, (height, width) if given, people."""

    file: str
    image_id: int
    size: tuple[int, int] | None
    ids: Int[np.ndarray, " n"]
    boxes: Float[np.ndarray, "n 4"]
    keypoints: Float[np.ndarray, "n keypoints 3"]


@dataclasses.dataclass(frozen=True)
class Shard:
    """The input and output of a shard; `original` stores the files unchanged."""

    path: pathlib.Path
    facts: pathlib.Path
    folder: pathlib.Path
    original: bool
    images: tuple[ListedImage, ...]


class StoppedError(Exception):
    """The command is ending; the shard is unfinished."""


def start_worker(stop: Any) -> None:
    """Makes this process a worker that stops soon after `stop` is set."""
    global _stop
    become_worker()
    _stop = stop


def write_shard(shard: Shard) -> dict[str, Any]:
    """Writes a shard and its facts, or returns the facts if both exist for the same files and settings.

    Both files are written atomically. The facts are a dict: `key`, a digest of the input; `file`, `records`, `bytes`
    and `sha256` of the shard; `images`, for each record the `file`, `sha256` and `bytes` of its source, and `change`,
    the mean error in grey levels (None if stored unchanged); `unreadable`, reasons by file name.
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


def _record(shard: Shard, image: ListedImage) -> tuple[bytes, dict[str, Any]]:
    """An image's record and its facts. Raises InputError if the image is unusable."""
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
    """The image as cells and their mean error; if that is too large, the image unchanged and None."""
    try:
        cells = encode_cells(data, pixels)
        decoded, _ = Cells(cells, "").region(0, 0, pixels.shape[1], pixels.shape[0])
    except (OSError, InputError):  # formats that OpenCV reads and Pillow does not
        return data, None
    change = round(cv2.norm(pixels, decoded, cv2.NORM_L1) / pixels.size, 4)
    return (cells, change) if change <= _LARGEST_CHANGE else (data, None)


def _key(shard: Shard) -> str:
    """A digest of everything that a shard's bytes depend on; for image files, their size and modification time."""
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
    """The facts of a shard that already exists and is complete."""
    try:
        facts = read_json(shard.facts)
        if facts["key"] != key:
            return None
        with open(shard.path, "rb") as file:
            return facts if hashlib.file_digest(file, "sha256").hexdigest() == facts["sha256"] else None
    except (InputError, OSError, LookupError, TypeError):
        return None
