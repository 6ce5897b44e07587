"""Ultralytics' pose layout: a data.yaml with `kpt_shape`, and a text file of labels per image.

A line is class, the box's centre, width and height, then x, y and perhaps visibility of each keypoint, all relative to
the image's size. https://docs.ultralytics.com/datasets/pose/
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.errors import InputError, brief, utf8
from data_pipelines.labels.files import (
    IMAGE_SUFFIXES,
    ImageFinder,
    Source,
    clean,
    common_folders,
    is_image,
    read_text,
    split_of,
)
from data_pipelines.labels.image_sizes import displayed_size
from data_pipelines.labels.types import Image, Kind, Labels, Person, number, numbered, numbers, unique, visibility

_SPLIT_KEYS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def is_data_yaml(content: Any) -> bool:
    """Whether parsed YAML describes a data set of Ultralytics'."""
    if not isinstance(content, dict) or "backbone" in content:  # of a model
        return False
    return "kpt_shape" in content or {"names", "train"} <= {*map(str, content)}


def is_label_line(line: str) -> bool:
    """Whether a line of text has the numbers of a labelled object."""
    values = line.split()
    return len(values) >= 5 and values[0].isdecimal() and all(number(value) is not None for value in values)


@dataclasses.dataclass(frozen=True)
class _Shape:
    """The keypoint settings of data.yaml."""

    count: int
    dims: int
    kinds: Mapping[str, Kind]
    classes: Mapping[int, str]
    split_at: int = 5  # numbers before the keypoints

    def kind(self, name: str) -> Kind:
        """The keypoints of a class; those of the first one for classes that are not listed."""
        return self.kinds.get(name, next(iter(self.kinds.values())))

    @property
    def numbers(self) -> int:
        return self.split_at + self.count * self.dims


def read(source: Source, file: pathlib.Path, content: Mapping[str, Any], images: ImageFinder) -> Labels:
    """Reads the data set of a data.yaml. Raises InputError."""
    shape = _shape(source.name(file), content)
    found: list[Image] = []
    taken: set[pathlib.Path] = set()
    lines = _Lines(source, shape)
    for split, pictures, labels in _splits(source, file, content, images):
        for picture, text in _matched(source, pictures, labels, lines.unused):
            if text is not None and text in taken:
                continue
            taken.update([text] if text else [])
            found.append(_image(source, picture, text, split, lines))
    lines.judge()
    if not found:
        raise InputError(f"{source.name(file)}: no images were found for it; give their folder: --images FOLDER")
    for text in lines.unused:
        if text not in taken:
            source.notes.add("label files without an image left out", str(text))
    names = dict.fromkeys([*shape.classes.values(), *(p.kind for image in found for p in image.people)])
    return Labels("Ultralytics", {name: shape.kind(name) for name in names}, found)


def _shape(name: str, content: Mapping[str, Any]) -> _Shape:
    given = content.get("kpt_shape")
    if given is None:
        raise InputError(
            f"{name}: has no kpt_shape, so it describes boxes without keypoints; add kpt_shape: [keypoints, 2 or "
            "3] if its "
            "labels have them"
        )
    shape = numbers(given, 2)
    if not shape or shape[0] < 1 or shape[1] not in (2, 3) or shape[0] != int(shape[0]) or shape[0] > 10_000:
        raise InputError(
            f"{name}: kpt_shape is {brief(repr(given))}, not [number of keypoints, 2 or 3 numbers for each]"
        )
    count, dims = map(int, shape)
    total = content.get("nc")
    classes = content.get("names", [f"class_{i}" for i in range(min(total, 10_000) if isinstance(total, int) else 0)])
    if isinstance(classes, dict):
        table = {int(key): value for key, value in classes.items() if number(key) is not None}
    else:
        table = dict(enumerate(classes)) if isinstance(classes, list) else {}
    if not table:
        raise InputError(
            f"{name}: 'names' must list the classes, e.g. names: {{0: person}}; indent them below 'names:'"
        )
    table = dict(zip(table, unique(table.values()), strict=True))
    return _Shape(count, dims, _kinds(name, content, count, table), table)


