"""Configs: loading, checking, storing and comparing them.

A config is an `ml_collections.ConfigDict` made by a file under `configs/`; `configs/common.py` shows every key.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import pathlib
import runpy
import sys
from collections.abc import Iterator
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from data_pipelines import storage
from data_pipelines.checks import check_regular
from data_pipelines.errors import InputError, brief
from data_pipelines.keypoints import KeypointSet, keypoint_set
from data_pipelines.types import Config
from eval.coco import METRICS
from hrnet_jax.codecs import create_codec
from hrnet_jax.models import VARIANTS

logger = logging.getLogger(__name__)

_MAX_SIDE = 4096  # pixels of a crop; the typing error that adds a zero should not take all memory

# What evaluation, prediction and export read of any config, and of what type it is.
_NEEDED: dict[type | tuple[type, ...], tuple[str, ...]] = {
    ConfigDict: ("model", "codec", "data", "data.eval", "data.loader", "eval", "checkpoint", "optimizer"),
    str: (
        *("model.variant", "codec.name", "data.root", "data.format", "data.cache_dir", "data.warp"),
        *("best", "data.eval.annotations", "data.eval.images", "data.eval.boxes", "eval.nms", "eval.score_mode"),
    ),
    int: (
        *("batch_size", "epochs", "log_every", "model.maps_per_keypoint", "data.loader.threads", "data.loader.workers"),
        *("eval.batch_size", "eval.every_epochs", "checkpoint.keep", "checkpoint.every_epochs"),
    ),
    (int, type(None)): ("model.group_size",),
    (int, float): ("eval.nms_threshold", "eval.keypoint_threshold", "optimizer.learning_rate"),
    bool: ("eval.flip_test", "eval.use_area"),
    (list, tuple): ("codec.input_size", "data.input_size"),
    (str, ConfigDict, KeypointSet): ("model.keypoints", "data.keypoints", "data.eval.keypoints"),
}

# What a resumed run may change; all other keys say which experiment it is.
FREE_KEYS = (
    *(
        "data.root",
        "data.cache_dir",
        "data.loader",
        "data.max_unreadable",
        "data.train.*.annotations",
        "data.train.*.images",
        "data.train.*.prepared",
        "data.eval",
    ),
    *("eval", "checkpoint", "log_every", "epochs", "init", "cache_dir"),
    *("devices", "accumulate", "profile", "max_skipped", "model.scan", "model.pack", "best", "accept_changed_data"),
)


def load_config(spec: str) -> ConfigDict:
    """Loads `FILE` or `FILE:ARG`, as `--config` does. Raises InputError when the file or the argument is no good."""
    file, _, arg = spec.partition(":")
    if not pathlib.Path(file).is_file():
        raise InputError(f"{file}: no such config file")
    make_importable(file)
    try:
        return runpy.run_path(file)["get_config"](arg or None)
    except (ValueError, KeyError) as error:
        raise InputError(f"{spec}: {error}") from None


def make_importable(file: str) -> None:
    """Lets a config file import its siblings as `configs.*` from any directory."""
    folder = str(pathlib.Path(file).resolve().parent.parent)
    if folder not in sys.path:
        sys.path.append(folder)


def to_json(config: ConfigDict) -> str:
    """A config as JSON, one key a line."""
    return json.dumps(json.loads(config.to_json_best_effort()), indent=2)


def from_json(path: str | os.PathLike) -> ConfigDict:
    """Reads a config that `to_json` wrote. Raises InputError when there is none or it is no config."""
    check_regular(path)
    try:
        content = json.loads(epath.Path(path).read_text())
        config = ConfigDict(_with_tuples(content)) if isinstance(content, dict) else ConfigDict()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; a checkpoint folder carries its config") from None
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OSError) as error:
        raise InputError(f"{path}: not a config ({' '.join(str(error).split())[:200]})") from None
    if not {"model", "codec", "data", "eval"} <= set(config):
        raise InputError(f"{path}: not a config of hrnet_jax (it needs 'model', 'codec', 'data' and 'eval')")
    return config


def check_keys(config: ConfigDict, name: str, remedy: str) -> None:
    """Raises InputError when a config, by its `name`, lacks keys that evaluation or prediction read, and lists them.

    Or when values are of other types. `remedy` says where missing keys should be added.
    """
    missing, wrong = [], []
    for kind, keys in _NEEDED.items():
        for key in keys:
            try:
                value = functools.reduce(lambda part, name: part[name], key.split("."), config)
            except (KeyError, TypeError):  # TypeError: a section that is none is told by itself
                missing.append(key)
                continue
            is_finite = not isinstance(value, float) or math.isfinite(value)
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool) or not is_finite:
                wrong.append(f"{key}={brief(repr(value))}")
    if wrong:
        raise InputError(f"{name}: {', '.join(wrong)}: configs/common.py shows what belongs there")
    if missing:
        raise InputError(
            f"{name}: lacks {', '.join(missing)}; {remedy}, configs/common.py shows them with their defaults"
        )


def check(config: ConfigDict) -> None:
    """Raises InputError when parts of a config are impossible or contradict each other; says what to change."""
    check_keys(config, "config", "set them in the config file")
    codec = create_codec(config.codec)
    joints = keypoint_set(config.model.keypoints)
    if config.model.variant not in VARIANTS:
        raise InputError(f"config.model.variant={config.model.variant!r}: there are {', '.join(VARIANTS)}")
    height, width = codec.input_size
    if height % 32 or width % 32:
        raise InputError(f"config.codec.input_size=({height}, {width}): height and width must be multiples of 32")
    if max(height, width, getattr(codec, "blur_kernel", 0)) > _MAX_SIDE:
        raise InputError(f"config.codec: input_size=({height}, {width}) or blur_kernel is above {_MAX_SIDE}")
    if tuple(config.data.input_size) != codec.input_size:
        raise InputError(
            f"config.data.input_size={tuple(config.data.input_size)} is not config.codec.input_size={codec.input_size}"
        )
    if config.data.warp != codec.warp:
        raise InputError(
            f"config.data.warp={config.data.warp!r}: codec {config.codec.name!r} needs {codec.warp!r}; "
            f"a codec's variant sets both, as configs/coco.py:{config.codec.name}"
        )
    if (theirs := keypoint_set(config.data.keypoints)) != joints:
        raise InputError(f"config.data.keypoints={theirs.name!r} is not config.model.keypoints={joints.name!r}")
    if codec.channels(len(joints)) != len(joints) * config.model.maps_per_keypoint:
        raise InputError(
            f"config.model.maps_per_keypoint={config.model.maps_per_keypoint}: codec {config.codec.name!r} has "
            f"{codec.maps_per_keypoint}"
        )
    if config.best not in (*METRICS, "loss"):
        raise InputError(f"config.best={config.best!r}: there are {', '.join(METRICS)}, loss")
    positive = ("batch_size", "epochs", "log_every", "eval.batch_size", "data.loader.threads", "checkpoint.keep")
    for key in (*positive, "eval.every_epochs", "checkpoint.every_epochs"):
        value = _flat(config)[key]
        if not isinstance(value, int) or value < 1:
            raise InputError(f"config.{key}={value!r}: must be an integer from 1 on")
    rate = config.optimizer.learning_rate
    if not (isinstance(rate, (int, float)) and math.isfinite(rate) and rate > 0):
        raise InputError(f"config.optimizer.learning_rate={rate!r}: must be a number above 0")


def check_devices(config: ConfigDict, devices: int) -> None:
    """Raises InputError when batches do not divide by the devices or into BatchNorm groups; warns of costly groups."""
    for key, size in (("batch_size", config.batch_size), ("eval.batch_size", config.eval.batch_size)):
        if size % devices:
            raise InputError(f"config.{key}={size} does not divide by the {devices} devices")
    group, share = config.model.group_size, config.batch_size // devices
    if group and config.batch_size > group and config.batch_size % group:
        raise InputError(
            f"config.batch_size={config.batch_size} does not divide into groups of config.model.group_size={group}"
        )
    if group and share % group and config.batch_size > group:
        logger.warning("BatchNorm groups of %d samples span devices that hold %d: they communicate", group, share)


def with_cache(config: ConfigDict, workdir: str | os.PathLike) -> ConfigDict:
    """A copy whose caches lie in the work directory where `cache_dir` is empty, annotation indexes always on a disk."""
    config = config.copy_and_resolve_references()
    config.cache_dir = config.cache_dir or str(epath.Path(workdir) / "cache")
    config.data.cache_dir = storage.cache_on_disk(config.cache_dir)
    return config


def differences(ours: ConfigDict, theirs: ConfigDict) -> list[str]:
    """Lists the keys, free ones apart, in which two configs are different experiments: `key: ours, not theirs`."""
    a, b = (json.loads(json.dumps(_flat(config))) for config in (ours, theirs))
    return [
        f"{key}: {a.get(key)!r}, not {b.get(key)!r}"
        for key in sorted(set(a) | set(b))
        if a.get(key) != b.get(key) and not _is_free(key)
    ]


def _with_tuples(content: Any) -> Any:
    """JSON's lists as the tuples that they were, which flags can override."""
    if isinstance(content, dict):
        return {key: _with_tuples(value) for key, value in content.items()}
    return tuple(map(_with_tuples, content)) if isinstance(content, list) else content


def _is_free(key: str) -> bool:
    parts = key.split(".")
    for free in FREE_KEYS:
        pattern = free.split(".")
        if len(parts) >= len(pattern) and all(p in ("*", part) for p, part in zip(pattern, parts, strict=False)):
            return True
    return False


def _flat(config: Config) -> dict[str, Any]:
    def walk(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, (ConfigDict, dict)):
            for key, item in value.items():
                yield from walk(f"{prefix}.{key}" if prefix else key, item)
        else:
            yield prefix, list(value) if isinstance(value, tuple) else value

    return dict(walk("", json.loads(ConfigDict(config).to_json_best_effort())))
