"""Evaluates parameters on a config's evaluation set: keypoints, then AP."""

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

from data_pipelines import command_line
from data_pipelines.checks import from_corners
from data_pipelines.errors import InputError
from data_pipelines.json_files import write_json
from data_pipelines.keypoints import keypoint_set
from data_pipelines.pipeline import EvalData
from data_pipelines.types import Batch
from eval import coco
from eval.breakdown import MATCH, Breakdown, compare
from eval.distances import measure_distances
from eval.records import Annotations, Predictions
from hrnet_jax.codecs import create_codec
from hrnet_jax.inference.drawings import contact_sheet
from hrnet_jax.inference.steps import make_eval_step, to_image
from hrnet_jax.mesh import gather_hosts, host_part, is_main_host, replicated, shard_batch
from hrnet_jax.models import FunctionalModel, abstract_model
from hrnet_jax.models.fold import make_fold
from hrnet_jax.models.names import Arrays


class Evaluator:
    """Evaluates parameters on a config's evaluation set; keeps the compiled step and the annotations.

    Everything that an evaluation needs, apart from the content of the images, is read and checked here, so that a
    training run fails before its first step.

    Raises:
      InputError: like `EvalData.load` and `eval.records.Annotations.read`; the network lacks an annotated keypoint; the
        file annotates no keypoints.
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
        self.truth = Annotations.read(annotations, self.labels, config.eval.use_area)
        if not self.truth.counted.any():
            raise InputError(f"{annotations}: holds no person with labelled keypoints to evaluate")
        self._annotation = None if config.data.eval.boxes else self._annotations_of_boxes()
        if self._annotation is None and len(self.truth.categories) > 1:
            raise InputError(
                f"{annotations}: keypoints of categories {self.truth.categories}; with detected boxes there can be "
                "only one; evaluate with annotated boxes (--config.data.eval.boxes=)"
            )
        network = FunctionalModel.of(abstract_model(config, folded=True))
        self.step = make_eval_step(network, self.codec, self.joints.flip_indices, config.eval.flip_test)
        self.fold = make_fold(network, config.model.dtype, replicated(mesh))
        self.round_trip = jax.jit(lambda points, visible: self.codec.decode(self.codec.encode(points, visible)[0]))
        self._codec_AP: float | None = None
        self._compared: tuple[Predictions, Breakdown] | None = None
        # The annotated keypoints among those of the network.
        self.order = [self.joints.index(name) for name in self.labels.names]

    def __call__(
        self, params: Arrays, stats: Arrays, should_stop: Callable[[], bool] = lambda: False
    ) -> tuple[dict[str, Any], Predictions] | None:
        """Returns the content of metrics.json, and the predictions that remain after suppression.

        The metrics are the ten numbers and their conditions, and a section `distances` (`eval.distances`).

        Returns None if `should_stop` returned True before a batch.
        """
        start = time.monotonic()
        rows = self._answers(params, stats, should_stop)
        if rows is None:
            return None
        rows = gather_hosts(rows)
        order = np.argsort(rows["index"], kind="stable")
        rows = {name: array[order] for name, array in rows.items()}
        predictions = self._predictions(rows, rows["found"], rows["score"])
        device_seconds = time.monotonic() - start

        numbers, kept = self._measure(predictions)
        metrics = {
            **numbers,
            **self.conditions(),
            "images": len(np.unique(predictions.image_ids)),
            "instances": len(predictions),
        }
        if not self.config.data.eval.boxes:
            if self._codec_AP is None:
                self._codec_AP = self._measure(self._predictions(rows, *self._best_possible(rows)))[0]["AP"]
            metrics["codec_AP"] = self._codec_AP
        metrics["distances"] = self._distances(predictions, kept)
        metrics["seconds_keypoints"] = round(device_seconds, 2)
        metrics["seconds_AP"] = round(time.monotonic() - start - device_seconds, 2)
        return metrics, kept

    def _answers(self, params: Arrays, stats: Arrays, should_stop: Callable[[], bool]) -> dict[str, np.ndarray] | None:
        """This host's rows of all batches, with padding, with `found` [N,K,2] in crop pixels and `score` [N,K]."""
        weights = self.fold(*jax.device_put((params, stats), replicated(self.mesh)))
        answered: list[Batch] = []

        def fetch(batch: Batch) -> None:
            batch["found"], batch["score"] = host_part(batch["found"]), host_part(batch["score"])

        people = sum(map(len, self.data.images))
        with command_line.progress(people, " people", shown=is_main_host()) as advance:
            for batch in self.data:
                if should_stop():
                    return None
                images = shard_batch({"image": batch.pop("image")}, self.mesh)["image"]
                batch["found"], batch["score"] = self.step(weights, {}, images)
                if answered:  # while the device computes this batch
                    fetch(answered[-1])
                answered.append(batch)
                advance(int(batch["valid"].sum()))
            fetch(answered[-1])
        return {name: np.concatenate([batch[name] for batch in answered]) for name in answered[0]}

    def conditions(self) -> dict[str, Any]:
        """The conditions of the numbers."""
        e, (height, width) = self.config.eval, self.codec.input_size
        return {
            "boxes": pathlib.PurePath(self.config.data.eval.boxes).name or "annotated",
            "annotations": pathlib.PurePath(self.config.data.eval.annotations).name,
            "model": f"{self.config.model.variant} {height}x{width} {self.config.codec.name}",
            "keypoints": self.joints.name,
            "sigmas": self.labels.sigmas_from,
            "flip_test": e.flip_test,
            "nms": f"{e.nms} {e.nms_threshold:g}",
            "score_mode": e.score_mode,
            "use_area": e.use_area,
        }

    def breakdown(self, predictions: Predictions) -> Breakdown:
        """Predictions beside the annotations; kept for the next call with the same ones."""
        if self._compared is None or self._compared[0] is not predictions:
            self._compared = predictions, compare(self.truth, predictions, self.labels)
        return self._compared[1]

    def _measure(self, predictions: Predictions) -> tuple[dict[str, float], Predictions]:
        """The ten numbers, and the predictions that remain after suppression, with their final scores."""
        e = self.config.eval
        kept = coco.select(
            predictions,
            self.labels,
            nms=e.nms,
            nms_threshold=e.nms_threshold,
            score_mode=e.score_mode,
            keypoint_threshold=e.keypoint_threshold,
        )
        return coco.measure(self.truth, kept, self.labels), kept

    def _predictions(self, rows: Batch, keypoints: np.ndarray, scores: np.ndarray) -> Predictions:
        """Predictions for the valid rows, from keypoints [N,K,2] in crop pixels and their scores [N,K]."""
        valid = rows["valid"]
        if not (np.isfinite(keypoints[valid]).all() and np.isfinite(scores[valid]).all()):
            raise InputError("the network's outputs are not finite; its weights are damaged")
        in_image = to_image(keypoints, rows["center"], rows["scale"], self.codec)
        ids = rows["index"][valid]
        if self._annotation is None:
            categories = np.full(len(ids), self.truth.categories[0])
        else:
            categories = self.truth.category_ids[self._annotation[ids]]
        box_scores = rows["box_score"][valid].astype(float)
        return Predictions(
            image_ids=rows["image_id"][valid],
            category_ids=categories,
            keypoints=in_image[valid][:, self.order].astype(float),
            keypoint_scores=scores[valid][:, self.order].astype(float),
            scores=box_scores,
            boxes=from_corners(rows["box"][valid].astype(float)),
            where=lambda i: f"prediction {ids[i]}",
            ids=ids,
            box_scores=box_scores,
            areas=np.prod(rows["scale"][valid], axis=1).astype(float),
        )

    def _annotations_of_boxes(self) -> np.ndarray:
        """int [boxes]: for each annotated box its row in `truth`."""
        instances, truth = self.data.instances, self.truth
        rows = {key: row for row, key in enumerate(zip(truth.image_ids.tolist(), truth.ids.tolist(), strict=True))}
        keys = list(zip(instances.image_id.tolist(), instances.instance_id.tolist(), strict=True))
        if missing := [number for image_id, number in keys if (image_id, number) not in rows]:
            raise InputError(
                f"{truth.name}: lacks annotation {missing[0]}, which the prepared records have; set "
                "config.data.eval.annotations to the file that was prepared, or prepare again"
            )
        return np.array([rows[key] for key in keys])

    def _distances(self, predictions: Predictions, kept: Predictions) -> dict[str, Any]:
        """The section `distances` of metrics.json, see `eval.distances`."""
        if self._annotation is None:
            matches = self.breakdown(kept)
            people, matching = matches.people, f"by score to the person of the highest OKS, at least {MATCH:g}"
            found = np.where(matches.matched[:, None, None], matches.found, np.nan)
        else:
            found = np.full((len(self.truth), len(self.labels), 2), np.nan)
            found[self._annotation[predictions.ids]] = predictions.keypoints
            people, matching = self.truth.chosen(np.flatnonzero(self.truth.counted)), "each annotated box to its person"
            found = found[self.truth.counted]
        return {"matching": matching, **measure_distances(self.labels, people.keypoints, people.boxes, found)}

    def _best_possible(self, rows: Batch) -> tuple[np.ndarray, np.ndarray]:
        """The true keypoints, encoded and decoded by the codec: the upper limit for any network."""
        points, visible, size = rows["keypoints"], rows["visible"], self.data.batch_size
        batches = (slice(start, start + size) for start in range(0, len(points), size))
        decoded = [jax.device_get(self.round_trip(points[batch], visible[batch])) for batch in batches]
        keypoints, scores = (np.concatenate(part) for part in zip(*decoded, strict=True))
        return keypoints, scores


def write(output: str | os.PathLike, metrics: dict[str, Any], predictions: Predictions, evaluator: Evaluator) -> None:
    """Writes an evaluation's files into a folder, metrics.json first. Raises InputError if one cannot be written."""
    folder = epath.Path(output)
    write_json(folder / "metrics.json", metrics)
    coco.write_results(folder / "keypoints.json", predictions.to_results())
    contact_sheet(folder / "predictions.png", evaluator.breakdown(predictions), evaluator.data.instances)
