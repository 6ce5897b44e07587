"""The experiment and the training data of a work directory."""

from __future__ import annotations

import logging
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from data_pipelines.errors import InputError
from data_pipelines.pipeline import TrainData
from hrnet_jax import config as config_lib
from hrnet_jax.weights.checkpoint import FOLDER, steps
from hrnet_jax.weights.folder import Model, is_folder
from hrnet_jax.weights.initial import initial_model

logger = logging.getLogger(__name__)


def check_experiment(workdir: epath.Path, config: ConfigDict) -> None:
    """Raises InputError if a work directory holds another experiment, or is a converted or exported folder.

    A directory without a checkpoint may be used for any experiment.
    """
    if is_folder(workdir):
        raise InputError(f"{workdir}: is a converted or exported folder; choose another --workdir")
    path = workdir / "config.json"
    is_begun = path.exists() and steps(workdir / FOLDER)
    if is_begun and (different := config_lib.differences(config, config_lib.from_json(path))):
        raise InputError(
            f"{workdir} holds another experiment; choose another --workdir, or undo: {'; '.join(different)}"
        )


def trained_on(data: TrainData, init: dict[str, str] | None, step: int = 0) -> dict[str, Any]:
    """The training data from a step on, as stored in checkpoints: people and digest per source, and `config.init`."""
    sources = {source.name: {"people": len(source), "digest": source.digest()} for source in data.sources}
    return {"from_step": step, "sources": sources, "init": init}


def described(path: str, model: Model | None) -> dict[str, str] | None:
    """`config.init` as stored in checkpoints: its path and the digest of its model; None if there is none."""
    return {"path": path, "digest": model.digest()} if model else None


def continued(config: ConfigDict, data: TrainData, meta: dict[str, Any]) -> list[dict[str, Any]]:
    """The history of a continued run's training data.

    Raises InputError if the data changed, unless `config.accept_changed_data`; the change is then added to the history.
    """
    history = meta["data"]
    before = history[-1]
    now = trained_on(data, before["init"], meta["step"])
    different = [
        f"{name}: {_people(now['sources'].get(name))}, not {_people(before['sources'].get(name))}"
        for name in sorted({*now["sources"], *before["sources"]})
        if now["sources"].get(name) != before["sources"].get(name)
    ]
    old = before["init"] or {"path": "", "digest": ""}
    if config.init != old["path"]:  # the recorded path may be gone, another one must hold the same model
        init = described(config.init, initial_model(config.init) if config.init else None)
        if init is None or init["digest"] != old["digest"]:
            different.append(f"config.init: {config.init!r}, not {old['path']!r}")
            now["init"] = init
    if not different:
        return history
    if not config.accept_changed_data:
        raise InputError(
            f"the training data or config.init changed; undo it, or accept it with --config.accept_changed_data: "
            f"{'; '.join(different)}"
        )
    logger.warning("from step %d on, training data or config.init differ: %s", meta["step"], "; ".join(different))
    return [*history, now]


def _people(source: dict[str, Any] | None) -> str:
    return f"{source['people']} people (digest {source['digest'][:8]})" if source else "none"
