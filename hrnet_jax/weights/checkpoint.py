"""Checkpoints of a work directory, and models by path.

    workdir/config.json            the experiment
    workdir/checkpoints/STEP/      the newest few and the best: params, stats, optimizer, ema if any (Orbax),
                                   meta (JSON), metrics.json if evaluated

Arrays have MMPose's names (`hrnet_jax.models.names`). Only `Checkpoints`, used by the trainer, writes. `load` and the
functions it calls neither delete nor lock anything, so that a run can be read while it trains.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from ml_collections import ConfigDict

from data_pipelines import storage
from data_pipelines.errors import InputError, first_line
from data_pipelines.json_files import read_json, read_json_if_intact, write_json
from hrnet_jax import config as config_lib
from hrnet_jax.mesh import from_main_host
from hrnet_jax.models import array_shapes
from hrnet_jax.weights import hub, named
from hrnet_jax.weights.folder import Model, is_folder, load_folder

FORMAT_VERSION = 3
FOLDER = "checkpoints"

BEST, LATEST = "best", "latest"

_DIGESTS = "digests.json"
# The file that Orbax writes last; restoring does not read it.
_COMMITTED = "commit_success.txt"
_METRICS = "metrics.json"
AFTERWARDS = ("_CHECKPOINT_METADATA", _COMMITTED, _METRICS)
_PATIENCE = 600  # seconds that hosts wait for the parts of other hosts
_SLACK = 1 << 20  # bytes for everything in a checkpoint except its arrays
_ATTEMPTS = 20  # a training may delete a checkpoint while it is read; a newer one exists then
_PATTERN = "[]*?"  # Orbax treats a path with these characters as a glob pattern and finds nothing

logger = logging.getLogger(__name__)


class Checkpoints:
    """Saves and restores training states below a folder; saves continue in the background.

    Checkpoints are written atomically, with a digest of each file. The newest `keep` and the best by `metric` (see
    `best_step`) are kept. Close it, or use it as a context. Only one may exist per folder at a time
    (`hrnet_jax.training.lease`), because it deletes the unfinished files of a killed run.
    """

    def __init__(self, folder: str | os.PathLike, keep: int, metric: str = "AP"):
        self._folder, self._keep, self._metric = epath.Path(folder), keep, metric
        check_name(folder)
        self._saving = -1
        self._damaged: set[int] = set()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self,
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._seal, timeout_secs=_PATIENCE),
            # Hosts synchronise under this name.
            multiprocessing_options=ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=self._folder.name),
        )
        with self._disk_errors_named(), storage.bucket_errors(folder):
            self._manager = ocp.CheckpointManager(storage.absolute(folder), options=options)
        self._metrics = {step: _metrics(self._folder / str(step)) for step in self._manager.all_steps()}

    def save(self, step: int, items: dict[str, Any], meta: dict[str, Any]) -> None:
        """Writes pytrees of arrays and a JSON-serialisable dict; on return, the arrays may be overwritten.

        An existing checkpoint of this step is kept, and nothing is written. Raises InputError if this or the previous
        save failed; existing checkpoints are kept.
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
        """Reads the newest intact checkpoint: its items and its meta, or None if there is no checkpoint.

        The main host chooses it, and all hosts read the same one. See `restore`.
        """
        found = from_main_host(lambda: _first_whole(self._folder, LATEST, self._metric))
        if found is None:
            return None
        step, damaged = found
        self._damaged.update(damaged)
        return restore(self._folder / str(step), abstract)

    def add_metrics(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Adds an evaluation's metrics and conditions to a saved checkpoint (see `best_step`)."""
        self.wait()
        self._metrics[step] = dict(metrics)
        if jax.process_index() == 0:
            write_json(self._folder / str(step) / _METRICS, self._metrics[step])
        there = sorted(self._manager.all_steps())
        for old in set(there) - self._kept(there):  # the previous best
            self._manager.delete(old)

    def is_evaluated(self, step: int) -> bool:
        """Whether a step has a checkpoint with metrics."""
        return bool(self._metrics.get(step))

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Tells Orbax which checkpoints to keep after a save."""
        del context
        kept = self._kept([info.step for info in checkpoints])
        return [info.step in kept for info in checkpoints]

    def wait(self) -> None:
        """Waits until everything is on disk. Raises InputError if writing failed."""
        with self._disk_errors_named():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for background saves and releases the threads. Raises like `wait`."""
        with self._disk_errors_named():
            self._manager.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *unused: Any) -> None:
        self.close()

    def _kept(self, there: Sequence[int]) -> set[int | None]:
        self._metrics = {step: metrics for step, metrics in self._metrics.items() if step in there}
        return {*sorted(there)[-self._keep :], best_step(self._metrics, self._metric)}

    def _seal(self) -> None:
        """Writes the digests before Orbax renames the checkpoint or, in a bucket, writes commit_success.txt."""
        if jax.process_index() == 0:
            folder = self._folder / str(self._saving)
            if not storage.in_bucket(folder):
                start = f"{folder.name}.orbax-checkpoint-tmp"
                (folder,) = (path for path in self._folder.iterdir() if path.name.startswith(start))
            write_json(folder / _DIGESTS, _digests(folder))

    def _check_space(self, step: int, items: dict[str, Any]) -> None:
        # Checked first, because Orbax reports a full disk in thousands of lines, or not at all.
        needed = sum(array.nbytes for array in jax.tree.leaves(items)) + _SLACK
        free = storage.free_bytes(self._folder)
        if free < needed:
            raise InputError(
                f"{self._folder}: not enough space for the checkpoint of step {step}: up to {needed / 1e6:.0f} MB "
                f"needed, {free / 1e6:.0f} MB free; earlier checkpoints are intact"
            )

    def _disk_errors_named(self) -> contextlib.AbstractContextManager[None]:
        return storage.write_errors(self._folder, "; earlier checkpoints are intact")


