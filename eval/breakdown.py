"""What kinds of mistakes keypoints are: good, jitter, inversion, swap or miss.

After Ronchi & Perona, "Benchmarking and Error Diagnosis in Multi-Instance Pose Estimation", ICCV 2017
(arXiv:1707.05388), and the rule of the authors' code where the paper leaves a choice: of all places that a keypoint
may have been meant for, the most similar one decides.

The similarity of a keypoint to a place is one term of OKS, exp(-d^2 / (2 area (2 sigma)^2)), 1 on the spot, with the
sigma of the keypoint and the area of whoever the place belongs to. The places are the labelled ones of the keypoint
and of its mirror image (left for right), of all people in the image. With the most similar one at s,

    s < 0.5                                       miss
    its own place of its own person, s < 0.85     jitter; from there on good
    its own person's other side                   inversion
    another person's, either side                 swap
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
JITTER, GOOD = 0.5, 0.85  # the least similarities
MATCH = 0.1  # the least OKS of a detection that counts as a person's

_GOOD, _JITTER, _INVERSION, _SWAP, _MISS = range(len(KINDS))
_NEAR = 0.01  # the least OKS of a detection that is shown beside a person whom none matches
_MOST = 20  # detections an image, the best ones, as in COCO's evaluation


@dataclasses.dataclass(frozen=True, eq=False)
class Breakdown:
    """P people with labelled keypoints, crowds left out, and what was found of each.

    Attributes:
      joints: the keypoint set of K keypoints.
      image_ids: of the people.
      boxes: xywh in image pixels, as annotated.
      truth: x, y in image pixels and visibility.
      detections: for each person the position in the results of the detection that matched, else of a free one that
        is near (OKS of at least 0.01), else -1.
      oks: of that detection; 0 where there is none.
      matched: whether it matched (OKS of at least 0.1).
      found: its keypoints, x and y in image pixels; NaN where there is none.
      scores: its score; NaN where there is none.
      similarity: of each keypoint to its place; NaN where unlabelled or not matched, as in the next.
      distance: of each keypoint from its place, as a share of the square root of the person's area.
      kinds: positions in `KINDS`; -1 where unlabelled or not matched.
      extra: how many of the at most 20 best detections of each image match nobody.
    """

    joints: KeypointSet
    image_ids: Int[np.ndarray, " p"]
    boxes: Float[np.ndarray, "p 4"]
    truth: Float[np.ndarray, "p k 3"]
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
        return len(self.image_ids)

    def counts(self) -> Int[np.ndarray, "k kinds"]:
        """How many of each keypoint are of each of the `KINDS`; those whose kind is -1 are of none."""
        return (self.kinds[..., None] == np.arange(len(KINDS))).sum(axis=0)


def diagnose(
    annotations: Path | Mapping[str, Any],
    results: Path | Sequence[Any],
    *,
    keypoint_set: KeypointSet | str = "coco",
    use_area: bool = True,
) -> Breakdown:
    """Matches COCO results to people and tells the kinds of their keypoints.

    The best-scored detection of an image chooses first, among the people that are left, the one with whom its OKS is
    the highest, if that is 0.1 or more.

    Args:
      annotations: a COCO file or its content, as in `eval.coco.evaluate_results`.
      results: a COCO results file or its content.
      keypoint_set: what the keypoints of both are, their sigmas and mirror images.
      use_area: whether a person's size is its `area`, else 0.53 x its box.

    Raises:
      InputError: names the file, the record and what is wrong with it.
    """
    joints = find_keypoint_set(keypoint_set)
    detections = Detections.read(results, joints)
    people = Annotations.read(annotations, joints, use_area, detections)
    counted, numbers = np.flatnonzero(people.counted), np.cumsum(people.counted) - 1
    unknown = np.full((len(counted), len(joints)), np.nan)
    result = Breakdown(
        joints=joints,
        image_ids=people.image_ids[counted],
        boxes=people.boxes[counted],
        truth=people.keypoints[counted],
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
    """Fills in the people of one image; returns how many of its detections matched.

    Args:
      result: its row for each of the people is in `numbers`.
      rows: the image's detections, the best first.
      detections: everything found.
      columns: the image's people.
      people: everybody annotated.
      numbers: for each of them, the row in `result`; of no meaning for those who do not count.
    """
    joints = result.joints
    truth, areas = people.keypoints[columns], np.maximum(people.areas[columns], 0) + np.spacing(1)
    variances = (2 * np.array(joints.sigmas)) ** 2
    places = np.stack([truth, truth[:, joints.flip_indices]], axis=1)  # [n, 2, K, 3]: its own and its mirror image's
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
    """For each of n people a detection that matches, else a free one that is near, else -1; the best scores first."""
    chosen = np.full(oks.shape[1], -1)
    for least in (MATCH, _NEAR):
        for row in range(len(oks)):
            if row not in chosen and (chosen < 0).any():
                free = np.where(chosen < 0, oks[row], -1)
                if free.max() >= least:
                    chosen[free.argmax()] = row
    return chosen


def _kinds(similarity: Float[np.ndarray, "n 2 k"], person: int) -> Int[np.ndarray, " k"]:
    """The kinds of one detection's keypoints, by their similarity to both sides of everybody; -1 where unlabelled."""
    candidates = np.stack([*similarity[person], similarity.max(axis=(0, 1))])
    best = candidates.max(axis=0)
    place = candidates.argmax(axis=0)  # the first of equals: a middle keypoint is its own mirror image
    own = np.where(best >= GOOD, _GOOD, _JITTER)
    return np.where(best < JITTER, _MISS, np.choose(place, [own, _INVERSION, _SWAP]))


def _groups(*keys: Int[np.ndarray, " n"]) -> dict[tuple[int, int], Int[np.ndarray, " m"]]:
    """Positions by their keys, each group in order."""
    if not len(keys[0]):
        return {}
    order = np.lexsort(keys)
    edges = np.flatnonzero(np.any([np.diff(key[order]) != 0 for key in keys], axis=0)) + 1
    return {tuple(int(key[group[0]]) for key in keys): group for group in np.split(order, edges)}  # type: ignore[misc]
