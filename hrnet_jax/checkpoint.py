"""Checkpoints of a work directory, and models by path.

    workdir/config.json            the experiment
    workdir/checkpoints/STEP/      the newest few: params, stats, optimizer, ema if any (Orbax) and meta (JSON)
    workdir/best/STEP/             the one with the best AP so far

Arrays stand under the reference's names (`hrnet_jax.models.state`).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from ml_collections import ConfigDict

from data_pipelines import storage
from data_pipelines.errors import InputError
from data_pipelines.json_files import read_json
from hrnet_jax import config as config_lib
from hrnet_jax.folder import is_folder, load_folder
from hrnet_jax.models import abstract_model, state_dict
from hrnet_jax.models.state import mismatches

FORMAT_VERSION = 2

_DIGESTS = "digests.json"
# What Orbax writes last; restoring reads nothing from it.
AFTERWARDS = ("_CHECKPOINT_METADATA", "commit_success.txt")
_PATIENCE = 600  # seconds that hosts wait for each other's part of a checkpoint
_SLACK = 1 << 20  # bytes for what a checkpoint holds beside its arrays
_DISK_PROBLEMS = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)]

logger = logging.getLogger(__name__)


class Checkpoints:
    """Saves and restores training states below a folder; saving goes on in the background.

    A checkpoint appears whole or not at all, with a digest of each of its files. Close it, or use it as a context.
    """

    def __init__(self, folder: str | os.PathLike, keep: int):
        self._folder = epath.Path(folder)
        self._saving = -1
        self._damaged: set[int] = set()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._seal, timeout_secs=_PATIENCE),
            # Hosts meet by these names; two folders may be written at a time.
            multiprocessing_options=ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=self._folder.name),
        )
        with self._disk_errors_named(), storage.bucket_errors(folder):
            self._manager = ocp.CheckpointManager(storage.absolute(folder), options=options)

    def save(self, step: int, items: dict[str, Any], meta: dict[str, Any]) -> None:
        """Writes pytrees of arrays and a JSON-able dict; returns once the arrays may be overwritten.

        Raises InputError when the disk cannot take it, or could not take the one before; what is there stays.
        """
        if step in self._manager.all_steps() and step not in self._damaged:
            return
        args = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        meta = {"format_version": FORMAT_VERSION, "step": step, **meta}
        with self._disk_errors_named():
            self._manager.wait_until_finished()
            if step in self._damaged:
                self._manager.delete(step)
                self._damaged.remove(step)
            self._check_space(step, items)
            self._saving = step
            self._manager.save(step, args=ocp.args.Composite(meta=ocp.args.JsonSave(meta), **args), force=True)

    def restore(self, abstract: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Reads the newest checkpoint that is whole: its items and its meta, or None when there is none.

        Args:
          abstract: for each item to read, the tree of ShapeDtypeStructs (with shardings) that it must fit.

        Raises:
          InputError: when there are checkpoints, but none can be read.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            path = self._folder / str(step)
            if problem := damage(path):
                logger.warning("%s is damaged (%s); trying the one before", path, problem)
                self._damaged.add(step)
                continue
            try:
                meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
                if meta["format_version"] != FORMAT_VERSION:
                    raise InputError(f"{path}: format_version {meta['format_version']}, this is {FORMAT_VERSION}")
                args = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
                restored = self._manager.restore(step, args=ocp.args.Composite(**args))
                return {name: restored[name] for name in abstract}, meta
            except InputError:
                raise
            except Exception as error:  # Orbax and TensorStore raise many kinds.
                logger.warning("%s cannot be read (%s); trying the one before", path, _line(error))
                self._damaged.add(step)
        if steps:
            raise InputError(f"{self._folder}: none of the checkpoints {steps} can be read")
        return None

    def wait(self) -> None:
        """Returns when all is on disk. Raises InputError when the disk could not take it."""
        with self._disk_errors_named():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the background and releases its threads. Raises as `wait`."""
        with self._disk_errors_named():
            self._manager.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *unused: Any) -> None:
        self.close()

    def _seal(self) -> None:
        """Writes the digests, before Orbax gives the checkpoint its name, or in a bucket its commit_success.txt."""
        if jax.process_index() == 0:
            folder = self._folder / str(self._saving)
            if not storage.in_bucket(folder):
                start = f"{folder.name}.orbax-checkpoint-tmp"
                (folder,) = (path for path in self._folder.iterdir() if path.name.startswith(start))
            (folder / _DIGESTS).write_text(json.dumps(_digests(folder), indent=2) + "\n")

    def _check_space(self, step: int, items: dict[str, Any]) -> None:
        # Asked beforehand, because Orbax tells of a full disk in thousands of lines, and at times not at all.
        needed = sum(array.nbytes for array in jax.tree.leaves(items)) + _SLACK
        free = storage.free_bytes(self._folder)
        if free < needed:
            raise InputError(
                f"{self._folder}: no room for the checkpoint of step {step}: it takes up to {needed / 1e6:.0f} MB, "
                f"{free / 1e6:.0f} MB are free; the checkpoints before are whole"
            )

    @contextlib.contextmanager
    def _disk_errors_named(self) -> Iterator[None]:
        try:
            yield
        except InputError:
            raise
        except Exception as error:  # in words, for TensorStore's are ValueErrors
            text = str(error)
            if reason := next((reason for reason in _DISK_PROBLEMS if reason in text), None):
                raise InputError(f"{self._folder}: not saved ({reason}); the checkpoints before are whole") from None
            raise


