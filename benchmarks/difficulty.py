"""How hard is a data set? Its statistics, and the AP of always answering the mean pose.

    python -m benchmarks.difficulty --root runs/synthetic

Works on any folder laid out like COCO. Says how much of it is occluded, truncated and crowded, and which AP the mean
training pose in every box gets: what a network has to beat. (The ceiling of a codec stands beside the AP with
annotated boxes, as `codec_AP`.)
"""

import argparse
import json
import pathlib
import sys
from typing import Any

import numpy as np

from data_pipelines.errors import InputError
from data_pipelines.synthetic import describe
from eval import coco


def mean_pose_predictions(train: pathlib.Path, val: pathlib.Path) -> list[dict[str, Any]]:
    """Predicts the mean pose of one COCO file's people, as fractions of the box, in each annotated box of another.

    Predictions for `eval.coco.evaluate`: id, image_id, category_id, keypoints [17, 2] in image pixels,
    keypoint_scores [17], box_score, bbox (xyxy), area (of the box padded by 1.25).
    """
    people = _people(train)
    keypoints = np.array([person["keypoints"] for person in people], float).reshape(len(people), -1, 3)
    boxes = np.array([person["bbox"] for person in people], float)
    labelled = keypoints[..., 2:] > 0
    within = (keypoints[..., :2] - boxes[:, None, :2]) / np.maximum(boxes[:, None, 2:], 1.0)
    pose = (within * labelled).sum(0) / np.maximum(labelled.sum(0), 1)
    predictions = []
    for number, person in enumerate(_people(val)):
        x, y, width, height = person["bbox"]
        predictions.append(
            {
                "id": number,
                "image_id": person["image_id"],
                "category_id": 1,
                "keypoints": pose * (width, height) + (x, y),
                "keypoint_scores": np.ones(len(pose)),
                "box_score": 1.0,
                "bbox": np.array([x, y, x + width, y + height]),
                "area": 1.25**2 * width * height,
            }
        )
    return predictions


def _people(path: pathlib.Path) -> list[dict[str, Any]]:
    annotations = json.loads(path.read_text())["annotations"]
    return [a for a in annotations if a["num_keypoints"] > 0 and not a["iscrowd"]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=pathlib.Path, required=True, help="folder with coco/annotations")
    folder = parser.parse_args().root / "coco" / "annotations"
    train, val = (folder / f"person_keypoints_{split}2017.json" for split in ("train", "val"))
    try:
        statistics = describe(val)
        metrics = coco.evaluate(val, mean_pose_predictions(train, val), keypoint_set="coco")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{val}")
    print(f"  images {statistics['images']}, people with keypoints {statistics['people']}")
    print(f"  keypoints occluded          {statistics['occluded']:.1%}")
    print(f"  people truncated            {statistics['truncated']:.1%}")
    print(f"  images with several people  {statistics['several_people']:.1%}")
    print(f"  AP of the mean pose in the annotated boxes  {metrics['AP']:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
