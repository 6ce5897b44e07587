"""Adds missing boxes and areas; refuses coordinates and boxes that are in another format than expected."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np

from data_pipelines.coco_files import AREA_SHARE
from data_pipelines.errors import InputError
from data_pipelines.labels.files import Source
from data_pipelines.labels.types import Image, Labels, Person, outline

# Margin around the labelled points, as a share of the longer side of their extent.
BOX_MARGIN = 0.1
# Minimum longer side of a box made from points, as a share of the median extent: few points may lie close together.
_LEAST_EXTENT = 0.25

BOX_FORMATS = {
    "xywh": "left, top, width, height",
    "xyxy": "left, top, right, bottom",
    "cxcywh": "centre and size",
    "points": "none; they are made from the keypoints",
}

# Labels are refused if more than this share of the keypoints is outside the images, or at least this share of the
# boxes fits better in another format.
_MOST_OUTSIDE = 0.3
_MOST_MISREAD = 0.8


def complete(labels: Labels, source: Source, boxes: str) -> dict[str, int]:
    """Gives every person a box xywh and an area; removes people with neither a box nor keypoints.

    Args:
      labels: read and located.
      source: collects the notes.
      boxes: the format of the labels' boxes, a key of `BOX_FORMATS`; "": xywh, checked against the keypoints.

    Returns:
      How many boxes and areas were made here.

    Raises:
      InputError: coordinates are not in pixels of the images, or boxes not in the given format.
    """
    _check_coordinates(labels.images, source)
    people = [(image, person) for image in labels.images for person in image.people]
    for _, person in people:
        person.box = None if boxes == "points" or not person.box else _as_xywh(person.box, boxes)
    if not boxes:
        _check_boxes(people)
    without = [person for _, person in people if not person.box or min(person.box[2:]) <= 0]
    extents = [max(_extent(person)[2:]) for _, person in people if _labelled(person).any()]
    usual = statistics.median(extents) if extents else 0.0
    for person in without:
        person.box, person.area = (_around(person, usual) if _labelled(person).any() else None), None
    areas = 0
    for image in labels.images:
        for person in image.people:
            if person.box is None:
                source.notes.add("people without keypoints and without a box left out", person.where)
            elif person.area is None:
                person.area, areas = AREA_SHARE * person.box[2] * person.box[3], areas + 1
        image.people = [person for person in image.people if person.box is not None]
    _count_outside(labels.images, source)
    return {"boxes": sum(person.box is not None for person in without), "areas": areas}


def _labelled(person: Person) -> np.ndarray:
    return person.points[:, 2] > 0


def _extent(person: Person) -> tuple[float, float, float, float]:
    points = person.points[_labelled(person)]
    return outline(points[:, 0].tolist(), points[:, 1].tolist())


def _around(person: Person, usual: float) -> tuple[float, float, float, float]:
    """The box around a person's points with the margin."""
    x, y, w, h = _extent(person)
    side = max(w, h, _LEAST_EXTENT * usual, 1.0)
    margin = BOX_MARGIN * side
    grow = max(side - max(w, h), 0) / 2 + margin
    return x - grow, y - grow, w + 2 * grow, h + 2 * grow


def _as_xywh(box: tuple[float, float, float, float], form: str) -> tuple[float, float, float, float]:
    a, b, c, d = box
    if form == "xyxy":
        return a, b, c - a, d - b
    if form == "cxcywh":
        return a - c / 2, b - d / 2, c, d
    return box