def check_name(folder: str | os.PathLike) -> None:
    """Raises InputError if Orbax could not read checkpoints from a folder of this name."""
    path = os.fspath(storage.absolute(folder))
    if wrong := [character for character in _PATTERN if character in path]:
        raise InputError(f"{path}: checkpoints cannot be read from a path with {wrong[0]!r} in it; choose another name")


def best_step(metrics: Mapping[int, Mapping[str, Any]], metric: str) -> int | None:
    """The step with the best value of a metric, the last of equal ones; None if no step has a value.

    Args:
      metrics: by step, its measurements and, as strings and booleans, their conditions. Only steps with the same
        conditions as the last step are compared.
      metric: the metric's name; smaller is better for a loss, larger for all others.
    """
    valued = {step: values for step, values in metrics.items() if isinstance(values.get(metric), (int, float))}
    if not valued:
        return None
    now = _conditions(valued[max(valued)])
    sign = -1 if metric.startswith("loss") else 1
    comparable = {step: sign * values[metric] for step, values in valued.items() if _conditions(values) == now}
    return max(comparable, key=lambda step: (comparable[step], step))


def restore(path: epath.Path, abstract: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads an intact checkpoint: its items and its meta.

    Args:
      path: the checkpoint's folder.
      abstract: for each item to read, its tree of ShapeDtypeStructs (with shardings).

    Raises:
      InputError: the checkpoint has another version or does not match `abstract`.
    """
    meta = read_json(path / "meta" / "metadata")
    if meta["format_version"] != FORMAT_VERSION:
        raise InputError(f"{path}: has format_version {meta['format_version']}, but {FORMAT_VERSION} is needed")
    handler = ocp.StandardCheckpointHandler()
    try:
        items = {
            name: handler.restore(storage.absolute(path / name), args=ocp.args.StandardRestore(tree))
            for name, tree in abstract.items()
        }
    except Exception as error:  # Orbax and TensorStore raise many kinds
        raise InputError(f"{path}: cannot be read ({first_line(error)})") from error
    return items, meta


def load(path: str | os.PathLike, *, whole: bool = True) -> Model:
    """Loads the model of a run, finished or not, of a converted or exported folder, or a published one.

    Args:
      path: a converted or exported folder; or a work directory, for its best checkpoint by `config.best` (the newest
        if none was evaluated); append `@latest` for the newest, or `@STEP` for that step's. Folders may be in a bucket
        or on the Hugging Face Hub (`hrnet_jax.weights.hub`). Or a PyTorch file, or the name of a published model
        (docs/recipes.md), which is downloaded.
      whole: refuses a backbone without a head.

    Raises:
      InputError: the folder is missing, has no config or no such checkpoint, or holds only a backbone; the file is not
        recognised, or the download fails.
    """
    path = hub.local(path)
    if named.is_named(path):
        return _on_device(named.load(path), whole)
    folder, which = locate(path)
    config = stored_config(path)
    if is_folder(folder):
        if which != BEST:
            raise InputError(f"{folder}@{which}: a converted or exported folder holds one model; leave out @{which}")
        model = load_folder(folder)
        if whole and model.has_head:
            model.check()
        return _on_device(model, whole)
    params, stats = array_shapes(config)
    weights = {"params": params, "stats": stats}
    abstract = jax.tree.map(_on_one_device, {"ema": weights} if config.get("ema") else weights)
    for _ in range(_ATTEMPTS):
        found = from_main_host(lambda: _first_whole(folder / FOLDER, which, config.best))
        if found is None:
            raise InputError(f"{folder}: holds no checkpoint yet")
        chosen = folder / FOLDER / str(found[0])
        try:
            items, meta = restore(chosen, abstract)
        except InputError:
            if chosen.is_dir():
                raise
            continue  # the training deleted it in the meantime
        items = items.get("ema", items)
        average = ", moving averages" if config.get("ema") else ""
        origin = f"{folder}, step {meta['step']}{average}"
        return Model(config, items["params"], items["stats"], {}, origin, _metrics(chosen))
    raise InputError(f"{folder}: checkpoints are replaced faster than they can be read; try again")


def locate(path: str | os.PathLike) -> tuple[epath.Path, str]:
    """Splits PATH, PATH@best, PATH@latest or PATH@STEP into the folder and the requested checkpoint."""
    folder, _, which = os.fspath(path).rpartition("@")
    if folder and (which in (BEST, LATEST) or which.isdecimal()) and not epath.Path(path).is_dir():
        return epath.Path(folder), which
    return epath.Path(path), BEST


def stored_config(path: str | os.PathLike) -> ConfigDict:
    """The config of a model, see `load`. Raises InputError if it is missing or incomplete."""
    path = hub.local(path)
    if named.is_named(path):
        return named.config_of(path)
    folder, _ = locate(path)
    storage.check_bucket(folder)
    file = folder / "config.json"
    if not file.exists():
        for run in (folder.parent, folder.parent.parent):  # RUN/STEP, RUN/checkpoints, RUN/checkpoints/STEP
            if (run / FOLDER).is_dir():
                which = folder.name if folder.name in (LATEST, BEST) or folder.name.isdecimal() else BEST
                raise InputError(f"{folder}: is not a model; a checkpoint of a work directory is named {run}@{which}")
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder; a model is a work directory, a converted or exported folder, a PyTorch file or "
            f"the name of a published model{named.unknown(path)}"
        )
    config = config_lib.from_json(file)
    config_lib.check_keys(config, str(file), "add them to this file")
    return config


def steps(folder: str | os.PathLike) -> list[int]:
    """The steps of a run's checkpoints, ascending, without those being written."""
    path = epath.Path(folder)
    last = _COMMITTED if storage.in_bucket(folder) else _DIGESTS
    names = [child.name for child in path.iterdir()] if path.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal() and (path / name / last).exists())


