"""Statistics of COCO annotations, and the mean pose as a baseline."""

from __future__ import annotations

import collections
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from data_pipelines.errors import InputError
from data_pipelines.keypoints import COCO


def describe(annotations_path: str | os.PathLike[str]) -> dict[str, int | float]:
    """Statistics of a COCO keypoint annotation file.

    People are annotations with labelled keypoints; crowds do not count. A person counts as truncated when a
    keypoint is unlabelled: the synthetic data label every keypoint inside the image.

    Returns:
      "images", "images_with_people", "people", "crowds", "people_without_keypoints", and the shares "occluded" (of
      labelled keypoints), "truncated" (of people) and "several_people" (of images with people; two or more).
    """
    content = _read(annotations_path)
    annotations = content["annotations"]
    people = _people(annotations)
    visibility = np.array([person["keypoints"][2::3] for person in people]).reshape(-1, len(COCO))
    per_image = collections.Counter(person["image_id"] for person in people)
    labelled = int((visibility > 0).sum())
    return {
        "images": len(content["images"]),
        "images_with_people": len(per_image),
        "people": len(people),
        "crowds": sum(a["iscrowd"] == 1 for a in annotations),
        "people_without_keypoints": sum(a["iscrowd"] == 0 and a["num_keypoints"] == 0 for a in annotations),
        "occluded": int((visibility == 1).sum()) / max(labelled, 1),
        "truncated": int((visibility == 0).any(1).sum()) / max(len(people), 1),
        "several_people": sum(n >= 2 for n in per_image.values()) / max(len(per_image), 1),
    }


def mean_pose(annotations_path: str | os.PathLike[str]) -> Float[np.ndarray, "17 2"]:
    """Each keypoint's mean position over a COCO file's people, as fractions of the person's box."""
    people = _people(_read(annotations_path)["annotations"])
    if not people:
        raise InputError(f"{annotations_path}: has no person with keypoints, which the mean pose needs")
    keypoints = np.array([person["keypoints"] for person in people], float).reshape(-1, len(COCO), 3)
    boxes = np.array([person["bbox"] for person in people], float)
    labelled = keypoints[..., 2:] > 0
    within = (keypoints[..., :2] - boxes[:, None, :2]) / np.maximum(boxes[:, None, 2:], 1.0)
    return (within * labelled).sum(0) / np.maximum(labelled.sum(0), 1)


def mean_pose_predictions(
    train_annotations: str | os.PathLike[str],
    val_annotations: str | os.PathLike[str],
    boxes: Sequence[dict[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """Predicts the training people's mean pose in every box: a baseline for networks.

    Args:
      train_annotations: the COCO file to average over.
      val_annotations: the COCO file with the people to predict, in its order.
      boxes: detections ({"image_id", "bbox" xywh, "score"}) to use instead of the annotated boxes.

    Returns:
      Predictions for `eval.coco.evaluate`: id, image_id, category_id, keypoints [17, 2] in image pixels,
      keypoint_scores [17], box_score, bbox (xyxy), area (of the box padded by 1.25).
    """
    pose = mean_pose(train_annotations)
    if boxes is None:
        boxes = [person | {"score": 1.0} for person in _people(_read(val_annotations)["annotations"])]
    predictions = []
    for number, box in enumerate(boxes):
        x, y, width, height = box["bbox"]
        predictions.append(
            {
                "id": number,
                "image_id": box["image_id"],
                "category_id": 1,
                "keypoints": pose * (width, height) + (x, y),
                "keypoint_scores": np.ones(len(pose)),
                "box_score": float(box["score"]),
                "bbox": np.array([x, y, x + width, y + height]),
                "area": 1.25**2 * width * height,
            }
        )
    return predictions


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        content = json.loads(pathlib.Path(path).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as COCO annotations: {error}") from error
    if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
        raise InputError(f"{path}: has no images and annotations; give a COCO keypoint annotation file")
    return content


def _people(annotations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [a for a in annotations if a["num_keypoints"] > 0 and not a["iscrowd"]]
