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
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import PIL.Image
import PIL.ImageOps
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from data_pipelines import draw, transforms
from data_pipelines.checks import check_boxes
from data_pipelines.coco_files import PERSON
from data_pipelines.errors import InputError
from data_pipelines.images import MAX_MEGAPIXELS, Pixels, read_rgb
from data_pipelines.keypoints import keypoint_set
from data_pipelines.transforms import View
from hrnet_jax import config as config_lib
from hrnet_jax.codecs import create_codec
from hrnet_jax.inference import detectors
from hrnet_jax.inference.ahead import ahead
from hrnet_jax.inference.detectors import Detector
from hrnet_jax.inference.steps import make_eval_step, make_heatmap_step, to_image
from hrnet_jax.mesh import create_mesh, replicated
from hrnet_jax.models import FunctionalModel, abstract_model
from hrnet_jax.models.fold import make_fold
from hrnet_jax.weights import checkpoint
from hrnet_jax.weights.folder import Model

BATCH_SIZE = 16

# A path, a PIL image, or uint8 RGB [height, width, 3] (of NumPy, JAX or another library).
Image = Any

# `keypoints` float32 [K,2], (x, y) in image pixels; `scores` float32 [K]; `labels` int64 [K], indices into the keypoint
# set; `bbox` float32 [4], xywh; `box_score`, a float: the detector's, or 1.
Person = dict[str, Any]


def load(
    path: str | os.PathLike,
    *,
    batch_size: int = BATCH_SIZE,
    max_megapixels: float = MAX_MEGAPIXELS,
    flip_test: bool | None = None,
    detector: Detector | str | os.PathLike | None = None,
) -> Predictor:
    """Loads a model for prediction.

    Args:
      path: a work directory (its best checkpoint; `PATH@latest` or `PATH@STEP` for another), a converted or exported
        folder, a PyTorch file, or the name of a published model, which is downloaded.
      batch_size: number of people per batch, over all local devices; rounded up to a multiple of their number.
      max_megapixels: larger image files are refused without decoding.
      flip_test: whether to average over two mirrored views: better, twice the work. None: as the model was evaluated.
      detector: finds the people of images that come without boxes: a callable or a name, see `detectors`. None: such an
        image shows one person.

    Raises:
      InputError: there is no such model, it cannot be downloaded, or no model can be built from its config.
    """
    if isinstance(detector, (str, os.PathLike)):
        detector = detectors.create(detector)
    with config_errors(path):
        trained = checkpoint.load(path)
        if flip_test is not None:
            trained.config.eval.flip_test = flip_test
    return Predictor(trained, batch_size=batch_size, max_megapixels=max_megapixels, detector=detector)


@dataclasses.dataclass(frozen=True, eq=False)
class BoxedImage:
    """The people of an image, cropped.

    Attributes:
      boxes: xywh in image pixels, as given.
      scores: of the boxes.
      views: the regions that were cropped, one per box.
      crops: uint8 RGB, one per box.
      tag: any object, returned with the results.
    """

    boxes: Float[np.ndarray, "n 4"]
    scores: list[float]
    views: list[View]
    crops: list[np.ndarray]
    tag: Any = None


