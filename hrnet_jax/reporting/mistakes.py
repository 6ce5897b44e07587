"""The part of a report about keypoints: PCK and pixel errors, kinds of mistakes, drawings of predictions."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import cv2
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from data_pipelines.errors import InputError
from data_pipelines.instances import Instances
from data_pipelines.keypoints import keypoint_set
from data_pipelines.pipeline import EvalData
from eval.breakdown import KINDS, MATCH, Breakdown, diagnose
from eval.distances import NUMBERS, cells_of, describe
from hrnet_jax.codecs import create_codec
from hrnet_jax.inference.drawings import JUNK, examples, pair, ranked
from hrnet_jax.reporting.page import Html, bar, legend, note, picture, table, tag, words

_WORST, _OTHERS = 12, 3  # people drawn: the worst, and of the middle and the best each
_CLOSE = 0.1  # of the square root of the area: the maximum distance of a keypoint that counts as found

_COLOURS = {kind: f"var(--{kind})" for kind in KINDS}

EXPLANATION = (
    "Kinds of keypoints after Ronchi & Perona, “Benchmarking and Error Diagnosis in Multi-Instance Pose Estimation” "
    "(ICCV 2017). Each keypoint is classified by the place with the highest similarity s (its term of OKS): its own "
    "place (good from 0.85, jitter from 0.5), the person's other side (inversion), another person's keypoint (swap) "
    "or, below 0.5, none (miss). In the tables, similarity is the mean s to the own place; distance the median, in % "
    f"of the square root of the person's area; within {_CLOSE:.0%} the share of keypoints within that distance."
)


def mistakes(folder: epath.Path, metrics: Mapping[str, Any], config: ConfigDict) -> list[Html]:
    """Distances by keypoint, and the mistakes in a folder's keypoints.json or a note why they cannot be computed.

    Args:
      folder: an evaluation's output.
      metrics: its metrics.json.
      config: the config with the locations of annotations and images; may be empty.
    """
    content = list(_distances(metrics.get("distances")))
    try:
        breakdown = _breakdown(folder, metrics, config)
    except InputError as error:
        return [*content, note(f"Mistakes cannot be computed: {error}")]
    counts = breakdown.counts()
    matched = int(breakdown.matched.sum())
    text = (
        f"{matched:,} of {len(breakdown):,} people have a prediction (OKS of at least {MATCH:g}); "
        f"{breakdown.extra:,} predictions match no person. Those people have {counts.sum():,} labelled keypoints:"
    )
    content.append(tag("p", text))
    if counts.sum():
        shares = dict(zip(KINDS, (counts.sum(0) / counts.sum()).tolist(), strict=True))
        content.append(bar(shares, _COLOURS, large=True))
        content.append(legend({f"{kind} {shares[kind]:.1%}": _COLOURS[kind] for kind in KINDS}))
        content.append(table(*_by_keypoint(breakdown), total=True))
    return [*content, *_examples(breakdown, config)]


def _distances(section: Any) -> Iterator[Html]:
    """The section `distances` of a metrics.json as a table by keypoint; nothing if it is absent or damaged."""
    try:
        rows = [[words(name), f"{n['labelled']:,}", *cells_of(n)] for name, n in section["keypoints"].items()]
        yield tag("p", f"{describe(section)}; matched {section['matching']}.")
        yield table(["keypoint", "labelled", *NUMBERS], rows, total=True)
    except (TypeError, LookupError, AttributeError, ValueError):
        return


def _breakdown(folder: epath.Path, metrics: Mapping[str, Any], config: ConfigDict) -> Breakdown:
    if not config:
        raise InputError(
            "there is no config.json with the location of the annotations; give the model's folder as --checkpoint"
        )
    try:
        source, root, use_area = config.data.eval, config.data.root, config.eval.use_area
        path = os.path.join(root, source.annotations)
        labels = keypoint_set(source.keypoints)
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"the config does not give the location of the annotations ({error})") from None
    name = pathlib.PurePath(path).name
    if metrics.get("annotations", name) != name:
        raise InputError(
            f"measured on {metrics['annotations']}, but config.data.eval.annotations is {name}; for a report of only "
            "this folder, set --config.data.eval.annotations and --checkpoint"
        )
    use_area = bool(metrics.get("use_area", use_area))
    return diagnose(path, folder / "keypoints.json", keypoint_set=labels, use_area=use_area)


def _by_keypoint(breakdown: Breakdown) -> tuple[list[object], list[list[object]]]:
    """Header and rows of the table; the last row is for all keypoints."""
    counts = breakdown.counts()
    columns = [*range(len(breakdown.joints)), slice(None)]
    names = [*map(words, breakdown.joints.names), "all"]
    rows: list[list[object]] = []
    for name, column in zip(names, columns, strict=True):
        known = breakdown.kinds[:, column] >= 0
        similarity, distance = breakdown.similarity[:, column][known], breakdown.distance[:, column][known]
        count = np.atleast_2d(counts[column]).sum(axis=0)
        if not known.any():
            rows.append([name, 0, *[""] * (4 + len(KINDS))])
            continue
        shares = dict(zip(KINDS, (count / count.sum()).tolist(), strict=True))
        rows.append(
            [
                name,
                f"{count.sum():,}",
                f"{similarity.mean():.3f}",
                f"{100 * np.median(distance):.1f}",
                f"{(distance <= _CLOSE).mean():.1%}",
                *(f"{share:.1%}" for share in shares.values()),
                bar(shares, _COLOURS),
            ]
        )
    return ["keypoint", "labelled", "similarity", "distance", f"within {_CLOSE:.0%}", *KINDS, ""], rows


def _examples(breakdown: Breakdown, config: ConfigDict) -> Iterator[Html]:
    """Drawings of people with a prediction: those with the lowest OKS, some of the middle and the best."""
    rows = ranked(breakdown)
    if not len(rows):
        yield tag("p", "There is no prediction near an annotated person.")
        return
    try:
        instances = _instances(config)
    except InputError as error:
        yield note(f"Not drawn, because the images cannot be read: {error}")
        return
    junk = int((breakdown.detections >= 0).sum()) - len(rows)
    yield tag(
        "p",
        "People with a prediction, by OKS. Left: the prediction; right: the annotation; the person's left side is "
        f"blue, the right side orange. {junk} people are left out: the score of their prediction is below {JUNK:g} "
        "times the highest.",
    )
    row_of = {int(image_id): row for row, image_id in enumerate(instances.image_id)}
    for kind, chosen in examples(rows, _WORST, _OTHERS).items():
        if chosen:
            yield tag("h4", kind.capitalize())
            yield tag("div", *(_drawn(breakdown, row, instances, row_of) for row in chosen), class_="pictures")


def _instances(config: ConfigDict) -> Instances:
    """The evaluation set with annotated boxes, to open its images."""
    try:
        config = config.copy_and_resolve_references()
        config.data.eval.boxes = ""
        return EvalData.load(config, create_codec(config.codec)).instances
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"the config does not give their location ({error})") from None


def _drawn(breakdown: Breakdown, row: int, instances: Instances, row_of: Mapping[int, int]) -> Html:
    image_id = int(breakdown.people.image_ids[row])
    kinds = np.bincount(breakdown.kinds[row][breakdown.kinds[row] >= 0], minlength=len(KINDS))
    told = ", ".join(f"{count} {kind}" for kind, count in zip(KINDS, kinds.tolist(), strict=True) if count)
    text = f"OKS {breakdown.oks[row]:.2f}, score {breakdown.scores[row]:.2f}: {told or f'below {MATCH:g}, not counted'}"
    if image_id not in row_of:  # prepared records may hold other images
        return tag("figure", note(f"Not drawn: image {image_id} is missing"), tag("figcaption", text))
    caption = f"{pathlib.PurePath(instances.path(row_of[image_id])).name}, {text}"
    try:
        image = instances.open(row_of[image_id]).pixels()
    except InputError as error:
        return tag("figure", note(f"Not drawn: {error}"), tag("figcaption", caption))
    _, jpeg = cv2.imencode(".jpg", pair(image, breakdown, row)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
    return picture(jpeg.tobytes(), caption)
