"""COCO's average precision of keypoints, by pycocotools.

    metrics = evaluate("person_keypoints_val2017.json", predictions, keypoint_set="coco")

scores a model's predictions (one detection per box) and suppresses duplicates as MMPose 1.3.2 does, and returns COCO's
ten numbers. `evaluate_results` and `python -m eval.coco` take a COCO results file with final scores.

The numbers are pycocotools'. MMPose uses xtcocotools, which gives the same numbers but ignores detections without a
keypoint score above 0; here they count. As in MMPose, labelled keypoints are counted, and an annotation's
`num_keypoints` is ignored. A number for which nothing was measured (no person of that size) is -1.
"""

import contextlib
import io
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from data_pipelines import command_line, storage
from data_pipelines.coco_files import Path
from data_pipelines.errors import InputError
from data_pipelines.json_files import write_json
from data_pipelines.keypoints import KEYPOINT_SETS, KeypointSet
from data_pipelines.keypoints import keypoint_set as find_keypoint_set
from eval.nms import instance_scores, suppress
from eval.records import METRICS, Annotations, Detections, Predictions

OPTIONS: command_line.Options = {
    "annotations": (None, "COCO annotations with keypoints"),
    "results": (None, "COCO results with final scores"),
    "output": ("", "JSON file for the numbers and their conditions"),
    "keypoints": ("coco", f"keypoint set: {', '.join(KEYPOINT_SETS)}"),
    "use_area": (True, "uses a person's area as size; otherwise 0.53 x the box (AI Challenger has no areas)"),
}


def evaluate(
    annotations: Path | Mapping[str, Any],
    predictions: Sequence[Mapping[str, Any]],
    *,
    keypoint_set: KeypointSet | str,
    nms: str = "oks_nms",
    nms_threshold: float = 0.9,
    score_mode: str = "bbox_keypoint",
    keypoint_threshold: float = 0.2,
    use_area: bool = True,
) -> dict[str, Any]:
    """Scores the predictions, suppresses duplicates and evaluates the rest against the annotations.

    Args:
      annotations: a COCO or AI Challenger file, or the content of a COCO file. All its images count, with or without
        predictions.
      predictions: one per box: `id` (unique), `image_id`, `category_id` (person if absent), `keypoints` [K, 2] and
        `bbox` (xyxy or None) in image pixels, `keypoint_scores` [K], `box_score`, and `area`, the square pixels of
        the padded box with the crop's aspect ratio, which the suppression uses.
      keypoint_set: what the K keypoints of annotations and predictions are, and their sigmas.
      nms: `eval.nms.suppress` has the modes.
      nms_threshold: an OKS, above 0.
      score_mode: a mode of `eval.nms.instance_scores`.
      keypoint_threshold: keypoints with scores above this count in the instance score.
      use_area: whether a person's size is the annotation's `area` or, for data without areas (AI Challenger),
        0.53 x its box.

    Returns:
      The ten numbers by their names in `METRICS`; `kept`: ids of the kept predictions, grouped by image in order of
      first appearance; and `scores`: their final scores. The arguments are not modified.

    Raises:
      InputError: names the file, the record and the problem.
    """
    joints = find_keypoint_set(keypoint_set)
    kept = select(
        Predictions.from_records(predictions, joints),
        joints,
        nms=nms,
        nms_threshold=nms_threshold,
        score_mode=score_mode,
        keypoint_threshold=keypoint_threshold,
    )
    truth = Annotations.read(annotations, joints, use_area, kept)
    return {**measure(truth, kept, joints), "kept": kept.ids.tolist(), "scores": kept.scores.tolist()}


def evaluate_results(
    annotations: Path | Mapping[str, Any],
    results: Path | Sequence[Mapping[str, Any]],
    *,
    keypoint_set: KeypointSet | str = "coco",
    use_area: bool = True,
) -> dict[str, Any]:
    """Evaluates COCO results with final scores, without suppression.

    Args:
      annotations: see `evaluate`.
      results: a COCO results file or its content: `image_id`, `category_id`, `keypoints` (x, y and any value, K times),
        `score`, and optionally `bbox` (xywh), which gives a detection's size; default: the keypoints' extent.
      keypoint_set: see `evaluate`.
      use_area: see `evaluate`.

    Returns:
      The ten numbers and the conditions: `images`, `people` (annotated, with a labelled keypoint, no crowds),
      `instances` (results), `nms` ("none"), `keypoint_set` and `use_area`.

    Raises:
      InputError: names the file, the record and the problem.
    """
    joints = find_keypoint_set(keypoint_set)
    detections = Detections.from_results(results, joints)
    truth = Annotations.read(annotations, joints, use_area, detections)
    return {
        **measure(truth, detections, joints),
        "images": len(truth.images),
        "people": int(truth.counted.sum()),
        "instances": len(detections),
        "nms": "none",
        "keypoint_set": joints.name,
        "use_area": use_area,
    }


