"""Person detectors: images -> boxes and scores.

A detector is any callable that takes a list of images, uint8 RGB [height, width, 3] of any sizes, and returns for each
a pair: boxes [n,4], xywh in image pixels, and scores [n]. `create` makes two kinds by name:

* object-detection models of Hugging Face transformers (extra `detect`), by their name on the Hub or a local folder.
  They are trained to find everybody once, so there is no non-maximum suppression;
* ONNX files with non-maximum suppression inside, as MMDeploy exports RTMDet and YOLOX (extra `onnx`).
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from data_pipelines.checks import FARTHEST, as_numbers
from data_pipelines.errors import InputError, brief, extra, first_line, listed
from data_pipelines.images import Pixels

Images = list[UInt8[np.ndarray, "_ _ 3"]]  # of any sizes
Detector = Callable[[Images], Sequence[tuple[Any, Any]]]

# RT-DETRv2 with a ResNet-18, Apache-2.0; what the name "default" stands for.
DEFAULT = "PekingU/rtdetr_v2_r18vd"
THRESHOLD = 0.5

# Images that are given to a detector at once, unless they are large.
BATCH = 8
_BATCH_PIXELS = 32e6

# What MMDetection does to pixels (BGR, resized with their proportions, padded with grey at the right and below): mean
# and standard deviation by family. https://github.com/open-mmlab/mmdetection, configs rtmdet and yolox.
_FAMILIES = {
    "rtmdet": ((103.53, 116.28, 123.675), (57.375, 57.12, 58.395)),
    "yolox": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
_GREY = 114
_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")
_INPUT = 640  # pixels a side, of files that accept any size

_Item = TypeVar("_Item")


def create(name: str | os.PathLike, threshold: float = THRESHOLD, kind: str = "person") -> Detector:
    """Loads a detector.

    Args:
      name: "default"; the name of a model on the Hugging Face Hub, or a folder of one; or `rtmdet:FILE.onnx` or
        `yolox:FILE.onnx`, after the family, which decides how pixels are prepared.
      threshold: boxes with a lower score are left out.
      kind: the name of the class to find. ONNX files have no names: "person" is class 0, as in COCO's classes and in
        models of people only; others are given by their number.

    Raises:
      InputError: the extra is not installed, the model is neither on this machine nor can be fetched, or it has no such
        class.
    """
    name = os.fspath(name)
    family, _, path = name.partition(":")
    if name.lower().endswith(".onnx"):
        if family not in _FAMILIES:
            raise InputError(f"{name}: say whether its input is RTMDet's or YOLOX's: rtmdet:{name} or yolox:{name}")
        return _onnx(path, family, threshold, kind)
    return _transformers(DEFAULT if name == "default" else name, threshold, kind)


def detect(detector: Detector, images: Images) -> list[tuple[Float[np.ndarray, "n 4"], list[float]]]:
    """The detector's boxes (xywh) and scores for each image, without boxes that are not `inside`.

    Raises InputError if the detector does not return what it should.
    """
    answers = detector(images)
    if not hasattr(answers, "__len__") or len(answers) != len(images):
        raise InputError(f"detector: must return a list of {len(images)} pairs (boxes, scores), one per image")
    return [_checked(answer, image.shape) for answer, image in zip(answers, images, strict=True)]


def inside(boxes: Float[np.ndarray, "n 4"], size: tuple[int, ...]) -> Bool[np.ndarray, " n"]:
    """Which boxes (xywh) show at least a pixel a side of an image of shape (height, width, ...)."""
    low, high = np.maximum(boxes[:, :2], 0), np.minimum(boxes[:, :2] + boxes[:, 2:], size[1::-1])
    return (high - low >= 1).all(axis=1) & (np.abs(boxes) < FARTHEST).all(axis=1)


def in_batches(
    detector: Detector, items: Iterable[_Item], pixels: Callable[[_Item], Pixels | None]
) -> Iterator[tuple[_Item, Float[np.ndarray, "n 4"] | None, list[float] | None]]:
    """Yields each item with the boxes and scores in its image; with None if `pixels` gives no image for it."""
    waiting: list[_Item] = []
    images: list[Pixels] = []

    def finished() -> Iterator[tuple[_Item, Any, Any]]:
        found = iter(detect(detector, images) if images else [])
        for item in waiting:
            yield (item, None, None) if pixels(item) is None else (item, *next(found))
        waiting.clear()
        images.clear()

    for item in items:
        waiting.append(item)
        if (image := pixels(item)) is not None:
            images.append(image)
        if len(waiting) == BATCH or sum(image[..., 0].size for image in images) >= _BATCH_PIXELS:
            yield from finished()
    yield from finished()


def _checked(answer: Any, size: tuple[int, ...]) -> tuple[np.ndarray, list[float]]:
    try:
        boxes, scores = (as_numbers(values) for values in answer)
    except (TypeError, ValueError):
        boxes = scores = None
    if boxes is None or scores is None or boxes.size != 4 * scores.size:
        raise InputError(f"detector: must return boxes [n,4] (xywh) and scores [n] for an image, not {brief(answer)}")
    boxes, scores = boxes.reshape(-1, 4), scores.reshape(-1)
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise InputError(f"detector: a box or a score is not finite: {brief(answer)}")
    shown = inside(boxes, size)
    return boxes[shown], scores[shown].tolist()


def _transformers(name: str, threshold: float, kind: str) -> Detector:
    try:
        import torch
        import transformers
    except ImportError:
        raise InputError(f"{name}: needs transformers and torch: {extra('detect')}") from None
    try:
        model = transformers.AutoModelForObjectDetection.from_pretrained(name)
        processor = transformers.AutoImageProcessor.from_pretrained(name)
    except ImportError as error:  # some models need more, for example timm
        raise InputError(f"{name}: {' '.join(str(error).split())[:200]}") from None
    except Exception as error:  # of the Hub's library, of the files, and of the models' code
        if os.path.isdir(name):
            raise InputError(f"{name}: not an object-detection model of transformers ({first_line(error)})") from None
        raise InputError(
            f"{name}: no such folder, and cannot be fetched from the Hugging Face Hub; where there is a network, run "
            f"`hf download {name} --local-dir FOLDER`, then name FOLDER instead ({first_line(error)})"
        ) from None
    names = model.config.id2label
    wanted = [int(label) for label, text in names.items() if text.lower() == kind.lower()]
    if not wanted:
        raise InputError(f"{name}: has no class {kind!r}, but {listed(list(names.values()))}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device).eval()

    def detector(images: Images) -> list[tuple[np.ndarray, np.ndarray]]:
        # Each by itself: some processors pad the images of a batch to the largest, which changes what is found in them.
        tensors = [processor(images=image, return_tensors="pt", input_data_format="channels_last") for image in images]
        alike: dict[tuple[int, ...], list[int]] = {}
        for number, one in enumerate(tensors):
            alike.setdefault(tuple(one["pixel_values"].shape), []).append(number)
        answers = {}
        for numbers in alike.values():
            batch = {key: torch.cat([tensors[i][key] for i in numbers]).to(device) for key in tensors[numbers[0]]}
            with torch.inference_mode():
                found = processor.post_process_object_detection(
                    model(**batch), threshold=threshold, target_sizes=[images[i].shape[:2] for i in numbers]
                )
            for i, one in zip(numbers, found, strict=True):
                boxes, labels, scores = (one[key].float().cpu().numpy() for key in ("boxes", "labels", "scores"))
                ours = np.isin(labels, wanted)
                answers[i] = _xywh(boxes[ours]), scores[ours]
        return [answers[i] for i in range(len(images))]

    return detector


def _onnx(path: str, family: str, threshold: float, kind: str) -> Detector:
    try:
        import onnxruntime
    except ImportError:
        raise InputError(f"{path}: needs onnxruntime: {extra('onnx')}") from None
    if not pathlib.Path(path).is_file():
        raise InputError(f"{path}: no such file")
    if kind != "person" and not kind.isdecimal():
        raise InputError(f"{path}: an ONNX file has no names of classes; give the number of {kind!r} instead")
    label = 0 if kind == "person" else int(kind)
    try:
        providers = [name for name in _PROVIDERS if name in onnxruntime.get_available_providers()]
        session = onnxruntime.InferenceSession(path, providers=providers)
        (entry,) = session.get_inputs()
        batch, _, height, width = (value if isinstance(value, int) else 0 for value in entry.shape)
    except Exception as error:  # ONNX Runtime's own types
        raise InputError(f"{path}: not an ONNX file with one input [b,3,height,width] ({first_line(error)})") from None
    if not {"dets", "labels"} <= {output.name for output in session.get_outputs()}:
        raise InputError(
            f"{path}: has no outputs `dets` [b,n,5] and `labels` [b,n]; export it with NMS, as MMDeploy does"
        )
    size = height or _INPUT, width or _INPUT
    mean, deviation = (np.array(values, np.float32) for values in _FAMILIES[family])

    def prepared(image: Pixels) -> tuple[np.ndarray, np.ndarray]:
        """The input [3,height,width], and the factors of its x and y against the image's."""
        zoom = min(side / length for side, length in zip(size, image.shape, strict=False))
        rows, columns = (max(1, round(length * zoom)) for length in image.shape[:2])
        canvas = np.full((*size, 3), _GREY, np.uint8)
        canvas[:rows, :columns] = cv2.resize(image[..., ::-1], (columns, rows))
        pixels = ((canvas - mean) / deviation).transpose(2, 0, 1)
        return pixels, np.array([columns / image.shape[1], rows / image.shape[0]])

    def detector(images: Images) -> list[tuple[np.ndarray, np.ndarray]]:
        inputs, zooms = zip(*map(prepared, images), strict=True)
        rows = []
        together = batch or len(images)
        for start in range(0, len(images), together):
            part = np.stack(inputs[start : start + together])
            padding = np.zeros((together - len(part), *part.shape[1:]), part.dtype)
            found = session.run(["dets", "labels"], {entry.name: np.concatenate([part, padding])})
            rows += [*zip(*found, strict=True)][: len(part)]
        answers = []
        for (table, labels), zoom in zip(rows, zooms, strict=True):
            ours = (labels == label) & (table[:, 4] >= threshold)
            answers.append((_xywh(table[ours, :4] / np.tile(zoom, 2)), table[ours, 4]))
        return answers

    return detector


def _xywh(xyxy: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
    return np.concatenate([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]], axis=1)
