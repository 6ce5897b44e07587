"""Identities of people over the frames of a video.

    tracker = Tracker(predictor.keypoint_set, frames_a_second=25.0)
    for frame in frames:
        (people,) = predictor(frame)
        ids = tracker.update(people)

People of a frame are assigned to tracks by the Hungarian method. A track expects its person where its velocity leads;
the likeness of a track and a person is the mean of OKS and of the overlap of their enlarged boxes (after C-BIoU, Yang
et al., WACV 2023: enlarged boxes still overlap if the motion is fast or unexpected). Appearance is not used: a person
who comes back after `PATIENCE` seconds gets a new identity.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.optimize
from jaxtyping import Float

from data_pipelines.keypoints import KeypointSet
from eval.nms import oks_matrix

# Seconds after which an unseen track ends.
PATIENCE = 1.0

_LEAST_LIKENESS = 0.3  # of a track and its person
_MARGIN = 0.5  # of a box's sides, added on each side before overlaps are measured
_NEWEST = 0.3  # weight of the newest displacement in a track's velocity


class Tracker:
    """Assigns identities to the people of consecutive frames."""

    def __init__(self, keypoint_set: KeypointSet, frames_a_second: float = 25.0):
        self._sigmas = np.array(keypoint_set.sigmas)
        self._patience = max(1, round(PATIENCE * frames_a_second))
        self._tracks: list[_Track] = []
        self._frame = self._identities = 0

    def update(self, people: Sequence[Mapping[str, Any]]) -> list[int]:
        """Returns the identities of the next frame's people, in order: 1, 2, ... in the order of appearance.

        Args:
          people: as a predictor returns them: `keypoints` [K,2] and `bbox` xywh [4] in image pixels, `scores` [K].
        """
        self._frame += 1
        self._tracks = [track for track in self._tracks if self._frame - track.seen <= self._patience]
        seen = [_Track.of(person, self._frame) for person in people]
        likeness = self._likeness([track.moved_to(self._frame) for track in self._tracks], seen)
        likeness[likeness < _LEAST_LIKENESS] = 0
        for row, column in zip(*scipy.optimize.linear_sum_assignment(likeness, maximize=True), strict=True):
            if likeness[row, column]:
                seen[column].follow(self._tracks[row])
        for track in seen:
            if not track.identity:
                self._identities += 1
                track.identity = self._identities
        identities = {track.identity for track in seen}
        self._tracks = [track for track in self._tracks if track.identity not in identities] + seen
        return [track.identity for track in seen]

    def _likeness(self, expected: list[_Track], seen: list[_Track]) -> Float[np.ndarray, "tracks people"]:
        both, count = expected + seen, len(expected)
        if not expected or not seen:
            return np.zeros((count, len(seen)))
        boxes = np.stack([track.box for track in both])
        oks = oks_matrix(np.stack([track.keypoints for track in both]), boxes[:, 2] * boxes[:, 3], self._sigmas)
        return (oks[:count, count:] + _overlaps(boxes[:count], boxes[count:])) / 2


@dataclasses.dataclass
class _Track:
    """A person as last seen, in frame `seen`; the velocity is in pixels per frame."""

    keypoints: Float[np.ndarray, "k 2"]
    box: Float[np.ndarray, "4"]
    centre: Float[np.ndarray, "2"]
    seen: int
    identity: int = 0
    frames: int = 1  # in which the person was seen
    velocity: Float[np.ndarray, "2"] = dataclasses.field(default_factory=lambda: np.zeros(2))

    @classmethod
    def of(cls, person: Mapping[str, Any], frame: int) -> _Track:
        return cls(person["keypoints"].astype(float), person["bbox"].astype(float), centre(person), frame)

    def moved_to(self, frame: int) -> _Track:
        shift = self.velocity * (frame - self.seen)
        return dataclasses.replace(self, keypoints=self.keypoints + shift, box=self.box + [*shift, 0, 0])

    def follow(self, before: _Track) -> None:
        """Continues a track."""
        self.identity, self.frames = before.identity, before.frames + 1
        newest = (self.centre - before.centre) / (self.seen - before.seen)
        self.velocity = before.velocity + max(_NEWEST, 1 / before.frames) * (newest - before.velocity)


def _overlaps(a: Float[np.ndarray, "n 4"], b: Float[np.ndarray, "m 4"]) -> Float[np.ndarray, "n m"]:
    """Intersection over union of boxes (xywh), enlarged by `_MARGIN`."""
    low_a, low_b = (boxes[:, :2] - _MARGIN * boxes[:, 2:] for boxes in (a, b))
    size_a, size_b = ((1 + 2 * _MARGIN) * boxes[:, 2:] for boxes in (a, b))
    high = np.minimum((low_a + size_a)[:, None], (low_b + size_b)[None])
    common = np.maximum(high - np.maximum(low_a[:, None], low_b[None]), 0).prod(axis=-1)
    return common / (size_a.prod(axis=-1)[:, None] + size_b.prod(axis=-1)[None] - common)


def centre(person: Mapping[str, Any]) -> Float[np.ndarray, "2"]:
    """The mean of a person's keypoints, weighted by their scores; a box jumps when a part of the person is hidden."""
    return np.average(person["keypoints"].astype(float), axis=0, weights=np.maximum(person["scores"], 1e-6))
