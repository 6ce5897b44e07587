"""Checkpoints of a work directory, and models by path.

    workdir/config.json            the experiment
    workdir/checkpoints/STEP/      the newest few: params, stats, optimizer (Orbax) and meta (JSON)
    workdir/best/STEP/             the one with the best AP so far

Arrays stand under the reference's names (`hrnet_jax.models.state`).
"""

from __future__ import annotations

import logging
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from data_pipelines.errors import InputError
from hrnet_jax import config as config_lib
from hrnet_jax.folder import is_folder, load_folder
from hrnet_jax.models import abstract_model, state_dict
from hrnet_jax.models.state import mismatches

FORMAT_VERSION = 1

logger = logging.getLogger(__name__)


class Checkpoints:
    """Saves and restores training states below a folder; saving goes on in the background."""

    def __init__(self, folder: pathlib.Path, keep: int):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(folder.resolve(), options=options)
        self._folder = folder

    def save(self, step: int, items: dict[str, Any], meta: dict[str, Any]) -> None:
        """Writes pytrees of arrays and a JSON-able dict; returns once the arrays may be overwritten."""
        if step in self._manager.all_steps():
            return
        args = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        meta = {"format_version": FORMAT_VERSION, "step": step, **meta}
        self._manager.save(step, args=ocp.args.Composite(meta=ocp.args.JsonSave(meta), **args), force=True)

    def restore(self, abstract: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Reads the newest complete checkpoint: its items and its meta, or None when there is none.

        Args:
          abstract: for each item to read, the tree of ShapeDtypeStructs (with shardings) that it must fit.

        Raises:
          InputError: when there are checkpoints, but none can be read.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
                if meta["format_version"] != FORMAT_VERSION:
                    raise InputError(
                        f"{self._folder / str(step)}: format_version {meta['format_version']}, this is {FORMAT_VERSION}"
                    )
                args = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
                restored = self._manager.restore(step, args=ocp.args.Composite(**args))
                return {name: restored[name] for name in abstract}, meta
            except InputError:
                raise
            except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged file.
                logger.warning("%s cannot be read (%s); trying the one before", self._folder / str(step), _line(error))
        if steps:
            raise InputError(f"{self._folder}: none of the checkpoints {steps} can be read")
        return None

    def close(self) -> None:
        """Waits for the background and releases its threads."""
        self._manager.close()


class Trained(NamedTuple):
    """A model from disk: its config, its arrays by canonical name, and where they come from in words."""

    config: ConfigDict
    params: dict[str, Any]
    stats: dict[str, Any]
    origin: str


def load(path: str | pathlib.Path) -> Trained:
    """Loads the best checkpoint of a work directory (the newest when nothing was evaluated yet), or a converted folder.

    Raises InputError when the folder is missing, or holds no config, no checkpoint or only a backbone.
    """
    path, config = pathlib.Path(path), stored_config(path)
    params, stats = state_dict(abstract_model(config.model))
    if is_folder(path):
        return _load_folder(path, {**params, **stats})
    abstract = jax.tree.map(_on_one_device, {"params": params, "stats": stats})
    for name in ("best", "checkpoints"):
        if not (path / name).is_dir():
            continue
        checkpoints = Checkpoints(path / name, keep=1 if name == "best" else config.checkpoint.keep)
        try:
            if restored := checkpoints.restore(abstract):
                items, meta = restored
                return Trained(config, items["params"], items["stats"], f"{path / name}, step {meta['step']}")
        finally:
            checkpoints.close()
    raise InputError(f"{path}: holds no checkpoint yet")


def stored_config(path: str | pathlib.Path) -> ConfigDict:
    """The config that a work directory or a converted folder carries. Raises InputError when there is none."""
    if not pathlib.Path(path).is_dir():
        raise InputError(f"{path}: no such folder; --checkpoint takes a work directory or a converted folder")
    return config_lib.from_json(pathlib.Path(path) / "config.json")


def _load_folder(path: pathlib.Path, shapes: dict[str, Any]) -> Trained:
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


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
