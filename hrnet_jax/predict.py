"""Predicts people's keypoints in images or a video, as JSON and as pictures.

    python -m hrnet_jax.predict --checkpoint runs/quickstart --images photos --boxes boxes.json --output runs/photos

writes predictions.json, and drawn/NAME.png for each image or drawn.mp4. --boxes takes a COCO annotation file (whose
keypoints are drawn beside the predictions), detections (COCO results, a folder of Ultralytics labels, a MOT file, or a
JSON object {file name: [[x, y, width, height], ...]}), or an .npy array [N,4] of boxes for every image. Without
--boxes, each image shows one person. See docs/predict.md.
"""

from __future__ import annotations

from hrnet_jax import cli

OPTIONS: cli.Options = {
    "checkpoint": cli.CHECKPOINT,
    "images": (None, "image, folder of images (including subfolders) or video"),
    "output": (None, "folder for predictions.json and the pictures"),
    "boxes": (
        "",
        "annotations, detections (COCO, Ultralytics, MOT), JSON by name, or .npy; default: the full image",
    ),
    "annotations": (
        "",
        "COCO annotation file: image ids for --boxes, and keypoints to draw beside the predictions",
    ),
    "box_format": ("xywh", "or xyxy: corners, of detections, boxes by file name and .npy"),
    "box_threshold": (0.3, "omits detections with a lower score"),
    "score_threshold": (0.3, "omits keypoints with a lower score from the pictures"),
    "flip_test": (True, "averages over two mirrored views (if config.eval.flip_test): better, twice the work"),
    "draw": (True, "writes pictures"),
    "heatmaps": (False, "draws the heatmaps below the skeletons: twice the work"),
    "batch_size": (16, "people per batch on the device"),
    "max_megapixels": (50.0, "larger images are refused without decoding"),
}
cli.help_first(__name__, __doc__, OPTIONS)  # the imports below take seconds

import contextlib
import dataclasses
import itertools
import json
import logging
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import cv2
import numpy as np
from etils import epath
from jaxtyping import UInt8
from ml_collections import ConfigDict

from data_pipelines import command_line, draw, storage
from data_pipelines.errors import InputError, printable, utf8
from data_pipelines.keypoints import KeypointSet, keypoint_set
from hrnet_jax.inference.ahead import ahead
from hrnet_jax.inference.boxes import BoxFile, read_boxes
from hrnet_jax.inference.predictor import BoxedImage, Person, Predictor, config_errors
from hrnet_jax.inference.sources import Pixels, Shot, Source
from hrnet_jax.weights import checkpoint

FORMAT_VERSION = 1

logger = logging.getLogger(__name__)


class Look(NamedTuple):
    """Drawing options: minimum keypoint score, keypoint set of the annotations, and whether to draw heatmaps."""

    threshold: float
    labels: KeypointSet
    heatmaps: bool = False


class _Waiting(NamedTuple):
    """What is known of an image whose results are awaited; the picture is `zoom` times its size."""

    shot: Shot
    scores: list[float]
    picture: Pixels | None
    zoom: float


