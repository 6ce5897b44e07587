"""Classifies predicted keypoints: good, jitter, inversion, swap or miss.

After Ronchi & Perona, "Benchmarking and Error Diagnosis in Multi-Instance Pose Estimation", ICCV 2017
(arXiv:1707.05388). Where the paper leaves a choice, the rule is that of the authors' code: the candidate place with the
highest similarity decides.

The candidate places of a keypoint are the labelled places of the same keypoint and of its mirror image (left for right)
of all people in the image. The similarity to a place is the keypoint's term of OKS, exp(-d^2 / (2 area (2 sigma)^2)),
with the keypoint's sigma and the area of the place's person. With s the highest similarity:

    s < 0.5                                                  miss
    same keypoint of the same person                         jitter if s < 0.85, else good
    mirror image of the same person                          inversion
    keypoint or mirror image of another person               swap
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from data_pipelines.coco_files import Path
from data_pipelines.keypoints import KeypointSet
from data_pipelines.keypoints import keypoint_set as find_keypoint_set
from eval.records import Annotations, Detections

KINDS = ("good", "jitter", "inversion", "swap", "miss")
JITTER, GOOD = 0.5, 0.85  # minimum similarities
MATCH = 0.1  # minimum OKS of a detection that matches a person

_GOOD, _JITTER, _INVERSION, _SWAP, _MISS = range(len(KINDS))
_NEAR = 0.01  # minimum OKS of a detection that is shown beside a person without a match
_MOST = 20  # maximum number of detections per image, those with the highest scores, as in COCO's evaluation


@dataclasses.dataclass(frozen=True, eq=False)
class Breakdown:
    """P people with labelled keypoints, without crowds, and the detection of each.

    Attributes:
      joints: the keypoint set of K keypoints.
      people: the people.
      detections: for each person the position in the results of its match; of a free detection nearby (OKS of at least
        0.01) if there is no match; or -1.
      oks: of that detection; 0 if there is none.
      matched: whether it is a match (OKS of at least 0.1).
      found: its keypoints, x and y in image pixels; NaN if there is none.
      scores: its score; NaN if there is none.
      similarity: of each keypoint to its place; NaN if unlabelled or without match.
      distance: of each keypoint from its place, divided by the square root of the person's area; NaN likewise.
      kinds: positions in `KINDS`; -1 if unlabelled or without match.
      extra: number of detections without match, among the at most 20 best of each image.
    """

    joints: KeypointSet
    people: Annotations
    detections: Int[np.ndarray, " p"]
    oks: Float[np.ndarray, " p"]
    matched: np.ndarray
    found: Float[np.ndarray, "p k 2"]
    scores: Float[np.ndarray, " p"]
    similarity: Float[np.ndarray, "p k"]
    distance: Float[np.ndarray, "p k"]
    kinds: Int[np.ndarray, "p k"]
    extra: int

    def __len__(self) -> int:
        return len(self.people)

    def counts(self) -> Int[np.ndarray, "k kinds"]:
        """The number of each keypoint in each of the `KINDS`."""
        return (self.kinds[..., None] == np.arange(len(KINDS))).sum(axis=0)


def diagnose(
    annotations: Path | Mapping[str, Any],
    results: Path | Sequence[Any],
    *,
    keypoint_set: KeypointSet | str = "coco",
    use_area: bool = True,
) -> Breakdown:
    """Matches COCO results to people and classifies their keypoints.

    The detections of an image choose in the order of their scores: each takes, among the people that are left, the one
    with the highest OKS, if that is at least 0.1.

    Args:
      annotations: see `eval.coco.evaluate_results`.
      results: a COCO results file or its content.
      keypoint_set: of annotations and results.
      use_area: see `eval.coco.evaluate`.

    Raises:
      InputError: names the file, the record and the problem.
    """
    joints = find_keypoint_set(keypoint_set)
    detections = Detections.from_results(results, joints)
    return compare(Annotations.read(annotations, joints, use_area, detections), detections, joints)


def compare(people: Annotations, detections: Detections, joints: KeypointSet) -> Breakdown:
    """`diagnose` for annotations and detections that were read before."""
    counted, numbers = np.flatnonzero(people.counted), np.cumsum(people.counted) - 1
    unknown = np.full((len(counted), len(joints)), np.nan)
    result = Breakdown(
        joints=joints,
        people=people.chosen(counted),
        detections=np.full(len(counted), -1),
        oks=np.zeros(len(counted)),
        matched=np.zeros(len(counted), bool),
        found=np.full((*unknown.shape, 2), np.nan),
        scores=np.full(len(counted), np.nan),
        similarity=unknown,
        distance=unknown.copy(),
        kinds=np.full(unknown.shape, -1),
        extra=0,
    )
    extra = 0
    rows_of, columns_of = (_groups(table.image_ids, table.category_ids) for table in (detections, people))
    for key, rows in rows_of.items():
        rows = rows[np.argsort(-detections.scores[rows], kind="stable")[:_MOST]]
        extra += len(rows)
        if (columns := columns_of.get(key)) is not None:
            extra -= _answer(result, rows, detections, columns, people, numbers)
    return dataclasses.replace(result, extra=extra)


def _answer(
    result: Breakdown,
    rows: Int[np.ndarray, " d"],
    detections: Detections,
    columns: Int[np.ndarray, " n"],
    people: Annotations,
    numbers: Int[np.ndarray, " everybody"],
) -> int:
    """Fills in the people of one image; returns the number of its detections that match.

    Args:
      result: to be filled in.
      rows: the image's detections, by falling score.
      detections: all detections.
      columns: the image's people.
      people: all people.
      numbers: for each person its row in `result`; undefined for people that do not count.
    """
    joints = result.joints
    truth, areas = people.keypoints[columns], np.maximum(people.areas[columns], 0) + np.spacing(1)
    variances = (2 * np.array(joints.sigmas)) ** 2
    places = np.stack([truth, truth[:, joints.flip_indices]], axis=1)  # [n, 2, K, 3]: the place and its mirror image
    with np.errstate(over="ignore"):
        squared = ((detections.keypoints[rows, None, None] - places[..., :2]) ** 2).sum(axis=-1)  # [d, n, 2, K]
        similarity = np.exp(-squared / (2 * variances * areas[:, None, None]))
    labelled = truth[..., 2] > 0
    oks = (similarity[:, :, 0] * labelled).sum(axis=-1) / np.maximum(labelled.sum(axis=-1), 1)
    similarity = np.where(places[..., 2] > 0, similarity, -1)

    counted = np.flatnonzero(people.counted[columns])
    matches = _match(oks[:, counted])
    matched = 0
    for person, row in zip(counted.tolist(), matches.tolist(), strict=True):
        if row < 0:
            continue
        at, shown = numbers[columns[person]], labelled[person]
        result.detections[at], result.oks[at] = rows[row], oks[row, person]
        result.found[at], result.scores[at] = detections.keypoints[rows[row]], detections.scores[rows[row]]
        if oks[row, person] < MATCH:
            continue
        matched += 1
        result.matched[at] = True
        result.similarity[at, shown] = similarity[row, person, 0, shown]
        result.distance[at, shown] = np.sqrt(squared[row, person, 0, shown] / areas[person])
        result.kinds[at, shown] = _kinds(similarity[row], person)[shown]
    return matched


def _match(oks: Float[np.ndarray, "d n"]) -> Int[np.ndarray, " n"]:
    """For each of n people a detection that matches, else a free one nearby, else -1; rows are by falling score."""
    chosen = np.full(oks.shape[1], -1)
    highest = oks.max(axis=1, initial=-1)
    for least in (MATCH, _NEAR):
        for row in np.flatnonzero(highest >= least):
            if row not in chosen and (chosen < 0).any():
                free = np.where(chosen < 0, oks[row], -1)
                if free.max() >= least:
                    chosen[free.argmax()] = row
    return chosen


def _kinds(similarity: Float[np.ndarray, "n 2 k"], person: int) -> Int[np.ndarray, " k"]:
    """The kinds of a detection's keypoints, from their similarity to the places, and mirror images, of all people."""
    candidates = np.stack([*similarity[person], similarity.max(axis=(0, 1))])
    best = candidates.max(axis=0)
    place = candidates.argmax(axis=0)  # the first of equals, for a keypoint that is its own mirror image
    own = np.where(best >= GOOD, _GOOD, _JITTER)
    return np.where(best < JITTER, _MISS, np.choose(place, [own, _INVERSION, _SWAP]))


def _groups(*keys: Int[np.ndarray, " n"]) -> dict[tuple[int, int], Int[np.ndarray, " m"]]:
    """The positions of each combination of keys, in order."""
    if not len(keys[0]):
        return {}
    order = np.lexsort(keys)
    edges = np.flatnonzero(np.any([np.diff(key[order]) != 0 for key in keys], axis=0)) + 1
    return {tuple(int(key[group[0]]) for key in keys): group for group in np.split(order, edges)}  # type: ignore[misc]
