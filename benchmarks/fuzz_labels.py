"""Damaged exports of labelling tools: each is imported, or ends in one line that says what is wrong.

    python -m benchmarks.fuzz_labels                     # 500 mutations of every format, a table
    python -m benchmarks.fuzz_labels --kind cvat --first 17 --count 1  # one case again

What counts as a failure is as in benchmarks/fuzz.py.
"""

from __future__ import annotations

import argparse
import html
import json
import pathlib
import random
import re
import shutil
import sys
import tempfile
from collections.abc import Callable

import cv2
import numpy as np

from benchmarks import fuzz
from benchmarks import fuzz_inputs as inputs
from data_pipelines.import_labels import import_labels
from data_pipelines.labels.keypoint_choice import Choice

Rng = random.Random

WIDTH, HEIGHT = 64, 48
NAMES = ("nose", "left_ear", "right_ear")
POINTS = ((30.0, 10.0, 2), (20.0, 20.0, 2), (40.0, 20.0, 1))
BOX = (16.0, 6.0, 28.0, 18.0)  # xywh

# fmt: off
_TOKENS = (
    "", "0", "-1", "1e999", "nan", "NaN", "inf", "1e308", "9" * 400, "x", "é", "左", "\0", ":", "[", "{", "- - -",
    "&a", "*a", "!!python", ",", ";", '"', "'", "\t", "../../x", "/etc/passwd", "C:\\x", "%s", "true", "null", "~",
    "2147483648", "0x10", "1_000", "<", "&amp;",
)
# fmt: on


class Exports:
    """A small valid export of every format, below a folder."""

    def __init__(self, root: pathlib.Path):
        self.root = root
        for write in FORMATS.values():
            folder = root / "valid" / write.__name__
            folder.mkdir(parents=True)
            write(folder)

    def damaged(self, rng: Rng, name: str) -> pathlib.Path:
        """A copy of an export in which a file or two are damaged."""
        copy = self.root / "damaged"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.root / "valid" / name, copy)
        files = sorted(path for path in copy.rglob("*") if path.is_file())
        texts = [path for path in files if path.suffix != ".png"]
        for _ in range(rng.choice([1, 1, 1, 2])):
            path = rng.choice(texts if rng.random() < 0.93 else files)
            data = path.read_bytes()
            if path.suffix == ".json" and rng.random() < 0.75:
                try:
                    data = inputs.mutated_json(rng, data)
                except ValueError:
                    data = inputs.mutated_bytes(rng, data)
            elif path.suffix != ".png" and rng.random() < 0.7:
                data = mutated_text(rng, data)
            else:
                data = inputs.mutated_bytes(rng, data)
            path.write_bytes(data)
        if rng.random() < 0.05:
            rng.choice(files).unlink()
        return copy


def mutated_text(rng: Rng, data: bytes) -> bytes:
    """A text with numbers or words replaced, or lines gone, doubled or moved."""
    text = data.decode("utf-8", "surrogateescape")
    for _ in range(rng.choice([1, 1, 2, 5])):
        if rng.random() < 0.7 and (found := list(re.finditer(r"-?\d+(\.\d+)?|\w+", text))):
            match = rng.choice(found)
            text = text[: match.start()] + rng.choice(_TOKENS) + text[match.end() :]
            continue
        lines = text.splitlines(keepends=True) or [""]
        a, b = rng.randrange(len(lines)), rng.randrange(len(lines))
        match rng.randrange(3):
            case 0:
                del lines[a]
            case 1:
                lines.insert(b, lines[a])
            case 2:
                lines[a], lines[b] = lines[b], lines[a]
        text = "".join(lines)
    return text.encode("utf-8", "surrogateescape")


def _pictures(folder: pathlib.Path, count: int = 3) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"img {number}.png" for number in range(count)]
    for name in names:
        cv2.imwrite(str(folder / name), np.full((HEIGHT, WIDTH, 3), 90, np.uint8))
    return names


