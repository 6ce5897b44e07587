"""Writes imported labels: annotations in COCO's format, an images folder, a config file, a summary, a contact sheet."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines import command_line, draw, storage
from data_pipelines.coco_files import AREA_SHARE, PERSON
from data_pipelines.errors import InputError, printable
from data_pipelines.json_files import write_json
from data_pipelines.labels.boxes import BOX_MARGIN
from data_pipelines.labels.files import IMAGE_SUFFIXES, Source, clean, copied
from data_pipelines.labels.keypoint_choice import Chosen
from data_pipelines.labels.sheet import contact_sheet
from data_pipelines.labels.types import OCCLUDED, VISIBLE, Image, Labels

SPLITS = ("train", "val", "test")

_CONFIG = '''"""Trains on {title}. Written by data_pipelines.import_labels; change it as you like.

    python -m hrnet_jax.train --config {folder}/config.py --workdir runs/{name}
"""

import pathlib

from configs import common
from data_pipelines.keypoints import KeypointSet

KEYPOINTS = KeypointSet(
    name={name!r},
    names={names},
    sigmas={sigmas},
    sigmas_from={sigmas_from!r},
    flip_pairs={flip_pairs},
    upper_body={upper_body},
    skeleton={skeleton},
)


def source(split):
    return {{"annotations": f"annotations/{{split}}.json", "images": "images", "keypoints": KEYPOINTS}}


def get_config(arg=None):
    evaluate = {{**source("{val}"), "boxes": ""}}  # "": the labelled boxes
    c = common.recipe(
        arg,
        keypoints=KEYPOINTS,
        train={{{name!r}: source("train")}},
        evaluate=evaluate,
        input_size={input_size},  # height, width: the shape of most boxes, or a square
        people={people},  # to train on: the recipe fits batch size, epochs and warm-up to them
    )
    c.data.root = str(pathlib.Path(__file__).resolve().parent)
    return c
'''


@dataclasses.dataclass(frozen=True)
class Result:
    """What was written.

    Attributes:
      summary: for a person to read.
      found: number of images with a file.
    """

    summary: str
    found: int


def write(
    labels: Labels,
    chosen: Chosen,
    source: Source,
    output: pathlib.Path,
    *,
    made: Mapping[str, int],
    val_share: float,
    link: bool,
) -> Result:
    """Writes the folder, whole or not at all.

    Args:
      labels: chosen, located and completed.
      chosen: the keypoint set.
      source: has the notes, and takes more.
      output: a new or empty folder.
      made: the numbers of boxes made from keypoints, and of areas made from boxes.
      val_share: share of the images for validation, if the labels have no split.
      link: whether to hard-link the images instead of copying them, if the disk allows it.

    Raises:
      InputError: the folder holds files, or cannot be written.
    """
    if output.is_dir() and any(output.iterdir()):
        raise InputError(f"{output}: holds files already; give --output a new folder, or empty this one")
    found = [image for image in labels.images if image.path]
    usable = found or labels.images  # without any file, they may be put into the folder later
    if not any(map(_trained, usable)):
        which = "that were found " if found else ""
        raise InputError(
            f"{source.path}: its images {which}show no people with labelled keypoints, except crowds; label people"
        )
    split_from = _assign_splits(usable, val_share)
    by_split = {split: [image for image in usable if image.split == split] for split in SPLITS}
    names, ids = _file_names(labels.images), _ids(labels.images)
    people_ids = iter(_people_ids(labels.images))
    records = {id(image): _records(image, names[id(image)], ids[id(image)], people_ids) for image in labels.images}
    sheet = contact_sheet(labels.images, chosen.keypoints, source.notes)
    linked = 0
    with storage.whole(output, sync=False) as folder, storage.write_errors(output):
        (folder / "annotations").mkdir(parents=True)
        (folder / "images").mkdir()
        parts = {"all": labels.images, **{split: images for split, images in by_split.items() if images}}
        for part, images in parts.items():
            write_json(
                folder / "annotations" / f"{part}.json", _coco([records[id(i)] for i in images], chosen), indent=None
            )
        with command_line.progress(len(found)) as advance:
            for image in found:
                assert image.path
                linked += copied(image.path, folder / "images" / names[id(image)], link)
                advance(1)
        if sheet is not None:
            draw.write_png(folder / "contact_sheet.png", sheet, sync=False)
        train, val = by_split["train"], by_split["val"]
        (folder / "config.py").write_text(_config(chosen, output, source, train, "val" if val else "train"))
        files = (
            "no files"
            if not found
            else f"{linked} hard links to the source's files"
            if link
            else f"{len(found)} copies"
        )
        files += f", {len(found) - linked} copies" if link and linked < len(found) else ""
        summary = _summary(labels, chosen, source, output, by_split, made, split_from, files, sheet is not None)
        (folder / "summary.txt").write_text(summary + "\n")
    return Result(summary, len(found))


def _assign_splits(images: Sequence[Image], val_share: float) -> str:
    """Gives every image its split; returns the origin of the splits."""
    labelled = [image for image in images if _trained(image)]
    given = {image.split for image in labelled}
    tool = "train" in given
    rest = [image for image in images if not image.split or not tool]
    if tool and "val" in given:
        for image in rest:
            image.split = "train"
        return "the tool's own"
    if tool:
        rest = [image for image in images if image.split in ("", "train")]
    groups: dict[str, list[Image]] = {}
    for image in rest:
        # Roboflow's augmented copies of one image differ in what follows .rf.
        image.split = "train"
        if _trained(image):
            groups.setdefault(re.sub(r"\.rf\..*", "", clean(image.names[0])), []).append(image)
    order = sorted(groups, key=lambda name: hashlib.blake2b(name.encode(errors="replace")).digest())
    wanted = max(round(val_share * sum(map(len, groups.values()))), 1) if val_share and len(order) > 1 else 0
    taken = 0
    for name in order:
        split = "val" if taken < wanted and name != order[-1] else "train"
        taken += len(groups[name]) if split == "val" else 0
        for image in groups[name]:
            image.split = split
    if len(order) < 2:
        return "one image, for training and validation"
    if not wanted:
        return "no validation images (--val-share 0): the training images are used"
    kept = ", the tool's test images kept apart" if tool and "test" in given else ""
    return f"by a hash of the images' names, {val_share:g} of them for validation (--val-share){kept}"


def _trained(image: Image) -> int:
    """The number of an image's people that are trained on."""
    return sum(bool(person.points[:, 2].any()) and not person.crowd for person in image.people)


