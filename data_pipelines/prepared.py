"""Reads the images of a folder written by `python -m data_pipelines.prepare`."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import os
import pathlib
import threading
import zlib

from array_record.python.array_record_module import ArrayRecordReader

from data_pipelines import storage
from data_pipelines.errors import InputError, first_line
from data_pipelines.example import decode_example
from data_pipelines.images import Pixels, decode_image
from data_pipelines.instances import Instances, read_index
from data_pipelines.jpeg import Cells
from data_pipelines.json_files import read_json
from data_pipelines.keypoints import KeypointSet
from data_pipelines.tfds_metadata import FINISHED

FORMAT_VERSION = 1

REPORT = "report.json"
INDEX = "index"

_FIELDS = ("image", "file_name", "height", "width", "crc32", "cells")
# Random access: one record of about a hundred kilobytes at a time.
_READER = {"options": "readahead_buffer_size:0,max_parallelism:0", "file_reader_buffer_size": 32768}


class PreparedImages:
    """The images of a prepared folder, an `ImageSource`: image k is record k, counted over all shards.

    Can be shared by threads; only its path is pickled. Shards are opened on first use.
    """

    def __init__(self, folder: str | os.PathLike):
        """Reads the folder's list of shards. Raises InputError if it is missing, unfinished or of another version."""
        self.folder = pathlib.Path(folder)
        report = read_report(folder)
        self._shards = report["shards"]
        self._paths = [str(self.folder / shard["file"]) for shard in self._shards]
        self._ends = list(itertools.accumulate(shard["records"] for shard in self._shards))
        self._readers: list[ArrayRecordReader | None] = [None] * len(self._shards)
        self._opening = threading.Lock()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __reduce__(self) -> tuple:
        return PreparedImages, (self.folder,)

    def name(self, number: int, file: str = "") -> str:
        """The name of an image in messages: shard, record within it, and the image's file if known."""
        shard, record = self._locate(number)
        return self._name(shard, record, file)

    def open(self, number: int, file: str = "") -> PreparedPicture:
        """Reads a record without decoding it.

        Args:
          number: the record's number.
          file: the image file name that the record must have; "": any.

        Raises:
          InputError: the shard is missing, truncated or another one, or the record is damaged.
        """
        shard, record = self._locate(number)
        reader = self._readers[shard] or self._open_shard(shard, self._name(shard, record, file))
        try:
            # Riegeli checks a hash of every chunk.
            (content,) = reader.read([record])
            fields = decode_example(content, _FIELDS)
        except (RuntimeError, ValueError) as error:
            where = self._name(shard, record, file)
            raise InputError(f"{where}: the record is damaged ({first_line(error)})") from None
        image, stored = fields["image"], fields["file_name"].decode()
        name = self._name(shard, record, stored)
        if file and file != stored:
            raise InputError(f"{name}: should be {file}; the index does not match the shards: prepare the folder again")
        if zlib.crc32(image) != fields["crc32"][0]:
            raise InputError(f"{name}: the record is damaged (its image has a wrong CRC-32)")
        cells = Cells(image, name) if fields["cells"][0] else None
        return PreparedPicture(name, image, (fields["height"][0], fields["width"][0]), cells)

    def _locate(self, number: int) -> tuple[int, int]:
        if not 0 <= number < len(self):
            raise IndexError(f"{self.folder}: image {number} of {len(self)}")
        shard = bisect.bisect_right(self._ends, number)
        return shard, number - self._ends[shard] + self._shards[shard]["records"]

    def _name(self, shard: int, record: int, file: str) -> str:
        name = f"{self._paths[shard]}: record {record}"
        return f"{name} ({file})" if file else name

    def _open_shard(self, shard: int, name: str) -> ArrayRecordReader:
        with self._opening:
            if reader := self._readers[shard]:
                return reader
            path, expected = self._paths[shard], self._shards[shard]
            try:
                size = os.path.getsize(path)
                reader = ArrayRecordReader(path, **_READER)
            except (OSError, RuntimeError) as error:
                reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
                raise InputError(f"{name}: the shard cannot be opened ({reason}); {_again(self.folder)}") from None
            # A truncated file can be opened, as an empty one.
            if size != expected["bytes"] or reader.num_records() != expected["records"]:
                raise InputError(
                    f"{name}: the shard is damaged: {size} bytes and {reader.num_records()} records, not "
                    f"{expected['bytes']} and {expected['records']}; {_again(self.folder)}"
                )
            self._readers[shard] = reader
            return reader


@dataclasses.dataclass(frozen=True)
class PreparedPicture:
    """A record's image, a `Picture`.

    Attributes:
      name: for messages.
      image: the encoded image.
      size: (height, width).
      cells: decodes regions; None for an image that was stored unchanged.
    """

    name: str
    image: bytes
    size: tuple[int, int]
    cells: Cells | None

    def pixels(self) -> Pixels:
        """The complete image, BGR."""
        pixels = decode_image(self.image, self.name)
        if pixels.shape[:2] != self.size:
            raise InputError(f"{self.name}: {pixels.shape[1]} x {pixels.shape[0]}, not {self.size[1]} x {self.size[0]}")
        return pixels

    def region(self, x0: int, y0: int, x1: int, y1: int) -> tuple[Pixels, tuple[int, int]]:
        """Pixels that cover [x0, x1) x [y0, y1), BGR, and the (x, y) of their corner; see `Cells.region`.

        For an image that was stored unchanged, the complete image.
        """
        return self.cells.region(x0, y0, x1, y1) if self.cells else (self.pixels(), (0, 0))


def load_prepared(folder: str | os.PathLike, keypoints: KeypointSet) -> Instances:
    """The people of a prepared folder. Raises InputError like `PreparedImages`, or for another number of keypoints."""
    images = PreparedImages(folder)
    try:
        instances = read_index(images.folder / INDEX, images)
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise InputError(f"{images.folder / INDEX}: damaged ({error}); {_again(images.folder)}") from None
    if instances.keypoints.shape[1] != len(keypoints):
        raise InputError(
            f"{folder}: its people have {instances.keypoints.shape[1]} keypoints, set {keypoints.name!r} "
            f"has {len(keypoints)}"
        )
    return instances


def read_report(folder: str | os.PathLike) -> dict:
    """The report of a finished folder. Raises InputError if it is missing, unfinished or of another version."""
    if storage.in_bucket(folder):
        raise InputError(f"{folder}: records are read from disks; copy the folder to one, or mount the bucket")
    folder = pathlib.Path(folder)
    if not (folder / FINISHED).is_file():
        state = "is not finished" if folder.is_dir() else "does not exist"
        raise InputError(f"{folder}: the prepared folder {state}; {_again(folder)}")
    report = read_json(folder / REPORT)
    if not isinstance(report, dict) or report.get("format_version") != FORMAT_VERSION:
        raise InputError(f"{folder}: was prepared by another version of this program; {_again(folder)}")
    return report


def _again(folder: pathlib.Path) -> str:
    command = f"python -m data_pipelines.prepare --annotations FILE --images FOLDER --keypoints SET --output {folder}"
    return f"run `{command}` (finished shards are kept)"
