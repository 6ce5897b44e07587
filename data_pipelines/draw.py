"""Pictures: skeletons on images, contact sheets."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from data_pipelines import storage
from data_pipelines.keypoints import KeypointSet

# Maximum side of a drawn picture, in pixels.
LONGEST = 2048

_COLUMNS = 4  # of a sheet
_OPACITY = 0.6  # at a heatmap value of 1
_TITLE = 22  # pixels, height of a picture's name


def skeleton(
    image: UInt8[np.ndarray, "h w 3"],
    keypoints: Float[np.ndarray, "k 2"],
    shown: np.ndarray,
    keypoint_set: KeypointSet,
    thickness: int = 2,
) -> None:
    """Draws a person's skeleton into an RGB image, in place.

    Args:
      image: RGB.
      keypoints: (x, y) in image pixels.
      shown: bool [K]; lines are drawn between shown points.
      keypoint_set: provides lines, and colours for left, right and middle.
      thickness: line width in pixels.
    """
    points = [tuple(round(float(v)) for v in np.clip(point, -1e4, 1e4)) for point in keypoints]
    for a, b in keypoint_set.skeleton_indices:
        if shown[a] and shown[b]:
            colour = keypoint_set.colours[a if keypoint_set.colours[a] == keypoint_set.colours[b] else b]
            cv2.line(image, points[a], points[b], colour, thickness, cv2.LINE_AA)
    for point, show, colour in zip(points, shown, keypoint_set.colours, strict=True):
        if show:
            cv2.circle(image, point, thickness + 1, (255, 255, 255), -1, cv2.LINE_AA)
            cv2.circle(image, point, thickness, colour, -1, cv2.LINE_AA)


def people(
    image: UInt8[np.ndarray, "h w 3"],
    people: Sequence[Mapping[str, Any]],
    keypoint_set: KeypointSet,
    threshold: float,
    zoom: float = 1.0,
) -> None:
    """Draws a predictor's people into an RGB image, in place, with lines that suit its size.

    Args:
      image: RGB, `zoom` times the size of the image that was predicted on.
      people: `keypoints` [K,2] in image pixels and `scores` [K] of each; with `track_id` and `bbox` (xywh), the box is
        drawn in the identity's colour, with its number.
      keypoint_set: provides lines and colours.
      threshold: keypoints with a lower score are omitted.
      zoom: the image's scale.
    """
    for person in people:
        shown = person["scores"] > threshold
        skeleton(image, person["keypoints"] * zoom, shown, keypoint_set, line_width(image))
        if "track_id" in person:
            _identity(image, person["bbox"] * zoom, person["track_id"])


def _identity(image: UInt8[np.ndarray, "h w 3"], box: Float[np.ndarray, "4"], number: int) -> None:
    """Draws a box (xywh) and its number; numbers that follow each other have hues far apart."""
    hue = round(180 * (0.618 * number % 1))  # of OpenCV's 180; a golden ratio further for each number
    colour = cv2.cvtColor(np.array([[[hue, 200, 235]]], np.uint8), cv2.COLOR_HSV2RGB)[0, 0].tolist()
    height, width = image.shape[:2]
    edges = np.clip(np.round([*box[:2], *(box[:2] + box[2:])]), 0, [width - 1, height - 1] * 2)
    left, top, right, bottom = edges.astype(int).tolist()
    line, text, scale, font = line_width(image), str(number), line_width(image) / 4, cv2.FONT_HERSHEY_SIMPLEX
    thickness = max(1, line // 2)
    cv2.rectangle(image, (left, top), (right, bottom), colour, thickness, cv2.LINE_AA)
    across, down = cv2.getTextSize(text, font, scale, thickness)[0]
    cv2.rectangle(image, (left, top), (left + across + line, top + down + 2 * line), colour, -1)
    cv2.putText(image, text, (left, top + down + line), font, scale, (0, 0, 0), thickness, cv2.LINE_AA)


def line_width(image: UInt8[np.ndarray, "h w 3"]) -> int:
    """The width in pixels of lines that can be seen when the complete image is shown."""
    return max(2, round(max(image.shape) / 400))


def zoomed(image: UInt8[np.ndarray, "h w 3"], longest: int) -> tuple[UInt8[np.ndarray, "a b 3"], float]:
    """Resizes an image so that its longer side has `longest` pixels; returns it with the factor."""
    zoom = longest / max(image.shape[:2])
    width, height = (max(round(side * zoom), 1) for side in image.shape[1::-1])
    interpolation = cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=interpolation), zoom


def heatmap_overlay(
    image: UInt8[np.ndarray, "h w 3"],
    heatmaps: Float[np.ndarray, "rows columns k"],
    matrix: Float[np.ndarray, "2 3"],
    keypoint_set: KeypointSet,
) -> None:
    """Blends a person's heatmaps into an RGB image, in place, in their keypoints' colours; opacity follows the value.

    Args:
      image: RGB.
      heatmaps: one map per keypoint, peaks of about 1.
      matrix: the affine map from image pixels to heatmap cells.
      keypoint_set: provides the colours.
    """
    height, width = image.shape[:2]
    strength = np.clip(heatmaps, 0, 1)
    # Overlapping maps: the colour of the strongest.
    colours = np.array(keypoint_set.colours, np.float32)[strength.argmax(-1)]
    painted = np.concatenate([colours, strength.max(-1, keepdims=True)], axis=-1, dtype=np.float32)
    painted[..., 3:] *= _OPACITY
    painted[..., :3] *= painted[..., 3:]
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    warped = cv2.warpAffine(painted, matrix, (width, height), flags=flags)
    np.copyto(image, (image * (1 - warped[..., 3:]) + warped[..., :3]).round().astype(np.uint8))


def side_by_side(pictures: Mapping[str, UInt8[np.ndarray, "h w 3"]]) -> UInt8[np.ndarray, "a b 3"]:
    """Joins RGB pictures of equal height, each with its name as title."""
    titled = []
    for name, picture in pictures.items():
        title = np.full((_TITLE, picture.shape[1], 3), 255, np.uint8)
        cv2.putText(title, name, (4, _TITLE - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
        titled.append(np.concatenate([title, picture]))
    gap = np.full((titled[0].shape[0], 4, 3), 255, np.uint8)
    return np.concatenate([part for picture in titled for part in (gap, picture)][1:], axis=1)


def sheet(pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]], tile: int) -> UInt8[np.ndarray, "a b 3"]:
    """RGB pictures of at most `tile` pixels a side, each in the middle of a white square, in rows of four."""
    tiles = []
    for picture in pictures:
        square = np.full((tile, tile, 3), 255, np.uint8)
        top, left = ((tile - side) // 2 for side in picture.shape[:2])
        square[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
        tiles.append(square)
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % _COLUMNS)
    return np.concatenate([np.concatenate(tiles[i : i + _COLUMNS], axis=1) for i in range(0, len(tiles), _COLUMNS)])


def write_png(path: str | os.PathLike, image: UInt8[np.ndarray, "h w 3"], *, sync: bool = True) -> None:
    """Writes an RGB image atomically (`storage.whole`). Raises InputError if it cannot be written."""
    _, png = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    storage.write(path, png.tobytes(), sync=sync)