def _file_names(images: Sequence[Image]) -> dict[int, str]:
    """By image, the path of its file below the images folder: its cleaned name in the labels; all are different."""
    names: dict[int, str] = {}
    taken: set[str] = set()
    for image in images:
        path = pathlib.PurePosixPath(printable(clean(image.names[0])) or "image")
        parts = [
            part.encode()[:200].decode(errors="ignore") if len(part.encode()) > 200 else part for part in path.parts
        ]
        path = pathlib.PurePosixPath(*parts[-8:])
        if (
            image.path
            and image.path.suffix.lower() in IMAGE_SUFFIXES
            and path.suffix.lower() != image.path.suffix.lower()
        ):
            path = path.with_name(path.stem + image.path.suffix)
        candidate, number = path, 2
        while str(candidate).lower() in taken:
            candidate, number = path.with_name(f"{path.stem}_{number}{path.suffix}"), number + 1
        taken.add(str(candidate).lower())
        names[id(image)] = str(candidate)
    return names


def _ids(images: Sequence[Image]) -> dict[int, int]:
    """By image, its id: the file's, where all are different integers; else counted from 1."""
    return dict(zip([id(image) for image in images], _kept_or_counted([image.id for image in images]), strict=True))


def _people_ids(images: Sequence[Image]) -> list[int]:
    return _kept_or_counted([person.id for image in images for person in image.people])


def _kept_or_counted(ids: Sequence[Any]) -> list[int]:
    if all(type(i) is int and 0 <= i < 2**53 for i in ids) and len({*ids}) == len(ids):
        return list(ids)
    return list(range(1, len(ids) + 1))


