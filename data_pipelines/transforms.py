"""Geometry of a top-down crop: boxes, random views of them, and the warp from image to crop.

Follows MMPose 1.3.2 (GetBBoxCenterScale, RandomHalfBody, RandomBBoxTransform, TopdownAffine). Coordinates are (x, y)
in pixels with pixel centres at integers; sizes are (height, width); a scale is a box's (width, height) in pixels.
"""

from __future__ import annotations

import dataclasses
import math
import statistics

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from data_pipelines.keypoints import KeypointSet

# Factors between a box and its view.
PADDING = 1.25
HALF_BODY_PADDING = 1.5

_NORMAL = statistics.NormalDist()
_CDF = _NORMAL.cdf(-1.0)

Point = Float[np.ndarray, "2"]
Matrix = Float[np.ndarray, "2 3"]


@dataclasses.dataclass(frozen=True)
class View:
    """The region that a crop shows: a box in the image by centre and scale (pixels), rotated by `rotation` degrees."""

    center: Point
    scale: Point
    rotation: float = 0.0

    def fix_aspect(self, size: tuple[int, int]) -> View:
        """Extends the shorter side to the aspect ratio of a crop of this size."""
        w, h = self.scale
        ratio = size[1] / size[0]
        scale = (w, w / ratio) if w > h * ratio else (h * ratio, h)
        return dataclasses.replace(self, scale=np.array(scale, np.float32))


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Random views and pixel augmentations in training, with MMPose's defaults. Probabilities are per sample."""

    flip: float = 0.5
    half_body: float = 0.3
    shift: float = 0.16  # of the padded box, independently per axis
    shift_probability: float = 0.3
    scale: float = 0.5  # the view is 1 - scale to 1 + scale times the padded box
    rotation: float = 80.0  # degrees
    rotation_probability: float = 0.6
    # Probabilities of the augmentations in `data_pipelines.pixels`, which some of MMPose's configs use.
    photometric: float = 0.0
    coarse_dropout: float = 0.0
    grid_mask: float = 0.0


def clip_box(xywh: Float[np.ndarray, "4"], size: tuple[int, int]) -> Float[np.ndarray, "4"]:
    """Clips an annotated box to an image of this size; returns xyxy with x <= w - 1 and y <= h - 1."""
    x, y, w, h = xywh
    height, width = size
    return np.array([max(x, 0), max(y, 0), min(x + w, width - 1), min(y + h, height - 1)], np.float32)


def view_of_box(xyxy: Float[np.ndarray, "4"], padding: float = PADDING) -> View:
    """The view of a box with a margin."""
    return View((xyxy[:2] + xyxy[2:]) * np.float32(0.5), (xyxy[2:] - xyxy[:2]) * np.float32(padding))


def view_of_points(points: Float[np.ndarray, "k 2"]) -> View:
    """The view of keypoints with a margin, centred on their mean (not on their box)."""
    return View(points.mean(0), (points.max(0) - points.min(0)) * np.float32(HALF_BODY_PADDING))


def half_body_views(
    keypoints: Float[np.ndarray, "k 2"], visible: Float[np.ndarray, " k"], keypoint_set: KeypointSet
) -> tuple[View | None, View | None]:
    """Views of the labelled upper and lower body; None if there are too few points (below 2 upper, 3 lower)."""

    def view(part: np.ndarray, at_least: int) -> View | None:
        points = keypoints[part & (visible > 0)]
        # Coinciding points have no extent.
        return view_of_points(points) if len(points) >= at_least and np.ptp(points, axis=0).any() else None

    return view(keypoint_set.is_upper, 2), view(~keypoint_set.is_upper, 3)


def random_half_body(
    rng: np.random.Generator,
    view: View,
    keypoints: Float[np.ndarray, "k 2"],
    visible: Float[np.ndarray, " k"],
    keypoint_set: KeypointSet,
    probability: float,
) -> View:
    """With a probability, replaces the view of a person with at least nine labelled keypoints by a half-body view."""
    chosen, prefer_upper = rng.random(2)
    if chosen >= probability or (visible > 0).sum() < 9:
        return view
    upper, lower = half_body_views(keypoints, visible, keypoint_set)
    if upper and lower:
        return upper if prefer_upper < 0.7 else lower
    return upper or lower or view


