"""MPII's people as lists in JSON: of HRNet and MMPose (`joints`), and of the hourglass network (`joint_self`).

Joints, order and the meaning of centre and scale (the person's height / 200 pixels) are those of Andriluka et al., CVPR
2014, and of HRNet's mpii.py. Both lists keep Matlab's coordinates, which start at 1.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from data_pipelines.errors import InputError, brief
from data_pipelines.labels.coco import as_points
from data_pipelines.labels.files import Source, split_of
from data_pipelines.labels.types import Image, Kind, Labels, Person, number, numbers, size_of

NAMES = (
    *("right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle", "pelvis", "thorax"),
    *(
        "upper_neck",
        "head_top",
        "right_wrist",
        "right_elbow",
        "right_shoulder",
        "left_shoulder",
        "left_elbow",
        "left_wrist",
    ),
)
_EDGES = (
    *((0, 1), (1, 2), (2, 6), (6, 3), (3, 4), (4, 5), (6, 7), (7, 8), (8, 9)),
    *((10, 11), (11, 12), (12, 7), (7, 13), (13, 14), (14, 15)),
)
_HEIGHT = 200  # pixels of the person at scale 1


def is_mpii(content: Any) -> bool:
    """Whether parsed JSON is one of the two lists."""
    first = content[0] if isinstance(content, list) and content else None
    return isinstance(first, dict) and ("joint_self" in first or {"image", "joints"} <= set(first))


def read(source: Source, contents: Mapping[pathlib.Path, Any]) -> Labels:
    """Reads lists of MPII's people. Raises InputError."""
    images: dict[str, Image] = {}
    for file, content in contents.items():
        name, of_file = source.name(file), split_of(file.name)
        for position, record in enumerate(content):
            where = f"{name}: entry {position}"
            if not isinstance(record, dict):
                raise InputError(f"{where}: not an object with named fields, but {type(record).__name__}")
            called = record.get("image", record.get("img_paths"))
            if not isinstance(called, str) or not called:
                raise InputError(f"{where}: names no image ('image' or 'img_paths')")
            size = size_of(record.get("img_width"), record.get("img_height"))
            stated = number(record.get("isValidation"))
            split = of_file if stated is None else "val" if stated else "train"
            image = images.setdefault(called, Image((called,), where, size, split, beside=file))
            image.people.append(_person(record, where, source))
    source.notes.add("files count coordinates from 1 as Matlab does: 1 was subtracted", next(iter(map(str, contents))))
    return Labels("MPII", {"person": Kind(NAMES, _EDGES)}, list(images.values()))


def _person(record: Mapping[str, Any], where: str, source: Source) -> Person:
    hourglass = "joint_self" in record
    joints = record["joint_self"] if hourglass else record.get("joints")
    rows = [numbers(joint) for joint in joints] if isinstance(joints, list) else []
    if len(rows) != len(NAMES) or not all(row and len(row) in (2, 3) for row in rows):
        raise InputError(f"{where}: its joints are not MPII's {len(NAMES)} points of x and y")
    shown = record.get("joints_vis") if not hourglass else [row[2:] for row in rows]  # type: ignore[index]
    if not isinstance(shown, list) or len(shown) != len(NAMES):
        raise InputError(f"{where}: 'joints_vis' must have {len(NAMES)} numbers, not {brief(repr(shown))}")
    if hourglass:  # 1 visible, 0 hidden; absent joints are at (0, 0)
        table = [[x - 1, y - 1, (2 if v and v[0] == 1 else 1) if max(x, y) > 0 else 0] for (x, y, *v) in rows]  # type: ignore[misc]
    else:
        table = [[row[0] - 1, row[1] - 1, v] for row, v in zip(rows, shown, strict=True)]  # type: ignore[index]
    centre = numbers(record.get("objpos" if hourglass else "center"), 2)
    scale = number(record.get("scale_provided" if hourglass else "scale"))
    box = None
    if centre and scale and scale > 0 and min(centre) >= 0:
        side = scale * _HEIGHT
        box = (centre[0] - 1 - side / 2, centre[1] - 1 - side / 2, side, side)
    return Person("person", as_points(table, source.notes, where), box, where)
