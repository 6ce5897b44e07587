"""How hard is a data set? Its statistics, and the AP of always answering the mean pose.

    python benchmarks/difficulty.py --root runs/synthetic

Works on any folder laid out like COCO. Says how much of it is occluded, truncated and crowded, and which AP the mean
training pose in every box gets: what a network has to beat. (The ceiling of a codec stands beside the AP with
annotated boxes, as `codec_AP`.)
"""

import argparse
import pathlib
import sys

from data_pipelines.errors import InputError
from data_pipelines.synthetic import describe, mean_pose_predictions
from eval import coco


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