def coco(folder: pathlib.Path) -> None:
    """COCO with two categories of one skeleton, one of them without a box."""
    names = _pictures(folder / "images")
    flat = [value for point in POINTS for value in point]
    images = [{"id": i, "file_name": f"images/{n}", "width": WIDTH, "height": HEIGHT} for i, n in enumerate(names)]
    people = [{"id": 7 + i, "image_id": i, "category_id": 1 + i % 2, "keypoints": flat, "iscrowd": 0} for i in range(3)]
    people[0] |= {"bbox": list(BOX), "area": 200.0, "num_keypoints": 3, "segmentation": [[1, 2, 3, 4, 5, 6]]}
    kinds = [{"id": i, "name": f"kind {i}", "keypoints": list(NAMES), "skeleton": [[1, 2], [1, 3]]} for i in (1, 2)]
    content = {"images": images, "annotations": people, "categories": [{"id": 0, "name": "all"}, *kinds]}
    (folder / "labels.json").write_text(json.dumps(content))


def ultralytics(folder: pathlib.Path) -> None:
    """A data.yaml with splits and flip_idx."""
    values = [(BOX[0] + BOX[2] / 2) / WIDTH, (BOX[1] + BOX[3] / 2) / HEIGHT, BOX[2] / WIDTH, BOX[3] / HEIGHT]
    values += [value for x, y, v in POINTS for value in (x / WIDTH, y / HEIGHT, v)]
    for split in ("train", "val"):
        names = _pictures(folder / "images" / split, 2)
        (folder / "labels" / split).mkdir(parents=True)
        for name in names:
            line = "0 " + " ".join(f"{value:g}" for value in values)
            (folder / "labels" / split / name.replace(".png", ".txt")).write_text(f"{line}\n{line}\n")
    paths = "path: ../data\ntrain: images/train\nval: images/val\n"
    (folder / "data.yaml").write_text(paths + "kpt_shape: [3, 3]\nflip_idx: [0, 2, 1]\nnames:\n  0: mouse\n")


def deeplabcut(folder: pathlib.Path) -> None:
    """Several animals and unique body parts, with a config.yaml."""
    names = _pictures(folder / "labeled-data/clip")
    columns = [(animal, part) for animal in ("a", "b") for part in NAMES] + [("single", "nest")]
    header = {"scorer": ["me"] * 14, "individuals": [], "bodyparts": [], "coords": ["x", "y"] * 7}
    for animal, part in columns:
        header["individuals"] += [animal] * 2
        header["bodyparts"] += [part] * 2
    rows = [",".join([key, "", "", *values]) for key, values in header.items()]
    cells = [f"{x},{y}" for x, y, _ in POINTS]
    rows += [",".join(["labeled-data", "clip", name, *cells, ",", *cells[1:], "9,9"]) for name in names]
    (folder / "labeled-data/clip/CollectedData_me.csv").write_text("\n".join(rows) + "\n")
    (folder / "config.yaml").write_text("Task: t\nskeleton:\n- - nose\n  - left_ear\n- - nose\n  - right_ear\n")


def labelme(folder: pathlib.Path) -> None:
    """Rectangles and points, tied by group and by place."""
    x, y, w, h = BOX
    for number, name in enumerate(_pictures(folder)):
        group = None if number else 0
        shapes = [{"label": "mouse", "points": [[x, y], [x + w, y + h]], "group_id": group, "shape_type": "rectangle"}]
        for part, (px, py, _) in zip(NAMES, POINTS, strict=True):
            shapes.append({"label": part, "points": [[px, py]], "group_id": group, "shape_type": "point", "flags": {}})
        content = {"version": "5.4", "flags": {}, "shapes": shapes, "imagePath": name, "imageData": None}
        content |= {"imageHeight": HEIGHT, "imageWidth": WIDTH}
        (folder / name.replace(".png", ".json")).write_text(json.dumps(content))
    (folder / "classes.yaml").write_text("classes:\n  mouse:\n    - nose\n    - left_ear\n    - right_ear\n")


