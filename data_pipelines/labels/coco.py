"""COCO keypoint files, as written by CVAT, Roboflow, COCO Annotator, X-AnyLabeling, LabelMe's converters or by hand."""

from __future__ import annotations

import collections
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.errors import InputError, brief
from data_pipelines.keypoints import COCO
from data_pipelines.labels.files import Source, clean, split_of
from data_pipelines.labels.types import (
    Image,
    Kind,
    Labels,
    Notes,
    Person,
    number,
    numbered,
    numbers,
    size_of,
    unique,
    visibility,
)

# Lists of further keypoints, as in COCO-WholeBody.
_OTHER_POINTS = ("foot_kpts", "face_kpts", "lefthand_kpts", "righthand_kpts")


def is_coco(content: Any) -> bool:
    """Whether parsed JSON is laid out as COCO's annotation files."""
    return (
        isinstance(content, dict)
        and isinstance(content.get("annotations"), list)
        and isinstance(content.get("images"), list)
    )


def has_keypoints(content: Mapping[str, Any]) -> bool:
    """Whether a category or an annotation of a COCO file has keypoints."""
    records = [*content["annotations"], *(c if isinstance(c := content.get("categories"), list) else [])]
    return any(isinstance(record, dict) and record.get("keypoints") for record in records)


def read(source: Source, contents: Mapping[pathlib.Path, Any]) -> Labels:
    """Reads COCO files, several as the splits of one data set. Raises InputError."""
    files = [_File(source, file, content) for file, content in contents.items()]
    kinds: dict[str, Kind] = {}
    for file in files:
        for name, kind in file.kinds().items():
            if kinds.setdefault(name, kind).names != kind.names:
                raise InputError(
                    f"{file.name}: category {name!r} has other keypoints than in {files[0].name}; import one of "
                    "the files"
                )
    return Labels("COCO", kinds, [image for file in files for image in file.images.values()])