def select(
    predictions: Predictions,
    joints: KeypointSet,
    *,
    nms: str,
    nms_threshold: float,
    score_mode: str,
    keypoint_threshold: float,
) -> Predictions:
    """Scores predictions and suppresses duplicates; see `evaluate`.

    Predictions are grouped by image and category and sorted by id before the suppression, so that the result does not
    depend on their order in the input.

    Returns:
      The kept predictions with their final scores, grouped by image in order of first appearance.
    """
    if not nms_threshold > 0:
        raise InputError(f"nms_threshold must be above 0, not {nms_threshold}")
    scores = instance_scores(
        predictions.box_scores, predictions.keypoint_scores, mode=score_mode, keypoint_threshold=keypoint_threshold
    )
    _, first, image = np.unique(predictions.image_ids, return_index=True, return_inverse=True)
    keys = (predictions.ids, predictions.category_ids, first[image])
    order = np.lexsort(keys)
    edges = np.any([np.diff(key[order]) != 0 for key in keys[1:]], axis=0)
    groups = np.split(order, np.flatnonzero(edges) + 1)
    points, areas, sigmas = predictions.keypoints, predictions.areas, np.array(joints.sigmas)
    kept = np.concatenate(
        [g[suppress(points[g], scores[g], areas[g], sigmas, mode=nms, threshold=nms_threshold)] for g in groups]
    )
    return predictions.chosen(kept, scores[kept])


def measure(truth: Annotations, detections: Detections, joints: KeypointSet) -> dict[str, float]:
    """The ten numbers, by their names in `METRICS`."""
    # pycocotools prints progress and a table to standard output.
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = _Evaluation(
            _index(truth, truth.to_pycocotools()), _index(truth, detections.to_pycocotools()), iouType="keypoints"
        )
        evaluation.params.kpt_oks_sigmas = np.array(joints.sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(METRICS, map(float, evaluation.stats), strict=True))


def write_results(path: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Writes COCO results to a file, atomically. Raises InputError if it cannot be written."""
    write_json(path, results, indent=None)


def format_table(metrics: Mapping[str, Any], conditions: Mapping[str, Any]) -> str:
    """Returns the ten numbers as an aligned text table, followed by the conditions."""
    numbers = [f"{metrics[name]:.5f}" if metrics[name] >= 0 else "n/a" for name in METRICS]
    rows = ["  ".join(f"{cell:>7}" for cell in row) for row in (METRICS, numbers)]
    width = max(map(len, conditions), default=0)
    return "\n".join(rows + [f"{name:<{width}}  {value}" for name, value in conditions.items()])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status: 0, or 1 after printing an error."""
    return command_line.status(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> None:
    values = command_line.parse(argv, __doc__, OPTIONS)
    annotations, results, output = values["annotations"], values["results"], values["output"]
    if output:
        storage.check_output(output)
    metrics = evaluate_results(annotations, results, keypoint_set=values["keypoints"], use_area=values["use_area"])
    conditions = {name: value for name, value in metrics.items() if name not in METRICS}
    conditions |= {"annotations": annotations, "results": results}
    if output:
        write_json(output, metrics | conditions)
    print(format_table(metrics, conditions))


def _index(truth: Annotations, records: list[dict[str, Any]]) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i} for i in truth.images],
        "categories": [{"id": i} for i in truth.categories],
        "annotations": records,
    }
    coco.createIndex()
    return coco


class _Evaluation(COCOeval):
    """pycocotools' evaluation, with bit-identical OKS computed for all detections of an image at once."""

    def computeOks(self, imgId: int | np.integer, catId: int | np.integer) -> np.ndarray | list[Any]:
        """Returns OKS [detections, people], best score first, or [] if there are no detections or no people."""
        people, found = self._gts[imgId, catId], self._dts[imgId, catId]
        if not people or not found:
            return []
        order = np.argsort([-detection["score"] for detection in found], kind="stable")[: self.params.maxDets[-1]]
        x, y, _ = np.moveaxis(np.stack([found[i]["keypoints"].reshape(-1, 3) for i in order]), -1, 0)
        variances = (self.params.kpt_oks_sigmas * 2) ** 2
        oks = np.empty((len(order), len(people)))
        for column, person in enumerate(people):
            true_x, true_y, visible = person["keypoints"].reshape(-1, 3).T
            labelled = visible > 0
            if labelled.any():
                dx, dy = x - true_x, y - true_y
            else:
                # Without keypoints: each keypoint's distance outside a box of three times the size.
                left, top, width, height = person["bbox"]
                dx = np.maximum(left - width - x, 0) + np.maximum(x - (left + 2 * width), 0)
                dy = np.maximum(top - height - y, 0) + np.maximum(y - (top + 2 * height), 0)
                labelled[:] = True
            exponents = (dx**2 + dy**2) / variances / (person["area"] + np.spacing(1)) / 2
            similar = np.exp(-np.compress(labelled, exponents, axis=1))
            oks[:, column] = similar.sum(axis=1) / similar.shape[1]
        return oks


if __name__ == "__main__":
    sys.exit(main())
