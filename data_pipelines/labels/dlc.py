"""DeepLabCut's CollectedData_*.csv, of one animal or of several, with the project's config.yaml if it is nearby.

Header rows: scorer, individuals (several animals only), bodyparts, coords; then a row per image, whose path is in one
column, or in three (labeled-data, folder, file). Empty cells are unlabelled. https://deeplabcut.github.io/DeepLabCut
"""

from __future__ import annotations

import csv
import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from data_pipelines.errors import InputError, brief
from data_pipelines.labels.files import IMAGE_SUFFIXES, Source, read_yaml
from data_pipelines.labels.types import VISIBLE, Image, Kind, Labels, Person, number

_SINGLE = "single"  # the individual that holds the unique body parts
_HEADERS = ("scorer", "individuals", "bodyparts", "coords")


def is_dlc(text: str) -> bool:
    """Whether a text is DeepLabCut's table, of labels or of predictions."""
    first = text.lstrip("\ufeff").splitlines()[:4]
    starts = [line.split(_delimiter(text))[0].strip().strip('"').lower() for line in first]
    return starts[:1] == ["scorer"] and "bodyparts" in starts and "coords" in starts


def is_prediction(name: str, text: str) -> bool:
    """Whether a table of DeepLabCut's, in a file of this name, holds predictions."""
    return any("likelihood" in line for line in text.splitlines()[:4]) and not name.startswith("CollectedData")


@dataclasses.dataclass(frozen=True)
class _Column:
    """The pair of columns of a body part of an individual."""

    x: int
    y: int
    individual: str
    part: str


def read(source: Source, texts: dict[pathlib.Path, str]) -> Labels:
    """Reads a project's tables, one per video; skips the merged one in training-datasets. Raises InputError."""
    if of_videos := {file: text for file, text in texts.items() if "training-datasets" not in file.parts}:
        texts = of_videos
    images: dict[str, tuple[Image, pathlib.Path]] = {}
    rows: list[tuple[Image, dict[str, dict[str, tuple[float, float]]]]] = []
    parts: dict[str, dict[str, None]] = {"animal": {}, _SINGLE: {}}
    for file, text in texts.items():
        name = source.name(file)
        for column_parts, where, path, found in _rows(source, name, text):
            for kind, names in column_parts.items():
                parts[kind].update(dict.fromkeys(names))
            if path in images:
                other = images[path][1]
                said = f"{name} and {source.name(other)}" if other != file else f"two rows of {name}"
                raise InputError(f"{where}: {brief(path)} is labelled in {said}; keep one of them")
            image = Image((path,), where, beside=file)
            images[path] = image, file
            rows.append((image, found))
    kinds = {kind: Kind(tuple(names), aside=kind == _SINGLE) for kind, names in parts.items() if names}
    if len(kinds) == 1:
        kinds = {kind: dataclasses.replace(only, aside=False) for kind, only in kinds.items()}
    kinds = _with_skeleton(source, next(iter(texts)), kinds)
    for image, individuals in rows:
        for individual, points in individuals.items():
            kind = _SINGLE if individual == _SINGLE else "animal"
            table = np.zeros((len(kinds[kind].names), 3))
            for part, (x, y) in points.items():
                table[kinds[kind].names.index(part)] = x, y, VISIBLE
            image.people.append(Person(kind, table, None, image.where + (f", {individual}" if individual else "")))
    return Labels("DeepLabCut", kinds, [image for image, _ in rows])


def _rows(source: Source, name: str, text: str) -> Iterator[Any]:
    """For each row: body parts by kind, the record's name, the image path, and labelled points by individual."""
    delimiter = _delimiter(text)
    try:
        table = [
            row
            for row in csv.reader(text.lstrip("\ufeff").splitlines(), delimiter=delimiter)
            if any(map(str.strip, row))
        ]
    except csv.Error as error:
        raise InputError(f"{name}: not a table ({brief(str(error))}); save it as csv again") from None
    header = {key: row for row in table[:4] if row and (key := row[0].strip().lower()) in _HEADERS}
    columns, start = _columns(name, header)
    kinds = {
        _SINGLE: [c.part for c in columns if c.individual == _SINGLE],
        "animal": [c.part for c in columns if c.individual != _SINGLE],
    }
    for number_, row in enumerate(table[len(header) :], len(header) + 1):
        where = f"{name}, row {number_}"
        path = "/".join(cell.strip().replace("\\", "/").strip("/") for cell in row[:start] if cell.strip())
        if not path.lower().endswith(IMAGE_SUFFIXES):
            if number_ == len(header) + 1 and not any(map(str.strip, row[start:])):
                continue  # pandas' row of the index's name
            raise InputError(f"{where}: {brief(path)} is not the name of an image; label extracted frames, not videos")
        found: dict[str, dict[str, tuple[float, float]]] = {}
        for column in columns:
            cells = [row[i].strip() if i < len(row) else "" for i in (column.x, column.y)]
            values = [number(cell.replace(",", ".") if delimiter == ";" else cell) for cell in cells]
            if None not in values:
                found.setdefault(column.individual, {})[column.part] = (values[0], values[1])  # type: ignore[assignment]
            elif any(cell and cell.lower() not in ("nan", "na", "null", "none") for cell in cells):
                raise InputError(f"{where}: {column.part} is at {brief(', '.join(cells))}, not x and y in pixels")
        yield kinds, where, path, found


def _columns(name: str, header: dict[str, list[str]]) -> tuple[list[_Column], int]:
    """The columns of points, and the number of columns before them."""
    coords = [cell.strip().lower() for cell in header["coords"]]
    start = next((i for i, cell in enumerate(coords) if cell == "x"), 0)
    parts, individuals = header["bodyparts"], header.get("individuals", [])
    columns = []
    for i in [i for i, coord in enumerate(coords) if i >= start and coord not in ("", "likelihood")][::2]:
        part = parts[i].strip() if i < len(parts) else ""
        if coords[i : i + 2] != ["x", "y"] or not part or i + 1 >= len(parts) or parts[i + 1].strip() != part:
            raise InputError(
                f"{name}: columns {i + 1} and {i + 2} are not x and y of one body part; save the table again"
            )
        columns.append(_Column(i, i + 1, individuals[i].strip() if i < len(individuals) else "", part))
    if not start or not columns:
        raise InputError(f"{name}: has no columns x and y; save the table again")
    if len({(c.individual, c.part) for c in columns}) < len(columns):
        raise InputError(f"{name}: a body part has two pairs of columns; rename one")
    return columns, start


def _delimiter(text: str) -> str:
    first = text.partition("\n")[0]
    return max(",;\t", key=first.count)


def _with_skeleton(source: Source, file: pathlib.Path, kinds: dict[str, Kind]) -> dict[str, Kind]:
    """Adds the skeleton of the project's config.yaml."""
    near = [folder / "config.yaml" for folder in (source.root, *file.resolve().parents[:4])]
    config = next((path for path in near if path.is_file()), None)
    if config is None:
        return kinds
    try:
        content = read_yaml(source, config)
    except InputError as error:
        source.notes.add("config.yaml cannot be read; no skeleton", str(error))
        return kinds
    lines = content.get("skeleton") if isinstance(content, dict) else None
    lines = [line for line in lines if isinstance(line, list) and len(line) == 2] if isinstance(lines, list) else []

    def edges(names: Sequence[str]) -> tuple[tuple[int, int], ...]:
        return tuple((names.index(a), names.index(b)) for a, b in lines if a in names and b in names and a != b)

    return {name: dataclasses.replace(kind, edges=edges(kind.names)) for name, kind in kinds.items()}
