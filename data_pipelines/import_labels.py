"""Converts the labels of a labelling tool into annotations, images and a config file, ready for training.

SOURCE is a file, a folder or a zip: COCO JSON (CVAT, Roboflow, COCO Annotator, X-AnyLabeling), Ultralytics data.yaml,
DeepLabCut's CollectedData csv, LabelMe JSON, Label Studio JSON, CVAT XML 1.1, MPII JSON. The format is detected.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import sys
from collections.abc import Sequence

from data_pipelines import command_line, labels, storage
from data_pipelines.errors import InputError, listed
from data_pipelines.keypoints import KEYPOINT_SETS
from data_pipelines.labels.boxes import BOX_FORMATS, complete
from data_pipelines.labels.files import ImageFinder, Source, opened
from data_pipelines.labels.keypoint_choice import Choice, Chosen, choose
from data_pipelines.labels.match_images import locate
from data_pipelines.labels.repeats import with_sigmas
from data_pipelines.labels.write import Result, write

OPTIONS: command_line.Options = {
    "source": (None, "file, folder or zip of labels; also accepted as first argument"),
    "output": (None, "new folder to write"),
    "images": ("", "folder of the images, if they are not below or beside the labels"),
    "category": ("", "imports only these categories, separated by commas"),
    "keypoints": (
        "",
        f"the keypoints' names in order: a set ({', '.join(KEYPOINT_SETS)}), comma-separated names, or a file",
    ),
    "pairs": ("", "left-right keypoint pairs: 0-1,2-3, or left eye:right eye,..."),
    "repeats": ("", "other labels of the same images, separated by commas: the sigmas are estimated from them"),
    "no_pairs": (False, "the keypoints have no left-right pairs"),
    "boxes": (
        "",
        "format of the labels' boxes, by default xywh with a check: "
        + "; ".join(f"{k}: {v}" for k, v in BOX_FORMATS.items()),
    ),
    "val_share": (0.2, "share of the images for validation, if the labels have no split"),
    "copy": (False, "copies the images instead of hard-linking them"),
}


def import_labels(
    path: str | os.PathLike,
    output: str | os.PathLike,
    *,
    images: str | os.PathLike = "",
    choice: Choice | None = None,
    boxes: str = "",
    repeats: Sequence[str | os.PathLike] = (),
    val_share: float = 0.2,
    copy: bool = False,
) -> Result:
    """Imports labels.

    Args:
      path: a file, a folder or a zip of labels.
      output: the new folder to write: `annotations/{all,train,val,test}.json` in COCO's format (all: all labels;
        the others: those of images that were found), `images/`, `config.py`, `summary.txt` and `contact_sheet.png`.
      images: the folder of the images; "": they are looked for below and beside the labels.
      choice: category, names and pairs.
      boxes: the format of the labels' boxes, a key of `BOX_FORMATS`; "": xywh, checked against the keypoints.
      repeats: other labels of the same images, in the same format; the sigmas are estimated from them.
      val_share: share of the images for validation, if the labels have no split.
      copy: copies the images instead of linking to them.

    Raises:
      InputError: the labels are missing, damaged or contradictory, or the folder cannot be written.
    """
    output = pathlib.Path(output)
    if not 0 <= val_share < 1:
        raise InputError(f"--val-share {val_share:g}: must be at least 0 and below 1")
    storage.check_output(output, folder=True)
    choice = choice or Choice()
    others = [_read(repeat, output, images, choice, boxes) for repeat in repeats]
    with opened(path, output) as source:
        read, chosen, made = _complete(source, output, images, choice, boxes)
        if not any(person.points[:, 2].any() for person in read.people()):
            raise InputError(f"{path}: nobody has a labelled keypoint; {source.notes.why()}")
        if repeats:
            where = ",".join(map(str, repeats))
            if different := [other for _, other in others if other.keypoints.names != chosen.keypoints.names]:
                raise InputError(
                    f"--repeats={where}: has keypoints {listed(different[0].keypoints.names)}; {path} has "
                    f"{listed(chosen.keypoints.names)}"
                )
            keypoints = with_sigmas(chosen.keypoints, read, [labels for labels, _ in others], where)
            chosen = dataclasses.replace(chosen, keypoints=keypoints)
        return write(read, chosen, source, output, made=made, val_share=val_share, link=not copy)


def _read(
    path: str | os.PathLike, output: pathlib.Path, images: str | os.PathLike, choice: Choice, boxes: str
) -> tuple[labels.Labels, Chosen]:
    """Labels and keypoints of a file, folder or zip."""
    with opened(path, output) as source:
        return _complete(source, output, images, choice, boxes)[:2]


def _complete(
    source: Source, output: pathlib.Path, images: str | os.PathLike, choice: Choice, boxes: str
) -> tuple[labels.Labels, Chosen, dict[str, int]]:
    """Labels with boxes and areas in the pixels of their images, their keypoints, and how many boxes were made."""
    finder = ImageFinder(source, images, output)
    read = labels.read(source, finder)
    chosen = choose(read, source, choice)
    locate(read, source, finder)
    return read, chosen, complete(read, source, boxes)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns 0, or 1 after printing an error."""
    arguments = sys.argv[1:] if arguments is None else arguments
    return command_line.status(lambda: _import(arguments))


def _import(arguments: list[str]) -> None:
    flags = command_line.parse(arguments, __doc__, OPTIONS, first="source")
    if flags["boxes"] and flags["boxes"] not in BOX_FORMATS:
        raise InputError(f"--boxes={flags['boxes']}: must be one of {', '.join(BOX_FORMATS)}")
    if flags["no_pairs"] and flags["pairs"]:
        raise InputError("--pairs and --no-pairs contradict each other; give one of them")
    result = import_labels(
        flags["source"],
        flags["output"],
        images=flags["images"],
        choice=Choice(
            categories=[name.strip() for name in flags["category"].split(",") if name.strip()],
            keypoints=flags["keypoints"],
            pairs="none" if flags["no_pairs"] else flags["pairs"] or None,
        ),
        boxes=flags["boxes"],
        repeats=[repeat.strip() for repeat in flags["repeats"].split(",") if repeat.strip()],
        val_share=flags["val_share"],
        copy=flags["copy"],
    )
    print(result.summary)


if __name__ == "__main__":
    sys.exit(main())
