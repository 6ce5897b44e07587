"""Scoring of detected people and suppression of duplicates by OKS (object keypoint similarity).

Both follow MMPose 1.3.2; they determine which detections COCO's evaluation uses, and their order. The OKS of two
detections uses the mean of their areas as the object's area, and all keypoints.
"""

import numpy as np
from jaxtyping import Float, Int

from data_pipelines.errors import InputError

NMS_MODES = ("oks_nms", "soft_oks_nms", "none")
SCORE_MODES = ("bbox_keypoint", "bbox", "keypoint", "bbox_rle")

# Elements per block of the [n, n, K] array for the OKS matrix: 1 MB of float64 fits in the cache.
_BLOCK_ELEMENTS = 2**17


def instance_scores(
    box_scores: Float[np.ndarray, " n"],
    keypoint_scores: Float[np.ndarray, "n k"],
    *,
    mode: str = "bbox_keypoint",
    keypoint_threshold: float = 0.2,
) -> Float[np.ndarray, " n"]:
    """Returns a score for each of n detections.

    Args:
      box_scores: the person detector's scores.
      keypoint_scores: the K keypoint scores of each detection.
      mode: "bbox_keypoint": box score x mean of the keypoint scores strictly above the threshold (0 if there are none);
        "bbox": the box score; "keypoint": the mean keypoint score; "bbox_rle": box score + mean + maximum of the
        keypoint scores.
      keypoint_threshold: only for "bbox_keypoint".

    Raises:
      InputError: for an unknown mode.
    """
    if mode == "bbox_keypoint":
        above = keypoint_scores > keypoint_threshold
        total = np.where(above, keypoint_scores, 0.0).sum(axis=1)
        return box_scores * total / np.maximum(above.sum(axis=1), 1)
    if mode == "bbox":
        return box_scores
    if mode == "keypoint":
        return keypoint_scores.mean(axis=1)
    if mode == "bbox_rle":
        return box_scores + keypoint_scores.mean(axis=1) + keypoint_scores.max(axis=1)
    raise InputError(f"unknown score_mode {mode!r}; there are {', '.join(SCORE_MODES)}")


def suppress(
    keypoints: Float[np.ndarray, "n k 2"],
    scores: Float[np.ndarray, " n"],
    areas: Float[np.ndarray, " n"],
    sigmas: Float[np.ndarray, " k"],
    *,
    mode: str = "oks_nms",
    threshold: float = 0.9,
) -> Int[np.ndarray, " kept"]:
    """Removes duplicates among the n detections of one image.

    Args:
      keypoints: in image pixels.
      scores: instance scores. Of equal scores, the later detection comes first, as in MMPose.
      areas: of the padded boxes with the crop's aspect ratio, in square pixels.
      sigmas: of the keypoint set.
      mode: "oks_nms", "soft_oks_nms" or "none" (keeps all, in the given order).
      threshold: see `oks_nms` and `soft_oks_nms`.

    Returns:
      Indices of the kept detections, in the order of the suppression.

    Raises:
      InputError: for an unknown mode.
    """
    if mode == "none":
        return np.arange(len(scores))
    if mode == "oks_nms":
        return oks_nms(keypoints, scores, areas, sigmas, threshold)
    if mode == "soft_oks_nms":
        return soft_oks_nms(keypoints, scores, areas, sigmas, threshold)
    raise InputError(f"unknown nms {mode!r}; there are {', '.join(NMS_MODES)}")


def oks_nms(
    keypoints: Float[np.ndarray, "n k 2"],
    scores: Float[np.ndarray, " n"],
    areas: Float[np.ndarray, " n"],
    sigmas: Float[np.ndarray, " k"],
    threshold: float,
) -> Int[np.ndarray, " kept"]:
    """Greedy suppression: the best detection is kept and removes those whose OKS with it is above the threshold."""
    order = _descending(scores)
    duplicates = oks_matrix(keypoints[order], areas[order], sigmas) > threshold
    candidates = np.ones(len(order), bool)
    kept = []
    for best in range(len(order)):
        if candidates[best]:
            kept.append(best)
            candidates &= ~duplicates[best]
    return order[kept]


def soft_oks_nms(
    keypoints: Float[np.ndarray, "n k 2"],
    scores: Float[np.ndarray, " n"],
    areas: Float[np.ndarray, " n"],
    sigmas: Float[np.ndarray, " k"],
    threshold: float,
    max_kept: int = 20,
) -> Int[np.ndarray, " kept"]:
    """Gaussian soft suppression: the best detection is kept and multiplies other scores by exp(-OKS^2 / threshold).

    The reduced scores determine the order and the `max_kept` detections; as in MMPose they are not returned, and the
    caller's scores are unchanged.
    """
    order = _descending(scores)
    lowered = scores[order]
    oks = oks_matrix(keypoints, areas, sigmas)
    kept: list[int] = []
    while len(order) and len(kept) < max_kept:
        best, order = order[0], order[1:]
        kept.append(best)
        lowered = lowered[1:] * np.exp(-(oks[best, order] ** 2) / threshold)
        resorted = _descending(lowered)
        order, lowered = order[resorted], lowered[resorted]
    return np.array(kept, int)


def oks_matrix(
    keypoints: Float[np.ndarray, "n k 2"], areas: Float[np.ndarray, " n"], sigmas: Float[np.ndarray, " k"]
) -> Float[np.ndarray, "n n"]:
    """Returns the OKS of every pair of n detections, from 0 to 1."""
    count = len(keypoints)
    oks = np.empty((count, count))
    x, y = keypoints[..., 0], keypoints[..., 1]
    variances = (2 * sigmas) ** 2
    rows = max(1, _BLOCK_ELEMENTS // max(keypoints[..., 0].size, 1))
    for start in range(0, count, rows):
        block = slice(start, start + rows)
        exponents = (x[block, None] - x) ** 2
        exponents += (y[block, None] - y) ** 2
        exponents /= variances
        mean_areas = (areas[block, None] + areas) / 2 + np.spacing(1)
        exponents /= -2 * mean_areas[..., None]
        np.exp(exponents, out=exponents).mean(axis=-1, out=oks[block])
    return oks


def _descending(scores: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    return np.argsort(scores, kind="stable")[::-1]
