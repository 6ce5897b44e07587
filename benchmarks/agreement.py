"""How far two sides agree: PCK of results, and what two loaders make of the same people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.keypoints import AIC
from eval.distances import TOTAL, measure_distances


def pck(truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> float:
    """PCK@0.2 of the torso over all keypoints (`eval.distances`); there is at most one person per image."""
    people = truth["annotations"]
    found = {result["image_id"]: np.reshape(result["keypoints"], (-1, 3))[:, :2] for result in results}
    missing = np.full((len(AIC), 2), np.nan)
    section = measure_distances(
        AIC,
        np.array([np.reshape(person["keypoints"], (-1, 3)) for person in people], float),
        np.array([person["bbox"] for person in people], float),
        np.array([found.get(person["image_id"], missing) for person in people], float),
    )
    return float(section["keypoints"][TOTAL]["PCK@0.2"])


def compare_samples(
    truth: Mapping[str, Any], ids: Sequence[int], found: Mapping[str, Mapping[str, np.ndarray]], size: Sequence[int]
) -> dict[str, Any]:
    """What two loaders made of the same people.

    Args:
      truth: the training annotations.
      ids: annotation ids [N].
      found: by side (two), of every sample's crop: `mean` and `std` of the pixels [N,3], `black`, the share of black
        pixels [N], `keypoints` [N,K,2] in crop pixels, also those without a label, `weights` of the targets [N,K], and
        `target`, the loss of empty heatmaps [N].
      size: (height, width) of the crops.

    Returns:
      `quantities`: by name, the mean of either side and the mean difference of a person's two samples, first side less
      second, in standard errors; `views`: by name, the largest distance between the two sides' distribution functions;
      and the distance that one of twenty pairs of samples of one distribution exceeds (Kolmogorov and Smirnov).
    """
    one, other = found
    last = np.array([size[1] - 1, size[0] - 1])
    quantities: dict[str, dict[str, np.ndarray]] = {}
    seen: dict[str, dict[str, np.ndarray]] = {}
    labelled = {p["id"]: np.reshape(p["keypoints"], (-1, 3))[:, 2] > 0 for p in truth["annotations"]}
    for side, a in found.items():
        inside = ((a["keypoints"] >= 0) & (a["keypoints"] <= last)).all(2)
        seen[side] = views(truth, ids, a["keypoints"], size)
        flags = np.array([labelled[int(number)] for number in ids])
        flags = np.where(seen[side]["flip"][:, None] > 0, flags[:, AIC.flip_indices], flags)
        values = {
            **{f"mean of {colour}": a["mean"][:, i] for i, colour in enumerate(("red", "green", "blue"))},
            **{f"deviation of {colour}": a["std"][:, i] for i, colour in enumerate(("red", "green", "blue"))},
            "share of black pixels": a["black"],
            "share of keypoints labelled and in the crop": (inside & flags).mean(1),
            "share of keypoints with a target": a["weights"].mean(1),
            "loss of empty heatmaps": a["target"],
            "share mirrored": seen[side]["flip"],
            "share rotated": (np.abs(seen[side]["rotation"]) > 0.1).astype(float),
        }
        for name, array in values.items():
            quantities.setdefault(name, {})[side] = array
    summary = {}
    for name, sides in quantities.items():
        difference = sides[one] - sides[other]
        error = difference.std(ddof=1) / np.sqrt(len(difference))
        means = {side: float(array.mean()) for side, array in sides.items()}
        summary[name] = {**means, "standard_errors": float(difference.mean() / error) if error else 0.0}
    distances = {name: distance(seen[one][name], seen[other][name]) for name in seen[one] if name != "flip"}
    return {
        "quantities": summary,
        "views": distances,
        "views_exceeded_once_in_20": 1.358 * float(np.sqrt(2 / len(ids))),
    }


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """The largest distance between the distribution functions of two samples."""
    at = np.concatenate([one, other])
    shares = [np.searchsorted(np.sort(sample), at, side="right") / len(sample) for sample in (one, other)]
    return float(np.abs(shares[0] - shares[1]).max())


def views(truth: Mapping[str, Any], ids: Sequence[int], keypoints: np.ndarray, size: Sequence[int]) -> dict[str, Any]:
    """The views of the padded boxes that crops show, from where all their keypoints went.

    Args:
      truth: the training annotations.
      ids: annotation ids [N].
      keypoints: [N,K,2] in crop pixels, also those that are not labelled.
      size: (height, width) of the crops.

    Returns:
      By name [N]: `flip` (0 or 1), `scale` (of the padded box with the crop's aspect ratio), `rotation` (degrees), and
      `shift x`, `shift y` (of the padded box's width and height).
    """
    height, width = size
    people = {person["id"]: person for person in truth["annotations"]}
    images = {image["id"]: image for image in truth["images"]}
    rows = []
    for number, there in zip(ids, keypoints.astype(np.float64), strict=True):
        person = people[int(number)]
        image_width, image_height = (images[person["image_id"]][key] for key in ("width", "height"))
        here = np.reshape(person["keypoints"], (-1, 3))[:, :2]
        mirrored = (here * [-1, 1] + [image_width - 1, 0])[AIC.flip_indices]
        fits = []
        for points in (here, mirrored):
            design = np.c_[points, np.ones(len(points))]
            fit = np.linalg.lstsq(design, there, rcond=None)[0]
            fits.append((np.abs(design @ fit - there).max(), fit))
        flip = int(fits[1][0] < fits[0][0])
        linear, offset = fits[flip][1][:2].T, fits[flip][1][2]
        x0, y0, w, h = person["bbox"]
        x1, y1 = min(x0 + w, image_width - 1), min(y0 + h, image_height - 1)
        x0, y0 = max(x0, 0), max(y0, 0)
        padded = np.array([x1 - x0, y1 - y0]) * 1.25
        shown = max(padded[0], padded[1] * width / height)
        center = np.array([x0 + x1, y0 + y1]) / 2
        if flip:
            center[0] = image_width - 1 - center[0]
        middle = np.linalg.solve(linear, np.array([width - 1, height - 1]) / 2 - offset)
        shift = (middle - center) / padded
        zoom = np.sqrt(np.linalg.det(linear))
        rotation = np.degrees(np.arctan2(linear[1, 0] - linear[0, 1], linear[0, 0] + linear[1, 1]))
        scale = np.sqrt((width - 1) * (height - 1) * width / height) / zoom / shown
        rows.append([flip, scale, rotation, *shift])
    names = ("flip", "scale", "rotation", "shift x", "shift y")
    return dict(zip(names, np.array(rows).T, strict=True))
