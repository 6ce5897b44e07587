"""The schema of configs: each key's valid values, and whether a continued run may change it.

`hrnet_jax.config` checks configs by this table. A new key needs a line here and a line in `configs/common.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.errors import InputError
from data_pipelines.keypoints import KeypointSet, keypoint_set
from eval.nms import NMS_MODES, SCORE_MODES
from eval.records import METRICS
from hrnet_jax.codecs import CODECS
from hrnet_jax.models import VARIANTS

ANY = -1
_MAX_SIDE = 4096  # pixels of a crop; catches typing errors that would exhaust the memory
_NAMES = {bool: "True or False", int: "an integer", float: "a number", str: "a string"}


@dataclasses.dataclass(frozen=True)
class Key:
    """The valid values of a key.

    Attributes:
      kind: bool, int, float (or an integer), str, or KeypointSet (or its name or its attributes).
      low: minimum.
      high: maximum.
      above: exclusive minimum.
      below: exclusive maximum.
      multiple: numbers must be multiples of it.
      choices: valid strings; empty: any.
      length: None for a single value, else the length of a tuple of values, or ANY.
      free: whether a continued run may change it. The other keys identify the experiment.
      training: whether only training needs it; a stored config may lack it.
      optional: whether it may be absent or None in every config.
    """

    kind: type
    low: int | float | None = None
    high: int | float | None = None
    _: dataclasses.KW_ONLY
    above: int | float | None = None
    below: int | float | None = None
    multiple: int | None = None
    choices: Collection[str] = ()
    length: int | None = None
    free: bool = False
    training: bool = False
    optional: bool = False

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value, or None."""
        if value is None and self.optional:
            return None
        if self.kind is KeypointSet:
            return _problem_of_set(value)
        if self.length is None:
            return None if self._takes(value) else f"must be {self._words()}"
        if isinstance(value, (list, tuple)) and self.length in (ANY, len(value)) and all(map(self._takes, value)):
            return None
        count = "" if self.length == ANY else f" of {self.length}"
        return f"must be a tuple{count}, each {self._words()}"

    def _takes(self, value: Any) -> bool:
        if self.kind in (bool, str):
            return isinstance(value, self.kind) and (not self.choices or value in self.choices)
        if isinstance(value, bool) or not isinstance(value, int if self.kind is int else (int, float)):
            return False
        # NaN is in no range, so it is refused.
        return (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
            and (self.multiple is None or value % self.multiple == 0)
        )

    def _words(self) -> str:
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        name = f"a multiple of {self.multiple}" if self.multiple else _NAMES[self.kind]
        limits = (("from", self.low), ("above", self.above), ("to", self.high), ("below", self.below))
        return " ".join([name, *(f"{word} {limit}" for word, limit in limits if limit is not None)])


def _problem_of_set(value: Any) -> str | None:
    if not isinstance(value, (str, ConfigDict, KeypointSet)):
        return "must be a keypoint set or its name"
    try:
        keypoint_set(value)
    except InputError as error:
        return str(error)
    return None


_MANY = 10**9  # fits into 32 bits
_COUNT = (0, _MANY)
_POSITIVE = (1, _MANY)
_SHARE = (0, 1)

