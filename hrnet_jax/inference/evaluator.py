"""Parameters -> keypoints of an evaluation set -> AP."""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from data_pipelines.annotations import coco_annotations
from data_pipelines.errors import InputError
from data_pipelines.json_files import write_json
from data_pipelines.keypoints import keypoint_set
from data_pipelines.pipeline import EvalData
from data_pipelines.types import Batch
from eval import coco
from hrnet_jax import draw
from hrnet_jax.codecs import create_codec
from hrnet_jax.inference.steps import make_eval_step, to_image
from hrnet_jax.mesh import gather_hosts, host_part, replicated, shard_batch
from hrnet_jax.models import FunctionalModel, abstract_model, unstack
from hrnet_jax.models.fold import fold
from hrnet_jax.models.names import Arrays


class Evaluator:
    """Evaluates parameters on a config's evaluation set; keeps the compiled step and the annotations.

    Raises InputError as `EvalData.load` and `eval.coco.evaluate` do, when the network lacks a keypoint that the
    annotations have, and when sizes are to come from areas that they do not have.
    """

    def __init__(self, config: ConfigDict, mesh: jax.sharding.Mesh):
        self.config, self.mesh = config, mesh
        self.codec = create_codec(config.codec)
        self.joints = keypoint_set(config.keypoints)
        self.labels = keypoint_set(config.data.eval.keypoints)
        if missing := [name for name in self.labels.names if name not in self.joints.names]:
            raise InputError(
                f"config.data.eval.keypoints={self.labels.name!r}: the model's set {self.joints.name!r} lacks "
                f"{', '.join(missing)}"
            )
        self.data = EvalData.load(config, self.codec, jax.process_index(), jax.process_count())
        annotations = pathlib.Path(config.data.root) / config.data.eval.annotations
        self.truth = coco_annotations(annotations, self.labels)
        if isinstance(self.truth, dict) and config.eval.use_area:
            raise InputError(f"{annotations}: annotates no areas; set config.eval.use_area=False")
        network = FunctionalModel.of(abstract_model(config, folded=True))
        self.step = make_eval_step(network, self.codec, self.joints.flip_indices, config.eval.flip_test)
        self.fold = jax.jit(lambda params, stats: network.stack(fold(unstack(params), unstack(stats))))
        self.round_trip = jax.jit(lambda points, visible: self.codec.decode(self.codec.encode(points, visible)[0]))
        self._codec_AP: float | None = None
        # Which of the network's keypoints the annotations know.
        self.order = [self.joints.index(name) for name in self.labels.names]

    def __call__(
        self, params: Arrays, stats: Arrays, should_stop: Callable[[], bool] = lambda: False
    ) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
        """Returns flat metrics (the ten numbers and their conditions) and the kept predictions with their `score`.

        None when `should_stop` said so in between.
        """
        start = time.monotonic()
        rows = self._answers(params, stats, should_stop)
        if rows is None:
            return None
        rows = gather_hosts(rows)
        order = np.argsort(rows["index"], kind="stable")
        rows = {name: array[order[rows["valid"][order]]] for name, array in rows.items()}
        predictions = self._predictions(rows, rows["found"], rows["score"])
        device_seconds = time.monotonic() - start

        numbers = self._measure(predictions)
        kept = list(zip(numbers.pop("kept"), numbers.pop("scores"), strict=True))
        images = len(np.unique(rows["image_id"]))
        metrics = {**numbers, **self.conditions(), "images": images, "instances": len(predictions)}
        if "possible" in rows:
            ceiling = self._predictions(rows, rows["possible"], rows["possible_score"])
            self._codec_AP = self._measure(ceiling)["AP"]
        if self._codec_AP is not None:
            metrics["codec_AP"] = self._codec_AP
        metrics["seconds_keypoints"] = round(device_seconds, 2)
        metrics["seconds_AP"] = round(time.monotonic() - start - device_seconds, 2)
        by_id = {prediction["id"]: prediction for prediction in predictions}
        return metrics, [{**by_id[i], "score": score} for i, score in kept]

    def _answers(self, params: Arrays, stats: Arrays, should_stop: Callable[[], bool]) -> dict[str, np.ndarray] | None:
        """This host's rows of all batches, padding included, with `found` [N,K,2] in crop pixels and `score` [N,K]."""
        weights = self.fold(*jax.device_put((params, stats), replicated(self.mesh)))
        answered: list[Batch] = []

        def fetch(batch: Batch) -> None:
            batch["found"], batch["score"] = host_part(batch["found"]), host_part(batch["score"])

        for batch in self.data:
            if should_stop():
                return None
            with jax.transfer_guard("disallow"):  # nothing but the images moves
                images = shard_batch({"image": batch.pop("image")}, self.mesh)["image"]
                batch["found"], batch["score"] = self.step(weights, {}, images)
            # The best that the codec allows does not change from one evaluation to the next.
            if not self.config.data.eval.boxes and self._codec_AP is None:
                batch["possible"], batch["possible_score"] = self._best_possible(batch)
            if answered:  # the device works on this batch while the answers to the one before come back
                fetch(answered[-1])
            answered.append(batch)
        fetch(answered[-1])
        return {name: np.concatenate([batch[name] for batch in answered]) for name in answered[0]}

    def conditions(self) -> dict[str, Any]:
        """What the numbers were measured under."""
        e, (height, width) = self.config.eval, self.codec.input_size
        return {
            "boxes": pathlib.PurePath(self.config.data.eval.boxes).name or "annotated",
            "annotations": pathlib.PurePath(self.config.data.eval.annotations).name,
            "model": f"{self.config.model.variant} {height}x{width} {self.config.codec.name}",
            "keypoints": self.joints.name,
            "flip_test": e.flip_test,
            "nms": f"{e.nms} {e.nms_threshold:g}",
            "score_mode": e.score_mode,
            "use_area": e.use_area,
        }

    def _measure(self, predictions: list[dict[str, Any]]) -> dict[str, Any]:
        e = self.config.eval
        return coco.evaluate(
            self.truth,
            predictions,
            keypoint_set=self.labels,
            nms=e.nms,
            nms_threshold=e.nms_threshold,
            score_mode=e.score_mode,
            keypoint_threshold=e.keypoint_threshold,
            use_area=e.use_area,
        )

    def _predictions(self, batch: Batch, keypoints: np.ndarray, scores: np.ndarray) -> list[dict[str, Any]]:
        in_image = to_image(keypoints, batch["center"], batch["scale"], self.codec)
        return [
            {
                "id": int(batch["index"][i]),
                "image_id": int(batch["image_id"][i]),
                "category_id": 1,
                "keypoints": in_image[i, self.order],
                "keypoint_scores": scores[i, self.order],
                "box_score": float(batch["box_score"][i]),
                "bbox": batch["box"][i],
                "area": float(np.prod(batch["scale"][i])),
            }
            for i in np.flatnonzero(batch["valid"])
        ]

    def _best_possible(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """What the codec makes of the true keypoints: the ceiling of any network."""
        return jax.device_get(self.round_trip(batch["keypoints"], batch["visible"]))


def write(
    output: str | os.PathLike, metrics: dict[str, Any], predictions: list[dict[str, Any]], evaluator: Evaluator
) -> None:
    """Writes an evaluation's files into a folder, the numbers first. Raises InputError when one cannot be written."""
    folder = epath.Path(output)
    write_json(folder / "metrics.json", metrics)
    results = coco.to_coco_results([(prediction, prediction["score"]) for prediction in predictions])
    coco.write_results(folder / "keypoints.json", results)
    draw.contact_sheet(folder / "predictions.png", predictions, evaluator.data.instances, evaluator.labels)