def _kinds(name: str, content: Mapping[str, Any], count: int, classes: Mapping[int, str]) -> dict[str, Kind]:
    """By class, its keypoints; a class may have fewer than the others, and zeros for the rest."""
    given, flip = content.get("kpt_names", content.get("keypoint_names")), content.get("flip_idx")
    if isinstance(given, list) and given and all(isinstance(names, list) for names in given):
        given = dict(zip(classes, given, strict=False))
    if not isinstance(given, dict) or not given:
        return {called: _kind(name, flip, count, given) for called in classes.values()}
    first = next(iter(given.values()))
    lists = {called: given.get(key, given.get(str(key), given.get(called, first))) for key, called in classes.items()}
    longest = max(len(names) if isinstance(names, list) else 0 for names in lists.values())
    if longest != count:
        raise InputError(f"{name}: lists {longest} keypoint names, and kpt_shape says {count}; correct one of them")
    kinds = {}
    for called, names in lists.items():
        own = len(names) if isinstance(names, list) and names else count
        kinds[called] = _kind(name, flip[:own] if isinstance(flip, list) and own < count else flip, own, names)
    return kinds


def _kind(name: str, flip: Any, count: int, given: Any) -> Kind:
    names = unique(given) if isinstance(given, list) and len(given) == count else numbered(count)
    named = isinstance(given, list) and len(given) == count
    if isinstance(given, list) and not named:
        raise InputError(f"{name}: lists {len(given)} keypoint names, and kpt_shape says {count}; correct one of them")
    if flip is None:
        return Kind(names, named=named)
    swapped = numbers(flip)
    if swapped is None or sorted(swapped) != list(range(count)):
        says = f"{name}: flip_idx must name each of the {count} keypoints once, from 0 to {count - 1}"
        return Kind(names, named=named, contradiction=says)
    indices = [int(i) for i in swapped]
    if (i := next((i for i, j in enumerate(indices) if indices[j] != i), None)) is not None:
        says = (
            f"{name}: flip_idx sends keypoint {i} to {indices[i]} and that to {indices[indices[i]]}, but two flips "
            "must restore the order"
        )
        return Kind(names, named=named, contradiction=says)
    pairs = tuple((i, j) for i, j in enumerate(indices) if i < j)
    if pairs or named or count == 1:
        return Kind(names, pairs=pairs or None, named=named)
    says = f"{name}: flip_idx has no left-right pairs (Roboflow never writes any)"
    return Kind(names, contradiction=says, named=False)


def _splits(
    source: Source, file: pathlib.Path, content: Mapping[str, Any], images: ImageFinder
) -> Iterator[tuple[str, list[pathlib.Path], list[pathlib.Path]]]:
    """Split, image files and label files of data.yaml's entries; if none exists, of all files below its folder."""
    root, listed = file.parent, False
    elsewhere = _files(images.given, IMAGE_SUFFIXES) if images.given else []
    base = content.get("path")
    for key, split in _SPLIT_KEYS.items():
        entries = content.get(key)
        for entry in entries if isinstance(entries, list) else [entries]:
            if not isinstance(entry, str) or not entry:
                continue
            place = _place(root, base if isinstance(base, str) else "", entry)
            if place is None:
                source.notes.add("paths in data.yaml do not exist; the files below its folder were taken", brief(entry))
                continue
            listed = True
            if place.is_file():
                pictures, stems = _listed(source, place, root)
                labels = [text for text in _files(root, (".txt",)) if text.stem in stems and text != place]
            else:
                pictures, labels = _files(place, IMAGE_SUFFIXES), _files(_label_folder(place), (".txt",))
            yield split, [*pictures, *_of(elsewhere, labels)], labels
    if not listed:
        by_split: dict[str, tuple[list[pathlib.Path], list[pathlib.Path]]] = {}
        for path in source.files if not source.single else _files(root, (*IMAGE_SUFFIXES, ".txt")):
            pair = by_split.setdefault(split_of(*path.relative_to(source.root).parts[:-1]), ([], []))
            if path.suffix.lower() in IMAGE_SUFFIXES:
                pair[0].append(path)
            elif (
                path.suffix.lower() == ".txt"
                and "readme" not in path.name.lower()
                and "classes" not in path.name.lower()
            ):
                pair[1].append(path)
        for split, (pictures, labels) in sorted(by_split.items()):
            yield split, [*pictures, *_of(elsewhere, labels)], labels


