"""Converted folders: a model without training state.

    FOLDER/config.json          the config it was trained with
    FOLDER/model.safetensors    float32 arrays by name (`hrnet_jax.models.names`), kernels [height, width, in, out]

The int64 scalars `*.num_batches_tracked` of PyTorch's BatchNorm are kept, unused, so that converting back is exact. A
folder without `head.*` holds only a backbone and can only initialise training (`config.init`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import tempfile
import types
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from ml_collections import ConfigDict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from data_pipelines import storage
from data_pipelines.errors import InputError, first_line, listed
from hrnet_jax import config as config_lib
from hrnet_jax.models import array_shapes
from hrnet_jax.models.names import mismatches

FORMAT_VERSION = 1
MODEL = "model.safetensors"


class Model(NamedTuple):
    """A model loaded from disk.

    Attributes:
      config: the config it was trained with.
      params: parameters by canonical name.
      stats: batch statistics by canonical name.
      extra: other arrays.
      origin: a description of where it was loaded from.
      metrics: its stored or published results with their conditions; empty if there are none.
    """

    config: ConfigDict
    params: dict[str, Any]
    stats: dict[str, Any]
    extra: dict[str, Any]
    origin: str
    metrics: Mapping[str, Any] = types.MappingProxyType({})

    @classmethod
    def of(cls, config: ConfigDict, arrays: Mapping[str, Any], origin: str) -> Model:
        """A model from all its arrays by canonical name."""
        extra = {name: array for name, array in arrays.items() if name.endswith(".num_batches_tracked")}
        stats = {name: array for name, array in arrays.items() if name.endswith((".running_mean", ".running_var"))}
        params = {name: array for name, array in arrays.items() if name not in extra and name not in stats}
        return cls(config, params, stats, extra, origin)

    @property
    def has_head(self) -> bool:
        """Whether the model has a head; without one it is only a backbone."""
        return any(name.startswith("head.") for name in self.params)

    def check(self) -> None:
        """Raises InputError if the arrays do not match the config, which may have been overridden after loading."""
        params, stats = array_shapes(self.config)
        if problems := mismatches({**self.params, **self.stats}, {**params, **stats}):
            raise InputError(
                f"{self.origin}: arrays do not fit the config in {len(problems)} entries: {listed(problems)}"
            )

    def digest(self) -> str:
        """A SHA-256 of names and values, independent of the storage format and place."""
        digest = hashlib.sha256()
        for name, array in sorted({**self.params, **self.stats}.items()):
            digest.update(f"{name} {array.shape} ".encode() + np.ascontiguousarray(array, np.float32).tobytes())
        return digest.hexdigest()


def is_folder(path: str | os.PathLike) -> bool:
    """Whether a path is a converted folder."""
    return (epath.Path(path) / MODEL).is_file()


@contextlib.contextmanager
def new_folder(path: str | os.PathLike, config: ConfigDict, arrays: Mapping[str, np.ndarray]) -> Iterator[pathlib.Path]:
    """Writes a converted folder, which appears when the context ends without an error.

    Args:
      path: a folder that does not exist yet or is empty.
      config: the config the model was trained with.
      arrays: parameters and statistics (float32), and `num_batches_tracked`, by canonical name.

    Yields:
      The folder under a temporary name, to which more files can be written.

    Raises:
      InputError: the folder is not empty, or cannot be written.
    """
    check_free(path)
    with storage.whole(path) as partial:
        partial.mkdir()
        (partial / "config.json").write_text(config_lib.to_json(config) + "\n")
        # np.ascontiguousarray would turn scalars into vectors.
        tensors = {name: np.array(array, order="C") for name, array in arrays.items()}
        # A single key: safetensors writes several in arbitrary order, and equal models should give equal files.
        (partial / MODEL).write_bytes(save(tensors, {"format_version": str(FORMAT_VERSION)}))
        yield partial


def save_folder(path: str | os.PathLike, config: ConfigDict, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a converted folder without further files, see `new_folder`."""
    with new_folder(path, config, arrays):
        pass


def check_free(path: str | os.PathLike) -> None:
    """Raises InputError if a new folder cannot be written at a path."""
    storage.check_output(path, folder=True)
    if epath.Path(path).is_dir() and any(epath.Path(path).iterdir()):
        raise InputError(f"{os.fspath(path)}: is not empty; remove it or choose another --output")


def load_folder(path: str | os.PathLike) -> Model:
    """Reads a converted folder. Raises InputError if it is missing, damaged, of another version or none."""
    folder = epath.Path(path)
    with storage.bucket_errors(path):
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder")
        if not is_folder(folder):
            raise InputError(f"{folder}: has no {MODEL}; create the folder from PyTorch weights with hrnet_jax.convert")
        with _on_disk(folder / MODEL) as file:
            version, arrays = _read(file, str(folder / MODEL))
    if version != str(FORMAT_VERSION):
        raise InputError(
            f"{folder / MODEL}: has format_version {version}, but {FORMAT_VERSION} is needed; convert it again with "
            "hrnet_jax.convert"
        )
    return Model.of(config_lib.from_json(folder / "config.json"), arrays, os.fspath(path))


def _read(path: pathlib.Path, name: str) -> tuple[str | None, dict[str, np.ndarray]]:
    try:
        with safe_open(path, framework="np") as file:
            version = (file.metadata() or {}).get("format_version")
            return version, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise InputError(f"{name}: damaged or truncated ({first_line(error)})") from None


@contextlib.contextmanager
def _on_disk(path: epath.Path) -> Iterator[pathlib.Path]:
    """The file itself, or a temporary copy of one in a bucket."""
    if not storage.in_bucket(path):
        yield pathlib.Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="hrnet_jax_") as folder:
        copy = pathlib.Path(folder) / path.name
        path.copy(copy)
        yield copy
