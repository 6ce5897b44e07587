"""Groups points and boxes that were drawn separately into people: by explicit ties, or by points inside boxes."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from data_pipelines.labels.types import UNLABELLED, Image, Kind, Notes, Person, ordered

Box = tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True)
class Rectangle:
    """A box xywh with its label; points with the same `tie` belong to it."""

    label: str
    box: Box
    tie: Hashable = None


@dataclasses.dataclass(frozen=True)
class Point:
    """A keypoint; it belongs to the box, and to the points, with the same `tie`, if that is not None."""

    label: str
    x: float
    y: float
    visibility: int
    tie: Hashable = None


@dataclasses.dataclass
class Drawn:
    """An image and the shapes that were drawn on it; outlines stand for rectangles where nobody has one."""

    image: Image
    rectangles: list[Rectangle]
    points: list[Point]
    outlines: list[Rectangle] = dataclasses.field(default_factory=list)


# The kind of people without a rectangle, if others have one.
WITHOUT_BOX = "without a box"
# The kind if nobody has a rectangle.
ALONE = "object"


@dataclasses.dataclass(eq=False)  # two people may have equal values
class _Group:
    """The points of one person."""

    image: Image
    label: str
    box: Box | None
    points: dict[str, Point]
    stray: bool = False  # neither tied nor inside a box


def assemble(drawn: Sequence[Drawn], notes: Notes, order: Mapping[str, Sequence[str]]) -> dict[str, Kind]:
    """Puts people into the images, and returns their kinds.

    Points tied to a box, or to each other, are one person. Other points belong to the smallest box around them; if any
    points are tied to boxes, this holds only for points with the same labels as those. Box labels whose points
    have names in common are one kind. Points outside all boxes are one person per image; their kind is imported only on
    request (`Kind.aside`) if other people have boxes.

    Args:
      drawn: the images; their people are added.
      notes: collects what is left out.
      order: keypoint names by label, in order, if the tool gives them.
    """
    if not any(one.rectangles for one in drawn):
        for one in drawn:
            one.rectangles = [outline for outline in one.outlines if any(_inside(p, outline.box) for p in one.points)]
            for _ in one.rectangles:
                notes.add("outlines around keypoints taken as boxes, as there are no rectangles", one.image.where)
    tied = {
        p.label for one in drawn for p in one.points if p.tie is not None and p.tie in {r.tie for r in one.rectangles}
    }
    groups = [group for one in drawn for group in _groups(one, tied, notes)]
    boxed = [group for group in groups if group.box and group.points]
    known = {name for group in boxed for name in group.points}
    crowded = {group.image for group in groups if not group.stray}
    kept = []
    for group in groups:
        if group.stray and not known.isdisjoint(group.points) and group.image in crowded:
            notes.add("images whose points outside of all boxes were left out", group.image.where)
            continue
        if boxed and group.box is None:
            group.label = WITHOUT_BOX if known.isdisjoint(group.points) else boxed[0].label
        kept.append(group)
    kinds: dict[str, Kind] = {}
    for labels in _families(kept):
        members = [group for group in kept if group.label in labels]
        given = next((order[label] for label in labels if label in order), ())
        names = tuple(dict.fromkeys([*given, *ordered([list(group.points) for group in members])]))
        if not names:
            for group in members:
                notes.add("boxes without keypoints left out", group.image.where)
            continue
        aside = bool(boxed) and not any(group.box for group in members)
        for label in labels:
            kinds[label] = Kind(names, aside=aside)
        for group in members:
            points = np.zeros((len(names), 3))
            for i, name in enumerate(names):
                if point := group.points.get(name):
                    points[i] = (point.x, point.y, point.visibility) if point.visibility else (0, 0, UNLABELLED)
            group.image.people.append(Person(group.label, points, group.box, group.image.where))
    return kinds


def _families(groups: Sequence[_Group]) -> list[list[str]]:
    """Groups the labels whose points have names in common, in order of appearance."""
    families: list[tuple[list[str], set[str]]] = []
    names: dict[str, set[str]] = collections.defaultdict(set)
    for group in groups:
        names[group.label] |= set(group.points)
    for label, own in names.items():
        touching = [family for family in families if family[1] & own]
        families = [family for family in families if family not in touching]
        families.append(
            ([*(name for family in touching for name in family[0]), label], own.union(*(f[1] for f in touching)))
        )
    return [family[0] for family in families]


def _groups(one: Drawn, tied: set[str], notes: Notes) -> list[_Group]:
    """The people of one image, named by the label of their boxes; `tied` are the labels of points tied to boxes."""
    boxes = [_Group(one.image, r.label, r.box, {}) for r in one.rectangles]
    by_tie: dict[Hashable, _Group] = {}
    for rectangle, group in zip(one.rectangles, boxes, strict=True):
        if rectangle.tie is not None:
            if rectangle.tie in by_tie:
                notes.add("images with several boxes in one group: its points go to the first", one.image.where)
            by_tie.setdefault(rectangle.tie, group)
    untied = []
    for point in one.points:
        if point.tie is None:
            untied.append(point)
        else:
            _add(by_tie.setdefault(point.tie, _Group(one.image, ALONE, None, {})), point, notes)
    rest: list[Point] = []
    for point in untied:
        around = [g for g in boxes if g.box and _inside(point, g.box) and point.label not in g.points]
        if around and (not tied or point.label in tied):
            _add(min(around, key=lambda g: g.box[2] * g.box[3]), point, notes)  # type: ignore[index]
        else:
            rest.append(point)
    loose = [group for group in by_tie.values() if group.box is None]
    for group in loose:
        _take_box(group, boxes)
    found = [*boxes, *(group for group in loose if group.points)]
    if len({point.label for point in rest}) < len(rest):
        notes.add(
            "images with ungrouped points of several people, which were left out; draw a box around each person, "
            "or group its points",
            one.image.where,
        )
    elif rest:
        found.append(_Group(one.image, ALONE, None, {point.label: point for point in rest}, stray=True))
    return found


def _take_box(group: _Group, boxes: list[_Group]) -> None:
    """Gives points that are tied to each other, but to no box, the smallest free box around them."""
    free = [b for b in boxes if not b.points and b.box and all(_inside(p, b.box) for p in group.points.values())]
    if free and group.points:
        box = min(free, key=lambda b: b.box[2] * b.box[3])  # type: ignore[index]
        box.points, group.points = group.points, {}


def _add(group: _Group, point: Point, notes: Notes) -> None:
    if point.label in group.points:
        notes.add(
            f"points {point.label!r} whose person already has one left out; draw a box around each person, or "
            "group its points",
            group.image.where,
        )
    else:
        group.points[point.label] = point


def _inside(point: Point, box: Box) -> bool:
    x, y, w, h = box
    return x <= point.x <= x + w and y <= point.y <= y + h
