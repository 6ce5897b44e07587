"""Drawings of an evaluation's people: the prediction beside the annotation, for reports and predictions.png."""

from __future__ import annotations

import os
import pathlib

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

from data_pipelines import draw, transforms
from data_pipelines.instances import Instances
from eval.breakdown import Breakdown

TILE = (280, 210)  # height and width in pixels of one of the two drawings of a person
JUNK = 0.1  # predictions with a score below this share of the highest are left out: most lie on no person

_PADDING = 1.5  # of the drawn boxes
_GAP = 4  # pixels between prediction and annotation
_COLUMNS = 3
_BETWEEN = 12  # pixels between people
_LINE = 22  # pixels, height of a line of text
_TITLES = {
    "best": "Best by OKS. Left: prediction, right: annotation",
    "median": "Median",
    "worst": "Worst, without predictions of low scores",
}


def ranked(breakdown: Breakdown) -> Int[np.ndarray, " n"]:
    """Rows of the people with a prediction, by rising OKS; predictions of low scores (`JUNK`) are left out."""
    rows = np.flatnonzero(breakdown.detections >= 0)
    rows = rows[breakdown.scores[rows] >= JUNK * breakdown.scores[rows].max(initial=0)]
    return rows[np.argsort(breakdown.oks[rows], kind="stable")]


def examples(rows: Int[np.ndarray, " n"], worst: int, others: int) -> dict[str, list[int]]:
    """Of ranked rows, up to `worst` from the beginning, and of the rest `others` from the end and from the middle."""
    first, rest = rows[:worst], rows[worst:]
    best, rest = rest[::-1][:others], rest[: max(len(rest) - others, 0)]
    middle = max(0, (len(rest) - others) // 2)
    return {"worst": first.tolist(), "median": rest[middle : middle + others].tolist(), "best": best.tolist()}


def pair(image: UInt8[np.ndarray, "h w 3"], breakdown: Breakdown, row: int) -> UInt8[np.ndarray, "a b 3"]:
    """A person in a BGR image, as RGB: the prediction beside the annotation."""
    box = breakdown.people.boxes[row]
    corners = np.concatenate([box[:2], box[:2] + np.maximum(box[2:], 1)]).astype(np.float32)
    view = transforms.view_of_box(corners, _PADDING).fix_aspect(TILE)
    matrix = transforms.warp_matrix(view, TILE, "msra")
    crop = cv2.cvtColor(transforms.warp_image(image, matrix, TILE), cv2.COLOR_BGR2RGB)

    def panel(points: Float[np.ndarray, "k 2"], shown: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
        drawn = crop.copy()
        draw.skeleton(drawn, transforms.warp_points(np.nan_to_num(points), matrix), shown, breakdown.joints)
        return drawn

    truth, found = breakdown.people.keypoints[row], breakdown.found[row]
    gap = np.full((TILE[0], _GAP, 3), 255, np.uint8)
    ours = panel(found, np.isfinite(found).all(axis=-1))
    return np.concatenate([ours, gap, panel(truth[:, :2], truth[:, 2] > 0)], axis=1)


def contact_sheet(path: str | os.PathLike, breakdown: Breakdown, instances: Instances) -> None:
    """Writes a PNG of the best, median and worst predictions, each captioned and beside its annotation.

    Args:
      path: of the PNG.
      breakdown: of the evaluation. If no prediction lies near a person, the people are drawn without predictions.
      instances: provide the images.

    Raises:
      InputError: an image cannot be read, or the file cannot be written.
    """
    rows = ranked(breakdown)
    chosen = examples(rows if len(rows) else np.arange(len(breakdown)), _COLUMNS, _COLUMNS)
    row_of = {int(image_id): row for row, image_id in enumerate(instances.image_id)}
    width = _COLUMNS * (2 * TILE[1] + _GAP) + (_COLUMNS - 1) * _BETWEEN
    parts = []
    for kind, title in _TITLES.items():
        known = [row for row in chosen[kind] if int(breakdown.people.image_ids[row]) in row_of]
        if not known:
            continue
        tiles = []
        for row in known:
            place = row_of[int(breakdown.people.image_ids[row])]
            tile = pair(instances.open(place).pixels(), breakdown, row)
            name = pathlib.PurePath(instances.path(place)).name
            said = f"OKS {breakdown.oks[row]:.2f}, score {breakdown.scores[row]:.2f}"
            said = said if breakdown.detections[row] >= 0 else "no prediction near"
            tiles += [_captioned(tile, f"{name[-24:]}: {said}"), np.full((TILE[0] + _LINE, _BETWEEN, 3), 255, np.uint8)]
        line = np.concatenate(tiles[:-1], axis=1)
        line = np.pad(line, ((0, _BETWEEN), (0, width - line.shape[1]), (0, 0)), constant_values=255)
        parts += [_text(title, width, 0.55), line]
    draw.write_png(path, np.concatenate(parts))


def _captioned(picture: UInt8[np.ndarray, "h w 3"], text: str) -> UInt8[np.ndarray, "a b 3"]:
    return np.concatenate([picture, _text(text, picture.shape[1], 0.45)])


def _text(text: str, width: int, scale: float) -> UInt8[np.ndarray, "h w 3"]:
    """A line of black text on white; OpenCV's font has only ASCII."""
    line = np.full((_LINE, width, 3), 255, np.uint8)
    ascii_text = text.encode("ascii", "replace").decode()
    cv2.putText(line, ascii_text, (2, _LINE - 7), cv2.FONT_HERSHEY_SIMPLEX, scale, (0, 0, 0), 1, cv2.LINE_AA)
    return line