def damage(folder: str | os.PathLike) -> str | None:
    """A description of damage to a checkpoint's files, or None; `AFTERWARDS` are not checked."""
    try:
        expected, found = read_json(epath.Path(folder) / _DIGESTS), _digests(epath.Path(folder))
    except (InputError, FileNotFoundError) as error:
        return str(error)
    if not isinstance(expected, dict):
        return f"{_DIGESTS} holds no digests"
    wrong = [name for name in sorted({*expected, *found}) if expected.get(name) != found.get(name)]
    return f"{len(wrong)} files are missing or changed, e.g. {wrong[0]}" if wrong else None


def _first_whole(folder: epath.Path, which: str, metric: str) -> tuple[int, list[int]] | None:
    """The requested checkpoint or, if damaged, the next intact one, and the damaged ones that were tried.

    None if there is no checkpoint. Raises InputError if none is intact, or the requested step is missing or damaged.
    """
    for _ in range(_ATTEMPTS):
        there = steps(folder)
        if which.isdecimal() and int(which) not in there:
            raise InputError(
                f"{folder}: no checkpoint of step {which}; there are {', '.join(map(str, there)) or 'none'}"
            )
        if not there:
            return None
        damaged: list[int] = []
        for step in _in_order(folder, there, which, metric):
            path = folder / str(step)
            problem = damage(path)
            if problem is None:
                return step, damaged
            if not path.is_dir():
                break  # the training deleted it in the meantime
            damaged.append(step)
            if which.isdecimal():
                raise InputError(f"{path} is damaged ({problem})")
            logger.warning("%s is damaged (%s); trying the next", path, problem)
        else:
            raise InputError(f"{folder}: all checkpoints are damaged: {', '.join(map(str, there))}")
    raise InputError(f"{folder}: checkpoints are replaced faster than they can be read; try again")


def _in_order(folder: epath.Path, there: list[int], which: str, metric: str) -> Iterable[int]:
    if which.isdecimal():
        return [int(which)]
    newest_first = there[::-1]
    best = best_step({step: _metrics(folder / str(step)) for step in there}, metric) if which == BEST else None
    return newest_first if best is None else [best, *(step for step in newest_first if step != best)]


def _metrics(path: epath.Path) -> dict[str, Any]:
    """The metrics of a checkpoint; empty if it was not evaluated or the file is damaged."""
    return read_json_if_intact(path / _METRICS, dict) or {}


def _conditions(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if isinstance(value, (str, bool))}


def _on_device(model: Model, whole: bool) -> Model:
    """The model with its arrays on the device; `whole`: see `load`."""
    if whole and not model.has_head:
        raise InputError(
            f"{model.origin}: holds a backbone without a head; it can initialise training (config.init) only"
        )
    params, stats = jax.tree.map(jnp.asarray, (model.params, model.stats))
    return model._replace(params=params, stats=stats)


def _on_one_device(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _digests(folder: epath.Path) -> dict[str, str]:
    """SHA-256 of each file of a checkpoint, by name."""
    digests = {}
    for path in sorted(storage.files_below(folder)):
        if path.name not in (_DIGESTS, *AFTERWARDS):
            with path.open("rb") as file:
                digests[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests
