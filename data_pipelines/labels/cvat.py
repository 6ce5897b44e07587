"""CVAT XML 1.1, for images and for videos: skeletons, boxes and points.

https://docs.cvat.ai/docs/manual/advanced/xml_format/
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from data_pipelines.errors import InputError, brief
from data_pipelines.labels.files import Source, read_text, split_of
from data_pipelines.labels.grouping import Box, Drawn, Point, Rectangle, assemble
from data_pipelines.labels.types import (
    OCCLUDED,
    UNLABELLED,
    VISIBLE,
    Image,
    Kind,
    Labels,
    Person,
    numbered,
    numbers,
    ordered,
    outline,
    size_of,
)


def parsed(source: Source, file: pathlib.Path) -> ET.Element | None:
    """The root of a CVAT file; None for other XML. Raises InputError."""
    text = read_text(source, file)
    if "<annotations" not in text:
        return None
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise InputError(f"{source.name(file)}: declares XML entities, which CVAT does not; export it again")
    try:
        root = ET.fromstring(re.sub(r"^\ufeff?\s*<\?xml.*?\?>", "", text, count=1, flags=re.S))
    except (ET.ParseError, ValueError, RecursionError) as error:
        raise InputError(f"{source.name(file)}: not XML ({brief(str(error))}); export it again") from None
    return root if root.tag == "annotations" else None


@dataclasses.dataclass
class _Shape:
    """A box or a skeleton, with the group and attributes by which they are matched."""

    label: str
    where: str
    box: Box | None
    points: dict[str, tuple[float, float, int]]
    group: str
    attributes: frozenset[tuple[str, str]]


def read(source: Source, roots: Mapping[pathlib.Path, ET.Element]) -> Labels:
    """Reads CVAT files. Raises InputError."""
    frames: list[tuple[Image, list[ET.Element]]] = []
    orders: dict[str, list[str]] = {}
    edges: dict[str, set[tuple[str, str]]] = {}
    for file, root in roots.items():
        for element in root.iter("label"):
            _take_label(element, orders, edges)
        frames += _frames(source, file, root)
    shapes = [(image, [_shape(element, image) for element in elements]) for image, elements in frames]
    skeletons = [shape for _, drawn in shapes for shape in drawn if shape.points]
    if any(element.tag == "skeleton" for _, elements in frames for element in elements):
        kinds: dict[str, Kind] = {}
        for label in dict.fromkeys(shape.label for shape in skeletons):
            seen = ordered(sorted((list(s.points) for s in skeletons if s.label == label), key=len, reverse=True))
            names = tuple(dict.fromkeys([*orders.get(label, ()), *seen]))
            lines = tuple(
                (names.index(a), names.index(b)) for a, b in sorted(edges.get(label, ())) if {a, b} <= {*names}
            )
            kinds[label] = Kind(names, lines)
        for image, drawn in shapes:
            _add_people(source, image, drawn, kinds)
        return Labels("CVAT", kinds, [image for image, _ in frames])
    return Labels("CVAT", _from_points(source, frames), [image for image, _ in frames])


def _take_label(label: ET.Element, orders: dict[str, list[str]], edges: dict[str, set[tuple[str, str]]]) -> None:
    """Adds a skeleton's keypoint order, from the labels that name it as parent, and its edges, from its drawing."""
    name, parent = _text(label, "name"), _text(label, "parent")
    if parent:
        names = orders.setdefault(parent, [])
        if name not in names:
            names.append(name)
    drawing = _text(label, "svg")
    if not drawing or len(drawing) > 1_000_000:
        return
    nodes = {}
    for circle in re.findall(r"<circle[^>]*>", drawing):
        found = dict(re.findall(r'data-([a-z-]+)="([^"]*)"', circle))
        if called := found.get("label-name"):
            nodes.update({found[key]: called for key in ("node-id", "element-id") if key in found})
    for line in re.findall(r"<line[^>]*>", drawing):
        found = dict(re.findall(r'data-([a-z-]+)="([^"]*)"', line))
        ends = nodes.get(found.get("node-from", "")), nodes.get(found.get("node-to", ""))
        if ends[0] and ends[1] and ends[0] != ends[1]:
            edges.setdefault(name, set()).add((ends[0], ends[1]))


