"""Reads the labels of COCO, Ultralytics, DeepLabCut, LabelMe, Label Studio, CVAT and MPII into one form."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from data_pipelines.errors import InputError
from data_pipelines.labels import coco, cvat, dlc, labelme, labelstudio, mpii, yolo
from data_pipelines.labels.files import ImageFinder, Source, read_json, read_text, read_yaml
from data_pipelines.labels.types import Labels

TOOLS = (
    "COCO JSON, Ultralytics data.yaml, DeepLabCut CollectedData csv, LabelMe JSON, Label Studio JSON, CVAT XML 1.1, "
    "MPII JSON"
)

_JSON: dict[str, tuple[Callable[[Any], bool], Callable[[Source, dict[pathlib.Path, Any]], Labels]]] = {
    "COCO": (lambda content: coco.is_coco(content) and coco.has_keypoints(content), coco.read),
    "LabelMe": (labelme.is_labelme, labelme.read),
    "MPII": (mpii.is_mpii, mpii.read),
    "Label Studio": (labelstudio.is_label_studio, labelstudio.read),
}

_INSTEAD = {
    ".h5": "give DeepLabCut's CollectedData_*.csv, which lies beside its .h5",
    ".mat": "give the list of MPII's people as JSON",
}


def read(source: Source, images: ImageFinder) -> Labels:
    """Reads the labels of a source; detects their format from the content of its files.

    Raises InputError: the source has no labels, labels of several formats, or damaged ones.
    """
    found: dict[str, dict[pathlib.Path, Any]] = {}
    others: list[str] = []
    for file in source.files:
        format_, content = _sniffed(source, file, others)
        if format_:
            found.setdefault(format_, {})[file] = content
    if not found:
        raise InputError(_nothing(source, others))
    if len(found) > 1:
        found = _preferred(source, found)
    ((format_, contents),) = found.items()
    if format_ in _JSON:
        return _JSON[format_][1](source, contents)
    if format_ == "CVAT":
        return cvat.read(source, contents)
    if format_ == "DeepLabCut":
        return dlc.read(source, contents)
    if len(contents) > 1:
        names = [source.name(file) for file in contents]
        raise InputError(f"{names[0]} and {names[1]} both describe data sets; give one of them")
    ((file, content),) = contents.items()
    return yolo.read(source, file, content, images)


def _sniffed(source: Source, file: pathlib.Path, others: list[str]) -> tuple[str, Any]:
    """The format and content of a file; the format is "" if it has no labels. `others` collects remarks."""
    match file.suffix.lower():
        case ".json":
            return _sniffed_json(source, file, others)
        case ".yaml" | ".yml":
            try:
                content = read_yaml(source, file)
            except InputError as error:
                others.insert(0, str(error))
                return "", None
            return ("Ultralytics", content) if yolo.is_data_yaml(content) else ("", None)
        case ".csv":
            text = read_text(source, file)
            if dlc.is_dlc(text) and not dlc.is_prediction(file.name, text):
                return "DeepLabCut", text
            if dlc.is_dlc(text):
                others.append(
                    f"{source.name(file)} holds predictions (likelihood), not labels: give CollectedData_*.csv"
                )
        case ".xml":
            if (root := cvat.parsed(source, file)) is not None:
                return "CVAT", root
        case ".txt":
            if not any("similar text files" in other for other in others):
                first = read_text(source, file).strip().partition("\n")[0]
                if yolo.is_label_line(first):
                    others.append(_said_of_line(source, file, len(first.split())))
        case ".h5" | ".slp" | ".mat" | ".parquet" | ".pkl" as suffix:
            others.append(f"{source.name(file)} is not read; {_INSTEAD.get(suffix, 'export the labels as COCO JSON')}")
    return "", None


def _sniffed_json(source: Source, file: pathlib.Path, others: list[str]) -> tuple[str, Any]:
    content = read_json(source, file)
    for format_, (fits, _) in _JSON.items():
        if fits(content):
            return format_, content
    first = content[0] if isinstance(content, list) and content else None
    if coco.is_coco(content):
        others.append(f"{source.name(file)} is a COCO file without keypoints (of boxes or outlines)")
    elif isinstance(content, dict) and isinstance(content.get("annotations"), list):
        others.append(f"{source.name(file)} looks like COCO, but has no list 'images'")
    elif isinstance(first, dict) and "human_annotations" in first:
        others.append(
            f"{source.name(file)} is AI Challenger's own file, which training reads as it is (configs/aic.py)"
        )
    elif isinstance(first, dict) and {"image_id", "bbox"} <= set(first):
        others.append(f"{source.name(file)} holds a detector's boxes, which `evaluate` and `predict` take as --boxes")
    return "", content


def _said_of_line(source: Source, file: pathlib.Path, count: int) -> str:
    if count <= 6:
        score = " with a score" if count == 6 else ""
        return (
            f"{source.name(file)} and similar text files hold boxes{score} without keypoints, as a detector "
            "saves them; give them to `predict` and `evaluate` as --boxes"
        )
    return (
        f"{source.name(file)} and similar text files hold boxes and {count - 5} more numbers, but no data.yaml "
        "describes these; add one with kpt_shape and names"
    )


def _nothing(source: Source, others: Sequence[str]) -> str:
    if others:
        return f"{source.path}: holds no labels of keypoints; {others[0]}"
    what = "is not" if source.single else "holds no"
    return (
        f"{source.path}: {what} keypoint labels in a format that is read ({TOOLS}); export the labels in one of these"
    )


def _preferred(source: Source, found: dict[str, dict[pathlib.Path, Any]]) -> dict[str, dict[pathlib.Path, Any]]:
    """Of several formats, the one whose files are in the fewest folders. Raises InputError if that is not unique."""
    depth = {name: min(len(file.relative_to(source.root).parts) for file in files) for name, files in found.items()}
    nearest = [name for name in found if depth[name] == min(depth.values())]
    if len(nearest) > 1:
        a, b = (f"{source.name(next(iter(found[name])))} ({name})" for name in nearest[:2])
        raise InputError(
            f"{source.path}: holds labels of several formats, {a} and {b}; give one of these files or folders"
        )
    for name in found:
        if name != nearest[0]:
            source.notes.add(f"files of another format ({name}) left out", source.name(next(iter(found[name]))))
    return {nearest[0]: found[nearest[0]]}
