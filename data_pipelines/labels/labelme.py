"""LabelMe's and X-AnyLabeling's JSON: one file per image, with shapes that are rectangles and points.

https://github.com/wkentaro/labelme, https://github.com/CVHub520/X-AnyLabeling (its pose_classes.yaml has the order)
"""

from __future__ import annotations

import base64
import binascii
import pathlib
from collections.abc import Mapping
from typing import Any

from data_pipelines.errors import InputError, brief
from data_pipelines.labels.files import Source, read_yaml, split_of
from data_pipelines.labels.grouping import Drawn, Point, Rectangle, assemble
from data_pipelines.labels.types import OCCLUDED, VISIBLE, Image, Labels, numbers, outline, size_of


def is_labelme(content: Any) -> bool:
    """Whether parsed JSON is a LabelMe file."""
    return isinstance(content, dict) and isinstance(content.get("shapes"), list) and "imagePath" in content


def read(source: Source, contents: Mapping[pathlib.Path, Any]) -> Labels:
    """Reads LabelMe files. Raises InputError."""
    drawn = [_drawn(source, file, content) for file, content in contents.items()]
    kinds = assemble(drawn, source.notes, _order(source, next(iter(contents)).parent))
    return Labels("LabelMe", kinds, [one.image for one in drawn])


def _drawn(source: Source, file: pathlib.Path, content: Mapping[str, Any]) -> Drawn:
    name = source.name(file)
    called = (
        content["imagePath"] if isinstance(content["imagePath"], str) and content["imagePath"] else f"{file.stem}.jpg"
    )
    size = size_of(content.get("imageWidth"), content.get("imageHeight"))
    split = split_of(*file.relative_to(source.root).parts[:-1])
    image = Image((called,), name, size, split, beside=file)
    if isinstance(data := content.get("imageData"), str) and data:
        image.path = _embedded(source, file, data)
    one = Drawn(image, [], [])
    for position, shape in enumerate(content["shapes"]):
        _take_shape(source, one, shape, f"{name}: shape {position}")
    return one


def _take_shape(source: Source, one: Drawn, shape: Any, where: str) -> None:
    label = shape.get("label") if isinstance(shape, dict) else None
    if not isinstance(label, str) or not label.strip():
        raise InputError(f"{where}: has no label; give it one or remove it")
    label, kind = " ".join(label.split()), shape.get("shape_type", "polygon")
    corners = shape.get("points")
    points = [numbers(point, 2) for point in corners] if isinstance(corners, list) else [None]
    if not points or None in points:
        raise InputError(f"{where} ({brief(label)}): its points are not numbers x, y; draw it again")
    group = shape.get("group_id")
    tie = group if isinstance(group, int | str) else None
    xs, ys = zip(*points, strict=True)  # type: ignore[arg-type]
    if kind in ("rectangle", "rotation", "oriented_rectangle") and len(points) in (2, 4):
        one.rectangles.append(Rectangle(label, outline(xs, ys), tie))
    elif kind == "point" and len(points) == 1:
        one.points.append(Point(label, xs[0], ys[0], _visibility(shape), tie))
    elif tie is not None and len(points) > 2 and kind != "linestrip":  # an outline in the person's group
        one.rectangles.append(Rectangle(label, outline(xs, ys), tie))
    elif kind == "polygon" and len(points) > 2:
        one.outlines.append(Rectangle(label, outline(xs, ys), tie))
    else:
        source.notes.add(f"shapes of type {brief(str(kind))} left out; keypoints are points, people rectangles", where)


def _visibility(shape: Mapping[str, Any]) -> int:
    """X-AnyLabeling marks hidden keypoints as difficult, LabelMe's users by a flag or a description."""
    flags = shape.get("flags")
    flagged = [str(flag).lower() for flag, on in flags.items() if on is True] if isinstance(flags, dict) else []
    description = str(shape.get("description") or "").lower()
    hidden = ("occluded", "hidden", "invisible", "not visible")
    if shape.get("difficult") is True or any(word in (*flagged, description.strip()) for word in hidden):
        return OCCLUDED
    return VISIBLE


def _embedded(source: Source, file: pathlib.Path, data: str) -> pathlib.Path | None:
    """Writes the image that LabelMe stores within its file."""
    try:
        content = base64.b64decode(data.rpartition(",")[2], validate=True)
    except (binascii.Error, ValueError):
        source.notes.add("images stored within their label files are damaged, not used", source.name(file))
        return None
    target = source.scratch / "embedded" / file.relative_to(source.root).with_suffix(".image")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    return target


def _order(source: Source, folder: pathlib.Path) -> dict[str, list[str]]:
    """Keypoint names by label in X-AnyLabeling's classes file, if there is one."""
    for path in sorted({*folder.glob("*.y*ml"), *source.with_suffix(".yaml", ".yml")}):
        content = read_yaml(source, path)
        classes = content.get("classes") if isinstance(content, dict) else None
        if isinstance(classes, dict) and all(isinstance(names, list) for names in classes.values()):
            return {str(label): [str(name) for name in names] for label, names in classes.items()}
    return {}