class Trained(NamedTuple):
    """A model from disk: its config, its arrays by canonical name, and where they come from in words."""

    config: ConfigDict
    params: dict[str, Any]
    stats: dict[str, Any]
    origin: str

    def check(self) -> None:
        """Raises InputError when the arrays are none of the config's model: keys may be overridden after loading."""
        params, stats = state_dict(abstract_model(self.config.model))
        if problems := mismatches({**self.params, **self.stats}, {**params, **stats}):
            raise InputError(f"{self.origin}: {len(problems)} arrays do not fit the config, for one: {problems[0]}")


def load(path: str | os.PathLike) -> Trained:
    """Loads the best checkpoint of a work directory (the newest when nothing was evaluated yet), or a converted folder.

    Raises InputError when the folder is missing, or holds no config, no checkpoint or only a backbone.
    """
    config, folder = stored_config(path), epath.Path(path)
    params, stats = state_dict(abstract_model(config.model))
    if is_folder(path):
        return _load_folder(folder, {**params, **stats})
    weights = {"params": params, "stats": stats}
    abstract = jax.tree.map(_on_one_device, {"ema": weights} if config.get("ema") else weights)
    for name in ("best", "checkpoints"):
        if not (folder / name).is_dir():
            continue
        checkpoints = Checkpoints(folder / name, keep=1 if name == "best" else config.checkpoint.keep)
        try:
            if restored := checkpoints.restore(abstract):
                items, meta = restored
                origin = f"{folder / name}, step {meta['step']}" + (", moving averages" if "ema" in items else "")
                items = items.get("ema", items)
                return Trained(config, items["params"], items["stats"], origin)
        finally:
            checkpoints.close()
    raise InputError(f"{path}: holds no checkpoint yet")


def stored_config(path: str | os.PathLike) -> ConfigDict:
    """The config that a work directory or a converted folder carries. Raises InputError when there is none, or half."""
    storage.check_bucket(path)
    if not epath.Path(path).is_dir():
        raise InputError(
            f"{path}: no such folder; --checkpoint takes a work directory, or a converted or exported folder"
        )
    file = epath.Path(path) / "config.json"
    config = config_lib.from_json(file)
    config_lib.check_keys(config, str(file), "add them to this file")
    return config


def _load_folder(path: epath.Path, shapes: dict[str, Any]) -> Trained:
    stored = load_folder(path)
    if not stored.has_head:
        raise InputError(f"{path}: holds a backbone without a head; it can initialise training (config.init) only")
    if problems := mismatches({**stored.params, **stored.stats}, shapes):
        raise InputError(f"{path}: its arrays do not fit its config in {len(problems)} entries: {'; '.join(problems)}")
    params, stats = jax.tree.map(jnp.asarray, (stored.params, stored.stats))
    return Trained(stored.config, params, stats, str(path))


def _on_one_device(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _digests(folder: epath.Path) -> dict[str, str]:
    """SHA-256 by name of all files of a checkpoint."""
    digests = {}
    for path in sorted(storage.files_below(folder)):
        if path.name not in (_DIGESTS, *AFTERWARDS):
            with path.open("rb") as file:
                digests[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def damage(folder: str | os.PathLike) -> str | None:
    """What is wrong with a checkpoint's files, if anything; `AFTERWARDS` are not looked at."""
    try:
        expected, found = read_json(epath.Path(folder) / _DIGESTS), _digests(epath.Path(folder))
    except InputError as error:
        return str(error)
    if not isinstance(expected, dict):
        return f"{_DIGESTS} holds no digests"
    wrong = [name for name in sorted({*expected, *found}) if expected.get(name) != found.get(name)]
    return f"{len(wrong)} files are missing or not what was written, {wrong[0]} for one" if wrong else None


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
