"""Label Studio's JSON and JSON-MIN: rectangles and keypoints in percent of the image, tied by relations or parentID.

https://labelstud.io/guide/export, https://labelstud.io/tags/keypointlabels
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data_pipelines.errors import InputError, brief
from data_pipelines.labels.files import IMAGE_SUFFIXES, Source, split_of
from data_pipelines.labels.grouping import Drawn, Point, Rectangle, assemble
from data_pipelines.labels.types import OCCLUDED, VISIBLE, Image, Labels, numbers, outline, size_of

_HIDDEN = {"occluded", "hidden", "invisible", "not visible", "not_visible"}
_SHAPES = ("keypoint", "rectangle", "polygon", "ellipse", "brush", "vector", "bitmask")  # types of regions
_LABEL_KEYS = ("keypointlabels", "rectanglelabels", "polygonlabels", "labels", "brushlabels")


def is_label_studio(content: Any) -> bool:
    """Whether parsed JSON is a list of tasks, or of JSON-MIN's records; or one task or annotation, as in clouds."""
    records = content if isinstance(content, list) else [content]
    return all(isinstance(record, dict) for record in records) and any(
        _is_task(_as_task(record)) or any(map(_regions_of, record.values())) for record in records
    )


def _as_task(record: dict[str, Any]) -> dict[str, Any]:
    """The task of a record; Label Studio stores annotations in clouds as files, with the task within."""
    task = record.get("task")
    return {**task, "annotations": [record]} if isinstance(task, dict) and "result" in record else record


def read(source: Source, contents: Mapping[pathlib.Path, Any]) -> Labels:
    """Reads exports of Label Studio. Raises InputError."""
    drawn = []
    for file, content in contents.items():
        for position, record in enumerate(content if isinstance(content, list) else [content]):
            task = _as_task(record)
            where = f"{source.name(file)}: task {brief(str(task.get('id', f'at position {position}')))}"
            drawn.append(_drawn(source, file, task, where))
    kinds = assemble(drawn, source.notes, {})
    return Labels("Label Studio", kinds, [one.image for one in drawn])


def _is_task(task: Mapping[str, Any]) -> bool:
    return isinstance(task.get("data"), dict) and any(
        isinstance(task.get(k), list) for k in ("annotations", "completions", "predictions")
    )


def _regions_of(value: Any) -> list[dict[str, Any]]:
    """A field of JSON-MIN that holds drawn regions."""
    regions = value if isinstance(value, list) else []
    sound = [r for r in regions if isinstance(r, dict) and "x" in r and any(k in r for k in _LABEL_KEYS)]
    return sound if len(sound) == len(regions) else []


def _drawn(source: Source, file: pathlib.Path, task: Mapping[str, Any], where: str) -> Drawn:
    results = list(_results(source, task, where))
    image = Image(_names(task, where), where, None, split_of(file.name), beside=file, id=task.get("id"))
    one = Drawn(image, [], [])
    ties = _ties(results)
    hidden = {r.get("id") for r in results if _chosen(r) & _HIDDEN if isinstance(r.get("id"), str)}
    sizes = set()
    for result in results:
        value, kind = result.get("value"), str(result.get("type", "")).lower()
        if not kind.startswith(_SHAPES) or not isinstance(value, dict):
            continue
        if not (labels := _labels(value, results, result)):
            continue
        if result.get("image_rotation") not in (None, 0):
            source.notes.add("regions of images that were turned in the tool left out", where)
            continue
        size = size_of(result.get("original_width"), result.get("original_height"))
        name = result.get("id") if isinstance(result.get("id"), str) else None
        if kind.startswith("polygon"):
            given = value.get("points")
            corners = [numbers(corner, 2) for corner in given] if isinstance(given, list) else []
            if size and corners and None not in corners:
                xs, ys = zip(*corners, strict=True)  # type: ignore[arg-type]
                around = outline([x / 100 * size[1] for x in xs], [y / 100 * size[0] for y in ys])
                one.outlines.append(Rectangle(labels[0], around, name))
            continue
        if not kind.startswith(("keypoint", "rectangle")):
            source.notes.add(f"regions of type {brief(kind)} left out", where)
            continue
        place = numbers([value.get("x"), value.get("y")])
        if size is None or place is None:
            raise InputError(
                f"{where}: region {brief(str(result.get('id')))} has no x, y and original_width, original_height; "
                "export as JSON"
            )
        sizes.add(size)
        x, y = place[0] / 100 * size[1], place[1] / 100 * size[0]
        if kind.startswith("keypoint"):
            shown = OCCLUDED if name in hidden else VISIBLE
            one.points.append(Point(labels[0], x, y, shown, ties.get(name) if name else None))
        elif box := _box(value, size, x, y):
            one.rectangles.append(Rectangle(labels[0], box, name))
    if len(sizes) > 1:
        raise InputError(f"{where}: its regions state two sizes of the image; export it again")
    image.size = next(iter(sizes), None)
    return one