class Predictor:
    """A model with its compiled step, on all local devices.

    They receive batches of `batch_size` crops, split over the devices, or of one crop, so that other image sizes and
    numbers of people do not trigger compilation. Images are read and cropped by threads.

    Attributes:
      config: the config the model was trained with.
      origin: a description of where the weights were loaded from.
      keypoint_set: names, colours and skeleton of its keypoints.
      input_size: a crop's (height, width) in pixels.
      detector: finds the people of images that are called without boxes, or None.
    """

    def __init__(
        self,
        trained: Model,
        *,
        batch_size: int = BATCH_SIZE,
        max_megapixels: float = MAX_MEGAPIXELS,
        detector: Detector | None = None,
    ):
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size}: must be 1 or more")
        self.config, self.origin = trained.config, trained.origin
        mesh = create_mesh(jax.local_devices())
        self._everywhere, self._split = replicated(mesh), NamedSharding(mesh, PartitionSpec("data"))
        self.batch_size = -(-batch_size // mesh.size) * mesh.size
        self.max_megapixels, self.detector = max_megapixels, detector
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
        to_weights = make_fold(network, self.config.model.dtype, self._everywhere)
        self._weights = to_weights(*jax.device_put((trained.params, trained.stats), self._everywhere))

    def __repr__(self) -> str:
        (height, width), devices = self.input_size, self._split.mesh.devices
        return (
            f"Predictor({self.origin}: HRNet {self.config.model.variant}, {height}x{width}, {self.config.codec.name}, "
            f"{len(self.keypoint_set)} keypoints, flip_test={bool(self.config.eval.flip_test)}, "
            f"{devices.size} x {devices.flat[0].device_kind})"
        )

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
          images: one or several images: a path, a PIL image, or an array (NumPy, JAX, ...) of uint8 RGB [height, width,
            3]. Sizes may differ. Files and PIL images are rotated by their EXIF orientation, and boxes refer to the
            rotated image.
          boxes: for each image (or for the single image) boxes in image pixels [N,4], [4] for one person, or None for
            what the detector finds; without a detector, the full image. Boxes may extend beyond the image; the crop is
            black there.
          heatmaps: adds to each person `heatmaps`, float32 [h,w,K], the network's output averaged over the two views of
            the flip test, and `heatmap_matrix` [2,3], the affine map from image pixels to heatmap cells.
          clip: clips boxes to the image; MMPose clips annotated boxes but not detections.
          box_format: "xywh" (left, top, width, height) or "xyxy" (left, top, right, bottom).

        Returns:
          For each image, a list with one dict per box, in order, see `Person`.

        Raises:
          InputError: an image or a box cannot be used; the message names the image (by its number if an array) and box.
        """
        if isinstance(images, (str, os.PathLike, PIL.Image.Image)) or getattr(images, "ndim", 4) != 4:
            images, boxes = [images], [boxes]
        elif not hasattr(images, "__len__"):
            raise InputError(
                f"images: is a {type(images).__name__}, neither an image (a path or an array) nor a list of images"
            )
        elif boxes is None:
            boxes = [None] * len(images)
        elif not hasattr(boxes, "__len__") or len(boxes) != len(images):
            raise InputError(f"boxes: must be a list of {len(images)} tables or None, one per image")

        spread = ahead if len(images) > 1 else map  # threads take a while to start

        def opened(numbered: tuple[int, tuple[Image, Any]]) -> tuple[str, Pixels, Any]:
            number, (image, image_boxes) = numbered
            return (*self._pixels(image, f"image {number}"), image_boxes)

        def boxed(item: tuple[str, Pixels, Any]) -> BoxedImage:
            name, pixels, image_boxes = item
            return self.prepare(pixels, image_boxes, name=name, clip=clip, box_format=box_format)

        def found(item: tuple[tuple[str, Pixels, Any], np.ndarray | None, list[float] | None]) -> BoxedImage:
            (name, pixels, _), xywh, scores = item
            return boxed(item[0]) if xywh is None else self.prepare(pixels, xywh, name=name, scores=scores)

        pairs = enumerate(zip(images, boxes, strict=True))
        if self.detector is None:
            prepared = spread(lambda numbered: boxed(opened(numbered)), pairs)
        else:
            without = detectors.in_batches(
                self.detector, spread(opened, pairs), lambda item: item[1] if item[2] is None else None
            )
            prepared = spread(found, without)
        return [people for _, people in self.people(prepared, heatmaps=heatmaps)]

    def prepare(
        self,
        image: Image,
        boxes: Any = None,
        *,
        name: str = "image",
        clip: bool = False,
        box_format: str = "xywh",
        scores: list[float] | None = None,
        tag: Any = None,
    ) -> BoxedImage:
        """Reads and crops an image with its boxes (see `__call__`; None: the full image) and their scores (1).

        `name` identifies an array in messages.
        """
        name, pixels = self._pixels(image, name)
        size = pixels.shape[0], pixels.shape[1]
        if boxes is None:
            boxes, box_format = [[0, 0, size[1], size[0]]], "xywh"
        xywh = check_boxes(boxes, name, box_format)
        views = [self._view(box, size, clip, f"{name}: box {number}") for number, box in enumerate(xywh)]
        matrices = [transforms.warp_matrix(view, self.input_size, self._codec.warp) for view in views]
        crops = [transforms.warp_image(pixels, matrix, self.input_size) for matrix in matrices]
        return BoxedImage(xywh, [1.0] * len(xywh) if scores is None else scores, views, crops, tag)

    def people(
        self, images: Iterable[BoxedImage], *, heatmaps: bool = False
    ) -> Iterator[tuple[BoxedImage, list[Person]]]:
        """Yields each image with its people, in order; takes the next images while the device works."""
        waiting: collections.deque[BoxedImage] = collections.deque()

        def crops() -> Iterator[np.ndarray]:
            for image in images:
                waiting.append(image)
                yield from image.crops

        answers: list[tuple[np.ndarray, ...]] = []
        for answer in self._answers(crops(), heatmaps):
            answers.append(answer)
            while waiting and len(waiting[0].views) <= len(answers):
                yield self._finished(waiting.popleft(), answers)
        for image in waiting:  # those behind the last that has people
            yield self._finished(image, answers)

    def draw(self, image: Image, people: Sequence[Person], threshold: float = 0.3) -> np.ndarray:
        """Draws people into a copy of an image; returns it as uint8 RGB.

        Args:
          image: as in `__call__`.
          people: the image's people, as returned.
          threshold: keypoints with a lower score are omitted.
        """
        picture = self._pixels(image, "image")[1].copy()
        draw.people(picture, people, self.keypoint_set, threshold)
        return picture

    @staticmethod
    def to_coco(results: Sequence[Sequence[Person]], image_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Converts results to COCO's result format, ready for json.dump and `eval.coco`.

        Args:
          results: people per image, as returned.
          image_ids: the images' ids; their positions by default.

        Returns:
          One dict per person: `image_id`, `category_id` (1), `bbox` (xywh), `keypoints` (x, y and score, K times), and
          `score`, the box's score times the mean of the keypoints' scores.
        """
        ids = range(len(results)) if image_ids is None else image_ids
        return [
            {
                "image_id": int(image_id),
                "category_id": PERSON,
                "bbox": person["bbox"].tolist(),
                "keypoints": np.column_stack([person["keypoints"], person["scores"]]).ravel().tolist(),
                "score": float(person["box_score"] * person["scores"].mean()),
            }
            for image_id, people in zip(ids, results, strict=True)
            for person in people
        ]

    def _pixels(self, image: Image, name: str) -> tuple[str, Pixels]:
        """An image's name for messages and its pixels, RGB."""
        if isinstance(image, (str, os.PathLike)):
            return str(image), read_rgb(image, self.max_megapixels)
        try:
            if isinstance(image, PIL.Image.Image):
                image = PIL.ImageOps.exif_transpose(image).convert("RGB")
            pixels = np.asarray(image)
        except (OSError, ValueError) as error:
            raise InputError(f"{name}: not an array ({error})") from None
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
            raise InputError(f"{name}: {pixels.dtype} {list(pixels.shape)}; an image is uint8 RGB [height, width, 3]")
        return name, pixels

    def _view(self, box: np.ndarray, size: tuple[int, int], clip: bool, where: str) -> View:
        xyxy = transforms.clip_box(box, size) if clip else np.concatenate([box[:2], box[:2] + box[2:]])
        beyond = (box[:2] >= size[::-1]).any() or (box[:2] + box[2:] <= 0).any()
        if beyond or (xyxy[2:] <= xyxy[:2]).any():
            raise InputError(f"{where}: {box.tolist()} (xywh) lies outside the image ({size[1]}x{size[0]})")
        return transforms.view_of_box(xyxy).fix_aspect(self.input_size)

    def _answers(self, crops: Iterator[np.ndarray], heatmaps: bool) -> Iterator[tuple[np.ndarray, ...]]:
        """Yields the network's outputs for each crop; the next batch is filled and sent before one is waited for."""
        before = None
        while batch := list(itertools.islice(crops, self.batch_size)):
            sent = len(batch), self._send(batch, heatmaps)
            if before:
                yield from self._fetch(*before)
            before = sent
        if before:
            yield from self._fetch(*before)

    def _send(self, crops: list[np.ndarray], heatmaps: bool) -> tuple[Array, ...]:
        """Sends crops, padded to the batch size, to the devices; returns the pending results."""
        single = len(crops) == 1
        padding = [] if single else [np.zeros_like(crops[0])] * (self.batch_size - len(crops))
        batch = jax.device_put(np.stack(crops + padding), self._everywhere if single else self._split)
        answers = self._step(self._weights, {}, batch)
        if heatmaps:
            answers += (self._heatmap_step(self._weights, {}, batch),)
        return answers

    def _fetch(self, count: int, answers: tuple[Array, ...]) -> Iterator[tuple[np.ndarray, ...]]:
        arrays = [np.asarray(array)[:count] for array in answers]
        if not all(np.isfinite(array).all() for array in arrays):
            raise InputError(f"{self.origin}: the network's outputs are not finite; its weights are damaged")
        return zip(*arrays, strict=True)

    def _finished(self, image: BoxedImage, answers: list[tuple[np.ndarray, ...]]) -> tuple[BoxedImage, list[Person]]:
        """An image with its people; their outputs are removed from the beginning of the list."""
        count = len(image.views)
        people = [
            self._person(*row) for row in zip(image.boxes, image.scores, image.views, answers[:count], strict=True)
        ]
        del answers[:count]
        return image, people

    def _person(self, box: np.ndarray, box_score: float, view: View, answers: tuple[np.ndarray, ...]) -> Person:
        keypoints, scores, *maps = answers
        person = {
            "keypoints": to_image(keypoints[None], view.center[None], view.scale[None], self._codec)[0],
            "scores": scores,
            "labels": np.arange(len(scores)),
            "bbox": box,
            "box_score": box_score,
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
