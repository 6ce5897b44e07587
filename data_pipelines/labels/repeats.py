"""Sigmas from repeated labels of the same images."""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from data_pipelines.errors import InputError
from data_pipelines.keypoints import KeypointSet
from data_pipelines.labels.files import clean
from data_pipelines.labels.types import Image, Labels, Person
from data_pipelines.sigmas import estimate_sigmas

# Maximum mean distance between two labellings of a person, as a share of the square root of the area.
_FARTHEST = 0.3


def with_sigmas(keypoints: KeypointSet, labels: Labels, repeats: Sequence[Labels], where: str) -> KeypointSet:
    """The set with sigmas estimated from people who were labelled several times (`estimate_sigmas`).

    Args:
      keypoints: the set of K keypoints; keeps its sigma for a keypoint that nobody labelled twice.
      labels: completed, with keypoints in the set's order.
      repeats: other labels of the same images, in the same order of keypoints.
      where: the origin of the repeats, for messages and `sigmas_from`.

    Raises:
      InputError: nobody was labelled twice, or every repeated label is exactly the same.
    """
    counterparts = [_counterparts(labels.images, repeat.images) for repeat in repeats]
    people, areas = [], []
    for image in labels.images:
        others = [images[image].people for images in counterparts if image in images]
        for person in image.people:
            same = [match.points for among in others if (match := _match(person, among))]
            if same and not person.crowd and person.area:
                absent = [np.zeros_like(person.points)] * (len(repeats) - len(same))
                people.append(np.stack([person.points, *same, *absent]))
                areas.append(person.area)
    if not people:
        raise InputError(f"--repeats={where}: labels none of the same people; it must label images with the same names")
    sigmas = estimate_sigmas(np.stack(people), np.array(areas))
    if not np.nanmax(sigmas) > 0:
        raise InputError(f"--repeats={where}: its labels are identical, so they are a copy, not a second labelling")
    known = np.nan_to_num(sigmas) > 0
    rest = "" if known.all() else f", but for {', '.join(np.array(keypoints.names)[~known].tolist())}"
    return dataclasses.replace(
        keypoints,
        sigmas=tuple(np.where(known, np.round(sigmas, 4), keypoints.sigmas).tolist()),
        sigmas_from=f"estimated from {len(people)} people who were labelled repeatedly{rest}",
    )


def _counterparts(images: Sequence[Image], others: Sequence[Image]) -> dict[Image, Image]:
    """By image, the other with the same path in the labels, else with the same file name if both have it once."""
    by_path = {clean(other.names[0]): other for other in others}
    by_name, own = _by_unique_name(others), _by_unique_name(images)
    found = {}
    for image in images:
        path = clean(image.names[0])
        name = pathlib.PurePosixPath(path).name
        if other := by_path.get(path) or (by_name.get(name) if name in own else None):
            found[image] = other
    return found


def _by_unique_name(images: Sequence[Image]) -> dict[str, Image]:
    names = [pathlib.PurePosixPath(clean(image.names[0])).name for image in images]
    counts = collections.Counter(names)
    return {name: image for name, image in zip(names, images, strict=True) if counts[name] == 1}


def _match(person: Person, among: Sequence[Person]) -> Person | None:
    """The nearest of an image's people, by the mean distance of common keypoints; None if it is too far away."""
    distances = [_distance(person.points, other.points) for other in among]
    nearest = int(np.argmin(distances)) if distances else -1
    close = nearest >= 0 and distances[nearest] <= _FARTHEST * float(person.area or 0) ** 0.5
    return among[nearest] if close else None


def _distance(a: Float[np.ndarray, "keypoints 3"], b: Float[np.ndarray, "keypoints 3"]) -> float:
    both = (a[:, 2] > 0) & (b[:, 2] > 0)
    return float(np.hypot(*(a - b)[both, :2].T).mean()) if both.any() else np.inf
