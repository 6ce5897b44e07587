"""Models that are given by the name of a published model, or as a PyTorch file."""

from __future__ import annotations

import logging
import os
import pathlib

from ml_collections import ConfigDict

from data_pipelines import storage
from data_pipelines.checks import check_regular
from data_pipelines.errors import InputError, listed
from data_pipelines.keypoints import keypoint_set
from hrnet_jax import config as config_lib
from hrnet_jax.codecs import create_codec
from hrnet_jax.weights import published, torch_models
from hrnet_jax.weights.download import fetch
from hrnet_jax.weights.folder import Model
from hrnet_jax.weights.published import Weights

logger = logging.getLogger(__name__)


def is_named(path: str | os.PathLike) -> bool:
    """Whether a path is a file, or nothing is there and it is the name of a published model or file."""
    if storage.in_bucket(path):
        return False
    return pathlib.Path(path).is_file() or _published(path) is not None


def config_of(path: str | os.PathLike) -> ConfigDict:
    """The config that a published model or a PyTorch file was trained with.

    A file is recognised by its hash, by its name, or by its architecture if only one config has it; all configs have
    the backbones of their width. The log says how it was recognised.

    Raises InputError if that leaves the config open, or if the file cannot be read.
    """
    return _config(path, _recognised(path))


def file_of(path: str | os.PathLike) -> pathlib.Path:
    """The PyTorch file: a path itself, or the downloaded file of a published model. Raises InputError."""
    weights = _published(path)
    return fetch(weights) if weights else pathlib.Path(path)


def load(path: str | os.PathLike) -> Model:
    """Loads a published model or a PyTorch file, with or without a head. Raises InputError if that is impossible."""
    weights = _recognised(path)
    config = _config(path, weights)
    file = file_of(path)
    model = Model.of(config, torch_models.read_arrays(file, config), file.name)
    if weights is None or not weights.results:
        return model
    return model._replace(metrics={**weights.results, "conditions": weights.conditions, "page": weights.page})


def unknown(path: str | os.PathLike) -> str:
    """A hint for messages about a path that does not exist: similar names of published models."""
    names = published.similar(os.fspath(path))
    return f"; did you mean {' or '.join(names)}?" if names else ""


def _published(path: str | os.PathLike) -> Weights | None:
    return None if pathlib.Path(path).exists() else published.find(os.fspath(path))


def _recognised(path: str | os.PathLike) -> Weights | None:
    """The published file of this name, or with a file's hash or name. Raises InputError if the file is damaged."""
    if weights := _published(path):
        return weights
    check_regular(path)
    if weights := published.identify(path):
        logger.info("%s: is %s; config %s", path, weights.model, weights.config)
    return weights


def _config(path: str | os.PathLike, weights: Weights | None) -> ConfigDict:
    return config_lib.load_config(weights.config_spec if weights else _by_architecture(path))


def _by_architecture(path: str | os.PathLike) -> str:
    """The only config of the record with a file's architecture."""
    variant, maps = torch_models.architecture(path)
    fitting = [spec for spec in _configs() if _fits(spec, variant, maps)]
    if len(fitting) == 1 or (fitting and not maps):
        what = f"{maps} heatmaps" if maps else "no head"
        logger.warning("%s: unknown; by its architecture (%s, %s) config %s", path, variant, what, fitting[0])
        return fitting[0]
    known = f"; it fits {listed([pathlib.PurePath(spec).name for spec in fitting])}" if fitting else ""
    raise InputError(
        f"{os.fspath(path)}: unknown weights do not state their codec and keypoints{known}: convert it with "
        "hrnet_jax.convert and add --config FILE[:ARG], the config they were trained with"
    )


def _configs() -> list[str]:
    return list(dict.fromkeys(weights.config_spec for weights in published.record()))


def _fits(spec: str, variant: str, maps: int) -> bool:
    config = config_lib.load_config(spec)
    ours = create_codec(config.codec).channels(len(keypoint_set(config.keypoints)))
    return config.model.variant == variant and maps in (0, ours)
