"""Draws docs/images/people.png: images of the synthetic validation set with the predictions of the quickstart's model.

python docs/picture.py
"""

from __future__ import annotations

import json
import pathlib

import numpy as np
import PIL.Image

import hrnet_jax

ROOT = pathlib.Path("runs/synthetic/coco")
TARGET = pathlib.Path(__file__).parent / "images/people.png"
NAMES = ("000010000022.jpg", "000010000012.jpg", "000010000040.jpg", "000010000044.jpg")
COLOURS = 200  # of the palette


def main() -> None:
    """Predicts in the annotated boxes and writes the picture."""
    content = json.loads((ROOT / "annotations/person_keypoints_val2017.json").read_text())
    ids = {image["file_name"]: image["id"] for image in content["images"]}
    boxes = {
        name: [a["bbox"] for a in content["annotations"] if a["image_id"] == ids[name] and a["num_keypoints"]]
        for name in NAMES
    }
    paths = [ROOT / "val2017" / name for name in NAMES]
    predictor = hrnet_jax.load("runs/quickstart")
    people = predictor(paths, [boxes[name] for name in NAMES])
    drawn = [predictor.draw(path, found) for path, found in zip(paths, people, strict=True)]
    gap = np.full((drawn[0].shape[0], 4, 3), 255, np.uint8)
    strip = np.concatenate([part for picture in drawn for part in (gap, picture)][1:], axis=1)
    PIL.Image.fromarray(strip).quantize(COLOURS, dither=PIL.Image.Dither.NONE).save(TARGET, optimize=True)


if __name__ == "__main__":
    main()