def _of(pictures: Sequence[pathlib.Path], labels: Sequence[pathlib.Path]) -> list[pathlib.Path]:
    """The images that have one of these label files."""
    stems = {text.stem for text in labels}
    return [picture for picture in pictures if picture.stem in stems]


def _place(root: pathlib.Path, base: str, entry: str) -> pathlib.Path | None:
    """The folder or list of an entry: as written, or by the longest end of its path that exists below data.yaml."""
    for written in (f"{base}/{entry}" if base else entry, entry):
        for candidate in (pathlib.Path(written), root / written):
            if (candidate.is_absolute() or root in candidate.parents) and _exists(candidate) and candidate != root:
                return candidate
        parts = clean(written).split("/")
        for start in range(len(parts)):
            candidate = root.joinpath(*parts[start:])
            if _exists(candidate) and candidate != root:
                return candidate
    return None


def _exists(path: pathlib.Path) -> bool:
    try:
        return path.is_dir() or (path.is_file() and path.suffix.lower() == ".txt")
    except (OSError, ValueError):
        return False


def _listed(source: Source, place: pathlib.Path, root: pathlib.Path) -> tuple[list[pathlib.Path], set[str]]:
    """The images that a text file lists, and the stems of all its names."""
    found, stems = [], set()
    for line in read_text(source, place).splitlines():
        if not (text := line.strip()):
            continue
        parts = clean(text).split("/")
        stems.add(pathlib.PurePosixPath(parts[-1]).stem)
        candidates = [pathlib.Path(text), place.parent / text, *(root.joinpath(*parts[i:]) for i in range(len(parts)))]
        picture = next((path for path in candidates if is_image(path)), None)
        if picture is None:
            source.notes.add(f"images listed in {place.name} without a file, left out", brief(text))
        else:
            found.append(picture)
    return found, stems


def _files(folder: pathlib.Path, suffixes: Sequence[str]) -> list[pathlib.Path]:
    return [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in suffixes and p.is_file() and p.name[0] != "."]


def _label_folder(folder: pathlib.Path) -> pathlib.Path:
    """Ultralytics' label folder: the path's last `images` becomes `labels`; the folder itself if that is missing."""
    parts = list(folder.parts)
    for i in range(len(parts) - 1, -1, -1):
        if parts[i].lower() == "images":
            candidates = [pathlib.Path(*parts[:i], name, *parts[i + 1 :]) for name in ("labels", "Labels", "LABELS")]
            return next((candidate for candidate in candidates if candidate.is_dir()), folder)
    below = folder / "labels"
    return below if below.is_dir() else folder


def _matched(
    source: Source, pictures: list[pathlib.Path], labels: list[pathlib.Path], unused: list[pathlib.Path]
) -> Iterator[tuple[pathlib.Path, pathlib.Path | None]]:
    """Images with their label files, matched by name and then by folder; adds what is left over to `unused`."""
    by_stem: dict[str, list[pathlib.Path]] = {}
    for text in labels:
        by_stem.setdefault(text.stem, []).append(text)
    used: set[pathlib.Path] = set()
    for picture in pictures:
        found = by_stem.get(picture.stem, [])
        best = max(found, key=lambda text: common_folders(picture.parts, text.parts), default=None)
        if best is None:
            source.notes.add("images without a label file, taken as images without people", str(picture))
        else:
            used.add(best)
        yield picture, best
    unused += [text for text in labels if text not in used]


