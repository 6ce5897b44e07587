"""Steadier keypoints of tracked people: the One Euro filter (Casiez, Roussel and Vogel, CHI 2012).

It is a low-pass filter whose cutoff frequency rises with the speed of a keypoint: what rests is steady, and what moves
lags little. Speeds are relative to the size of the person's box, so that a person near the camera is smoothed like one
far away. Jitter and lag: docs/predict.md.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float

from hrnet_jax.inference.tracks import PATIENCE

_REST = 1.0  # Hz, cutoff frequency of a keypoint at rest
_GROWTH = 10.0  # Hz more per box size (square root of the area) per second
_SPEED = 1.0  # Hz, cutoff frequency of the speed

_Person = TypeVar("_Person", bound=Mapping[str, Any])


class Smoother:
    """One filter per track and keypoint."""

    def __init__(self, frames_a_second: float = 25.0):
        self._seconds = 1 / frames_a_second
        self._frame = 0
        self._filters: dict[int, _Filter] = {}

    def update(self, people: Sequence[Mapping[str, Any]], identities: Sequence[int]) -> list[dict[str, Any]]:
        """Returns the next frame's people with smoothed `keypoints` [K,2], in image pixels.

        Args:
          people: as a predictor returns them.
          identities: their identities, see `tracks.Tracker`.
        """
        self._frame += 1
        smoothed = []
        for person, identity in zip(people, identities, strict=True):
            points, before = person["keypoints"], self._filters.get(identity)
            if before is None:
                now = _Filter(points, np.zeros_like(points), self._frame)
            else:
                size = math.sqrt(person["bbox"][2] * person["bbox"][3])
                now = before.next(points, size, self._frame, self._seconds)
            self._filters[identity] = now
            smoothed.append({**person, "keypoints": now.points})
        longest = PATIENCE / self._seconds + 1
        self._filters = {key: one for key, one in self._filters.items() if self._frame - one.frame <= longest}
        return smoothed


@dataclasses.dataclass(frozen=True)
class _Filter:
    """The filtered points in pixels, their velocities in pixels per second, and the frame in which they were seen."""

    points: Float[np.ndarray, "k 2"]
    velocities: Float[np.ndarray, "k 2"]
    frame: int

    def next(self, points: Float[np.ndarray, "k 2"], size: float, frame: int, seconds: float) -> _Filter:
        passed = (frame - self.frame) * seconds
        newest = (points - self.points) / passed
        velocities = self.velocities + _share(_SPEED, passed) * (newest - self.velocities)
        speeds = np.linalg.norm(velocities, axis=-1, keepdims=True) / size
        share = _share(_REST + _GROWTH * speeds, passed)
        return _Filter(self.points + share * (points - self.points), velocities, frame)


def _share(cutoff: Any, seconds: float) -> Any:
    """The weight of the newest value in a low-pass filter with a cutoff frequency in Hz."""
    return 1 / (1 + 1 / (2 * math.pi * cutoff * seconds))
