"""`python -m data_pipelines.synthetic --root DIR`: writes the synthetic data set and prints its statistics."""

from __future__ import annotations

import argparse
import json
import pathlib
import sys

from data_pipelines.errors import InputError, tell
from data_pipelines.synthetic import describe, write, write_dataset


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns 0, or 1 after printing an error."""
    parser = argparse.ArgumentParser(prog="python -m data_pipelines.synthetic", description=__doc__)
    parser.add_argument("--root", required=True, help="the folder to write; made if missing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--coco_train", type=int, default=2400, help="COCO training images")
    parser.add_argument("--coco_val", type=int, default=300, help="COCO validation images")
    parser.add_argument("--aic_train", type=int, default=1000, help="AI Challenger training images")
    parser.add_argument("--image_size", type=int, nargs=2, default=(240, 320), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--processes", type=int, default=2)
    flags = vars(parser.parse_args(arguments))
    root = flags.pop("root")
    try:
        summary = write_dataset(root, **(flags | {"image_size": tuple(flags["image_size"])}))
        statistics = {
            split: {key: round(value, 4) for key, value in describe(pathlib.Path(root, path)).items()}
            for split in ("train", "val")
            for path in [write.COCO_ANNOTATIONS.format(split=split)]
        }
    except InputError as error:
        tell(error)
        return 1
    print(json.dumps(summary | {"root": root, "coco": statistics}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
