"""Reads person boxes as detectors and trackers write them. The format is detected from the content:

    COCO results    JSON list of records with `image_id` or `file_name`, `bbox` (xywh) or `xyxy`, and optionally
                    `score`, `category_id`, `category_name`: MMDetection, Detectron2, Ultralytics' predictions.json
    JSON object     {file name: [[x, y, width, height], ...]}, each box optionally with a fifth number, its score
    Ultralytics     folder of text files with the names of the images, or one such file: lines of class, x and y of the
                    centre, width and height as shares of the image, and optionally a confidence, the sixth number;
                    in lines with keypoints the last number, if 3 numbers per keypoint are followed by one more
    MOT             text file with lines of frame, track, left, top, width, height, and optionally confidence and class,
                    separated by commas; frames count from 1, or from 0 if there is a frame 0

Boxes of other classes than person are left out. A person is class 0 of Ultralytics, class 1 of MOT, `category_name`
"person", or `category_id` 1; if a file has category 0, its ids count from 0 and a person is 0. An annotation file
replaces "person" by its own categories with keypoints (see `people_of`).
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from data_pipelines.checks import FARTHEST, Records, as_numbers, check_name, check_regular, from_corners
from data_pipelines.coco_files import PERSON, read_results
from data_pipelines.errors import InputError, brief
from data_pipelines.json_files import stream_json

_NO_PEOPLE = ({PERSON}, {"person"})
_SLACK = 0.01  # by which rounded shares may exceed 1


@dataclasses.dataclass(frozen=True, eq=False)
class DetectedBoxes:
    """n boxes of people.

    Attributes:
      images: for each box the image's file name, with or without suffix, or its number.
      boxes: xywh, in image pixels or, if `relative`, as shares of the image's width and height.
      scores: of the detector; NaN where it gives none.
      where: returns the name, for messages, of the box at a position.
      relative: see `boxes`.
      frames: whether numbers of images count frames; otherwise they are image ids.
    """

    images: list[str | int]
    boxes: Float[np.ndarray, "n 4"]
    scores: Float[np.ndarray, " n"]
    where: Callable[[int], str]
    relative: bool = False
    frames: bool = False

    def __len__(self) -> int:
        return len(self.images)


def read_detections(
    path: str | os.PathLike, people: tuple[set[int], set[str]] = _NO_PEOPLE, box_format: str = "xywh"
) -> DetectedBoxes:
    """Reads a file, or an Ultralytics folder, of person boxes.

    Args:
      path: of the file or the folder.
      people: ids and names of the categories to read, see `people_of`.
      box_format: "xywh", or "xyxy" for corners, of `bbox` and of a JSON object's boxes.

    Raises:
      InputError: names the file, the record and the problem.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        return _labels(path)
    if path.suffix.lower() == ".txt":
        lines = list(_lines(path))
        return _tracks(path, lines) if any("," in text for _, text, _ in lines) else _labels(path)
    if next(stream_json(path), ("", None))[0]:
        return _by_name(path, box_format)
    return _results(path, people, box_format)


def people_of(categories: Sequence[Any]) -> tuple[set[int], set[str]]:
    """Ids and names of the categories of an annotation file whose boxes are people.

    These are the categories with keypoints; if none has any, the only category, or else those named "person".
    """
    known = [c for c in categories if isinstance(c, Mapping) and isinstance(c.get("id"), int)]
    chosen = [c for c in known if c.get("keypoints")] or known
    if len(chosen) > 1 and not chosen[0].get("keypoints"):
        chosen = [c for c in known if c.get("name") == "person"]
    if not chosen:
        return _NO_PEOPLE
    return {c["id"] for c in chosen}, {c["name"] for c in chosen if isinstance(c.get("name"), str)}


def _results(path: pathlib.Path, people: tuple[set[int], set[str]], box_format: str) -> DetectedBoxes:
    found = read_results(path, "detection")
    found = found.chosen(_people_among(found, people))
    images: list[str | int] = []
    for i, record in enumerate(found.items):
        image = record.get("file_name", record.get("image_id"))
        if isinstance(image, str):
            check_name(f"{found.where(i)}: file_name", image)
        elif not isinstance(image, int):
            raise InputError(f"{found.where(i)}: needs an 'image_id' or a 'file_name', not {brief(repr(image))}")
        images.append(image)
    corners = found.has("xyxy")
    boxes = np.empty((len(found), 4))
    boxes[~corners] = from_corners(found.chosen(~corners).boxes(), box_format)
    expected = "left, top, right and bottom in pixels"
    boxes[corners] = from_corners(found.chosen(corners).numbers("xyxy", (4,), expected, FARTHEST))
    scores, scored = np.full(len(found), np.nan), found.has("score")
    scores[scored] = found.chosen(scored).numbers("score", (), "a number")
    return DetectedBoxes(images, boxes, scores, found.where)