def predict(
    predictor: Predictor, source: Source, output: str | os.PathLike, boxes: BoxFile | None, look: Look | None
) -> tuple[int, int, int]:
    """Predicts on all images of a source and writes predictions.json and, unless `look` is None, the pictures.

    Returns the numbers of predicted images, of people and of unusable images; the latter are logged. Raises InputError
    if no image could be used, or a file cannot be written; for a picture, only after predictions.json is complete.
    """
    folder = epath.Path(output)
    unusable: list[str] = []

    def leave_out(reason: str) -> None:
        if source.total == 1 and not source.is_video:
            raise InputError(reason)
        unusable.append(reason)
        logger.warning("left out: %s", reason)

    def prepare(shot: Shot) -> BoxedImage | InputError:
        try:
            pixels = shot.read()
            xywh, scores = boxes.of(shot.key, pixels.shape[:2]) if boxes else (None, [1.0])
            item = predictor.prepare(pixels, xywh, name=shot.where, clip=bool(boxes and boxes.annotated))
        except InputError as error:
            return error
        height, width = pixels.shape[:2]
        shot.record.update({"width": width, "height": height})
        picture, zoom = (pixels, 1.0) if look else (None, 0.0)
        if look and max(height, width) > draw.LONGEST:  # keeps pictures that wait for results small
            picture, zoom = draw.zoomed(pixels, draw.LONGEST)
        return dataclasses.replace(item, tag=_Waiting(shot, scores, picture, zoom))

    def usable() -> Iterator[BoxedImage]:
        for item in ahead(prepare, source.shots(predictor.max_megapixels, leave_out)):
            if isinstance(item, InputError):
                leave_out(str(item))
            else:
                yield item

    def finish(result: tuple[BoxedImage, list[Person]]) -> tuple[dict[str, Any], Pixels | None]:
        """A record, and a video's frame; other pictures are written here, by threads."""
        item, people = result
        shot, scores, picture, zoom = item.tag
        record = {**shot.record, "people": [_plain(*pair) for pair in zip(people, scores, strict=True)]}
        if not look or pictures.problem:
            return record, None
        truth = boxes.truth.get(shot.key) if boxes else None
        drawn = _drawn(picture, zoom, people, truth, predictor.keypoint_set, look)
        if source.is_video:
            return record, drawn
        pictures.add(shot.key, drawn)
        return record, None

    head = {
        "format_version": FORMAT_VERSION,
        "model": utf8(predictor.origin),
        "keypoints": list(predictor.keypoint_set.names),
    }
    images = people_seen = 0
    pictures = _Pictures(folder, source.frames_a_second)
    with (
        command_line.progress(source.total or None) as advance,
        _record_writer(folder / "predictions.json", head) as write_record,
        pictures,
    ):
        for record, frame in ahead(finish, predictor.people(usable(), heatmaps=bool(look and look.heatmaps))):
            write_record(record)
            if frame is not None:
                pictures.add("", frame)
            images, people_seen = images + 1, people_seen + len(record["people"])
            advance(1)
        if not images:
            raise InputError(f"{source.path}: none of its {len(unusable)} images could be used; see the warnings above")
    if pictures.problem:
        raise InputError(f"{pictures.problem}; {folder / 'predictions.json'} is complete")
    return images, people_seen, len(unusable)


def main() -> None:
    """The command line."""
    cli.run(__doc__, OPTIONS, _predict, lambda values: checkpoint.stored_config(values["checkpoint"]))


def _predict(values: Mapping[str, Any], config: ConfigDict) -> None:
    storage.check_output(values["output"], folder=True)
    source = Source.find(values["images"], pathlib.Path(values["output"]), values["max_megapixels"])
    with config_errors(values["checkpoint"]):
        labels = keypoint_set(config.data.eval.keypoints)
        config.eval.flip_test = config.eval.flip_test and values["flip_test"]
    boxes = None
    if values["boxes"] or values["annotations"]:
        path = values["boxes"] or values["annotations"]
        boxes = read_boxes(path, labels, values["annotations"], values["box_threshold"], values["box_format"])
        names = [utf8(name) for name in source.names]
        if names and boxes.same is None and not any(boxes.of(name)[0] for name in names):
            raise InputError(f"{path}: has no box for {names[0]} or any other image in {source.path}")
        others = boxes.unknown(names)
        if others and os.path.isdir(source.path):
            logger.warning("%s: %d names are not images in %s, e.g. %s", path, len(others), source.path, others[0])
    with config_errors(values["checkpoint"]):
        trained = checkpoint.load(values["checkpoint"])._replace(config=config)
    predictor = Predictor(trained, batch_size=values["batch_size"], max_megapixels=values["max_megapixels"])
    look = Look(values["score_threshold"], labels, values["heatmaps"]) if values["draw"] else None
    images, people, unusable = predict(predictor, source, values["output"], boxes, look)
    left_out = f"; {unusable} could not be used, see above" if unusable else ""
    print(printable(f"{images} images, {people} people: {values['output']}{left_out}"))


def _drawn(
    picture: Pixels,
    zoom: float,
    people: list[Person],
    truth: list[np.ndarray] | None,
    keypoints: KeypointSet,
    look: Look,
) -> UInt8[np.ndarray, "a b 3"]:
    """The picture (`zoom` times the image's size) with the people drawn, beside the annotated people if known."""
    ours = picture.copy()
    if look.heatmaps:
        for person in people:
            matrix = person["heatmap_matrix"] / [zoom, zoom, 1]
            draw.heatmap_overlay(ours, person["heatmaps"], matrix, keypoints)
    draw.people(ours, people, keypoints, look.threshold, zoom)
    if truth is None:
        return ours
    theirs = picture.copy()
    for points in truth:
        draw.skeleton(theirs, points[:, :2] * zoom, points[:, 2] > 0, look.labels, draw.line_width(theirs))
    return draw.side_by_side({"annotated": theirs, "predicted": ours})


