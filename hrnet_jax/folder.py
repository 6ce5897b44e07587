"""Converted folders: a model without its training.

    FOLDER/config.json          the config it was trained with
    FOLDER/model.safetensors    one float32 array a name (`hrnet_jax.models.state`), kernels [height, width, in, out]

The int64 scalars `*.num_batches_tracked` of PyTorch's BatchNorm, which nothing here reads, are kept so that the way
back is exact. A folder without `head.*` holds a backbone alone: it can initialise training (`config.init`).
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from ml_collections import ConfigDict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from data_pipelines import storage
from data_pipelines.errors import InputError
from hrnet_jax import config as config_lib
from hrnet_jax.models import abstract_model, state_dict
from hrnet_jax.models.state import mismatches

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


def save_folder(
    path: str | os.PathLike,
    config: ConfigDict,
    arrays: Mapping[str, np.ndarray],
    complete: Callable[[pathlib.Path], None] = lambda folder: None,
) -> None:
    """Writes a folder under a temporary name and then renames it, so that it is whole when it is there.

    Args:
      path: a folder that does not exist yet or is empty.
      config: what the model was trained with.
      arrays: parameters and statistics (float32), and `num_batches_tracked`, by canonical name.
      complete: may add to the folder before it gets its name; when it raises, there will be no folder.

    Raises:
      InputError: when the folder has content already, or cannot be written.
    """
    path = pathlib.Path(path)
    check_free(path)
    # One key: safetensors writes several in any order, and equal models should be equal files.
    metadata = {"format_version": str(FORMAT_VERSION)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
        try:
            partial.chmod(0o755)  # mkdtemp and safetensors write for the owner alone
            (partial / "config.json").write_text(config_lib.to_json(config) + "\n")
            # ascontiguousarray would turn scalars into vectors.
            save_file({name: np.array(a, order="C") for name, a in arrays.items()}, partial / MODEL, metadata)
            (partial / MODEL).chmod(0o644)
            complete(partial)
            partial.replace(path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None


def check_free(path: pathlib.Path) -> None:
    """Raises InputError when a path is no place for a new folder."""
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: is a file; --output takes a folder")
    if path.is_dir() and any(path.iterdir()):
        raise InputError(f"{path}: is not empty; remove it or take another --output")


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