def random_view(rng: np.random.Generator, view: View, augmentation: Augmentation) -> View:
    """Shifts, scales and rotates a view by draws from a normal distribution truncated at one sigma."""
    x, y, size, angle = (truncated_normal(u) for u in rng.random(4))
    shifted, rotated = rng.random(2)
    center, rotation = view.center, 0.0
    if shifted < augmentation.shift_probability:
        center = center + np.array([x, y], np.float32) * np.float32(augmentation.shift) * view.scale
    if rotated < augmentation.rotation_probability:
        rotation = angle * augmentation.rotation
    return View(center, view.scale * np.float32(1 + size * augmentation.scale), rotation)


def truncated_normal(u: float) -> float:
    """The standard normal distribution truncated at -1 and 1, at quantile u in [0, 1)."""
    return _NORMAL.inv_cdf(_CDF + u * (1 - 2 * _CDF))


def warp_span(size: tuple[int, int], kind: str) -> tuple[int, int]:
    """The (x, y) length in crop pixels that a warp maps a view's width and height onto.

    Args:
      size: (height, width) of the crop.
      kind: "msra" for (width, height); "udp" for (width - 1, height - 1), the intervals between pixel centres (Huang et
        al., "The Devil is in the Details", CVPR 2020).
    """
    height, width = size
    return {"msra": (width, height), "udp": (width - 1, height - 1)}[kind]


def warp_matrix(view: View, size: tuple[int, int], kind: str) -> Matrix:
    """The affine map from image to crop pixels, for a view with the crop's aspect ratio.

    It maps the view onto `warp_span`, and the view's centre to half of it. As in MMPose, "msra" and "udp" rotate in
    opposite directions.
    """
    span = np.array(warp_span(size, kind), np.float64)
    angle = math.radians(view.rotation)
    cos, sin = math.cos(angle), math.sin(angle)
    if kind == "msra":
        # From three pairs of float32 points, as in MMPose: their rounding changes the offsets by 4e-4 pixels.
        arm = np.array([cos, sin]) * (float(view.scale[0]) * -0.5)
        target = np.array([span[0] * -0.5, 0])
        return cv2.getAffineTransform(_triangle(view.center, arm), _triangle(span * 0.5, target))
    zoom = span / view.scale.astype(np.float64)
    linear = np.array([[cos, -sin], [sin, cos]]) * zoom[:, None]
    offset = zoom * 0.5 * view.scale - linear @ view.center.astype(np.float64)
    return np.concatenate([linear, offset[:, None]], axis=1)


def mirrored(matrix: Matrix, image_width: int) -> Matrix:
    """The warp of the mirrored image (x' = image_width - 1 - x), applied to the unmirrored image's pixels."""
    mirror = np.array([[-1, 0, image_width - 1], [0, 1, 0], [0, 0, 1]], np.float64)
    return matrix @ mirror


def _triangle(center: Point, arm: Point) -> Float[np.ndarray, "3 2"]:
    """A centre, the point at `arm` from it, and a third point at a right angle there."""
    points = np.empty((3, 2), np.float32)
    points[0], points[1] = center, center + arm
    points[2] = points[1] + (points[1] - points[0])[::-1] * np.array([1, -1], np.float32)
    return points


def warp_points(points: Float[np.ndarray, "k 2"], matrix: Matrix) -> Float[np.ndarray, "k 2"]:
    """Applies an affine map to points."""
    return (points @ matrix[:, :2].T + matrix[:, 2]).astype(np.float32)


def shown_region(matrix: Matrix, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The axis-aligned rectangle (x0, y0, x1, y1; ends exclusive) of the image pixels that a warp to a crop reads."""
    (a, b, c), (d, e, f) = matrix.tolist()
    determinant = a * e - b * d
    xs, ys = [], []
    for u in (0 - c, size[1] - 1 - c):
        for v in (0 - f, size[0] - 1 - f):
            xs.append((e * u - b * v) / determinant)
            ys.append((a * v - d * u) / determinant)
    # One pixel more on each side: bilinear weights reach the next pixel, and are rounded to 1/32 pixel.
    return math.floor(min(xs)) - 1, math.floor(min(ys)) - 1, math.ceil(max(xs)) + 2, math.ceil(max(ys)) + 2


def warp_image(image: UInt8[np.ndarray, "h w 3"], matrix: Matrix, size: tuple[int, int]) -> UInt8[np.ndarray, "a b 3"]:
    """Crops an image, with bilinear interpolation; black outside the image."""
    return cv2.warpAffine(image, matrix, (size[1], size[0]), flags=cv2.INTER_LINEAR)