class _File:
    """A COCO file, checked record by record."""

    def __init__(self, source: Source, path: pathlib.Path, content: Mapping[str, Any]):
        self.name, self.notes = source.name(path), source.notes
        self.split = split_of(source.below(path)) if not source.single else split_of(path.name)
        self.images: dict[str, Image] = {}
        for position, record in enumerate(content["images"]):
            self._take_image(record, f"{self.name}: image {_called(record, position)}", path)
        if not self.images:
            raise InputError(f"{self.name}: its list 'images' is empty; export it again, with the images listed")
        categories = content.get("categories")
        self._categories = [c for c in categories if isinstance(c, dict)] if isinstance(categories, list) else []
        self._by_id = {_key(c.get("id")): c for c in self._categories}
        skeletons = [c for c in self._categories if c.get("keypoints")]
        self._shared = skeletons[0] if len({json.dumps(c["keypoints"]) for c in skeletons}) == 1 else {}
        self._rows: dict[str, list[tuple[Image, Mapping[str, Any], str]]] = collections.defaultdict(list)
        for position, record in enumerate(content["annotations"]):
            self._take_annotation(record, f"{self.name}: annotation {_called(record, position)}")

    def kinds(self) -> dict[str, Kind]:
        """Returns the categories with keypoints, and adds their people to the images."""
        found = {}
        for key in sorted(self._rows, key=lambda key: [*self._by_id, key].index(key)):
            rows = self._rows[key]
            category = self._by_id.get(key, self._shared)
            name = self._category_name(key)
            if self._categories and key not in self._by_id:
                self.notes.add("annotations of categories that are not listed", rows[0][2])
            kind = self._kind(category, rows)
            if kind is None:
                for _, _, where in rows:
                    self.notes.add(f"annotations of category {name!r}, which has no keypoints, left out", where)
                continue
            found[name] = kind
            for image, record, where in rows:
                image.people.append(self._person(name, kind, record, where))
        if not found:
            raise InputError(f"{self.name}: none of its {sum(map(len, self._rows.values()))} annotations has keypoints")
        return found

    def _category_name(self, key: str) -> str:
        name = self._by_id.get(key, {}).get("name")
        same = sum(c.get("name") == name for c in self._categories)
        return " ".join(str(name).split()) if name is not None and same == 1 else f"{name or 'category'} {key}"

    def _take_image(self, record: Any, where: str, path: pathlib.Path) -> None:
        if not isinstance(record, dict) or not isinstance(name := record.get("file_name"), str) or not clean(name):
            raise InputError(f"{where}: has no 'file_name'; export it again")
        key = _key(record.get("id"))
        if (known := self.images.get(key)) and known.names[0] != name:
            raise InputError(
                f"{where}: {brief(known.names[0])} and {brief(name)} have one id, {brief(key)}; give every image "
                "a different one"
            )
        extra = record.get("extra")
        names = [name, *(text for text in (record.get("path"),) if isinstance(text, str))]
        if isinstance(extra, dict) and isinstance(extra.get("name"), str):
            names.append(extra["name"])
        size = size_of(record.get("width"), record.get("height"))
        self.images[key] = Image(tuple(names), where, size, self.split, beside=path, id=record.get("id"))

    def _take_annotation(self, record: Any, where: str) -> None:
        if not isinstance(record, dict):
            raise InputError(f"{where}: not an object with named fields, but {type(record).__name__}")
        key = _key(record.get("image_id"))
        if key not in self.images:
            raise InputError(
                f"{where}: image_id {brief(record.get('image_id'))} is not among the file's images; export images and "
                "annotations together"
            )
        category = _key(record.get("category_id"))
        if record.get("category_id") is None and len(self._by_id) == 1:
            category = next(iter(self._by_id))
        self._rows[category].append((self.images[key], record, where))

    def _kind(self, category: Mapping[str, Any], rows: Sequence[tuple[Image, Mapping[str, Any], str]]) -> Kind | None:
        """A category's keypoints; without names, as many as its annotations have. None where there are none."""
        given = category.get("keypoints")
        if isinstance(given, dict):
            given = list(given.values())
        if isinstance(given, list):
            given = [one.get("name") if isinstance(one, dict) else one for one in given]
        names = unique(given) if isinstance(given, list) else ()
        counts = collections.Counter(len(flat) for _, record, _ in rows if (flat := _flat(record.get("keypoints"))))
        if names and len(counts) == 1 and counts.total() > 1 and not {*counts} & {2 * len(names), 3 * len(names)}:
            return self._misnamed(names, next(iter(counts)) // 3)
        if names:
            if list(names) != given:
                self.notes.add("keypoint names repeated, empty or no text: changed", self.name)
            return Kind(names, self._edges(category.get("skeleton"), names))
        if not counts:
            return None
        length = counts.most_common(1)[0][0]
        count = length // (3 if length % 3 == 0 else 2)
        return Kind(numbered(count), self._edges(category.get("skeleton"), numbered(count)), named=False)

    def _misnamed(self, names: tuple[str, ...], count: int) -> Kind:
        """The kind if all annotations have `count` keypoints, unlike the category: COCO's if that begins like COCO."""
        says = f"{self.name}: the category names {len(names)} keypoints, and all its annotations have {count}"
        if names[:count] == COCO.names:  # Human-Art lists four more points, which are in another field
            self.notes.add(
                f"categories with more names than keypoints, of which the first {count} were taken", self.name
            )
            return Kind(COCO.names)
        return Kind(numbered(count), named=False, contradiction=says)

    def _edges(self, skeleton: Any, names: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
        """The skeleton's lines as indices; COCO counts from 1, some tools from 0 or write names."""
        lines = (
            [line for line in skeleton if isinstance(line, list) and len(line) == 2]
            if isinstance(skeleton, list)
            else []
        )
        if lines and all(isinstance(end, str) and end in names for line in lines for end in line):
            return tuple((names.index(a), names.index(b)) for a, b in lines if a != b)
        ends = [[number(end) for end in line] for line in lines]
        flat = [end for line in ends for end in line if end is not None]
        if not flat or len(flat) < 2 * len(lines):
            return ()
        low, high = min(flat), max(flat)
        if low < 0 or high > len(names) or (low == 0 and high == len(names)):
            self.notes.add(
                f"skeletons with numbers {low:g} to {high:g} where there are {len(names)} keypoints, not used",
                self.name,
            )
            return ()
        start = 0 if low == 0 else 1
        return tuple((int(a) - start, int(b) - start) for a, b in ends if a != b)  # type: ignore[arg-type]

    def _person(self, name: str, kind: Kind, record: Mapping[str, Any], where: str) -> Person:
        points = self._points(record.get("keypoints"), len(kind.names), where)
        box = record.get("bbox")
        xywh = numbers(box, 4)
        if box and xywh is None:
            raise InputError(
                f"{where}: 'bbox' is {brief(repr(box))}, not x, y, width and height in pixels; correct or remove it"
            )
        area = number(record.get("area"))
        labelled = int((points[:, 2] > 0).sum())
        if (stated := number(record.get("num_keypoints"))) is not None and stated != labelled:
            self.notes.add(
                "annotations with a num_keypoints that is not the number of labelled keypoints, counted again", where
            )
        if any(isinstance(other := record.get(key), list) and any(other) for key in _OTHER_POINTS):
            self.notes.add(f"annotations with further keypoints ({', '.join(_OTHER_POINTS)}), which are ignored", where)
        return Person(
            name,
            points,
            None if xywh is None else (xywh[0], xywh[1], xywh[2], xywh[3]),
            where,
            area=area if area and area > 0 else None,
            crowd=_flag(record.get("iscrowd"), where),
            id=record.get("id"),
        )

    def _points(self, values: Any, count: int, where: str) -> np.ndarray:
        flat = _flat(values)
        if flat is None or not flat:
            if values:
                raise InputError(f"{where}: 'keypoints' is {brief(json.dumps(values)[:99])}, not a list of numbers")
            return np.zeros((count, 3))
        if len(flat) not in (2 * count, 3 * count):
            raise InputError(
                f"{where}: 'keypoints' has {len(flat)} numbers; its category's {count} keypoints need {3 * count}: "
                "x, y and "
                "visibility each; correct the category's list or the annotation"
            )
        return as_points(np.array(flat, object).reshape(count, -1).tolist(), self.notes, where)


def as_points(rows: Sequence[Sequence[Any]], notes: Notes, where: str) -> np.ndarray:
    """Rows of x, y and perhaps visibility as floats [K,3]; missing and infinite coordinates are unlabelled."""
    points = np.zeros((len(rows), 3))
    for i, (x, y, *rest) in enumerate(rows):
        xy = numbers([x, y])
        if xy is not None:
            shown = visibility(rest[0] if rest else None, xy[0], xy[1], notes, where)
            if not rest and min(xy) < 0:  # -1, -1
                shown = 0
            points[i] = *xy, shown
        elif rest and rest[0]:
            notes.add("keypoints whose coordinates are no numbers, taken as unlabelled", where)
    return points


def _flat(values: Any) -> list[Any] | None:
    """Keypoints as one list: of numbers, of [x, y, v] or of objects with x, y and visibility."""
    if isinstance(values, dict):
        values = list(values.values())
    if not isinstance(values, list):
        return None
    flat: list[Any] = []
    for value in values:
        if isinstance(value, dict):
            shown = next((value[k] for k in ("v", "visibility", "visible") if k in value), None)
            flat += [value.get("x"), value.get("y"), 2 if shown is None else shown]
        elif isinstance(value, list):
            flat += value
        else:
            flat.append(value)
    return flat if all(v is None or isinstance(v, int | float | str) for v in flat) else None


def _flag(value: Any, where: str) -> bool:
    if value is None or value == "":
        return False
    if (flag := number(value)) not in (0, 1):
        raise InputError(f"{where}: 'iscrowd' must be 0 or 1, not {brief(repr(value))}; correct it")
    return bool(flag)


def _key(value: Any) -> str:
    """An id as text; files write one id as 7, 7.0 and "7"."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else brief(str(value))


def _called(record: Any, position: int) -> str:
    known = isinstance(record, dict) and record.get("id") is not None
    return brief(str(record["id"])) if known else f"at position {position}"