# By key; `*` stands for any name.
KEYS = {
    "seed": Key(int, *_COUNT, training=True),
    "epochs": Key(int, *_POSITIVE, training=True, free=True),
    "batch_size": Key(int, *_POSITIVE, training=True),
    "cache_dir": Key(str, free=True),
    "devices": Key(int, *_COUNT, training=True, free=True),
    "accumulate": Key(int, *_POSITIVE, training=True, free=True),
    "ema": Key(float, 0, below=1, training=True),
    "best": Key(str, choices=(*METRICS, "loss"), free=True),
    "accept_changed_data": Key(bool, training=True, free=True),
    "max_skipped": Key(int, *_COUNT, training=True, free=True),
    "profile": Key(int, *_COUNT, length=2, training=True, free=True),
    "init": Key(str, training=True, free=True),
    "keypoints": Key(KeypointSet),
    "model.variant": Key(str, choices=VARIANTS),
    "model.dtype": Key(str, choices=("float32", "bfloat16")),
    "model.group_size": Key(int, *_COUNT, optional=True),
    "model.scan": Key(bool, training=True, free=True),
    "codec.name": Key(str, choices=CODECS),
    "codec.input_size": Key(int, 32, _MAX_SIDE, multiple=32, length=2),
    "codec.sigma": Key(float, 0.1, 100, optional=True),
    "codec.blur_kernel": Key(int, 1, _MAX_SIDE, optional=True),
    "codec.radius_factor": Key(float, high=1, above=0, optional=True),
    "data.root": Key(str, free=True),
    "data.format": Key(str, choices=("files", "tfds")),
    "data.train.*.annotations": Key(str, training=True, free=True),
    "data.train.*.images": Key(str, training=True, free=True),
    "data.train.*.prepared": Key(str, free=True, optional=True),
    "data.train.*.keypoints": Key(KeypointSet, training=True),
    "data.eval.annotations": Key(str, free=True),
    "data.eval.images": Key(str, free=True),
    "data.eval.prepared": Key(str, free=True, optional=True),
    "data.eval.keypoints": Key(KeypointSet, free=True),
    "data.eval.boxes": Key(str, free=True),
    "data.mix.*": Key(float, 0, _MANY, training=True),
    "data.epoch_size": Key(int, *_COUNT, training=True),
    "data.augment.flip": Key(float, *_SHARE, training=True),
    "data.augment.half_body": Key(float, *_SHARE, training=True),
    "data.augment.shift": Key(float, *_SHARE, training=True),
    "data.augment.shift_probability": Key(float, *_SHARE, training=True),
    "data.augment.scale": Key(float, 0, 0.99, training=True),
    "data.augment.rotation": Key(float, 0, 180, training=True),
    "data.augment.rotation_probability": Key(float, *_SHARE, training=True),
    "data.augment.photometric": Key(float, *_SHARE, training=True),
    "data.augment.coarse_dropout": Key(float, *_SHARE, training=True),
    "data.augment.grid_mask": Key(float, *_SHARE, training=True),
    "data.max_unreadable": Key(float, *_SHARE, training=True, free=True),
    "data.loader.threads": Key(int, 0, 1024, free=True),
    "data.loader.workers": Key(int, -1, 1024, training=True, free=True),
    "optimizer.weight_decay": Key(float, 0, 1, training=True),
    "optimizer.schedule": Key(str, choices=("steps", "cosine"), training=True),
    "optimizer.learning_rate": Key(float, high=1000, above=0, training=True),
    "optimizer.warmup_steps": Key(int, *_COUNT, training=True),
    "optimizer.warmup_factor": Key(float, *_SHARE, training=True),
    "optimizer.milestones": Key(int, *_POSITIVE, length=ANY, training=True),
    "optimizer.decay": Key(float, high=1, above=0, training=True),
    "eval.every_epochs": Key(int, *_POSITIVE, training=True, free=True),
    "eval.batch_size": Key(int, *_POSITIVE, free=True),
    "eval.flip_test": Key(bool, free=True),
    "eval.nms": Key(str, choices=NMS_MODES, free=True),
    "eval.nms_threshold": Key(float, high=1, above=0, free=True),
    "eval.score_mode": Key(str, choices=SCORE_MODES, free=True),
    "eval.keypoint_threshold": Key(float, *_SHARE, free=True),
    "eval.use_area": Key(bool, free=True),
    "checkpoint.every_epochs": Key(int, *_POSITIVE, training=True, free=True),
    "checkpoint.keep": Key(int, *_POSITIVE, free=True),
    "log_every": Key(int, *_POSITIVE, training=True, free=True),
    "stages.*.start": Key(int, *_POSITIVE, training=True),
}
# What a stage may change.
KEYS |= {
    f"stages.*.{path.removeprefix('data.')}": dataclasses.replace(key, optional=True)
    for path, key in KEYS.items()
    if path.startswith(("data.augment.", "optimizer.")) and path != "optimizer.weight_decay"
}
