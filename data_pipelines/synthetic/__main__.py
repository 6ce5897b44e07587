"""`python -m data_pipelines.synthetic --root DIR`: writes the synthetic data set and prints its statistics."""

from __future__ import annotations

import json
import pathlib
import sys

from data_pipelines import command_line
from data_pipelines.synthetic import describe, write, write_dataset

OPTIONS: command_line.Options = {
    "root": (None, "the folder to write; made if missing"),
    "seed": (0, "of the drawings"),
    "coco_train": (2400, "COCO training images"),
    "coco_val": (300, "COCO validation images"),
    "aic_train": (1000, "AI Challenger training images"),
    "height": (240, "height of the images in pixels"),
    "width": (320, "width of the images in pixels"),
    "processes": (2, "processes that draw"),
}


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns 0, or 1 after printing an error."""
    return command_line.status(lambda: _write(sys.argv[1:] if arguments is None else arguments))


def _write(arguments: list[str]) -> None:
    flags = command_line.parse(arguments, __doc__, OPTIONS)
    root, size = flags.pop("root"), (flags.pop("height"), flags.pop("width"))
    summary = write_dataset(root, image_size=size, **flags)
    statistics = {
        split: {key: round(value, 4) for key, value in describe(pathlib.Path(root, path)).items()}
        for split in ("train", "val")
        for path in [write.COCO_ANNOTATIONS.format(split=split)]
    }
    print(json.dumps(summary | {"root": root, "coco": statistics}, indent=2))


if __name__ == "__main__":
    sys.exit(main())
