"""Estimates the OKS sigmas of a keypoint set from repeated annotations."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def estimate_sigmas(
    repeats: Float[np.ndarray, "people repeats k 3"], areas: Float[np.ndarray, " people"]
) -> Float[np.ndarray, " k"]:
    """Estimates sigmas as COCO's authors did: sigma_k^2 = E[d_k^2 / s^2].

    d is the distance between an annotation of a keypoint and its true place, s^2 the area of the person
    (cocodataset.org, "Keypoint Evaluation", 1.3; Ronchi & Perona, ICCV 2017, section 2.1). The true place is not known:
    the mean of the R annotations of a keypoint replaces it, and the sum of the R squared distances to the mean is
    divided by R - 1, which makes the estimate of d^2 unbiased.

    Args:
      repeats: annotations of the same people by several annotators, or several times by one: x, y in image pixels and
        visibility. Annotations with visibility 0 do not count; a keypoint of a person counts with two or more others.
      areas: of the people in square pixels, above 0.

    Returns:
      The sigma of each keypoint; NaN for a keypoint that was not annotated repeatedly.
    """
    labelled = repeats[..., 2] > 0
    count = labelled.sum(axis=1)  # [people, k]
    points = np.where(labelled[..., None], repeats[..., :2], 0)
    mean = points.sum(axis=1) / np.maximum(count, 1)[..., None]
    squared = ((points - mean[:, None]) ** 2).sum(axis=-1)
    variance = np.where(labelled, squared, 0).sum(axis=1) / np.maximum(count - 1, 1) / areas[:, None]
    repeated = count > 1
    total = np.where(repeated, variance, 0).sum(axis=0)
    people = repeated.sum(axis=0)
    return np.sqrt(np.where(people > 0, total / np.maximum(people, 1), np.nan))