def _frames(source: Source, file: pathlib.Path, root: ET.Element) -> Iterator[tuple[Image, list[ET.Element]]]:
    """Images with their shapes, also those of tracks."""
    name = source.name(file)
    for element in root.iter("image"):
        called = element.get("name", "")
        if not called:
            raise InputError(f"{name}: image {element.get('id')} has no name; export it again")
        where = f"{name}: image {brief(called)}"
        size = size_of(element.get("width"), element.get("height"))
        split = split_of(element.get("subset", "")) or split_of(*called.split("/")[:-1])
        yield Image((called,), where, size, split, beside=file, id=element.get("id")), list(element)
    tasks = {_text(task, "id"): task for task in root.iter("task")}
    by_frame: dict[tuple[str, str, int], list[ET.Element]] = {}
    for track in root.iter("track"):
        video = track.get("task_id", ""), track.get("subset", "")  # both only in a project's file
        for shape in track:
            if not (frame := shape.get("frame", "")).isdecimal() or len(frame) > 9:
                raise InputError(
                    f"{name}: a shape of track {brief(str(track.get('id')))} has no frame; export it again"
                )
            if shape.get("outside") != "1":
                shape.set("label", shape.get("label", track.get("label", "")))
                shape.set("group_id", shape.get("group_id", track.get("group_id", "")))
                by_frame.setdefault((*video, int(frame)), []).append(shape)
    several = len({task for task, _, _ in by_frame}) > 1
    for (task, subset, number), shapes in sorted(by_frame.items()):
        meta = tasks.get(task, root)
        original = next(meta.iter("original_size"), None)
        size = None if original is None else size_of(_text(original, "width"), _text(original, "height"))
        video_name = next((e.text for e in meta.iter("source") if e.text), "video")
        title = _text(meta, "name") or task
        folders = (f"{subset}/{title}/", f"{subset}/", f"{title}/") if several else ("",)
        suffixes = (".PNG", ".png", ".jpg")
        names = tuple(f"{folder}frame_{number:06d}{suffix}" for folder in folders for suffix in suffixes)
        split = split_of(file.name) or split_of(subset)
        yield Image(names, f"{name}: frame {number} of {brief(video_name)}", size, split, beside=file), shapes


def _shape(element: ET.Element, image: Image) -> _Shape:
    label = element.get("label", "")
    where = f"{image.where}, {element.tag} {brief(label)}"
    box, points = None, {}
    if element.tag == "box":
        corners = numbers([element.get(key) for key in ("xtl", "ytl", "xbr", "ybr")])
        if corners is None:
            raise InputError(f"{where}: its corners xtl, ytl, xbr, ybr are not numbers; export it again")
        box = outline(corners[::2], corners[1::2])
    elif element.tag == "skeleton":
        for point in element.iter("points"):
            name = point.get("label", "")
            places = _places(point.get("points"))
            if places is None or len(places) != 1:
                raise InputError(
                    f"{where}: its point {brief(name)} is at {brief(str(point.get('points')))}, not x,y; export it "
                    "again"
                )
            points[name] = (*places[0], _visibility(point))
    attributes = frozenset((a.get("name", ""), (a.text or "").strip()) for a in element.findall("attribute"))
    return _Shape(label, where, box, points, _group(element), attributes)


