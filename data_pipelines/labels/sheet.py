"""The contact sheet: labelled images with boxes and skeletons, to detect wrong keypoint orders or sides."""

from __future__ import annotations

import os
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import UInt8

from data_pipelines import draw
from data_pipelines.errors import InputError
from data_pipelines.images import read_rgb
from data_pipelines.keypoints import LEFT_COLOUR, MIDDLE_COLOUR, RIGHT_COLOUR, KeypointSet
from data_pipelines.labels.types import Image, Notes

_TILE = 320  # pixels
_IMAGES = 16
_MOST_NUMBERS = 40  # keypoints; more numbers would cover the image
_MAX_MEGAPIXELS = 200.0
_MARGIN = 0.15  # around the people, of the longer side of what shows them
_BOX_COLOUR = (255, 255, 0)


def contact_sheet(images: Sequence[Image], keypoints: KeypointSet, notes: Notes) -> UInt8[np.ndarray, "h w 3"] | None:
    """An RGB picture of evenly spaced labelled images, cropped to their people; None if no image can be shown."""
    shown = [image for image in images if image.path and any(person.points[:, 2].any() for person in image.people)]
    if not shown:
        return None
    picked = [shown[i] for i in np.unique(np.linspace(0, len(shown) - 1, _IMAGES).astype(int))]
    tiles = []
    for image in picked:
        assert image.path
        try:
            picture = read_rgb(os.fspath(image.path), _MAX_MEGAPIXELS)
        except InputError as error:
            notes.add("images that cannot be read, for drawing or training", str(error))
            continue
        tiles.append(_tile(picture, image, keypoints))
    return np.concatenate([draw.sheet(tiles, _TILE), _legend(keypoints)]) if tiles else None


def _tile(picture: UInt8[np.ndarray, "h w 3"], image: Image, keypoints: KeypointSet) -> UInt8[np.ndarray, "a b 3"]:
    height, width = picture.shape[:2]
    boxes = np.array([person.box for person in image.people], float)
    points = np.concatenate([person.points[person.points[:, 2] > 0, :2] for person in image.people])
    low = np.minimum(boxes[:, :2].min(0), points.min(0, initial=np.inf))
    high = np.maximum((boxes[:, :2] + boxes[:, 2:]).max(0), points.max(0, initial=-np.inf))
    margin = _MARGIN * (high - low).max()
    x0, y0 = np.clip(low - margin, 0, [width - 1, height - 1]).astype(int)
    x1, y1 = np.clip(high + margin, [x0 + 1, y0 + 1], [width, height]).astype(int)
    tile, zoom = draw.zoomed(np.ascontiguousarray(picture[y0:y1, x0:x1]), _TILE)
    for person, box in zip(image.people, boxes, strict=True):
        x, y, w, h = np.clip((box - [x0, y0, 0, 0]) * zoom, -1e4, 1e4)
        cv2.rectangle(tile, (round(x), round(y)), (round(x + w), round(y + h)), _BOX_COLOUR, 1, cv2.LINE_AA)
        places = (person.points[:, :2] - [x0, y0]) * zoom
        draw.skeleton(tile, places, person.points[:, 2] > 0, keypoints)
        if len(keypoints) <= _MOST_NUMBERS:
            for number, (place, point) in enumerate(zip(places, person.points, strict=True)):
                if point[2]:
                    at = tuple(int(v) for v in np.clip(place + [4, -3], -1e4, 1e4))
                    _write(tile, str(number), at, (255, 255, 255))
    return tile


def _legend(keypoints: KeypointSet) -> UInt8[np.ndarray, "h w 3"]:
    """The keypoints' numbers and names in their colours."""
    width, step = 4 * _TILE, 15
    texts = [
        ("left", LEFT_COLOUR),
        ("right", RIGHT_COLOUR),
        ("neither, or no pairs", MIDDLE_COLOUR),
        ("box", _BOX_COLOUR),
    ]
    names = [name if name.isascii() else "(see summary.txt)" for name in keypoints.names]
    texts += [
        (f"{number} {name[:60]}", colour)
        for number, (name, colour) in enumerate(zip(names, keypoints.colours, strict=True))
    ]
    x, y = 6, step
    places = []
    for text, colour in texts:
        (length, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.4, 1)
        if x + length > width and x > 6:
            x, y = 6, y + step
        places.append((text, colour, (x, y)))
        x += length + 14
    canvas = np.full((y + step // 2, width, 3), 40, np.uint8)
    for text, colour, place in places:
        _write(canvas, text, place, colour)
    return canvas


def _write(image: UInt8[np.ndarray, "h w 3"], text: str, place: tuple[int, ...], colour: tuple[int, int, int]) -> None:
    for shade, thickness in (((0, 0, 0), 3), (colour, 1)):
        cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.4, shade, thickness, cv2.LINE_AA)
