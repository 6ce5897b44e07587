"""Vectors and outlines of jointed figures.

Points are in camera axes: x right, y up, z towards the viewer, lengths in pixels.
"""

from __future__ import annotations

import cv2
import numpy as np

_ANGLES = np.linspace(0, 2 * np.pi, 14, endpoint=False)
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], 1)


def about_x(angle: float) -> np.ndarray:
    """The rotation that turns up forward."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def about_y(angle: float) -> np.ndarray:
    """The rotation that turns forward to the left."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def about_z(angle: float) -> np.ndarray:
    """The rotation that turns left up."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def limb(flexion: float, abduction: float, sign: int) -> np.ndarray:
    """A limb's direction in the person's axes: flexion swings it forward, abduction outward; 0, 0 hangs down."""
    side = np.cos(abduction)
    return np.array([sign * np.sin(abduction), -np.cos(flexion) * side, np.sin(flexion) * side])


def flat(points: np.ndarray) -> np.ndarray:
    """Camera axes to pixels: y turns downward, depth goes."""
    return np.asarray(points)[..., :2] * (1, -1)


def hull(*points: np.ndarray | list[np.ndarray]) -> np.ndarray:
    """The convex outline of points, in pixels."""
    corners = np.concatenate([flat(np.asarray(p)) for p in points]).astype(np.float32)
    return cv2.convexHull(corners)[:, 0]


def capsule(a: np.ndarray, b: np.ndarray, radius_a: float, radius_b: float) -> np.ndarray:
    """The outline of two spheres and the cone between them."""
    corners = np.concatenate([flat(a) + radius_a * _CIRCLE, flat(b) + radius_b * _CIRCLE])
    return cv2.convexHull(corners.astype(np.float32))[:, 0]


def covered(a: np.ndarray, b: np.ndarray, radius_a: float, radius_b: float, fraction: float) -> np.ndarray:
    """Cloth around the first `fraction` of a limb, a little wider than the limb."""
    end = radius_a + (radius_b - radius_a) * fraction
    return capsule(a, a + (b - a) * fraction, radius_a * 1.12, end * 1.12)


def ring(centre: np.ndarray, left: np.ndarray, half_width: float, forward: np.ndarray, half_depth: float) -> np.ndarray:
    """An ellipse around `centre` across a trunk or a limb."""
    return centre + half_width * _CIRCLE[:, :1] * left + half_depth * _CIRCLE[:, 1:] * forward


def disc() -> np.ndarray:
    """The directions on the silhouette of a sphere."""
    return np.concatenate([_CIRCLE, np.zeros((len(_CIRCLE), 1))], 1)


def cap(axis: np.ndarray, reach: float) -> np.ndarray | None:
    """Directions that bound the visible part of a cap of the unit sphere around `axis`, or None where it is hidden.

    The cap holds the directions whose cosine to the axis is at least `reach`.
    """
    axis = axis / np.linalg.norm(axis)
    helper = np.array([1.0, 0, 0]) if abs(axis[0]) < 0.7 else np.array([0, 1.0, 0])
    first = np.cross(axis, helper)
    first /= np.linalg.norm(first)
    second = np.cross(axis, first)
    rim = reach * axis + np.sqrt(1 - reach**2) * (_CIRCLE[:, :1] * first + _CIRCLE[:, 1:] * second)
    silhouette = disc()
    seen = np.concatenate([rim[rim[:, 2] > 0], silhouette[silhouette @ axis > reach]])
    return seen if len(seen) >= 3 and rim[:, 2].max() > 0.2 else None
