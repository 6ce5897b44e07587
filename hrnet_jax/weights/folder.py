"""Converted folders: a model without its training.

    FOLDER/config.json          the config it was trained with
    FOLDER/model.safetensors    one float32 array a name (`hrnet_jax.models.names`), kernels [height, width, in, out]

The int64 scalars `*.num_batches_tracked` of PyTorch's BatchNorm, which nothing here reads, are kept so that the way
back is exact. A folder without `head.*` holds a backbone alone: it can initialise training (`config.init`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from ml_collections import ConfigDict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from data_pipelines import storage
from data_pipelines.errors import InputError
from hrnet_jax import config as config_lib
from hrnet_jax.models import abstract_model, state_dict
from hrnet_jax.models.names import mismatches

FORMAT_VERSION = 1
MODEL = "model.safetensors"


class Model(NamedTuple):
    """A model from disk.

    Attributes:
      config: what it was trained with.
      params: parameters by canonical name.
      stats: batch statistics by canonical name.
      extra: arrays that are neither.
      origin: where it comes from, in words.
    """

    config: ConfigDict
    params: dict[str, Any]
    stats: dict[str, Any]
    extra: dict[str, Any]
    origin: str

    @property
    def has_head(self) -> bool:
        """Whether this is a whole model, not only a backbone."""
        return any(name.startswith("head.") for name in self.params)

    def check(self) -> None:
        """Raises InputError when the arrays are not of the config's model: keys may be overridden after loading."""
        params, stats = state_dict(abstract_model(self.config.model))
        if problems := mismatches({**self.params, **self.stats}, {**params, **stats}):
            raise InputError(
                f"{self.origin}: its arrays do not fit its config in {len(problems)} entries: {'; '.join(problems[:3])}"
            )

    def digest(self) -> str:
        """A SHA-256 of names and numbers; the same wherever, and in whatever form, the model lies."""
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
      config: what the model was trained with.
      arrays: parameters and statistics (float32), and `num_batches_tracked`, by canonical name.

    Yields:
      The folder under a temporary name, to write more files into.

    Raises:
      InputError: when the folder has content already, or cannot be written.
    """
    check_free(path)
    with storage.whole(path) as partial:
        partial.mkdir()
        (partial / "config.json").write_text(config_lib.to_json(config) + "\n")
        # ascontiguousarray would turn scalars into vectors.
        tensors = {name: np.array(array, order="C") for name, array in arrays.items()}
        # One key: safetensors writes several in any order, and equal models should be equal files.
        (partial / MODEL).write_bytes(save(tensors, {"format_version": str(FORMAT_VERSION)}))
        yield partial


def save_folder(path: str | os.PathLike, config: ConfigDict, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a converted folder of nothing else, as `new_folder` does."""
    with new_folder(path, config, arrays):
        pass


def check_free(path: str | os.PathLike) -> None:
    """Raises InputError when a path is no place for a new folder."""
    storage.check_output(path, folder=True)
    if epath.Path(path).is_dir() and any(epath.Path(path).iterdir()):
        raise InputError(f"{os.fspath(path)}: is not empty; remove it or take another --output")


def load_folder(path: str | os.PathLike) -> Model:
    """Reads a folder. Raises InputError when it is missing, damaged, of another version or no converted folder."""
    if storage.in_bucket(path):
        raise InputError(f"{os.fspath(path)}: converted folders are read from disks; copy it to one")
    path = pathlib.Path(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such folder")
    if not is_folder(path):
        raise InputError(f"{path}: holds no {MODEL}; hrnet_jax.convert makes such a folder from PyTorch weights")
    try:
        with safe_open(path / MODEL, framework="np") as file:
            version = (file.metadata() or {}).get("format_version")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        line = str(error).splitlines()[0][:200]
        raise InputError(f"{path / MODEL}: damaged or truncated ({line})") from None
    if version != str(FORMAT_VERSION):
        raise InputError(
            f"{path / MODEL}: format_version {version}, this is {FORMAT_VERSION}; hrnet_jax.convert reads it"
        )
    config = config_lib.from_json(path / "config.json")
    extra = {name: array for name, array in arrays.items() if name.endswith(".num_batches_tracked")}
    stats = {name: array for name, array in arrays.items() if name.endswith((".running_mean", ".running_var"))}
    params = {name: array for name, array in arrays.items() if name not in extra and name not in stats}
    return Model(config, params, stats, extra, str(path))
