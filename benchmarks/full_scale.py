"""How fast, and in how much memory, training finds its first batch in COCO and AI Challenger at their true size.

    python -m benchmarks.full_scale --root /tmp/full_scale --json full_scale.json

writes synthetic annotation files as large as the real ones (the people of COCO's with segmentation polygons) with
links to a few small images, then starts the recipe's input pipeline twice, each time in a process of its own: once
without an index, once with the one that the first start left. Memory is the proportional set size of the whole
process tree, which counts shared pages once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import cv2
import numpy as np

from configs import coco_aic_merge
from data_pipelines.pipeline import TrainData, iterate
from hrnet_jax.codecs import create_codec

COCO_IMAGES, COCO_PEOPLE, COCO_LABELLED = 118_287, 262_465, 149_813
AIC_IMAGES, AIC_PEOPLE = 210_000, 378_352
SIZE = (480, 640)


def write_files(root: pathlib.Path) -> None:
    """Writes both annotation files and the links; deterministic."""
    config = coco_aic_merge.get_config().data.train
    rng = np.random.default_rng(0)
    pictures = write_pictures(root)

    names = [f"{number:012d}.jpg" for number in range(COCO_IMAGES)]
    images = [
        {"id": i, "file_name": name, "height": SIZE[0], "width": SIZE[1], "license": 1} for i, name in enumerate(names)
    ]
    with _open(root / config.coco.annotations) as file:
        file.write(f'{{"info": {{}}, "images": {json.dumps(images)}, "annotations": [')
        file.write(", ".join(_coco_people(rng)))
        file.write('], "categories": [{"id": 1, "name": "person"}]}')
    link_pictures(pictures, root / config.coco.images, names)

    names = [hashlib.sha1(str(number).encode()).hexdigest() for number in range(AIC_IMAGES)]
    with _open(root / config.aic.annotations) as file:
        file.write("[" + ", ".join(_aic_images(rng, names)) + "]")
    link_pictures(pictures, root / config.aic.images, [f"{name}.jpg" for name in names])


def write_pictures(root: pathlib.Path) -> list[pathlib.Path]:
    """Writes some JPEGs of about 160 KB, as COCO's are."""
    root.mkdir(parents=True, exist_ok=True)
    pictures = [root / f"picture{number}.jpg" for number in range(12)]
    rng = np.random.default_rng(1)
    for picture in pictures:
        coarse = rng.integers(0, 256, (120, 160, 3), np.uint8)
        image = cv2.resize(coarse, SIZE[::-1], interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(picture), image, [cv2.IMWRITE_JPEG_QUALITY, 92])
    return pictures


def _open(path: pathlib.Path):
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("w")