def label_studio(folder: pathlib.Path) -> None:
    """Rectangles and keypoints, tied by relation, as parent, and by place."""
    tasks = []
    x, y, w, h = (100 * value / side for value, side in zip(BOX, (WIDTH, HEIGHT) * 2, strict=True))
    for number, name in enumerate(_pictures(folder)):
        size = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
        box = {"x": x, "y": y, "width": w, "height": h, "rotation": 0, "rectanglelabels": ["mouse"]}
        results = [{**size, "id": "box", "type": "rectanglelabels", "value": box}]
        for part, (px, py, _) in zip(NAMES, POINTS, strict=True):
            value = {"x": 100 * px / WIDTH, "y": 100 * py / HEIGHT, "width": 0.5, "keypointlabels": [part]}
            results.append({**size, "id": part, "type": "keypointlabels", "value": value})
            if number == 0:
                results.append({"from_id": part, "to_id": "box", "type": "relation", "direction": "right"})
            elif number == 1:
                results[-1]["parentID"] = "box"
        annotation = {"id": number, "result": results, "was_cancelled": False}
        tasks.append({"id": number, "annotations": [annotation], "data": {"image": f"/data/upload/1/0123abcd-{name}"}})
    (folder / "export.json").write_text(json.dumps(tasks))


def cvat(folder: pathlib.Path) -> None:
    """Skeletons with boxes in images, and a track."""
    names = _pictures(folder / "images")
    x, y, w, h = BOX
    points = "".join(
        f'<points label="{part}" outside="0" occluded="{int(v == 1)}" points="{px},{py}"/>'
        for part, (px, py, v) in zip(NAMES, POINTS, strict=True)
    )
    images = "".join(
        f'<image id="{i}" name="{name}" width="{WIDTH}" height="{HEIGHT}">\n'
        f'<box label="mouse" xtl="{x}" ytl="{y}" xbr="{x + w}" ybr="{y + h}" group_id="{i}"/>\n'
        f'<skeleton label="parts" group_id="{i}">\n{points}\n</skeleton>\n</image>\n'
        for i, name in enumerate(names)
    )
    circles = '<circle data-node-id="1" data-label-name="nose"><circle data-node-id="2" data-label-name="left_ear">'
    svg = html.escape(circles + '<line data-node-from="1" data-node-to="2">')
    labels = f"<label><name>parts</name><type>skeleton</type><svg>{svg}</svg></label>" + "".join(
        f"<label><name>{part}</name><parent>parts</parent></label>\n" for part in NAMES
    )
    track = f'<track id="0" label="parts"><skeleton frame="5" keyframe="1" outside="0">{points}</skeleton></track>\n'
    meta = f"<meta><task><labels>{labels}</labels></task></meta>"
    text = f'<?xml version="1.0" encoding="utf-8"?>\n<annotations>{meta}\n{images}{track}</annotations>'
    (folder / "annotations.xml").write_text(text)


def mpii(folder: pathlib.Path) -> None:
    """The list of HRNet."""
    names = _pictures(folder)
    people = [
        {
            "image": name,
            "joints": [[3.0 + i, 4.0 + 2 * i] for i in range(16)],
            "joints_vis": [1] * 15 + [0],
            "center": [20.0, 20.0],
            "scale": 0.2,
        }
        for name in names
    ]
    (folder / "train.json").write_text(json.dumps(people))


FORMATS: dict[str, Callable[[pathlib.Path], None]] = {
    write.__name__: write for write in (coco, ultralytics, deeplabcut, labelme, label_studio, cvat, mpii)
}


def kind(name: str) -> Callable[[Rng, Exports], object]:
    """A case of benchmarks/fuzz.py: an import of a damaged export of a format."""

    def case(rng: Rng, exports: Exports) -> object:
        source, output = exports.damaged(rng, name), exports.root / "output"
        shutil.rmtree(output, ignore_errors=True)
        choice = Choice(pairs="none") if rng.random() < 0.3 else None
        return import_labels(source, output, choice=choice)

    case.__name__ = name
    return case


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=list(FORMATS), help="one format only")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--count", type=int, default=500, help="cases of each format")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hrnet_jax_fuzz_") as root:
        exports = Exports(pathlib.Path(root))
        names = [name for name in FORMATS if arguments.kind in (None, name)]
        numbers = range(arguments.first, arguments.first + arguments.count)
        cases = [fuzz.run(kind(name), number, exports) for name in names for number in numbers]
    fuzz.report(cases)
    sys.exit(any(case.failed for case in cases))


if __name__ == "__main__":
    main()