def _add_people(source: Source, image: Image, shapes: Sequence[_Shape], kinds: Mapping[str, Kind]) -> None:
    """The skeletons of an image, each with its box: of one group, of the same attributes, or around its points."""
    skeletons = [shape for shape in shapes if shape.points]
    free = [shape for shape in shapes if shape.box]
    found: dict[int, _Shape] = {}
    for ties in (_grouped, _alike, _encloses):
        for i, skeleton in enumerate(skeletons):
            if i not in found and (fitting := [box for box in free if ties(box, skeleton)]):
                if ties is _alike and len(fitting) > 1:
                    continue
                found[i] = min(fitting, key=lambda box: box.box[2] * box.box[3])  # type: ignore[index]
                free = [box for box in free if box is not found[i]]
    for box in free:
        source.notes.add("boxes without a skeleton left out", box.where)
    for i, skeleton in enumerate(skeletons):
        points = np.zeros((len(kinds[skeleton.label].names), 3))
        for name, point in skeleton.points.items():
            points[kinds[skeleton.label].names.index(name)] = point if point[2] else (0, 0, UNLABELLED)
        image.people.append(Person(skeleton.label, points, found[i].box if i in found else None, skeleton.where))


def _grouped(box: _Shape, skeleton: _Shape) -> bool:
    return bool(box.group) and box.group == skeleton.group


def _alike(box: _Shape, skeleton: _Shape) -> bool:
    return bool(box.attributes) and box.attributes == skeleton.attributes


def _encloses(box: _Shape, skeleton: _Shape) -> bool:
    assert box.box
    x, y, w, h = box.box
    labelled = [p for p in skeleton.points.values() if p[2]]
    return bool(labelled) and all(x <= p[0] <= x + w and y <= p[1] <= y + h for p in labelled)


def _from_points(source: Source, frames: Sequence[tuple[Image, list[ET.Element]]]) -> dict[str, Kind]:
    """People from shapes of type points: several points are a person, single ones are keypoints by their labels."""
    drawn: list[Drawn] = []
    kinds: dict[str, Kind] = {}
    for image, elements in frames:
        one = Drawn(image, [], [])
        for element in elements:
            label, group = element.get("label", ""), _group(element) or None
            where = f"{image.where}, {element.tag} {brief(label)}"
            if element.tag == "box":
                box = _shape(element, image).box
                assert box
                one.rectangles.append(Rectangle(label, box, group))
            elif element.tag == "points":
                places = _places(element.get("points"))
                if not places:
                    raise InputError(
                        f"{where}: its points are {brief(str(element.get('points')))}, not x,y;x,y; export it again"
                    )
                shown = _visibility(element)
                if len(places) == 1:
                    one.points.append(Point(label, *places[0], shown, group))
                    continue
                kind = kinds.setdefault(label, Kind(numbered(len(places)), named=False))
                if len(kind.names) != len(places):
                    source.notes.add(f"points {label!r} with another number of points than the first left out", where)
                    continue
                image.people.append(Person(label, np.array([[*place, shown] for place in places], float), None, where))
            elif element.tag == "polygon" and (places := _places(element.get("points"))):
                one.outlines.append(Rectangle(label, outline(*zip(*places, strict=True)), group))
            else:
                source.notes.add(f"shapes of type {brief(element.tag)} left out", where)
        drawn.append(one)
    return {**assemble(drawn, source.notes, {}), **kinds}


def _places(text: str | None) -> list[tuple[float, float]] | None:
    pairs = [numbers(pair.split(","), 2) for pair in (text or "").split(";")]
    return None if None in pairs else [(pair[0], pair[1]) for pair in pairs]  # type: ignore[index]


def _visibility(element: ET.Element) -> int:
    if element.get("outside") == "1":
        return UNLABELLED
    return OCCLUDED if element.get("occluded") == "1" else VISIBLE


def _group(element: ET.Element) -> str:
    """The shape's group; CVAT writes 0 for none."""
    group = (element.get("group_id") or "").strip()
    return "" if group == "0" else group


def _text(element: ET.Element | None, name: str) -> str:
    found = None if element is None else element.find(name)
    return (found.text or "").strip() if found is not None else ""
