"""Predicts people's keypoints in images or a video, as JSON and as pictures.

    python -m hrnet_jax.predict --checkpoint runs/quickstart --images photos --boxes boxes.json --output runs/photos

writes predictions.json, and drawn/NAME.png for each image or drawn.mp4. --boxes takes a COCO annotation file (whose
keypoints are drawn beside the predictions), detections (COCO results, a folder of Ultralytics labels, a MOT file, or a
JSON object {file name: [[x, y, width, height], ...]}), or an .npy array [N,4] of boxes for every image. --detector
finds the boxes itself. Without both, each image shows one person. In a video, people have a `track_id` and smoothed
keypoints. See docs/predict.md.
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
    "detector": (
        "",
        "finds the people: default, a model or folder of transformers, rtmdet:FILE.onnx or yolox:FILE.onnx",
    ),
    "detector_threshold": (0.5, "omits the detector's boxes with a lower score"),
    "detector_class": ("person", "the class to find, by its name; by its number in an ONNX file"),
    "detect_every": (1, "video: the detector runs in every n-th frame; between, boxes follow the keypoints"),
    "track": (True, "video: identities over the frames"),
    "smooth": (True, "video: smooths the keypoints of each track; they lag by about half a frame"),
    "box_format": ("xywh", "or xyxy: corners, of detections, boxes by file name and .npy"),
    "box_threshold": (0.3, "omits detections of --boxes with a lower score"),
    "score_threshold": (0.3, "omits keypoints with a lower score from the pictures"),
    "flip_test": (True, "averages over two mirrored views (if config.eval.flip_test): better, twice the work"),
    "draw": (True, "writes pictures"),
    "heatmaps": (False, "draws the heatmaps below the skeletons: twice the work"),
    "batch_size": (16, "people per batch on the device"),
    "max_megapixels": (50.0, "larger images are refused without decoding"),
}
cli.help_first(__name__, __doc__, OPTIONS)  # the imports below take seconds

import contextlib
import itertools
import json
import logging
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import UInt8
from ml_collections import ConfigDict

from data_pipelines import command_line, draw, storage
from data_pipelines.errors import InputError, printable, utf8
from data_pipelines.images import Pixels
from data_pipelines.keypoints import KeypointSet, keypoint_set
from hrnet_jax.inference import detectors
from hrnet_jax.inference.ahead import ahead
from hrnet_jax.inference.boxes import BoxFile, read_boxes
from hrnet_jax.inference.people import Finder, Shown, VideoOptions
from hrnet_jax.inference.picture_writer import Pictures
from hrnet_jax.inference.predictor import Person, Predictor, config_errors
from hrnet_jax.inference.sources import Source
from hrnet_jax.mesh import log_devices
from hrnet_jax.weights import checkpoint

FORMAT_VERSION = 1

logger = logging.getLogger(__name__)


class Look(NamedTuple):
    """Drawing options: minimum keypoint score, keypoint set of the annotations, and whether to draw heatmaps."""

    threshold: float
    labels: KeypointSet
    heatmaps: bool = False


class Counts(NamedTuple):
    """Numbers of predicted images, of people, of unusable images, and of images without people."""

    images: int
    people: int
    unusable: int
    empty: int

    def __str__(self) -> str:
        empty = f" ({self.empty} of them without people)" if self.empty else ""
        unusable = f"; {self.unusable} could not be used, see above" if self.unusable else ""
        return f"{self.images} images{empty}, {self.people} people{unusable}"


def predict(
    predictor: Predictor,
    source: Source,
    output: str | os.PathLike,
    boxes: BoxFile | None,
    look: Look | None,
    video: VideoOptions | None = None,
) -> Counts:
    """Predicts on all images of a source and writes predictions.json and, unless `look` is None, the pictures.

    The boxes are those of the predictor's detector, if it has one.

    Unusable images are logged. Raises InputError if no image could be used, or a file cannot be written; for a picture,
    only after predictions.json is complete.
    """
    folder = epath.Path(output)
    unusable: list[str] = []

    def leave_out(reason: str) -> None:
        if source.total == 1 and not source.is_video:
            raise InputError(reason)
        unusable.append(reason)
        logger.warning("left out: %s", reason)

    def finish(result: tuple[Shown, list[Person]]) -> tuple[dict[str, Any], Pixels | None]:
        """A record, and a video's frame; other pictures are written here, by threads."""
        (shot, picture, zoom), people = result
        record = {**shot.record, "people": [_plain(person) for person in people]}
        if picture is None or pictures.problem:
            return record, None
        truth = boxes.truth.get(shot.key) if boxes else None
        assert look is not None  # or there would be no picture
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
    heatmaps = bool(look and look.heatmaps)
    finder = Finder(predictor, boxes, video or VideoOptions(), look is not None, heatmaps, leave_out)
    images = empty = people_seen = 0
    pictures = Pictures(folder, source.frames_a_second)
    with (
        command_line.progress(source.total or None) as advance,
        _record_writer(folder / "predictions.json", head) as write_record,
        pictures,
    ):
        for record, frame in ahead(finish, finder.people(source)):
            write_record(record)
            if frame is not None:
                pictures.add("", frame)
            images, people_seen = images + 1, people_seen + len(record["people"])
            empty += not record["people"]
            advance(1)
        if not images:
            raise InputError(f"{source.path}: none of its {len(unusable)} images could be used; see the warnings above")
    if pictures.problem:
        raise InputError(f"{pictures.problem}; {folder / 'predictions.json'} is complete")
    return Counts(images, people_seen, len(unusable), empty)


