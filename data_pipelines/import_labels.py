"""Turns the labels of a labelling tool into annotations, images and a config file that train as they are.

SOURCE is a file, a folder or a zip: COCO JSON (CVAT, Roboflow, COCO Annotator, X-AnyLabeling), Ultralytics data.yaml,
DeepLabCut's CollectedData csv, LabelMe JSON, Label Studio JSON, CVAT XML 1.1, MPII JSON. The format is told by content.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence

from data_pipelines import labels, storage
from data_pipelines.errors import InputError, tell
from data_pipelines.keypoints import KEYPOINT_SETS
from data_pipelines.labels.chosen import Choice, choose
from data_pipelines.labels.completed import BOX_FORMATS, complete
from data_pipelines.labels.files import ImageFinder, opened
from data_pipelines.labels.located import locate
from data_pipelines.labels.write import Result, write


def import_labels(
    path: str | os.PathLike,
    output: str | os.PathLike,
    *,
    images: str | os.PathLike | None = None,
    choice: Choice | None = None,
    boxes: str = "xywh",
    val_share: float = 0.2,
    copy: bool = False,
) -> Result:
    """Imports labels.

    Args:
      path: a file, a folder or a zip of labels.
      output: the new folder to write: `annotations/{all,train,val,test}.json` in COCO's format (all: everything that
        was read; the others: what has image files), `images/`, `config.py`, `summary.txt` and `contact_sheet.png`.
      images: the folder of the images; None: they are looked for below and beside the labels.
      choice: category, names and pairs.
      boxes: what the labels' boxes mean, a key of `BOX_FORMATS`.
      val_share: share of the images that validate, where the labels have no split.
      copy: copies the images instead of linking to them.

    Raises:
      InputError: there are no labels, they cannot be meant as they are, or the folder cannot be written.
    """
    output = pathlib.Path(output)
    if not 0 <= val_share < 1:
        raise InputError(f"--val-share {val_share:g}: must be at least 0 and below 1")
    storage.check_output(output, folder=True)
    with opened(path, output) as source:
        finder = ImageFinder(source, images, output)
        read = labels.read(source, finder)
        chosen = choose(read, source, choice or Choice())
        locate(read, source, finder)
        made = complete(read, source, boxes)
        if not any(person.points[:, 2].any() for person in read.people()):
            raise InputError(f"{path}: nobody in it has a labelled keypoint; label keypoints, or export them too")
        return write(read, chosen, source, output, made=made, val_share=val_share, link=not copy)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, or 1 after printing an error."""
    parser = argparse.ArgumentParser(prog="python -m data_pipelines.import_labels", description=__doc__)
    parser.add_argument("source", metavar="SOURCE", help="file, folder or zip of labels")
    parser.add_argument("--output", required=True, metavar="DIR", help="new folder to write")
    parser.add_argument("--images", metavar="FOLDER", help="the images, if they are not below or beside the labels")
    parser.add_argument("--category", action="append", default=[], help="import this category only; may be repeated")
    parser.add_argument(
        "--keypoints",
        default="",
        help=f"keypoints' names in order: a set ({', '.join(KEYPOINT_SETS)}), names with commas, or a file of names",
    )
    pairs = parser.add_mutually_exclusive_group()
    pairs.add_argument("--pairs", help="keypoints that change places in a mirror: 0-1,2-3, or left eye:right eye,...")
    pairs.add_argument("--no-pairs", dest="pairs", action="store_const", const="none", help="no keypoints do")
    parser.add_argument(
        "--boxes",
        choices=list(BOX_FORMATS),
        default="xywh",
        help="what the labels' boxes mean (default xywh): " + "; ".join(f"{k}: {v}" for k, v in BOX_FORMATS.items()),
    )
    parser.add_argument("--val-share", type=float, default=0.2, help="share of validation images without a split (0.2)")
    parser.add_argument("--copy", action="store_true", help="copy the images; default: hard links where the disk can")
    flags = parser.parse_args(arguments)
    try:
        result = import_labels(
            flags.source,
            flags.output,
            images=flags.images,
            choice=Choice(flags.category, flags.keypoints, flags.pairs),
            boxes=flags.boxes,
            val_share=flags.val_share,
            copy=flags.copy,
        )
    except InputError as error:
        tell(error)
        return 1
    print(result.summary)
    return 0


if __name__ == "__main__":
    sys.exit(main())