def _results(source: Source, task: Mapping[str, Any], where: str) -> Iterator[dict[str, Any]]:
    """The records of a task's annotation; of several, the last one marked as truth, or else the last one."""
    if not _is_task(task):  # JSON-MIN
        for key, value in task.items():
            for number, region in enumerate(_regions_of(value)):
                kind = next(k for k in _LABEL_KEYS if k in region)
                if kind == "labels":
                    kind = "rectangle" if "height" in region else "keypoint"
                yield {**region, "value": region, "type": kind, "id": f"{key}-{number}"}
        return
    given: list[Any] = next((task[k] for k in ("annotations", "completions") if isinstance(task.get(k), list)), [])
    annotations = [
        a for a in given if isinstance(a, dict) and isinstance(a.get("result"), list) and not a.get("was_cancelled")
    ]
    if not annotations:
        only = " but predictions (submit them in Label Studio)" if task.get("predictions") else ""
        source.notes.add(f"tasks without an annotation{only}, taken as images without people", where)
        return
    if len(annotations) > 1:
        source.notes.add(
            "tasks with several annotations, of which one is taken (the truth, or else the last with regions)", where
        )
    truth = [a for a in annotations if a.get("ground_truth") is True]
    full = [a for a in annotations if a["result"]]
    yield from (result for result in (truth or full or annotations)[-1]["result"] if isinstance(result, dict))


def _names(task: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The names of a task's image, the original one first."""
    data, meta = (task[k] if isinstance(task.get(k), dict) else {} for k in ("data", "meta"))
    texts = [*(data or task).values()]
    images = [
        text for text in texts if isinstance(text, str) and text.partition("?")[0].lower().endswith(IMAGE_SUFFIXES)
    ]
    images += [text for text in texts if isinstance(text, str) and "?d=" in text]
    preferred = [data.get("image", task.get("image"))] if not images else []
    names = [meta.get("original_file"), *images[:1], *preferred, task.get("file_upload")]
    found = tuple(name for name in names if isinstance(name, str) and name)
    if not found:
        raise InputError(f"{where}: names no image in its data; only tasks with an image can be imported")
    return found


def _ties(results: list[dict[str, Any]]) -> dict[str, str]:
    """What each keypoint is tied to by relation or as its parent: a rectangle or outline, or one of its keypoints."""
    kinds = {r.get("id"): str(r.get("type", "")).lower() for r in results if isinstance(r.get("id"), str)}
    boxes = {name for name, kind in kinds.items() if kind.startswith(("rectangle", "polygon"))}
    ties: dict[str, str] = {}
    between: list[tuple[str, str]] = []
    for result in results:
        if result.get("type") == "relation":
            a, b = result.get("from_id"), result.get("to_id")
            if isinstance(a, str) and isinstance(b, str):
                if a in boxes or b in boxes:
                    ties[a if b in boxes else b] = b if b in boxes else a
                else:
                    between.append((a, b))
        elif isinstance(parent := result.get("parentID", result.get("parent_id")), str) and isinstance(
            result.get("id"), str
        ):
            ties[result["id"]] = parent
    for group in _connected(between):  # keypoints that are tied to each other
        tie = next((ties[name] for name in group if name in ties), group[0])
        ties.update({name: tie for name in group if name not in ties})
    return ties


def _connected(lines: Sequence[tuple[str, str]]) -> list[list[str]]:
    """The groups that lines between names join."""
    groups: dict[str, list[str]] = {}
    for a, b in lines:
        one, other = groups.setdefault(a, [a]), groups.setdefault(b, [b])
        if one is not other:
            one += other
            groups.update({name: one for name in other})
    return list({id(group): group for group in groups.values()}.values())


def _labels(value: Mapping[str, Any], results: list[dict[str, Any]], result: Mapping[str, Any]) -> list[str]:
    for record in (
        value,
        *(r["value"] for r in results if r.get("id") == result.get("id") and isinstance(r.get("value"), dict)),
    ):
        for key in _LABEL_KEYS:
            names = record.get(key)
            if isinstance(names, list) and names and all(isinstance(name, str) and name.strip() for name in names):
                return [" ".join(name.split()) for name in names]
    return []


def _chosen(result: Mapping[str, Any]) -> set[str]:
    value = result.get("value")
    choices = value.get("choices") if isinstance(value, dict) else None
    return {choice.lower() for choice in choices if isinstance(choice, str)} if isinstance(choices, list) else set()


def _box(
    value: Mapping[str, Any], size: tuple[int, int], x: float, y: float
) -> tuple[float, float, float, float] | None:
    """A rectangle's box; for a rotated rectangle, the box around it."""
    sides = numbers([value.get("width"), value.get("height")])
    if sides is None:
        return None
    w, h = sides[0] / 100 * size[1], sides[1] / 100 * size[0]
    angle = numbers([value.get("rotation") or 0])
    turn = math.radians(angle[0] if angle else 0)
    if not turn:
        return x, y, w, h
    corners = [
        (x + a * math.cos(turn) - b * math.sin(turn), y + a * math.sin(turn) + b * math.cos(turn))
        for a in (0, w)
        for b in (0, h)
    ]
    return outline(*zip(*corners, strict=True))  # type: ignore[arg-type]