class _Lines:
    """Reads label lines, and finally checks that their lengths agree with kpt_shape."""

    def __init__(self, source: Source, shape: _Shape):
        self._source, self.shape = source, shape
        self._fitting = self._boxes = 0
        self._others: list[tuple[str, int]] = []
        self.unused: list[pathlib.Path] = []

    def people(self, text: pathlib.Path, size: tuple[int, int]) -> Iterator[Person]:
        """The people of a label file."""
        name = self._source.name(text) if text.is_relative_to(self._source.root) else str(text)
        for row, line in enumerate(read_text(self._source, text).splitlines(), 1):
            if not (values := line.replace(",", " ").split()):
                continue
            where = f"{name}, line {row}"
            if len(values) == 5:
                self._boxes += 1
                self._source.notes.add("label lines with a box and no keypoints left out", where)
            elif len(values) != self.shape.numbers:
                self._others.append((where, len(values)))
            else:
                self._fitting += 1
                yield self._person(values, size, where)

    def _person(self, texts: Sequence[str], size: tuple[int, int], where: str) -> Person:
        values = [number(text) for text in texts]
        count, dims = self.shape.count, self.shape.dims
        label, cx, cy, w, h = values[:5]
        if label is None or label != int(label) or None in values[:5]:
            raise InputError(f"{where}: must start with the class's number and a box's centre, width and height")
        if max(cx, cy) > 2 or min(w, h) < 0 or max(w, h) > 2:  # type: ignore[type-var, operator]
            raise InputError(
                f"{where}: the box must be relative to the image, 0 to 1, not {cx:g} {cy:g} {w:g} {h:g}; divide "
                "pixels by its size"
            )
        scale = np.array([size[1], size[0], size[1], size[0]])
        box = np.array([cx - w / 2, cy - h / 2, w, h]) * scale  # type: ignore[operator]
        points = np.zeros((count, 3))
        for i in range(count):
            x, y, *shown = values[5 + i * dims : 5 + (i + 1) * dims]
            if x is None or y is None:
                self._source.notes.add("keypoints whose coordinates are no numbers, taken as unlabelled", where)
                continue
            if max(abs(x), abs(y)) > 10:
                raise InputError(
                    f"{where}: keypoints must be relative to the image, 0 to 1, not {x:g}, {y:g}; divide pixels by "
                    "its size"
                )
            value = visibility(shown[0] if shown else None, x, y, self._source.notes, where)
            points[i] = x * size[1], y * size[0], value
        name = self.shape.classes.get(int(label), f"class {int(label)}")
        points = points[: len(self.shape.kind(name).names)]
        return Person(name, points, (float(box[0]), float(box[1]), float(box[2]), float(box[3])), where)

    def judge(self) -> None:
        """Raises InputError if more lines contradict kpt_shape than agree with it; leaves out few others."""
        if not self._others:
            return
        where, found = self._others[0]
        if len(self._others) >= self._fitting:
            raise InputError(
                f"{where}: has {found} numbers; kpt_shape [{self.shape.count}, {self.shape.dims}] means "
                f"{self.shape.numbers} "
                f"(class, box, keypoints){self._guess(found)}; correct kpt_shape in data.yaml or export the labels "
                "again"
            )
        for where, _ in self._others:
            self._source.notes.add(
                f"label lines without the {self.shape.numbers} numbers of kpt_shape (outlines?) left out", where
            )

    def _guess(self, found: int) -> str:
        fits = [f"[{(found - 5) // dims}, {dims}]" for dims in (3, 2) if found > 5 and (found - 5) % dims == 0]
        if found == self.shape.numbers + 1:
            return "; one more looks like a prediction with its score (save_conf)"
        return f"; {' or '.join(fits)} would fit" if fits else ""


def _image(source: Source, picture: pathlib.Path, text: pathlib.Path | None, split: str, lines: _Lines) -> Image:
    root = source.root if picture.is_relative_to(source.root) else picture.parent
    name = utf8(picture.relative_to(root).as_posix())
    image = Image((name,), name, None, split, path=picture)
    image.size = displayed_size(picture)
    if image.size and text is not None:
        image.people = list(lines.people(text, image.size))
    return image