def _records(image: Image, name: str, image_id: int, people_ids: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    size = {"height": image.size[0], "width": image.size[1]} if image.size else {}
    annotations = [
        {
            "id": next(people_ids),
            "image_id": image_id,
            "category_id": PERSON,
            "bbox": list(person.box or ()),
            "area": person.area,
            "iscrowd": int(person.crowd),
            "num_keypoints": int((person.points[:, 2] > 0).sum()),
            "keypoints": [v for x, y, shown in person.points.tolist() for v in (x, y, int(shown))],
            "category": person.kind,
        }
        for person in image.people
    ]
    return {"id": image_id, "file_name": name, **size}, annotations


def _coco(records: Sequence[tuple[dict[str, Any], list[dict[str, Any]]]], chosen: Chosen) -> dict[str, Any]:
    keypoints = chosen.keypoints
    lines = [[a + 1, b + 1] for a, b in keypoints.skeleton_indices]
    category = {"id": PERSON, "name": chosen.name, "keypoints": list(keypoints.names), "skeleton": lines}
    return {
        "images": [image for image, _ in records],
        "annotations": [annotation for _, annotations in records for annotation in annotations],
        "categories": [category],
    }


def _config(chosen: Chosen, output: pathlib.Path, source: Source, train: Sequence[Image], val: str) -> str:
    keypoints = chosen.keypoints
    written = {
        field: _tuple(getattr(keypoints, field))
        for field in ("names", "sigmas", "flip_pairs", "upper_body", "skeleton")
    }
    return _CONFIG.format(
        title=_text(f"{chosen.name} of {source.path}"),
        folder=_text(str(output)),
        name=keypoints.name,
        sigmas_from=keypoints.sigmas_from,
        val=val,
        input_size=_input_size(train),
        people=sum(map(_trained, train)),
        **written,
    )


def _text(text: str) -> str:
    """Text within a docstring."""
    return printable(text).replace("\\", "/").replace('"', "'")


def _tuple(values: Sequence[Any]) -> str:
    """A tuple's source text, on lines of its own where it is long."""
    text = repr(tuple(values))
    if len(text) < 90:
        return text
    return "(\n" + textwrap.indent("".join(f"{value!r},\n" for value in values), " " * 8) + "    )"


def _input_size(images: Sequence[Image]) -> tuple[int, int]:
    shapes = [
        person.box[2] / person.box[3] for i in images for person in i.people if person.box and min(person.box[2:]) > 0
    ]
    low, high = np.quantile(shapes, [0.25, 0.75]) if shapes else (1.0, 1.0)
    return (256, 192) if high < 0.9 else (192, 256) if low > 1.1 else (256, 256)


def _summary(
    labels: Labels,
    chosen: Chosen,
    source: Source,
    output: pathlib.Path,
    by_split: Mapping[str, Sequence[Image]],
    made: Mapping[str, int],
    split_from: str,
    files: str,
    sheet: bool,
) -> str:
    keypoints = chosen.keypoints
    pairs = ", ".join(f"{a} - {b}" for a, b in keypoints.flip_pairs) or "none, so images are not mirrored"
    lines = [
        f"{labels.tool} labels of {source.path}: {chosen.name}",
        "",
        f"keypoints   {len(keypoints)}: " + ", ".join(f"{i} {name}" for i, name in enumerate(keypoints.names)),
        f"left-right  {chosen.pairs_from}; {len(keypoints.flip_pairs)} pairs: {pairs}",
        f"skeleton    {len(keypoints.skeleton)} lines",
        f"sigmas      {keypoints.sigmas_from}",
        "boxes       "
        f"{_made(made['boxes'], labels, f'from the keypoints with a margin of {BOX_MARGIN:g} of their longer side')}",
        f"areas       {_made(made['areas'], labels, f'{AREA_SHARE:g} of the box')}",
        f"splits      {split_from}",
        f"images      {files}",
        "",
        *_table(labels, by_split),
    ]
    if notes := source.notes.lines():
        lines += ["", "Left out or assumed:", *(f"- {note}" for note in notes)]
    look = (
        f"Look at {output / 'contact_sheet.png'}: are the order of the keypoints, left and right, and the boxes right?"
    )
    lines += ["", look if sheet else _no_images(labels, source, output)]
    train = f"python -m hrnet_jax.train --config {output}/config.py --workdir runs/{output.resolve().name}"
    lines += [f"Then: {train} (on a CPU: config.py:small)"]
    return "\n".join(printable(line) for line in lines)


def _made(count: int, labels: Labels, how: str) -> str:
    total = sum(1 for _ in labels.people())
    if not count:
        return "of the labels"
    return f"{how}" if count == total else f"{total - count} of the labels, {count} {how}"


def _no_images(labels: Labels, source: Source, output: pathlib.Path) -> str:
    return (
        f"None of the {len(labels.images)} images was found, so there is nothing to look at and to train on: run again "
        f"with --images FOLDER, or put them into {output / 'images'}, e.g. {clean(labels.images[0].names[0])}"
    )


def _table(labels: Labels, by_split: Mapping[str, Sequence[Image]]) -> list[str]:
    """Counts per split, and of all that was read."""
    lines = [f"{'':8}{'images':>8}{'people':>8}{'without':>9}{'crowds':>8}{'visible':>9}{'occluded':>10}{'missing':>9}"]
    used = {id(image) for images in by_split.values() for image in images}
    missing = [image for image in labels.images if id(image) not in used]
    for name, images in {**by_split, "no file": missing, "all": labels.images}.items():
        if not images:
            continue
        people = [person for image in images for person in image.people]
        shown = [v for person in people for v in person.points[:, 2].tolist()]
        numbers = (
            len(images),
            len(people),
            sum(not person.points[:, 2].any() for person in people),
            sum(person.crowd for person in people),
            shown.count(VISIBLE),
            shown.count(OCCLUDED),
            shown.count(0),
        )
        widths = (8, 8, 9, 8, 9, 10, 9)
        lines.append(f"{name:8}" + "".join(f"{n:>{w}}" for n, w in zip(numbers, widths, strict=True)))
    every = {v for person in labels.people() for v in person.points[:, 2].tolist()}
    lines.append("without: people without a labelled keypoint, not used for training")
    if every <= {0, OCCLUDED}:
        lines.append("occluded: the labels only say whether a keypoint is labelled (1) or not (0)")
    return lines
