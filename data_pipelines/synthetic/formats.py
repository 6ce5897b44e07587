"""A scene as COCO and AI Challenger annotations, and the boxes a person detector might return for it."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Int

from data_pipelines.keypoints import AIC, COCO, COCO_AIC, KeypointMapping
from data_pipelines.synthetic.render import Box, Person, Scene

Record = dict[str, Any]

PERSON = 1  # The category id.
COCO_CATEGORIES: list[Record] = [
    {
        "supercategory": "person",
        "id": PERSON,
        "name": "person",
        "keypoints": list(COCO.names),
        "skeleton": [[a + 1, b + 1] for a, b in COCO.skeleton_indices],
    }
]


def coco_annotations(scene: Scene, image_id: int) -> list[Record]:
    """COCO person annotations of a scene: people from back to front, then the crowd if there is one.

    `area` counts the pixels where the person is seen, `segmentation` outlines them; `bbox` (x, y, width, height) holds
    the silhouette within the image, seen and occluded. People too small or too hidden to label, and crowds, have
    num_keypoints 0. Annotation ids are image_id * 100 + position.
    """
    records = []
    for person in scene.people:
        keypoints = _mapped(_TO_COCO, person) if person.labelled else np.zeros((len(COCO), 3), int)
        records.append(
            {
                "segmentation": _polygons(person.mask, person.box),
                "num_keypoints": int((keypoints[:, 2] > 0).sum()),
                "area": float(person.mask.sum()),
                "iscrowd": 0,
                "keypoints": keypoints.ravel().tolist(),
                "bbox": [float(value) for value in person.box],
            }
        )
    if scene.crowd is not None:
        x, y, width, height = cv2.boundingRect(scene.crowd.astype(np.uint8))
        records.append(
            {
                "segmentation": _run_lengths(scene.crowd),
                "num_keypoints": 0,
                "area": float(scene.crowd.sum()),
                "iscrowd": 1,
                "keypoints": [0] * (3 * len(COCO)),
                "bbox": [float(value) for value in (x, y, width, height)],
            }
        )
    common = {"image_id": image_id, "category_id": PERSON}
    return [record | common | {"id": image_id * 100 + i} for i, record in enumerate(records)]


def aic_record(scene: Scene, image_id: str, url: str = "") -> Record:
    """One entry of AI Challenger's native annotation list: its labelled people, from back to front.

    Boxes are (x1, y1, x2, y2) of the first and last pixels; visibility is 1 visible, 2 occluded, 3 absent (0, 0, 3).
    """
    boxes, keypoints = {}, {}
    for number, person in enumerate((p for p in scene.people if p.labelled), start=1):
        x, y, width, height = person.box
        boxes[f"human{number}"] = [x, y, x + width - 1, y + height - 1]
        points = _mapped(_TO_AIC, person)
        points[:, 2] = 3 - points[:, 2]
        keypoints[f"human{number}"] = points.ravel().tolist()
    return {"image_id": image_id, "human_annotations": boxes, "keypoint_annotations": keypoints, "url": url}


def detections(
    rng: np.random.Generator, annotations: list[Record], image_id: int, width: int, height: int
) -> list[Record]:
    """Boxes as from a person detector, from an image's COCO annotations.

    19 of 20 people are found, with a box a little off; each has some worse boxes of lower score besides, and every
    image has false boxes, most of them of a score near zero. Best score first.
    """
    boxes: list[tuple[list[float], float]] = []
    for annotation in annotations:
        clear = annotation["num_keypoints"] > 0
        if annotation["iscrowd"] or rng.random() < (0.05 if clear else 0.5):
            continue
        boxes.append(
            (_jittered(rng, annotation["bbox"], 0.035), rng.beta(12, 0.6) if clear else rng.uniform(0.05, 0.6))
        )
        for _ in range(rng.poisson(1.8)):
            boxes.append((_jittered(rng, annotation["bbox"], 0.12), 0.4 * rng.beta(0.6, 3)))
    for _ in range(rng.poisson(4)):
        size = np.exp(rng.uniform(np.log(4), np.log(0.8 * min(width, height)), 2))
        corner = rng.uniform(0, 1, 2) * np.maximum((width, height) - size, 1)
        boxes.append(([*corner.tolist(), *size.tolist()], 0.5 * rng.beta(0.3, 6)))
    boxes.sort(key=lambda pair: -pair[1])
    return [
        {
            "bbox": [round(value, 4) for value in box],
            "category_id": PERSON,
            "image_id": image_id,
            "score": round(float(score), 6),
        }
        for box, score in boxes
    ]


_TO_COCO = KeypointMapping(COCO_AIC, COCO)
_TO_AIC = KeypointMapping(COCO_AIC, AIC)


def _mapped(mapping: KeypointMapping, person: Person) -> Int[np.ndarray, "keypoints 3"]:
    return mapping.apply(person.keypoints.astype(float)).astype(int)


def _polygons(mask: Bool[np.ndarray, "height width"], box: Box) -> list[list[int]]:
    """Outlines of the mask's regions as COCO polygons; a mask too thin for one gets its box."""
    x, y, width, height = box
    contours, _ = cv2.findContours(
        mask[y : y + height, x : x + width].astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=(x, y)
    )
    polygons: list[list[int]] = [contour.astype(int).ravel().tolist() for contour in contours if len(contour) >= 3]
    return polygons or [[x, y, x + width, y, x + width, y + height, x, y + height]]


def _run_lengths(mask: Bool[np.ndarray, "height width"]) -> Record:
    """COCO's uncompressed run lengths, down the columns, the first run counting zeros."""
    flat = np.concatenate([[False], mask.ravel(order="F")])
    edges = np.flatnonzero(np.diff(flat))
    counts = np.diff(np.concatenate([[0], edges, [mask.size]]))
    return {"counts": counts.tolist(), "size": list(mask.shape)}


def _jittered(rng: np.random.Generator, box: list[float], amount: float) -> list[float]:
    """The box with each side moved by a normally distributed share of its length."""
    x, y, width, height = box
    moves = rng.normal(0, amount, 4) * (width, height, width, height)
    x0, y0, x1, y1 = np.array([x, y, x + width, y + height]) + moves
    return [float(x0), float(y0), float(max(x1 - x0, 2.0)), float(max(y1 - y0, 2.0))]
