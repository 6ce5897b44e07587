"""Batches of crops for training and evaluation.

Training is an endless stream in which sample i is a function of (seed, i): the instance, its view, and the replacement
if its image cannot be read. Hosts, workers and restarts only select parts of the stream and never change it. Nothing
random may follow `_HostSlice`, whose indices are local.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import grain
import numpy as np
from absl import flags
from grain._src.python.dataset.transformations.process_prefetch import ProcessPrefetchIterDataset

from data_pipelines import storage, transforms
from data_pipelines.annotations import cached_instances, load_detections
from data_pipelines.errors import InputError
from data_pipelines.images import Decoded, Picture
from data_pipelines.instances import Instances
from data_pipelines.keypoints import KeypointMapping, KeypointSet, keypoint_set
from data_pipelines.mix import mix_weights
from data_pipelines.pixels import augment_pixels
from data_pipelines.prepared import load_prepared
from data_pipelines.processes import AHEAD, become_worker, cores, starting_workers
from data_pipelines.stages import at, settings_by_epoch
from data_pipelines.transforms import Augmentation, View
from data_pipelines.types import Batch, Config, Crops

# Attempts to replace an unreadable sample before raising an error.
_ATTEMPTS = 100

# Batches that threads compute while worker processes start.
_WHILE_STARTING = 8


def create_train_dataset(
    config: Config, crops: Crops, *, start_step: int = 0, host: int = 0, hosts: int = 1
) -> grain.MapDataset:
    """Returns the endless training batches of one host; see `TrainData.load` and `TrainData.batches`."""
    return TrainData.load(config, crops).batches(config["batch_size"], start_step=start_step, host=host, hosts=hosts)


def create_eval_dataset(config: Config, crops: Crops, *, host: int = 0, hosts: int = 1) -> EvalData:
    """Returns the evaluation batches of one host; see `EvalData`."""
    return EvalData.load(config, crops, host, hosts)


@dataclasses.dataclass(frozen=True)
class TrainData:
    """The training people of all sources, and the function from a global index to a sample.

    A sample is a dict: `image` uint8 [H,W,3] RGB crop, `keypoints` float32 [K,2] in crop pixels, `visible` float32
    [K] (1 for labelled points), `index` int64, `source` int32 (index in `sources`), `instance_id` int64 and `valid`
    bool: False if the instance's image could not be read and another instance replaces it.
    """

    sources: tuple[Instances, ...]
    input_size: tuple[int, int]
    keypoints: KeypointSet
    warp: str
    augmentations: tuple[tuple[int, Augmentation], ...]  # of each stage of the training, from a sample index on
    seed: int
    weights: tuple[float, ...] = ()  # sampling weight of each source; empty: in proportion to its people
    epoch_size: int = 0  # samples per epoch of a weighted mix

    @classmethod
    def load(cls, config: Config, crops: Crops) -> TrainData:
        """Reads the annotations of `config.data.train`'s sources, mapped to the set `config.keypoints`.

        Of `config` it uses `seed`, `keypoints`, `cache_dir`, `data`, `stages` and `batch_size`; `crops` is the codec.
        """
        data, batch_size = config["data"], config["batch_size"]
        sources = [
            dataclasses.replace(_mapped(_annotated(config, source), source, config), name=name)
            for name, source in data["train"].items()
        ]
        if not sources:
            raise InputError("config.data.train names no source")
        weights, epoch_size = mix_weights(data, [source.name for source in sources])
        target, seed = keypoint_set(config["keypoints"]), config["seed"]
        data = cls(tuple(sources), crops.input_size, target, crops.warp, (), seed, weights, epoch_size)
        samples_per_epoch = data.steps_per_epoch(batch_size) * batch_size
        augmentations = tuple(
            (epoch * samples_per_epoch, Augmentation(**settings))
            for epoch, settings in settings_by_epoch(config, "augment")
        )
        return dataclasses.replace(data, augmentations=augmentations)

    def __len__(self) -> int:
        """Samples per epoch."""
        return self.epoch_size or self._people

    def steps_per_epoch(self, batch_size: int) -> int:
        """Steps per epoch; the last batch of an epoch is filled from the next one."""
        return -(-len(self) // batch_size)

    @property
    def sample_bytes(self) -> int:
        """The size of a sample, nearly all of it pixels."""
        height, width = self.input_size
        return 3 * height * width + 12 * len(self.keypoints) + 32

    def order(self) -> grain.MapDataset:
        """The person of each global index, endless.

        Without weights, each epoch is a new permutation of all people. With weights, this holds for each source, and
        sources alternate in proportion to their weights.
        """
        if not self.weights:
            return grain.MapDataset.range(self._people).seed(self.seed).shuffle().repeat()
        ends = np.cumsum([len(source) for source in self.sources]).tolist()
        starts = [0, *ends[:-1]]
        parts = [
            grain.MapDataset.range(start, end).seed(self.seed + number).shuffle().repeat()
            for number, (start, end) in enumerate(zip(starts, ends, strict=True))
        ]
        return grain.MapDataset.mix(parts, list(self.weights))

    @property
    def _people(self) -> int:
        return sum(len(source) for source in self.sources)

    def batches(self, batch_size: int, *, start_step: int = 0, host: int = 0, hosts: int = 1) -> grain.MapDataset:
        """Returns the endless stream of batches, starting at `start_step`.

        Args:
          batch_size: samples per step over all hosts.
          start_step: the first step; the loader has no other state.
          host: this host's number.
          hosts: number of hosts; each gets a contiguous part of every global batch, in host order.

        Returns:
          A MapDataset of dicts of stacked samples [batch_size / hosts, ...].

        Raises:
          InputError: the batch size does not divide by the number of hosts.
        """
        if batch_size % hosts:
            raise InputError(f"config.batch_size={batch_size} does not divide by {hosts} hosts")
        samples = _HostSlice(self.order().map_with_index(self.sample), batch_size // hosts, host, hosts)
        return samples.batch(batch_size // hosts, batch_fn=stack)[start_step:]

    def sample(self, index: int, row: int) -> Batch:
        """Returns sample `index` of person `row`, or of another person if that image cannot be read."""
        last = None
        for attempt in range(_ATTEMPTS):
            rng = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, attempt, index]))
            if attempt:
                row = int(rng.integers(self._people))
            try:
                return self._augmented(rng, index, row, valid=not attempt)
            except InputError as error:
                logging.getLogger(__name__).warning("sample %d: %s; replaced", index, error)
                last = error
        raise InputError(f"sample {index}: {_ATTEMPTS} images in a row cannot be read; the last: {last}")

    def augmentation(self, index: int) -> Augmentation:
        """The augmentation of sample `index`."""
        return at(self.augmentations, index)

    def _locate(self, row: int) -> tuple[int, Instances, int]:
        for number, source in enumerate(self.sources):
            if row < len(source):
                return number, source, row
            row -= len(source)
        raise IndexError(row)

    def _augmented(self, rng: np.random.Generator, index: int, row: int, valid: bool) -> Batch:
        number, source, row = self._locate(row)
        augmentation = self.augmentation(index)
        picture = source.open(row)
        labels = source.points(row)
        keypoints, visible = labels[:, :2], np.minimum(labels[:, 2], 1)
        view = transforms.view_of_box(_clipped(source, row, picture.size))

        width = picture.size[1]
        flip = rng.random() < augmentation.flip
        if flip:
            order = self.keypoints.flip_indices
            keypoints, visible = keypoints[order], visible[order]
            keypoints[:, 0] = width - 1 - keypoints[:, 0]
            view = View(np.array([width - 1 - view.center[0], view.center[1]], np.float32), view.scale)
        view = transforms.random_half_body(rng, view, keypoints, visible, self.keypoints, augmentation.half_body)
        view = transforms.random_view(rng, view, augmentation).fix_aspect(self.input_size)

        matrix = transforms.warp_matrix(view, self.input_size, self.warp)
        from_image = transforms.mirrored(matrix, width) if flip else matrix
        # Pixels last, so that the person and the view do not depend on pixel augmentations.
        crop = augment_pixels(rng, _crop(picture, from_image, self.input_size), augmentation)
        return {
            "image": crop,
            "keypoints": transforms.warp_points(keypoints, matrix),
            "visible": visible.astype(np.float32),
            "index": np.int64(index),
            "source": np.int32(number),
            "instance_id": source.instance_id[row],
            "valid": np.bool_(valid),
        }


@dataclasses.dataclass(frozen=True)
class EvalData:
    """One pass over the evaluation boxes in image order; every image is decoded once.

    Iterating gives batches of exactly `batch_size / hosts` rows with the training fields, where `index` counts the
    file's boxes, and `image_id` int64, `center` and `scale` float32 [2] (the crop's view, in image pixels), `box`
    float32 xyxy [4], `box_score` float32. Each image belongs to one host, and all hosts run the same number of steps;
    padding rows have `valid` False. An image that cannot be read raises InputError.
    """

    instances: Instances
    input_size: tuple[int, int]
    warp: str
    batch_size: int
    images: tuple[list[int], ...]  # this host's images, each as a list of rows
    steps: int
    threads: int

    @classmethod
    def load(cls, config: Config, crops: Crops, host: int = 0, hosts: int = 1) -> EvalData:
        """Reads the annotated boxes of `config.data.eval`, or a detector's if its `boxes` names a file.

        Of `config` it uses `eval.batch_size`, `keypoints`, `cache_dir` and `data`; `crops` is the codec.
        """
        source, batch_size = config["data"]["eval"], config["eval"]["batch_size"]
        if batch_size % hosts:
            raise InputError(f"config.eval.batch_size={batch_size} does not divide by {hosts} hosts")
        instances = _detected(config, source) if source["boxes"] else _annotated(config, source)
        instances = _mapped(instances, source, config)

        order = np.argsort(instances.image_id, kind="stable")
        cuts = np.flatnonzero(np.diff(instances.image_id[order])) + 1
        by_image = [rows.tolist() for rows in np.split(order, cuts)]
        if config["data"]["format"] == "files":
            _check_images([instances.path(rows[0]) for rows in by_image])
        per_host = batch_size // hosts
        steps = max(-(-sum(map(len, by_image[h::hosts])) // per_host) for h in range(hosts))
        return cls(
            instances=instances,
            input_size=crops.input_size,
            warp=crops.warp,
            batch_size=per_host,
            images=tuple(by_image[host::hosts]),
            steps=steps,
            threads=config["data"]["loader"]["threads"] or cores(),
        )

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        options = grain.ReadOptions(num_threads=self.threads, prefetch_buffer_size=max(4 * self.threads, 8))
        images = iter(grain.MapDataset.range(len(self.images)).map(self._crops).to_iter_dataset(options))
        rows: list[Batch] = []
        emitted = 0
        for crops in images:
            rows += crops
            while len(rows) >= self.batch_size:
                yield stack(rows[: self.batch_size])
                rows = rows[self.batch_size :]
                emitted += 1
        for _ in range(emitted, self.steps):
            yield stack(rows + [self._padding()] * (self.batch_size - len(rows)))
            rows = []

    def _crops(self, number: int) -> list[Batch]:
        rows = self.images[number]
        picture = Decoded(self.instances.open(rows[0]).pixels())
        return [self._sample(picture, row) for row in rows]

    def _sample(self, picture: Picture, row: int) -> Batch:
        instances = self.instances
        labels = instances.points(row)
        box = _clipped(instances, row, picture.size)
        view = transforms.view_of_box(box).fix_aspect(self.input_size)
        matrix = transforms.warp_matrix(view, self.input_size, self.warp)
        return {
            "image": _crop(picture, matrix, self.input_size),
            "keypoints": transforms.warp_points(labels[:, :2], matrix),
            "visible": np.minimum(labels[:, 2], 1),
            "index": np.int64(row),
            "source": np.int32(0),
            "instance_id": instances.instance_id[row],
            "valid": np.bool_(True),
            "image_id": instances.image_id[row],
            "center": view.center,
            "scale": view.scale,
            "box": box,
            "box_score": instances.box_score[row],
        }

    def _padding(self) -> Batch:
        keypoints = len(self.instances.points(0))
        return {
            "image": np.zeros((*self.input_size, 3), np.uint8),
            "keypoints": np.zeros((keypoints, 2), np.float32),
            "visible": np.zeros(keypoints, np.float32),
            "index": np.int64(-1),
            "source": np.int32(0),
            "instance_id": np.int64(-1),
            "valid": np.bool_(False),
            "image_id": np.int64(-1),
            "center": np.zeros(2, np.float32),
            "scale": np.ones(2, np.float32),
            "box": np.zeros(4, np.float32),
            "box_score": np.float32(0),
        }


class Ahead(Iterator[Any]):
    """Iterates over elements that are prefetched; close it when done."""

    def __init__(self, first: grain.DatasetIterator, workers: Sequence[grain.DatasetIterator] = ()):
        self._parts = [first, *workers]
        self._elements = itertools.chain(first, _in_turns(workers))

    def __next__(self) -> Any:
        return next(self._elements)

    def close(self) -> None:
        """Stops the threads and processes."""
        for part in self._parts:
            part.close()


def iterate(dataset: grain.MapDataset, *, threads: int, workers: int) -> Ahead:
    """Prefetches a dataset's elements, by threads in this process or by worker processes with as many threads each.

    With workers, threads compute the first elements while the processes start, which takes seconds. A worker that
    dies raises RuntimeError within seconds.
    """
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(2 * threads, 2))
    first = iter(dataset[: _WHILE_STARTING if workers else None].to_iter_dataset(options))
    if not workers:
        return Ahead(first)
    # Grain passes its absl flags to the workers, which requires that they are parsed.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    parts: list[grain.DatasetIterator] = []
    try:
        # Grain's `mp_prefetch` starts processes in its own threads, some time after the first element is requested.
        with starting_workers():
            for number in range(workers):
                part = dataset[_WHILE_STARTING + number :: workers].to_iter_dataset(options)
                parts.append(iter(ProcessPrefetchIterDataset(part, AHEAD, become_worker)))
                parts[-1].start_prefetch()
    except BaseException:
        Ahead(first, parts).close()
        raise
    first.start_prefetch()
    return Ahead(first, parts)


def _in_turns(parts: Sequence[grain.DatasetIterator]) -> Iterator[Any]:
    """Yields element i of part i % n, until a part is exhausted."""
    for part in itertools.cycle(parts):
        try:
            yield next(part)
        except StopIteration:
            return


def stack(samples: Sequence[Batch]) -> Batch:
    """Stacks samples into a batch."""
    return {key: np.stack([sample[key] for sample in samples]) for key in samples[0]}


class _HostSlice(grain.MapDataset):
    """The samples of one host: a contiguous run of `size` from each global batch of `size * hosts`."""

    def __init__(self, parent: grain.MapDataset, size: int, host: int, hosts: int):
        super().__init__(parent)
        self._size, self._host, self._hosts = size, host, hosts

    def __len__(self) -> int:
        # Half of an endless length: Grain's batch rounds lengths in floating point, which would exceed sys.maxsize.
        return len(self._parent) // (2 * self._hosts)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        batch, offset = divmod(index, self._size)
        return self._parent[(batch * self._hosts + self._host) * self._size + offset]


def _check_images(paths: Sequence[str]) -> None:
    """Raises InputError if an image of an evaluation is missing, which would otherwise end a run after hours."""
    if missing := [path for path in paths if not os.path.exists(path)]:
        raise InputError(f"{missing[0]}: no such image; {len(missing)} of {len(paths)} images to evaluate are missing")


def _annotated(config: Config, source: Config) -> Instances:
    labels, form = keypoint_set(source["keypoints"]), config["data"]["format"]
    if form == "tfds":
        return load_prepared(_path(config, source["prepared"]), labels)
    if form != "files":
        raise InputError(f"config.data.format={form!r}: must be 'files' or 'tfds'")
    cache = storage.cache_on_disk(config["cache_dir"])
    return cached_instances(cache, _path(config, source["annotations"]), _path(config, source["images"]), labels)


def _detected(config: Config, source: Config) -> Instances:
    labels, boxes = keypoint_set(source["keypoints"]), _path(config, source["boxes"])
    prepared = _annotated(config, source) if config["data"]["format"] == "tfds" else None
    images = None if prepared else _path(config, source["images"])
    people = load_detections(boxes, _path(config, source["annotations"]), images, labels)
    return people.on_images_of(prepared) if prepared else people


def _mapped(instances: Instances, source: Config, config: Config) -> Instances:
    return instances.mapped(KeypointMapping(keypoint_set(source["keypoints"]), keypoint_set(config["keypoints"])))


def _path(config: Config, path: str) -> str:
    """A path below config.data.root. Raises InputError if that is no folder, unless the path does not need it."""
    root = config["data"]["root"]
    whole = os.path.join(root, path)
    if whole != path and "://" not in root and not os.path.isdir(root):
        where = "" if os.path.isabs(root) else f" in {os.getcwd()}"
        raise InputError(f"config.data.root={root}: no such folder{where}")
    return whole


def _clipped(instances: Instances, row: int, size: tuple[int, int]) -> np.ndarray:
    box = instances.bbox[row]
    if instances.detected:
        return np.concatenate([box[:2], box[:2] + box[2:]])
    xyxy = transforms.clip_box(box, size)
    if (xyxy[2:] <= xyxy[:2]).any():
        raise InputError(
            f"{instances.path(row)}: the box {box.tolist()} (xywh) of instance {instances.instance_id[row]} lies "
            f"outside the image ({size[1]}x{size[0]})"
        )
    return xyxy


def _crop(picture: Picture, matrix: transforms.Matrix, size: tuple[int, int]) -> np.ndarray:
    """Warps a picture, reading only the region that the crop shows."""
    pixels, origin = picture.region(*transforms.shown_region(matrix, size))
    if origin != (0, 0):
        matrix = matrix.copy()
        matrix[:, 2] += matrix[:, :2] @ np.array(origin, np.float64)
    return cv2.cvtColor(transforms.warp_image(pixels, matrix, size), cv2.COLOR_BGR2RGB)
