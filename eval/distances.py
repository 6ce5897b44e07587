"""PCK, AUC, NME, mean pixel error and RMSE of predicted keypoints.

With d the distance in image pixels between a predicted keypoint and its annotation, and r the reference length of the
person, over all labelled keypoints, or those of one name:

    PCK@a   share of the keypoints with d <= a r. Yang & Ramanan, "Articulated Human Detection with Flexible Mixtures of
            Parts", PAMI 2013
    AUC     area under the curve of PCK@a over a from 0 to 0.5, divided by 0.5. Insafutdinov et al., "DeeperCut", ECCV
            2016
    NME     mean of d / r. Sagonas et al., "300 Faces in-the-Wild Challenge", ICCVW 2013, with another r
    error   mean of d, in pixels. DeepLabCut (Mathis et al., Nature Neuroscience 2018) calls this number RMSE
    RMSE    square root of the mean of d^2, in pixels

The reference length depends on the names of the keypoint set:

    torso   from left shoulder to right hip, or from right shoulder to left hip if one of those is unlabelled. Sapp &
            Taskar, "MODEC", CVPR 2013
    head    from `head_top` to `neck`, for sets without shoulders and hips. It differs from MPII's PCKh, which takes
            0.6 x the diagonal of an annotated head box
    box     the longer side of the annotated box (Yang & Ramanan 2013), for all other sets

A person without a matching prediction counts as missed: its keypoints are outside every PCK threshold, add 0 to AUC,
and are left out of NME, error and RMSE. A person without a reference length is left out of PCK, AUC and NME.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from data_pipelines.keypoints import KeypointSet

THRESHOLDS = (0.1, 0.2)  # of PCK
_LARGEST = 0.5  # threshold of AUC
NUMBERS = (*(f"PCK@{threshold:g}" for threshold in THRESHOLDS), "AUC", "NME", "error", "RMSE")
TOTAL = "all"

# The reference lengths by name, each as pairs of keypoints of which the first labelled one counts.
_REFERENCES = {
    "torso": (("left_shoulder", "right_hip"), ("right_shoulder", "left_hip")),
    "head": (("head_top", "neck"),),
}
_DESCRIPTIONS = {
    "torso": "torso (shoulder to opposite hip)",
    "head": "head (head_top to neck)",
    "box": "box (longer side)",
}


def measure_distances(
    joints: KeypointSet,
    truth: Float[np.ndarray, "n k 3"],
    boxes: Float[np.ndarray, "n 4"],
    found: Float[np.ndarray, "n k 2"],
) -> dict[str, Any]:
    """Computes the numbers for n people.

    Args:
      joints: the set of K keypoints.
      truth: x, y in image pixels and visibility; keypoints with visibility 0 do not count.
      boxes: xywh in image pixels.
      found: predicted x, y in image pixels; NaN for people without a matching prediction.

    Returns:
      `reference`: the reference length in words; the numbers of `people`, of those `missed` and of those
      `without_reference`; and `keypoints`: by name of the keypoint, and for `TOTAL` over all keypoints, the number of
      `labelled` keypoints and the `NUMBERS`, None where there is nothing to measure.
    """
    name, lengths = reference_lengths(joints, truth, boxes)
    missed = np.isnan(found).any(axis=(1, 2))
    distances = np.hypot(*np.moveaxis(found - truth[..., :2], -1, 0))
    distances[missed] = np.inf
    distances[truth[..., 2] <= 0] = np.nan
    columns = {**{name: slice(k, k + 1) for k, name in enumerate(joints.names)}, TOTAL: slice(None)}
    return {
        "reference": _DESCRIPTIONS[name],
        "people": len(truth),
        "missed": int(missed.sum()),
        "without_reference": int(np.isnan(lengths).sum()),
        "keypoints": {name: _numbers(distances[:, column], lengths) for name, column in columns.items()},
    }


def reference_lengths(
    joints: KeypointSet, truth: Float[np.ndarray, "n k 3"], boxes: Float[np.ndarray, "n 4"]
) -> tuple[str, Float[np.ndarray, " n"]]:
    """The name of the reference ("torso", "head" or "box") and its length in pixels; NaN where unlabelled or 0."""
    known = (name for name, pairs in _REFERENCES.items() if {*itertools.chain(*pairs)} <= {*joints.names})
    lengths = boxes[:, 2:].max(axis=1)
    if (name := next(known, "box")) != "box":
        lengths = np.full(len(truth), np.nan)
        for a, b in reversed(_REFERENCES[name]):
            ends = truth[:, [joints.index(a), joints.index(b)]]
            labelled = (ends[..., 2] > 0).all(axis=1)
            lengths[labelled] = np.hypot(*(ends[labelled, 0, :2] - ends[labelled, 1, :2]).T)
    return name, np.where(lengths > 0, lengths, np.nan)


def format_distances(section: Mapping[str, Any], *, total_only: bool = False) -> str:
    """The result of `measure_distances` as a text table."""
    numbers = section["keypoints"]
    names = [TOTAL] if total_only else list(numbers)
    width = max(map(len, names))
    lines = [f"{'keypoint':<{max(width, 8)}}  labelled" + "".join(f"{name:>9}" for name in NUMBERS)]
    for name in names:
        cells = "".join(f"{text:>9}" for text in cells_of(numbers[name]))
        lines.append(f"{name:<{max(width, 8)}}  {numbers[name]['labelled']:>8}{cells}")
    return "\n".join([*lines, describe(section)])


def cells_of(numbers: Mapping[str, int | float | None]) -> list[str]:
    """The `NUMBERS` as text: shares with three digits, pixels with two."""
    texts = []
    for name in NUMBERS:
        value = numbers[name]
        texts.append("n/a" if value is None else f"{value:.2f}" if name in ("error", "RMSE") else f"{value:.3f}")
    return texts


def describe(section: Mapping[str, Any]) -> str:
    """The conditions of the numbers in one sentence."""
    text = f"PCK, AUC, NME relative to the {section['reference']}; error and RMSE in pixels; {section['people']} people"
    for key, what in (("missed", "without a matching prediction"), ("without_reference", "without reference length")):
        text += f", {section[key]} {what}" if section[key] else ""
    return text


def _numbers(distances: Float[np.ndarray, "n m"], lengths: Float[np.ndarray, " n"]) -> dict[str, int | float | None]:
    """The numbers of some keypoints from their distances (infinite: missed; NaN: unlabelled)."""
    relative = distances / lengths[:, None]
    relative, distances = relative[~np.isnan(relative)], distances[~np.isnan(distances)]
    near, pixels = relative[np.isfinite(relative)], distances[np.isfinite(distances)]
    area = np.clip(1 - relative / _LARGEST, 0, 1)  # of one keypoint's step function, exactly
    values = [*((relative, relative <= threshold) for threshold in THRESHOLDS), (relative, area), (near, near)]
    means = [float(value.mean()) if len(counted) else None for counted, value in [*values, (pixels, pixels)]]
    rmse = float(np.sqrt((pixels**2).mean())) if len(pixels) else None
    return {"labelled": len(distances), **dict(zip(NUMBERS, [*means, rmse], strict=True))}
