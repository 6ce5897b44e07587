"""The record of published models: their files, hashes, configs and results.

`published.json` beside this module holds MMPose's HRNet models for COCO and AIC, the ImageNet backbones they start
from, timm's backbones and the models of the official repository. The results are those of the tables on `page`; a fact
that was not found is absent. `HRNET_JAX_MODELS=FILE.json` adds models in the same format, and `mirrors`: addresses of
folders with files of the published names, which are tried first.

    {"mirrors": ["https://server.example/weights"],
     "models": [{"name": "mine", "config": "mine.py:w48", "files": [{"urls": ["https://..."], "sha256": "0123abcd"}]}]}

A config is a path relative to the folder of its record, with an optional variant, as for `--config`. `sha256` is
at least the first eight digits of the hash; MMPose's and timm's file names contain eight.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import os
import pathlib
import re
import sysconfig
from collections.abc import Iterator, Mapping
from typing import Any

from data_pipelines.errors import InputError, brief
from data_pipelines.json_files import read_json

RECORD = pathlib.Path(__file__).with_suffix(".json")
VARIABLE = "HRNET_JAX_MODELS"

# Where the configs of RECORD are: in a clone, or with an installed wheel's data.
_CLONE = pathlib.Path(__file__).resolve().parents[2]
_INSTALLED = pathlib.Path(sysconfig.get_path("data")) / "share" / "hrnet_jax"
_HASH = re.compile(r"[0-9a-f]{8,64}")


@dataclasses.dataclass(frozen=True)
class Weights:
    """A published file.

    Attributes:
      model: the model's name; a model may have several files, the newest first.
      file: the file's name.
      urls: its addresses, in the order in which they are tried; empty if its authors give none that can be fetched.
      sha256: the beginning of its SHA-256; empty if unknown.
      config: FILE or FILE:ARG, relative to `root`.
      root: the folder of the configs.
      init: the name of the model whose backbone initialised the training; empty if unknown or none.
      conditions: of `results`.
      results: published numbers by name: AP, AP50, AP75, AR, AR50.
      page: where all this was published.
      log: the address of the training's log; empty if unknown.
    """

    model: str
    file: str
    urls: tuple[str, ...]
    sha256: str
    config: str
    root: pathlib.Path
    init: str
    conditions: str
    results: Mapping[str, float]
    page: str
    log: str

    @property
    def config_spec(self) -> str:
        """The config, as `--config` takes it."""
        return f"{self.root / self.config}"

    def is_hash(self, sha256: str) -> bool:
        """Whether a complete hash is that of this file; any is if the file's is unknown."""
        return sha256.startswith(self.sha256)


def record() -> list[Weights]:
    """All published files, in the order of the record; the user's own first.

    Raises InputError if the user's record cannot be read.
    """
    own = os.environ.get(VARIABLE, "")
    content = _content(pathlib.Path(own)) if own else {}
    mirrors = content.get("mirrors", [])
    if not isinstance(mirrors, list) or not all(map(_is_address, mirrors)):
        raise InputError(f"{own}: mirrors: must be a list of addresses, http:// or https://")
    weights = [*_read(content, pathlib.Path(own)), *_public()]
    return [
        dataclasses.replace(entry, urls=(*(f"{mirror.rstrip('/')}/{entry.file}" for mirror in mirrors), *entry.urls))
        for entry in weights
    ]


def find(name: str) -> Weights | None:
    """A file by its model's name (the newest of the model), or by its own name, with or without suffix."""
    weights = record()
    for entry in weights:
        if name == entry.model:
            return entry
    return next((entry for entry in weights if name in (entry.file, pathlib.PurePath(entry.file).stem)), None)


def similar(name: str) -> list[str]:
    """Names of models that are similar to a mistyped one."""
    return difflib.get_close_matches(name, dict.fromkeys(entry.model for entry in record()), n=3, cutoff=0.8)


def identify(path: str | os.PathLike) -> Weights | None:
    """The published file with a local file's hash, or with its name if no hash was published; else None.

    Raises InputError if the file has a published file's name but not its hash.
    """
    path, weights = pathlib.Path(path), record()
    digest = sha256(path)
    for entry in weights:
        if entry.sha256 and entry.is_hash(digest):
            return entry
    named = next((entry for entry in weights if path.name == entry.file), None)
    if named and not named.is_hash(digest):
        raise InputError(
            f"{path}: its SHA-256 starts with {digest[: len(named.sha256)]}, the published file's with {named.sha256}: "
            "it is damaged or another file; fetch it again, or rename it if it is your own"
        )
    return named


def sha256(path: str | os.PathLike) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache
def _public() -> tuple[Weights, ...]:
    return tuple(_read(_content(RECORD), RECORD))


def _content(path: pathlib.Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: must be an object with 'models'")
    return content


def _read(content: dict[str, Any], path: pathlib.Path) -> Iterator[Weights]:
    """Checks and flattens the models of a record."""
    public = _CLONE if (_CLONE / "configs").is_dir() else _INSTALLED
    root = public if path == RECORD else path.resolve().parent
    models, conditions = content.get("models", []), content.get("conditions", {})
    if not isinstance(models, list) or not isinstance(conditions, dict):
        raise InputError(f"{path}: 'models' must be a list and 'conditions' an object")
    for number, model in enumerate(models):
        if not isinstance(model, dict) or not isinstance(model.get("files"), list) or not model["files"]:
            raise InputError(f"{path}: models[{number}]: must be an object with 'name', 'config' and 'files'")
        for entry in model["files"]:
            where = f"{path}: models[{number}]"
            if not isinstance(entry, dict) or not isinstance(entry.get("urls"), list):
                raise InputError(f"{where}: a file must be an object with 'urls'")
            if wrong := [url for url in entry["urls"] if not _is_address(url)]:
                raise InputError(f"{where}: {brief(wrong[0])} is not an address, http:// or https://")
            file = entry.get("file") or (entry["urls"] or [""])[0].rpartition("/")[2]
            texts = {
                **{key: model.get(key, "") for key in ("name", "config", "init", "conditions")},
                **{key: entry.get(key, "") for key in ("sha256", "page", "log")},
                "file": file,
            }
            if wrong := [key for key, value in texts.items() if not isinstance(value, str)]:
                raise InputError(f"{where}: {wrong[0]} must be a string")
            if missing := [key for key in ("name", "config", "file") if not texts[key]]:
                raise InputError(f"{where}: lacks {missing[0]}")
            if "/" in file or file.startswith("."):
                raise InputError(f"{where}: {brief(file)} is not the name of a file")
            if (entry["urls"] or texts["sha256"]) and not _HASH.fullmatch(texts["sha256"]):
                raise InputError(f"{where}: {file}: sha256 must be the first 8 or more digits of its hash")
            results = entry.get("published", {})
            if not isinstance(results, dict) or not all(isinstance(value, float) for value in results.values()):
                raise InputError(f"{where}: {file}: 'published' must hold numbers by name")
            yield Weights(
                model=texts["name"],
                file=file,
                urls=tuple(entry["urls"]),
                sha256=texts["sha256"],
                config=texts["config"],
                root=root,
                init=texts["init"],
                conditions=conditions.get(texts["conditions"], texts["conditions"]),
                results=results,
                page=texts["page"],
                log=texts["log"],
            )


def _is_address(url: Any) -> bool:
    return isinstance(url, str) and url.startswith(("http://", "https://"))