def link_pictures(pictures: list[pathlib.Path], folder: pathlib.Path, names: list[str]) -> None:
    """Makes image files of those names, all links to a few."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        (folder / name).symlink_to(pictures[number % len(pictures)].resolve())


def _coco_people(rng: np.random.Generator) -> Iterator[str]:
    image_ids = np.sort(rng.integers(0, COCO_IMAGES, COCO_PEOPLE)).tolist()
    labelled = rng.permutation(COCO_PEOPLE) < COCO_LABELLED
    for number, image_id in enumerate(image_ids):
        box = random_box(rng)
        points = random_points(rng, box, 17) if labelled[number] else [0] * 51
        polygon = np.round(_inside(rng, box, rng.integers(10, 90)).astype(float), 2).ravel().tolist()
        yield json.dumps(
            {
                "segmentation": [polygon],
                "num_keypoints": sum(v > 0 for v in points[2::3]),
                "area": box[2] * box[3],
                "iscrowd": 0,
                "keypoints": points,
                "image_id": image_id,
                "bbox": box,
                "category_id": 1,
                "id": number,
            }
        )


def _aic_images(rng: np.random.Generator, names: list[str]) -> Iterator[str]:
    counts = np.bincount(np.r_[np.arange(AIC_IMAGES), rng.integers(0, AIC_IMAGES, AIC_PEOPLE - AIC_IMAGES)])
    for name, count in zip(names, counts, strict=True):
        boxes, points = {}, {}
        for human in range(1, count + 1):
            box = [int(v) for v in random_box(rng)]
            boxes[f"human{human}"] = [box[0], box[1], box[0] + box[2], box[1] + box[3]]
            labels = np.array(random_points(rng, box, 14)).reshape(14, 3)
            labels[:, 2] = 3 - labels[:, 2]
            points[f"human{human}"] = labels.ravel().tolist()
        url = f"http://www.sinaimg.cn/dy/slidenews/4_img/2013_47/704_1154733_{name[:6]}.jpg"
        yield json.dumps(
            {"url": url, "image_id": name, "keypoint_annotations": points, "human_annotations": boxes},
        )


def random_box(rng: np.random.Generator) -> list[float]:
    """A box (xywh) within an image."""
    width, height = rng.uniform(30, 300), rng.uniform(60, 400)
    x, y = rng.uniform(0, SIZE[1] - width), rng.uniform(0, SIZE[0] - height)
    return [round(float(v), 2) for v in (x, y, width, height)]


def _inside(rng: np.random.Generator, box: list[float], count: int) -> np.ndarray:
    return rng.random((count, 2)) * box[2:] + box[:2]


def random_points(rng: np.random.Generator, box: list[float], count: int) -> list[int]:
    """Labelled keypoints (x, y, visibility) within a box."""
    labels = np.empty((count, 3), int)
    labels[:, :2] = _inside(rng, box, count) + 1
    labels[:, 2] = rng.integers(1, 3, count)
    return labels.ravel().tolist()


def first_batch(root: pathlib.Path, workers: int) -> dict[str, float]:
    """Starts the recipe's pipeline; returns seconds until the people are known and until the first batch is there."""
    config = coco_aic_merge.get_config()
    config.cache_dir, config.data.root = str(root / "cache"), str(root)
    start = time.monotonic()
    data = TrainData.load(config, create_codec(config.codec))
    known = time.monotonic() - start
    batches = iterate(data.batches(64), threads=2, workers=workers)
    assert next(batches)["image"].shape == (64, 256, 192, 3)
    there = time.monotonic() - start
    for _ in range(3 * workers):  # until every worker has been seen at work
        next(batches)
    batches.close()
    return {"people": len(data), "seconds_people": known, "seconds_first_batch": there}


def measure(root: pathlib.Path, workers: int) -> dict[str, float]:
    """`first_batch` in a process of its own, with its peak memory and its start-up."""
    command = [sys.executable, "-m", "benchmarks.full_scale", "--root", str(root), "--workers", str(workers), "--child"]
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = 0

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            peak = max(peak, tree_memory(process.pid))
            time.sleep(0.1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    output = process.communicate()[0]
    seconds = time.monotonic() - start
    watcher.join()
    if process.returncode:
        raise SystemExit(f"the pipeline's process ended with {process.returncode}")
    return {**json.loads(output), "seconds_process": seconds, "peak_gib": peak / 2**30}


def tree_memory(pid: int) -> int:
    """Proportional set size of a process and its descendants, bytes."""
    total = 0
    try:
        for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += 1024 * int(line.split()[1])
        for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
            total += sum(tree_memory(int(child)) for child in (task / "children").read_text().split())
    except (OSError, ProcessLookupError):
        pass
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=pathlib.Path, required=True, help="folder for about 0.5 GB of files")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--json", type=pathlib.Path, help="file for the figures")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(first_batch(arguments.root, arguments.workers)))
        return
    marker = arguments.root / "written"
    if not marker.exists():
        write_files(arguments.root)
        marker.touch()
    for old in sorted((arguments.root / "cache").glob("annotations/*/*")):
        old.unlink()
    for old in (arguments.root / "cache").glob("annotations/*"):
        old.rmdir()
    files = {p.name: p.stat().st_size for p in arguments.root.rglob("*annotations*/*.json")}
    files |= {p.name: p.stat().st_size for p in arguments.root.rglob("keypoint_train_annotations_*.json")}
    starts = {"first start": measure(arguments.root, arguments.workers)}
    starts["second start"] = measure(arguments.root, arguments.workers)
    sizes = ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in files.items())
    print(f"{sizes}; {arguments.workers} workers\n")
    print("| | people | annotations loaded | first batch | peak memory |\n| :-- | --: | --: | --: | --: |")
    for name, m in starts.items():
        seconds = f"{m['seconds_people']:.1f} s | {m['seconds_first_batch']:.1f} s"
        print(f"| {name} | {m['people']:,} | {seconds} | {m['peak_gib']:.2f} GiB |")
    if arguments.json:
        record = {"files": files, "workers": arguments.workers, "load": os.getloadavg()[0], "starts": starts}
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
