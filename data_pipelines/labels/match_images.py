"""Finds the images of labels, and transforms labels that were made for other sizes."""

from __future__ import annotations

import numpy as np

from data_pipelines import command_line
from data_pipelines.errors import InputError
from data_pipelines.labels.files import ImageFinder, Source, clean
from data_pipelines.labels.image_sizes import header, turned
from data_pipelines.labels.types import Image, Labels, outline

# Maximum share of found images that contradict their labels; these images are left out.
_MOST_CONTRADICTIONS = 0.1
# An image counts as resized if the scales of its sides differ by less than this.
_ASPECT = 0.01


def locate(labels: Labels, source: Source, finder: ImageFinder) -> None:
    """Sets the path and displayed size (after EXIF rotation) of each image, and transforms its people to these pixels.

    Images that cannot be read, or whose aspect ratio contradicts their labels, are removed.

    Raises:
      InputError: more than a tenth must be removed, or two files label the same image.
    """
    wrong: set[Image] = set()
    with command_line.progress(len(labels.images)) as advance:
        for image in labels.images:
            advance(1)
            image.path = image.path or finder.find(image.names, image.beside, image.split)
            if image.path is None:
                source.notes.add("images without a file", image.names[0])
            elif (facts := header(image.path)) is None:
                source.notes.add("files that are no images, left out", str(image.path))
                wrong.add(image)
            elif not _fitted(image, *facts, source):
                source.notes.add("images of another shape than their labels say, left out", _contradiction(image))
                wrong.add(image)
    found = sum(image.path is not None for image in labels.images)
    if found and len(wrong) > max(_MOST_CONTRADICTIONS * found, 1 if found > 5 else 0):
        one = next(image for image in labels.images if image in wrong)
        raise InputError(
            f"{_contradiction(one)}; {len(wrong)} of {found} images contradict their labels: give the folder of "
            "the labelled ones, --images FOLDER"
        )
    labels.images = _merged([image for image in labels.images if image not in wrong], source)


def _contradiction(image: Image) -> str:
    if not image.path or not (facts := header(image.path)):
        return f"{image.path}: not an image that can be read"
    (height, width), _ = facts
    stated = f"{image.size[1]}x{image.size[0]}" if image.size else "no size"
    return f"{image.path}: has {width}x{height} pixels, its labels ({image.where}) are for {stated}"


def _fitted(image: Image, stored: tuple[int, int], orientation: int, source: Source) -> bool:
    """Transforms an image's people to its displayed size; returns False if the aspect ratios differ."""
    shown = stored[::-1] if orientation >= 5 else stored
    if image.size in (None, shown):
        image.size = shown
        return True
    assert image.size
    if image.size == stored:
        source.notes.add(
            "images labelled before they were turned by their EXIF orientation: labels turned", image.where
        )
        _transform(image, lambda xy: turned(xy, stored, orientation))
        image.size = shown
        return True
    down, across = shown[0] / image.size[0], shown[1] / image.size[1]
    if abs(down / across - 1) > _ASPECT:
        return False
    source.notes.add("images resized after they were labelled: labels scaled", image.where)
    _transform(image, lambda xy: xy * [across, down])
    image.size = shown
    return True


def _transform(image: Image, move) -> None:  # type: ignore[no-untyped-def]
    before = image.size
    assert before
    for person in image.people:
        labelled = person.points[:, 2] > 0
        person.points[labelled, :2] = move(person.points[labelled, :2])
        if person.box:
            x, y, w, h = person.box
            corners = move(np.array([[x, y], [x + w, y + h]]))
            person.box = outline(corners[:, 0].tolist(), corners[:, 1].tolist())
            if person.area and w * h > 0:
                person.area *= person.box[2] * person.box[3] / (w * h)


def _merged(images: list[Image], source: Source) -> list[Image]:
    """Images that occur twice become one, with the people of both."""
    kept: dict[str, Image] = {}
    for image in images:
        key = str(image.path.resolve()) if image.path else clean(image.names[0])
        if (first := kept.get(key)) is None:
            kept[key] = image
        elif first.beside != image.beside and first.beside and image.beside:
            a, b = source.name(first.beside), source.name(image.beside)
            raise InputError(f"{a} and {b} both label {image.names[0]}; give one of the two files")
        else:
            source.notes.add("images that are listed twice: the people of both were taken", image.where)
            first.people += image.people
    return list(kept.values())