def _check_coordinates(images: Sequence[Image], source: Source) -> None:
    """Raises InputError for relative coordinates, and where many keypoints are outside of their images."""
    sized = [
        (i, p, p.points[_labelled(p)])
        for i in images
        if i.size and max(i.size) > 32
        for p in i.people
        if _labelled(p).any()
    ]
    if not sized:
        return
    if all(points[:, :2].max() <= 2 for _, _, points in sized) and sum(len(points) for _, _, points in sized) > 1:
        raise InputError(
            f"{sized[0][1].where}: all keypoints are between 0 and 2, so they are relative to the image; multiply "
            "x by its "
            "width and y by its height"
        )
    outside = [(p, int((~_within(points, i)).sum())) for i, p, points in sized]
    total = sum(len(points) for _, _, points in sized)
    if (count := sum(n for _, n in outside)) > _MOST_OUTSIDE * total:
        person = next(p for p, n in outside if n)
        raise InputError(
            f"{person.where}: {count} of {total} keypoints are outside of their images, so the labels are for "
            "images of "
            "another size; give those: --images FOLDER, or export again"
        )


def _within(points: np.ndarray, image: Image) -> np.ndarray:
    assert image.size
    x, y = points[:, 0], points[:, 1]
    return (x >= -1) & (y >= -1) & (x <= image.size[1] + 1) & (y <= image.size[0] + 1)


def _check_boxes(people: Sequence[tuple[Image, Person]]) -> None:
    """Raises InputError if most boxes fit their keypoints better in another format."""
    with_both = [(i, p) for i, p in people if p.box and _labelled(p).sum() > 1]
    if not with_both:
        return
    for form in ("xyxy", "cxcywh"):
        better = [(image, person) for image, person in with_both if _fits_better(image, person, form)]
        if len(better) >= _MOST_MISREAD * len(with_both):
            _, one = better[0]
            raise InputError(
                f"{one.where}: its box {[round(v, 1) for v in one.box or ()]} is not x, y, width and height: "
                f"{len(better)} of "
                f"{len(with_both)} boxes fit their keypoints as {BOX_FORMATS[form]}; give --boxes {form}, or "
                "--boxes xywh if they are right"
            )


def _fits_better(image: Image, person: Person, form: str) -> bool:
    """Whether a box fits its keypoints in another format, but as xywh misses them, leaves the image or is too large."""
    assert person.box
    points = person.points[_labelled(person)]
    other = _as_xywh(person.box, form)
    if min(other[2:]) <= 0:
        return False
    inside, other_inside = _share_inside(points, person.box), _share_inside(points, other)
    if form == "cxcywh":
        return other_inside >= 0.9 and inside <= 0.6
    height, width = image.size or (np.inf, np.inf)
    x, y, w, h = person.box
    leaves = x + w > 1.1 * width or y + h > 1.1 * height  # estimated boxes leave it by a little
    return other_inside >= 0.9 and (leaves or _much_larger(person.box, other, points))


def _much_larger(box: Sequence[float], other: Sequence[float], points: np.ndarray) -> bool:
    """Whether a box extends far beyond the points to the right and bottom, and the other box does not."""
    high = points[:, :2].max(0)
    far, near = ((b[0] + b[2] - high[0]) / max(b[2], 1) + (b[1] + b[3] - high[1]) / max(b[3], 1) for b in (box, other))
    return bool(far > 0.8 and near < 0.5 * far)


def _share_inside(points: np.ndarray, box: Sequence[float]) -> float:
    x, y, w, h = box
    slack = 0.05 * max(w, h)
    inside = (points[:, 0] >= x - slack) & (points[:, 1] >= y - slack)
    return float((inside & (points[:, 0] <= x + w + slack) & (points[:, 1] <= y + h + slack)).mean())


def _count_outside(images: Sequence[Image], source: Source) -> None:
    for image in images:
        for person in image.people:
            points = person.points[_labelled(person)]
            for _ in range(int((~_within(points, image)).sum()) if image.size and len(points) else 0):
                source.notes.add("labelled keypoints outside of their image, kept", person.where)
            x, y, w, h = person.box or (0, 0, 0, 0)
            low, high = np.array([x, y]) - 1, np.array([x + w, y + h]) + 1
            apart = ((points[:, :2] < low) | (points[:, :2] > high)).any(1)
            for _ in range(int(apart.sum())):
                source.notes.add("labelled keypoints outside of their box, kept", person.where)
