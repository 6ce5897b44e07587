r"""Evaluates a checkpoint: predicts keypoints and computes AP, PCK and pixel errors.

    python -m hrnet_jax.evaluate --checkpoint runs/quickstart --output runs/quickstart/annotated_boxes \
        --config.data.eval.boxes=

writes metrics.json, keypoints.json and predictions.png. Keys of the checkpoint's config can be overridden, e.g.
`--config.data.root=DATA`; an empty `data.eval.boxes` means annotated boxes.
"""

from __future__ import annotations

from hrnet_jax import cli

OPTIONS: cli.Options = {
    "checkpoint": cli.CHECKPOINT,
    "output": (None, "folder for metrics.json, keypoints.json and predictions.png"),
    "distributed": cli.DISTRIBUTED,
}
cli.help_first(__name__, __doc__, OPTIONS)  # the imports below take seconds

import os
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from data_pipelines import storage
from eval import coco
from eval.distances import format_distances
from hrnet_jax import config as config_lib
from hrnet_jax.inference.evaluator import Evaluator, write
from hrnet_jax.mesh import create_mesh, is_main_host, log_devices
from hrnet_jax.weights import checkpoint
from hrnet_jax.weights.folder import Model


def evaluate(trained: Model, output: str | os.PathLike) -> dict[str, Any]:
    """Evaluates a loaded model by its config, and writes metrics.json, keypoints.json and predictions.png.

    Returns the content of metrics.json. Raises InputError if config, checkpoint or data are invalid.
    """
    config = trained.config
    config_lib.check(config, training=False)
    trained.check()
    mesh = create_mesh()
    config_lib.check_devices(config, mesh.size, training=False)
    evaluator = Evaluator(config, mesh)
    # Via host memory: the arrays are on one device, which other hosts cannot access.
    result = evaluator(*jax.device_get((trained.params, trained.stats)))
    assert result is not None
    metrics, predictions = result
    metrics["checkpoint"] = trained.origin
    if is_main_host():
        write(output, metrics, predictions, evaluator)
    return metrics


def main() -> None:
    """The command line."""
    cli.run(__doc__, OPTIONS, _evaluate, lambda values: checkpoint.stored_config(values["checkpoint"]))


def _evaluate(values: Mapping[str, Any], config: ConfigDict) -> None:
    if is_main_host():
        storage.check_output(values["output"], folder=True)
    log_devices(config.model.dtype)
    trained = checkpoint.load(values["checkpoint"])
    metrics = evaluate(trained._replace(config=config), values["output"])
    if not is_main_host():
        return
    conditions = {key: value for key, value in metrics.items() if key not in (*coco.METRICS, "distances")}
    print(coco.format_table(metrics, conditions))
    print(format_distances(metrics["distances"]))


if __name__ == "__main__":
    main()
