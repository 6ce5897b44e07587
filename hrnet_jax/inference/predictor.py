"""Predicts keypoints from images and person boxes, in Python.

    predictor = hrnet_jax.load("runs/quickstart")
    people = predictor("photo.jpg", [[120, 80, 90, 220]])[0]  # people in the first image
    people[0]["keypoints"], people[0]["scores"]

Crops, the compiled step and the transform back to the image are those of `hrnet_jax.evaluate`.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, UInt8

from data_pipelines import transforms
from data_pipelines.checks import check_boxes
from data_pipelines.errors import InputError
from data_pipelines.images import MAX_MEGAPIXELS, read_rgb
from data_pipelines.keypoints import keypoint_set
from data_pipelines.transforms import View
from hrnet_jax import config as config_lib
from hrnet_jax.codecs import create_codec
from hrnet_jax.inference.steps import make_eval_step, make_heatmap_step, to_image
from hrnet_jax.models import FunctionalModel, abstract_model
from hrnet_jax.models.fold import fold
from hrnet_jax.weights import checkpoint
from hrnet_jax.weights.folder import Model

BATCH_SIZE = 16

# A path, or uint8 RGB [height, width, 3].
Image = str | os.PathLike | np.ndarray

# `keypoints` float32 [K,2], (x, y) in image pixels; `scores` float32 [K]; `labels` int64 [K], indices into the keypoint
# set; `bbox` float32 [4], xywh.
Person = dict[str, np.ndarray]


def load(path: str | os.PathLike, *, batch_size: int = BATCH_SIZE, max_megapixels: float = MAX_MEGAPIXELS) -> Predictor:
    """Loads a model for prediction.

    Args:
      path: a work directory (its best checkpoint; `PATH@latest` or `PATH@STEP` for another), or a converted or exported
        folder.
      batch_size: number of people per batch on the device.
      max_megapixels: larger image files are refused without decoding.

    Raises:
      InputError: the folder holds no such model, or no model can be built from its config.
    """
    with config_errors(path):
        trained = checkpoint.load(path)
    return Predictor(trained, batch_size=batch_size, max_megapixels=max_megapixels)


@dataclasses.dataclass(frozen=True, eq=False)
class BoxedImage:
    """An image and its crops.

    Attributes:
      image: uint8 RGB.
      boxes: xywh in image pixels, as given.
      views: the regions to crop, one per box.
    """

    image: UInt8[np.ndarray, "height width 3"]
    boxes: Float[np.ndarray, "n 4"]
    views: list[View]


class Predictor:
    """A model with its compiled step, on the first device.

    The device receives batches of `batch_size` crops or of one, so that other image sizes and numbers of people do not
    trigger compilation.

    Attributes:
      config: the config the model was trained with.
      origin: a description of where the weights were loaded from.
      keypoint_set: names, colours and skeleton of its keypoints.
      input_size: a crop's (height, width) in pixels.
    """

    def __init__(self, trained: Model, *, batch_size: int = BATCH_SIZE, max_megapixels: float = MAX_MEGAPIXELS):
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size}: must be 1 or more")
        self.config, self.origin = trained.config, trained.origin
        self.batch_size, self.max_megapixels = batch_size, max_megapixels
        with config_errors(self.origin):
            config_lib.check(self.config, training=False)
            self.keypoint_set = keypoint_set(self.config.keypoints)
            self._codec = create_codec(self.config.codec)
            flip = self.keypoint_set.flip_indices, bool(self.config.eval.flip_test)
            trained.check()
        network = FunctionalModel.of(abstract_model(self.config, folded=True, scan=False))
        self.input_size = self._codec.input_size
        self._step = make_eval_step(network, self._codec, *flip)
        self._heatmap_step = make_heatmap_step(network, self._codec, *flip)
        self._weights = jax.jit(fold)(*jax.device_put((trained.params, trained.stats), jax.local_devices()[0]))

    def __call__(
        self,
        images: Image | Sequence[Image],
        boxes: Any = None,
        *,
        heatmaps: bool = False,
        clip: bool = False,
        box_format: str = "xywh",
    ) -> list[list[Person]]:
        """Predicts the keypoints of people.

        Args:
          images: one or several images: a path, or uint8 RGB [height, width, 3]. Sizes may differ. Files are rotated by
            their EXIF orientation, and boxes refer to the rotated image.
          boxes: for each image (or for the single image) boxes in image pixels [N,4], or None for the full image. Boxes
            may extend beyond the image; the crop is black there.
          heatmaps: adds to each person `heatmaps`, float32 [h,w,K], the network's output averaged over the two views of
            the flip test, and `heatmap_matrix` [2,3], the affine map from image pixels to heatmap cells.
          clip: clips boxes to the image; MMPose clips annotated boxes but not detections.
          box_format: "xywh" (left, top, width, height) or "xyxy" (left, top, right, bottom).

        Returns:
          For each image, a list with one dict per box, in order, see `Person`.

        Raises:
          InputError: an image or a box cannot be used; the message names the image (by its number if an array) and box.
        """
        if isinstance(images, (str, os.PathLike)) or (isinstance(images, np.ndarray) and images.ndim != 4):
            images, boxes = [images], [boxes]
        elif not hasattr(images, "__len__"):
            raise InputError(
                f"images: is a {type(images).__name__}, neither an image (a path or an array) nor a list of images"
            )
        elif boxes is None:
            boxes = [None] * len(images)
        elif not hasattr(boxes, "__len__") or len(boxes) != len(images):
            raise InputError(f"boxes: must be a list of {len(images)} tables or None, one per image")
        pairs = enumerate(zip(images, boxes, strict=True))
        prepared = (
            self.prepare(image, b, name=f"image {number}", clip=clip, box_format=box_format)
            for number, (image, b) in pairs
        )
        return list(self.people(prepared, heatmaps=heatmaps))

    def prepare(
        self, image: Image, boxes: Any = None, *, name: str = "image", clip: bool = False, box_format: str = "xywh"
    ) -> BoxedImage:
        """Reads and checks an image and its boxes (see `__call__`); `name` identifies an array in messages."""
        if isinstance(image, (str, os.PathLike)):
            name, image = str(image), read_rgb(image, self.max_megapixels)
        try:
            pixels = np.asarray(image)
        except ValueError as error:
            raise InputError(f"{name}: not an array ({error})") from None
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
            raise InputError(f"{name}: {pixels.dtype} {list(pixels.shape)}; an image is uint8 RGB [height, width, 3]")
        size = pixels.shape[0], pixels.shape[1]
        if boxes is None:
            boxes, box_format = [[0, 0, size[1], size[0]]], "xywh"
        xywh = check_boxes(boxes, name, box_format)
        views = [self._view(box, size, clip, f"{name}: box {number}") for number, box in enumerate(xywh)]
        return BoxedImage(pixels, xywh, views)

    def people(self, prepared: Iterable[BoxedImage], *, heatmaps: bool = False) -> Iterator[list[Person]]:
        """Yields the people of each prepared image, in order; prepares the next images while the device works."""
        waiting: collections.deque[tuple[np.ndarray, list[View]]] = collections.deque()
        answers: collections.deque[tuple[np.ndarray, ...]] = collections.deque()
        crops: list[np.ndarray] = []
        sent: collections.deque[tuple[int, tuple[Array, ...]]] = collections.deque()
        for item in prepared:
            waiting.append((item.boxes, item.views))
            for view in item.views:
                matrix = transforms.warp_matrix(view, self.input_size, self._codec.warp)
                crops.append(transforms.warp_image(item.image, matrix, self.input_size))
                if len(crops) == self.batch_size:
                    sent.append(self._send(crops, heatmaps))
                    crops = []
                if len(sent) > 1:
                    answers.extend(self._fetch(*sent.popleft()))
            yield from self._complete(waiting, answers)
        if crops:
            sent.append(self._send(crops, heatmaps))
        for batch in sent:
            answers.extend(self._fetch(*batch))
        yield from self._complete(waiting, answers)

    def _view(self, box: np.ndarray, size: tuple[int, int], clip: bool, where: str) -> View:
        xyxy = transforms.clip_box(box, size) if clip else np.concatenate([box[:2], box[:2] + box[2:]])
        beyond = (box[:2] >= size[::-1]).any() or (box[:2] + box[2:] <= 0).any()
        if beyond or (xyxy[2:] <= xyxy[:2]).any():
            raise InputError(f"{where}: {box.tolist()} (xywh) lies outside the image ({size[1]}x{size[0]})")
        return transforms.view_of_box(xyxy).fix_aspect(self.input_size)

    def _send(self, crops: list[np.ndarray], heatmaps: bool) -> tuple[int, tuple[Array, ...]]:
        """Sends crops, padded to the batch size, to the device; returns their number and the pending results."""
        padding = [np.zeros_like(crops[0])] * (self.batch_size - len(crops) if len(crops) > 1 else 0)
        batch = jax.device_put(np.stack(crops + padding), jax.local_devices()[0])
        answers = self._step(self._weights, {}, batch)
        if heatmaps:
            answers += (self._heatmap_step(self._weights, {}, batch),)
        return len(crops), answers

    def _fetch(self, count: int, answers: tuple[Array, ...]) -> Iterator[tuple[np.ndarray, ...]]:
        arrays = [np.asarray(array)[:count] for array in answers]
        if not all(np.isfinite(array).all() for array in arrays):
            raise InputError(f"{self.origin}: the network's outputs are not finite; its weights are damaged")
        return zip(*arrays, strict=True)

    def _complete(self, waiting: collections.deque, answers: collections.deque) -> Iterator[list[Person]]:
        """Removes the images whose results are complete from the queue, and yields their people."""
        while waiting and len(waiting[0][1]) <= len(answers):
            boxes, views = waiting.popleft()
            rows = [answers.popleft() for _ in views]
            yield [self._person(*row) for row in zip(boxes, views, rows, strict=True)]

    def _person(self, box: np.ndarray, view: View, answers: tuple[np.ndarray, ...]) -> Person:
        keypoints, scores, *maps = answers
        person = {
            "keypoints": to_image(keypoints[None], view.center[None], view.scale[None], self._codec)[0],
            "scores": scores,
            "labels": np.arange(len(scores)),
            "bbox": box,
        }
        if maps:
            person["heatmaps"] = maps[0][..., :: self._codec.maps_per_keypoint]
            person["heatmap_matrix"] = self._heatmap_matrix(view)
        return person

    def _heatmap_matrix(self, view: View) -> np.ndarray:
        cells, pixels = (transforms.warp_span(s, self._codec.warp) for s in (self._codec.heatmap_size, self.input_size))
        zoom = np.array(cells) / np.array(pixels)
        return transforms.warp_matrix(view, self.input_size, self._codec.warp) * zoom[:, None]


@contextlib.contextmanager
def config_errors(where: str | os.PathLike) -> Iterator[None]:
    """Turns errors caused by missing config keys, or values of wrong types, into InputError."""
    try:
        yield
    except InputError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{where}: its config.json does not describe a model ({reason})") from error
