"""Statistics of COCO annotations."""

from __future__ import annotations

import collections
import json
import os
import pathlib

import numpy as np

from data_pipelines.errors import InputError
from data_pipelines.keypoints import COCO


def describe(path: str | os.PathLike[str]) -> dict[str, int | float]:
    """Statistics of a COCO keypoint annotation file.

    People are annotations with labelled keypoints; crowds do not count. A person counts as truncated when a
    keypoint is unlabelled: the synthetic data label every keypoint inside the image.

    Returns:
      "images", "images_with_people", "people", "crowds", "people_without_keypoints", and the shares "occluded" (of
      labelled keypoints), "truncated" (of people) and "several_people" (of images with people; two or more).
    """
    try:
        content = json.loads(pathlib.Path(path).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as COCO annotations: {error}") from error
    if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
        raise InputError(f"{path}: has no images and annotations; give a COCO keypoint annotation file")
    annotations = content["annotations"]
    people = [a for a in annotations if a["num_keypoints"] > 0 and not a["iscrowd"]]
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
