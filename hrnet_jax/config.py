"""Configs: loading, checking, storing and comparing them.

A config is an `ml_collections.ConfigDict` made by a file under `configs/`. `configs/common.py` shows every key, and
`hrnet_jax/schema.py` its valid values.
"""

from __future__ import annotations

import json
import logging
import os
import pathlib
import runpy
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from data_pipelines.checks import check_regular
from data_pipelines.errors import InputError, brief
from data_pipelines.mix import mix_weights
from data_pipelines.stages import settings_by_epoch
from data_pipelines.types import Config
from hrnet_jax.codecs import create_codec
from hrnet_jax.schema import KEYS

logger = logging.getLogger(__name__)

_ABSENT = object()


def load_config(spec: str) -> ConfigDict:
    """Loads `FILE` or `FILE:ARG`, as `--config` does. Raises InputError if the file or the argument is invalid."""
    file, _, arg = spec.partition(":")
    if not pathlib.Path(file).is_file():
        raise InputError(f"{file}: {'is not a file' if os.path.exists(file) else 'no such config file'}")
    make_importable(file)
    try:
        content = runpy.run_path(file)
        if "get_config" not in content:
            raise InputError("has no get_config(arg) that returns the config")
        config = content["get_config"](arg or None)
    except ValueError as error:
        raise InputError(f"{spec}: {' '.join(str(error).split())}") from None
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        where = f"{spec}, line {lines[-1]}" if lines else spec
        raise InputError(f"{where}: {type(error).__name__}: {brief(str(error))}") from error
    if not isinstance(config, ConfigDict):
        raise InputError(f"{spec}: get_config returns {brief(config)}; it must return an ml_collections.ConfigDict")
    return config


def make_importable(file: str) -> None:
    """Lets a config file import its siblings as `configs.*` from any directory."""
    folder = str(pathlib.Path(file).resolve().parent.parent)
    if folder not in sys.path:
        sys.path.append(folder)


def to_json(config: ConfigDict) -> str:
    """A config as JSON, one key per line."""
    return json.dumps(json.loads(config.to_json_best_effort()), indent=2)


def from_json(path: str | os.PathLike) -> ConfigDict:
    """Reads a config written by `to_json`. Raises InputError if the file is missing or not a config."""
    check_regular(path)
    try:
        content = json.loads(epath.Path(path).read_text())
        config = ConfigDict(_with_tuples(content)) if isinstance(content, dict) else ConfigDict()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; a model's folder contains its config") from None
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OSError) as error:
        raise InputError(f"{path}: not a config ({' '.join(str(error).split())[:200]})") from None
    if absent := {"keypoints", "model", "codec", "data", "eval"} - set(config):
        raise InputError(f"{path}: not a config of hrnet_jax (it lacks {', '.join(sorted(absent))})")
    return config


def check_keys(config: ConfigDict, name: str, remedy: str, training: bool = False) -> None:
    """Checks every key of a config by `hrnet_jax.schema.KEYS`.

    Args:
      config: from a config file or stored.
      name: the config's name in messages.
      remedy: how to add missing keys, for messages.
      training: whether keys needed only for training are required.

    Raises:
      InputError: names keys that are missing or unknown, or whose values have the wrong type or are out of range.
    """
    wrong, missing, known = {}, [], set()
    prefix = "config." if name == "config" else f"{name}: "  # as the flags are called
    for pattern, key in KEYS.items():
        for path, value, is_section in _found(config, pattern.split(".")):
            known.add(path)
            if value is _ABSENT:
                if not key.optional and (training or not key.training) and path not in missing:
                    missing.append(path)
            elif problem := "must be a section" if is_section else key.problem(value):
                wrong[path] = f"{prefix}{path}={brief(repr(value))}: {problem}"
    if wrong:
        raise InputError("; ".join(list(wrong.values())[:3]))
    if unknown := [key for key in leaves(config) if not any(f"{key}.".startswith(f"{path}.") for path in known)]:
        raise InputError(f"{name}: unknown key {', '.join(unknown)}; remove it, configs/common.py shows every key")
    if missing:
        raise InputError(
            f"{name}: lacks {', '.join(missing)}; {remedy}, configs/common.py shows them with their defaults"
        )