def _plain(person: Person, score: float) -> dict[str, Any]:
    """A person as JSON, rounded: pixels to two decimals, scores to four."""
    return {
        "bbox": np.round(person["bbox"].astype(float), 2).tolist(),
        "box_score": round(score, 4),
        "keypoints": np.round(person["keypoints"].astype(float), 2).tolist(),
        "scores": np.round(person["scores"].astype(float), 4).tolist(),
    }


@contextlib.contextmanager
def _record_writer(path: epath.Path, head: dict[str, Any]) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Writes a JSON object with one line per entry of `images`; the file appears when complete."""
    separators = itertools.chain([""], itertools.repeat(","))
    with storage.whole(path) as partial, partial.open("w") as file:
        file.write(f'{json.dumps(head)[:-1]}, "images": [')
        yield lambda record: print(f"{next(separators)}\n{json.dumps(record)}", end="", file=file)
        file.write("\n]}\n")


class _Pictures:
    """A context that writes pictures: drawn/NAME.png, or the frames of drawn.mp4.

    Attributes:
      problem: the first write error; empty if there was none.
    """

    def __init__(self, output: epath.Path, frames_a_second: float):
        self.problem = ""
        self._output, self._frames_a_second = output, frames_a_second
        self._video = contextlib.ExitStack()
        self._append: Callable[[Pixels], None] | None = None

    def add(self, name: str, picture: Pixels) -> None:
        """Writes the picture of an image, or the next frame."""
        with self._problem_kept():
            if not self._frames_a_second:
                # Not synced: after a power cut, the command can be repeated.
                draw.write_png(self._output / "drawn" / f"{name}.png", picture, sync=False)
                return
            if not self._append:
                video = _video_writer(self._output / "drawn.mp4", self._frames_a_second, picture.shape[1::-1])
                self._append = self._video.enter_context(video)
            self._append(picture)

    def __enter__(self) -> _Pictures:
        return self

    def __exit__(self, *error: Any) -> None:
        with self._problem_kept():
            self._video.__exit__(*error)

    @contextlib.contextmanager
    def _problem_kept(self) -> Iterator[None]:
        try:
            yield
        except InputError as error:
            self.problem = self.problem or str(error)


@contextlib.contextmanager
def _video_writer(
    path: epath.Path, frames_a_second: float, size: tuple[int, ...]
) -> Iterator[Callable[[Pixels], None]]:
    """Writes a video of frames of (width, height); the file appears when complete."""
    with storage.whole(path) as partial, _named_in_ascii(partial) as name:
        writer, written = cv2.VideoWriter(), 0
        if not writer.open(name, cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), _writable(frames_a_second), size):
            raise InputError(f"{path}: cannot be written")

        def append(picture: Pixels) -> None:
            nonlocal written
            if picture.shape[1::-1] != size:  # some videos change their resolution; OpenCV would drop the frame
                picture = cv2.resize(picture, size)
            writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
            written += 1

        try:
            yield append
        finally:
            writer.release()
        video = cv2.VideoCapture(name, cv2.CAP_FFMPEG)
        whole = video.isOpened() and video.get(cv2.CAP_PROP_FRAME_COUNT) == written
        video.release()
        if not whole:  # OpenCV does not say why
            raise InputError(f"{path}: cannot be written completely (is the disk full?)")


def _writable(frames_a_second: float) -> float:
    """The nearest rate that MPEG-4 stores as a fraction of 16-bit integers; OpenCV's denominators are powers of ten."""
    base = next(base for base in (1000, 100, 10, 1) if frames_a_second * base < 2**16 - 1)
    return max(round(frames_a_second * base) / base, 0.002)  # OpenCV rounds less to zero


@contextlib.contextmanager
def _named_in_ascii(path: pathlib.Path) -> Iterator[str]:
    """An ASCII path to a file with an ASCII name; OpenCV crashes on folders that are not UTF-8."""
    folder = os.open(path.parent, os.O_PATH)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


if __name__ == "__main__":
    main()
