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

from data_pipelines.keypoints import KeypointSet
from data_pipelines.keypoints import keypoint_set as find_keypoint_set
from eval.records import Annotations, Detections, Path

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
    people = _People.of(Annotations.read(annotations, joints, use_area, detections), joints)
    answers = _Answers.empty(len(people.boxes), len(joints))
    extra = 0
    rows_of, columns_of = _groups(detections.image_ids, detections.category_ids), people.groups()
    for key, rows in rows_of.items():
        rows = rows[np.argsort(-detections.scores[rows], kind="stable")[:_MOST]]
        extra += len(rows)
        if (columns := columns_of.get(key)) is not None:
            extra -= _answer(answers, rows, detections, columns, people, joints)

    counted = np.flatnonzero(people.counted)
    rows, known = answers.detections[counted], answers.detections[counted] >= 0
    return Breakdown(
        joints=joints,
        image_ids=people.image_ids[counted],
        boxes=people.boxes[counted],
        truth=people.keypoints[counted],
        detections=rows,
        oks=answers.oks[counted],
        matched=answers.oks[counted] >= MATCH,
        found=_where_known(detections.keypoints, rows, known),
        scores=_where_known(detections.scores, rows, known),
        similarity=answers.similarity[counted],
        distance=answers.distance[counted],
        kinds=answers.kinds[counted],
        extra=extra,
    )


@dataclasses.dataclass(frozen=True)
class _People:
    """Everybody annotated, in columns."""

    image_ids: Int[np.ndarray, " n"]
    category_ids: Int[np.ndarray, " n"]
    boxes: Float[np.ndarray, "n 4"]
    areas: Float[np.ndarray, " n"]
    keypoints: Float[np.ndarray, "n k 3"]
    counted: np.ndarray  # has labelled keypoints and is no crowd

    @classmethod
    def of(cls, truth: Annotations, joints: KeypointSet) -> _People:
        def column(key: str, shape: tuple[int, ...] = (), kind: type = float) -> np.ndarray:
            return np.array([person[key] for person in truth.people], kind).reshape(len(truth.people), *shape)

        keypoints = column("keypoints", (len(joints), 3))
        return cls(
            image_ids=column("image_id", kind=np.int64),
            category_ids=column("category_id", kind=np.int64),
            boxes=column("bbox", (4,)),
            areas=np.maximum(column("area"), 0),
            keypoints=keypoints,
            counted=(keypoints[..., 2] > 0).any(axis=1) & (column("iscrowd") == 0),
        )

    def groups(self) -> dict[tuple[int, int], Int[np.ndarray, " m"]]:
        return _groups(self.image_ids, self.category_ids)


@dataclasses.dataclass(frozen=True)
class _Answers:
    """What is known of each person, to be filled in."""

    detections: Int[np.ndarray, " n"]
    oks: Float[np.ndarray, " n"]
    similarity: Float[np.ndarray, "n k"]
    distance: Float[np.ndarray, "n k"]
    kinds: Int[np.ndarray, "n k"]

    @classmethod
    def empty(cls, count: int, keypoints: int) -> _Answers:
        unknown = np.full((count, keypoints), np.nan)
        kinds = np.full((count, keypoints), -1)
        return cls(np.full(count, -1), np.zeros(count), unknown, unknown.copy(), kinds)


def _answer(
    answers: _Answers,
    rows: Int[np.ndarray, " d"],
    detections: Detections,
    columns: Int[np.ndarray, " n"],
    people: _People,
    joints: KeypointSet,
) -> int:
    """Fills in the people of one image, given by `columns`; returns how many of its detections matched."""
    truth, areas = people.keypoints[columns], people.areas[columns] + np.spacing(1)
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
    for person, row in zip(counted.tolist(), matches.tolist(), strict=True):
        if row < 0:
            continue
        column, shown = columns[person], labelled[person]
        answers.detections[column], answers.oks[column] = rows[row], oks[row, person]
        if oks[row, person] < MATCH:
            continue
        answers.similarity[column, shown] = similarity[row, person, 0, shown]
        answers.distance[column, shown] = np.sqrt(squared[row, person, 0, shown] / areas[person])
        answers.kinds[column, shown] = _kinds(similarity[row], person)[shown]
    return int((answers.oks[columns] >= MATCH).sum())


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


def _where_known(values: np.ndarray, rows: Int[np.ndarray, " p"], known: np.ndarray) -> np.ndarray:
    result = np.full((len(rows), *values.shape[1:]), np.nan)
    result[known] = values[rows[known]]
    return result