def main() -> None:
    """The command line."""
    cli.run(__doc__, OPTIONS, _predict, lambda values: checkpoint.stored_config(values["checkpoint"]))


def _predict(values: Mapping[str, Any], config: ConfigDict) -> None:
    storage.check_output(values["output"], folder=True)
    log_devices(config.model.dtype)
    source = Source.find(values["images"], pathlib.Path(values["output"]), values["max_megapixels"])
    with config_errors(values["checkpoint"]):
        labels = keypoint_set(config.data.eval.keypoints)
        config.eval.flip_test = config.eval.flip_test and values["flip_test"]
    if values["boxes"] and values["detector"]:
        raise InputError("--boxes and --detector: only one of them can find the people")
    if not values["detect_every"]:
        raise InputError("--detect_every=0: must be 1 or more")
    boxes = None
    if not (values["boxes"] or values["annotations"] or values["detector"]):
        logger.info("without --boxes or --detector, each image is taken as the box of one person")
    if values["boxes"] or values["annotations"]:
        path = values["boxes"] or values["annotations"]
        boxes = read_boxes(path, labels, values["annotations"], values["box_threshold"], values["box_format"])
        names = [utf8(name) for name in source.names]
        if names and not values["detector"] and boxes.same is None and not any(boxes.of(name)[0] for name in names):
            raise InputError(f"{path}: has no box for {names[0]} or any other image in {source.path}")
        others = boxes.unknown(names)
        if others and os.path.isdir(source.path):
            logger.warning("%s: %d names are not images in %s, e.g. %s", path, len(others), source.path, others[0])
    with config_errors(values["checkpoint"]):
        trained = checkpoint.load(values["checkpoint"])._replace(config=config)
    detector = None
    if values["detector"]:
        detector = detectors.create(values["detector"], values["detector_threshold"], values["detector_class"])
    sizes = {name: values[name] for name in ("batch_size", "max_megapixels")}
    predictor = Predictor(trained, detector=detector, **sizes)
    look = Look(values["score_threshold"], labels, values["heatmaps"]) if values["draw"] else None
    video = VideoOptions(values["track"], values["smooth"], values["detect_every"])
    counts = predict(predictor, source, values["output"], boxes, look, video)
    print(printable(f"{values['output']}: {counts}"))


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


def _plain(person: Person) -> dict[str, Any]:
    """A person as JSON, rounded: pixels to two decimals, scores to four."""
    identity = {"track_id": person["track_id"]} if "track_id" in person else {}
    return {
        **identity,
        "bbox": np.round(person["bbox"].astype(float), 2).tolist(),
        "box_score": round(person["box_score"], 4),
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


if __name__ == "__main__":
    main()