def check(config: ConfigDict, training: bool = True) -> None:
    """Raises InputError if parts of a config are invalid or contradict each other; the message says what to change.

    `training`: see `check_keys`.
    """
    check_keys(config, "config", "set them in the config file", training)
    create_codec(config.codec)
    data = config.data
    sources = {"eval": data.eval, **({f"train.{name}": data.train[name] for name in data.train} if training else {})}
    if data.format == "tfds" and (bare := [name for name in sources if not sources[name].get("prepared")]):
        raise InputError(f"config.data.format='tfds': set config.data.{bare[0]}.prepared to a folder of records")
    if training:
        mix_weights(data, list(data.train))
        settings_by_epoch(config, "augment")
        first, last = config.profile
        if not (1 <= first <= last or first == last == 0):
            raise InputError(f"config.profile=({first}, {last}): must be a first and a last step from 1, or (0, 0)")


def check_devices(config: ConfigDict, devices: int, training: bool = True) -> None:
    """Raises InputError if batches, or their parts, cannot be divided by the devices or into BatchNorm groups.

    Warns if groups span devices. `training`: see `check_keys`; if False, only evaluation batches are checked.
    """
    if training and jax.process_count() > 1 and devices < jax.device_count():
        raise InputError(
            f"config.devices={devices}: all {jax.device_count()} devices of {jax.process_count()} processes must be "
            "used; set it to 0"
        )
    batch = config.batch_size if training else 0
    for key, size in (("batch_size", batch), ("eval.batch_size", config.eval.batch_size)):
        if size % devices:
            raise InputError(f"config.{key}={size} is not a multiple of the {devices} devices")
    if not training:
        return
    group, share = min(config.model.get("group_size") or batch, batch), batch // devices
    if batch % group:
        raise InputError(f"config.batch_size={batch} does not divide into groups of config.model.group_size={group}")
    # Each part has an equal share of every device's samples, in order (`mesh.split_evenly`).
    whole = [parts for parts in range(1, share // group + 1) if share % (parts * group) == 0] or [1]
    if config.accumulate not in whole:
        raise InputError(
            f"config.accumulate={config.accumulate}: parts must hold complete BatchNorm groups on each device; with "
            f"{share} samples per device and groups of {group} (config.model.group_size) it can be "
            f"{', '.join(map(str, whole))}"
        )
    if group < batch and share % group:
        logger.warning(
            "BatchNorm groups of %d samples span devices with %d samples each: they must communicate", group, share
        )


def with_cache(config: ConfigDict, workdir: str | os.PathLike) -> ConfigDict:
    """A copy with caches in the work directory if `cache_dir` is empty."""
    config = config.copy_and_resolve_references()
    config.cache_dir = config.cache_dir or str(epath.Path(workdir) / "cache")
    return config


def differences(ours: ConfigDict, theirs: ConfigDict) -> list[str]:
    """Lists the keys, except free ones, in which two configs differ: `key: ours, not theirs`."""
    a, b = (leaves(json.loads(to_json(config))) for config in (ours, theirs))
    return [
        f"{key}: {a.get(key)!r}, not {b.get(key)!r}"
        for key in sorted(set(a) | set(b))
        if a.get(key) != b.get(key) and not _is_free(key)
    ]


def _with_tuples(content: Any) -> Any:
    """Turns JSON's lists back into tuples, which flags can override."""
    if isinstance(content, dict):
        return {key: _with_tuples(value) for key, value in content.items()}
    return tuple(map(_with_tuples, content)) if isinstance(content, list) else content


def _is_free(key: str) -> bool:
    parts = key.split(".")
    patterns = (pattern.split(".") for pattern, entry in KEYS.items() if entry.free)
    # Keypoint sets have further keys.
    return any(
        len(parts) >= len(pattern) and all(p in ("*", part) for p, part in zip(pattern, parts, strict=False))
        for pattern in patterns
    )


def _found(value: Any, pattern: list[str], path: str = "") -> Iterator[tuple[str, Any, bool]]:
    """The keys that match a pattern, their values, and whether the values should have been sections.

    An absent key has the value `_ABSENT`; if a section is absent or not a section, the section is returned.
    """
    if not pattern or not isinstance(value, ConfigDict):
        yield path, value, bool(pattern)
        return
    for name in value if pattern[0] == "*" else pattern[:1]:
        key = f"{path}.{name}" if path else name
        if name in value:
            yield from _found(value[name], pattern[1:], key)
        else:
            yield key, _ABSENT, False


def leaves(config: Config) -> dict[str, Any]:
    """All values that are not sections, by their keys `a.b.c`."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, (ConfigDict, dict)):
            found |= {f"{name}.{key}": leaf for key, leaf in leaves(value).items()}
        else:
            found[name] = list(value) if isinstance(value, tuple) else value
    return found