def _people_among(found: Records, people: tuple[set[int], set[str]]) -> Bool[np.ndarray, " n"]:
    ids, names = people
    category_ids = found.integers("category_id", min(ids))
    if 0 in category_ids and 0 not in ids:
        ids = {number - PERSON for number in ids}
    named = [record.get("category_name") for record in found.items]
    by_id = np.isin(category_ids, list(ids))
    return np.array([b if name is None else name in names for b, name in zip(by_id, named, strict=True)], bool)


def _by_name(path: pathlib.Path, box_format: str) -> DetectedBoxes:
    images: list[str] = []
    rows: list[np.ndarray] = []
    for name, piece in stream_json(path):
        images.append(check_name(f"{path}:", name))
        row = as_numbers(piece)
        if row is None or row.shape not in ((4,), (5,)):
            raise InputError(f"{path}: {brief(name)}: {brief(repr(piece))} is no box of 4 numbers, or 5 with a score")
        rows.append(np.append(row, np.nan)[:5])
    table = np.array(rows).reshape(-1, 5)
    boxes = from_corners(table[:, :4], box_format)
    return DetectedBoxes([*images], boxes, table[:, 4], lambda i: f"{path}: {brief(images[i])}")


def _tracks(path: pathlib.Path, lines: list[tuple[str, str, list[float]]]) -> DetectedBoxes:
    kept = []
    for where, text, row in lines:
        if len(row) < 6 or row[0] != int(row[0]):
            raise InputError(
                f"{where}: {brief(text)!r} is not frame, track, left, top, width, height, confidence (MOT)"
            )
        if len(row) < 8 or row[7] in (PERSON, -1):
            kept.append((where, row))
    first = min((int(row[0]) for _, _, row in lines), default=1)
    images: list[str | int] = [int(row[0]) + (first == 0) for _, row in kept]
    boxes = np.array([row[2:6] for _, row in kept]).reshape(-1, 4)
    confidences = [row[6] if len(row) > 6 and row[6] != -1 else np.nan for _, row in kept]  # -1: unknown
    return DetectedBoxes(images, boxes, np.array(confidences), lambda i: kept[i][0], frames=True)


def _labels(path: pathlib.Path) -> DetectedBoxes:
    is_folder = path.is_dir()
    folder = path / "labels" if (path / "labels").is_dir() else path
    files = sorted(folder.rglob("*.txt")) if is_folder else [path]
    if not files:
        raise InputError(f"{folder}: holds no text files; it should be a folder of Ultralytics labels, one per image")
    images: list[str | int] = []
    names, rows, scores = [], [], []
    for file in files:
        name = str(file.relative_to(folder).with_suffix("")) if is_folder else file.stem
        for where, text, row in _lines(file):
            if len(row) < 5 or not all(-_SLACK <= share <= 1 + _SLACK for share in row[1:5]):
                raise InputError(
                    f"{where}: {brief(text)!r} is not class, x, y, width, height with shares of the image from 0 to 1 "
                    "(Ultralytics); boxes in pixels need commas (MOT)"
                )
            if row[0] == 0:
                images.append(name)
                x, y, width, height = row[1:5]
                rows.append([x - width / 2, y - height / 2, width, height])
                scores.append(row[-1] if (len(row) - 5) % 3 == 1 else np.nan)
                names.append(where)
    return DetectedBoxes(
        images, np.array(rows).reshape(-1, 4), np.array(scores, float), lambda i: names[i], relative=True
    )


def _lines(path: pathlib.Path) -> Iterator[tuple[str, str, list[float]]]:
    """Place, text and numbers of the lines that are not empty."""
    check_regular(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a text file ({error})") from None
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            row = [float(part) for part in line.replace(",", " ").split()]
        except ValueError:
            raise InputError(f"{where}: {brief(line)!r} has something other than numbers") from None
        if not all(abs(value) <= FARTHEST for value in row):
            raise InputError(f"{where}: {brief(line)!r} has a number that is not finite or too large")
        yield where, line, row
