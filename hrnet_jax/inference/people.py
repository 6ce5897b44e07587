"""From images, a folder or a video to people: reads, finds boxes, crops, predicts, and tracks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import numpy as np

from data_pipelines import draw
from data_pipelines.errors import InputError
from data_pipelines.images import Pixels
from hrnet_jax.inference import detectors
from hrnet_jax.inference.ahead import ahead
from hrnet_jax.inference.boxes import BoxFile
from hrnet_jax.inference.detectors import Detector
from hrnet_jax.inference.predictor import BoxedImage, Person, Predictor
from hrnet_jax.inference.smoothing import Smoother
from hrnet_jax.inference.sources import Shot, Source
from hrnet_jax.inference.tracks import Tracker, centre


class VideoOptions(NamedTuple):
    """What is done over the frames of a video.

    Attributes:
      track: whether people keep their identity, `track_id`.
      smooth: whether the keypoints of tracks are smoothed.
      detect_every: the detector runs in every n-th frame; between, boxes follow the keypoints, at their size.
    """

    track: bool = True
    smooth: bool = True
    detect_every: int = 1


class Shown(NamedTuple):
    """An image whose people are known; `picture`, if it is to be drawn, is `zoom` times its size."""

    shot: Shot
    picture: Pixels | None
    zoom: float


_Opened = tuple[Shot, Pixels]
_Result = tuple[BoxedImage, list[Person]]
_Item = TypeVar("_Item")


@dataclasses.dataclass(frozen=True)
class Finder:
    """Finds the people of images, in threads and batches.

    Attributes:
      predictor: its detector, if it has one, finds the boxes.
      boxes: those of the images, if there is no detector; None: each shows one person.
      video: what is done over frames.
      drawn: whether pictures are kept for drawing.
      heatmaps: whether people have their heatmaps.
      leave_out: called with a message for each unusable image.
    """

    predictor: Predictor
    boxes: BoxFile | None
    video: VideoOptions
    drawn: bool
    heatmaps: bool
    leave_out: Callable[[str], None]

    def people(self, source: Source) -> Iterator[tuple[Shown, list[Person]]]:
        """Yields each usable image with its people, in order; images of a video have theirs tracked."""
        results = self._results(source)
        if not (source.is_video and self.video.track):
            yield from ((item.tag, people) for item, people in results)
            return
        tracker = Tracker(self.predictor.keypoint_set, source.frames_a_second)
        smoother = Smoother(source.frames_a_second)
        for item, people in results:
            identities = tracker.update(people)
            if self.video.smooth:
                people = smoother.update(people, identities)
            yield (
                item.tag,
                [{**person, "track_id": number} for person, number in zip(people, identities, strict=True)],
            )

    def _results(self, source: Source) -> Iterator[_Result]:
        shots = source.shots(self.predictor.max_megapixels, self.leave_out)
        detector = self.predictor.detector
        if not detector:
            images = ahead(self._prepared, shots)
        else:
            opened = self._usable(ahead(_opened, shots))
            if source.is_video and self.video.detect_every > 1:
                return self._followed(detector, opened)
            found = detectors.in_batches(detector, opened, lambda item: item[1])
            images = ahead(lambda one: self._cropped(*one), found)
        return self.predictor.people(self._usable(images), heatmaps=self.heatmaps)

    def _followed(self, detector: Detector, frames: Iterable[_Opened]) -> Iterator[_Result]:
        """Detects in every n-th frame; in the others, boxes follow the keypoints of the two frames before."""
        people: list[Person] = []
        centres: np.ndarray | None = None
        for number, frame in enumerate(frames):
            if number % self.video.detect_every == 0:
                ((boxes, scores),) = detectors.detect(detector, [frame[1]])
                centres = None
            else:
                now = np.array([centre(person) for person in people]).reshape(-1, 2)
                if centres is not None:
                    boxes = boxes + np.pad(now - centres, [(0, 0), (0, 2)])
                shown = detectors.inside(boxes, frame[1].shape)
                boxes, scores, centres = boxes[shown], np.array(scores)[shown].tolist(), now[shown]
            images = self._usable([self._cropped(frame, boxes, scores)])
            for result in self.predictor.people(images, heatmaps=self.heatmaps):
                people = result[1]
                yield result

    def _usable(self, items: Iterable[_Item | InputError]) -> Iterator[_Item]:
        for item in items:
            if isinstance(item, InputError):
                self.leave_out(str(item))
            else:
                yield item

    def _prepared(self, shot: Shot) -> BoxedImage | InputError:
        opened = _opened(shot)
        if isinstance(opened, InputError):
            return opened
        if not self.boxes:
            return self._cropped(opened)
        xywh, scores = self.boxes.of(shot.key, opened[1].shape[:2])
        return self._cropped(opened, xywh, scores, clip=self.boxes.annotated)

    def _cropped(
        self, opened: _Opened, xywh: Any = None, scores: list[float] | None = None, clip: bool = False
    ) -> BoxedImage | InputError:
        shot, pixels = opened
        try:
            image = self.predictor.prepare(pixels, xywh, scores=scores, name=shot.where, clip=clip)
        except InputError as error:
            return error
        height, width = pixels.shape[:2]
        shot.record.update({"width": width, "height": height})
        picture, zoom = (pixels, 1.0) if self.drawn else (None, 0.0)
        if self.drawn and max(height, width) > draw.LONGEST:  # keeps pictures that wait for results small
            picture, zoom = draw.zoomed(pixels, draw.LONGEST)
        return dataclasses.replace(image, tag=Shown(shot, picture, zoom))


def _opened(shot: Shot) -> _Opened | InputError:
    try:
        return shot, shot.read()
    except InputError as error:
        return error
