"""What a training sample costs one core, stage by stage, and what two workers make of two cores.

    python -m benchmarks.input_pipeline --root DATA --json input_pipeline.json

`DATA` is laid out like the recipes' (coco/...). The images are prepared into records first, in a temporary folder.
Times are in milliseconds and in *decodes*: multiples of the time in which OpenCV decodes the same images, from memory,
in the same run. Stages are measured one by one over the same samples; `sample` is the whole of it and is measured by
itself. Rounds alternate between all that is measured; medians are shown.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import cv2
import grain
import jax
import numpy as np

from configs import coco
from data_pipelines import prepare, transforms
from data_pipelines.images import read_image
from data_pipelines.pipeline import TrainData, iterate, stack
from data_pipelines.processes import cores
from hrnet_jax.codecs import create_codec

BATCH = 64
# COCO's and AI Challenger's people, for what depends on their number.
FULL_SIZE = 149_813 + 378_352


def load(root: pathlib.Path, prepared: pathlib.Path | None = None) -> TrainData:
    """The recipe's training samples from raw files, or from a prepared folder."""
    config = coco.get_config()
    config.data.root = str(root)
    if prepared:
        config.data.format = "tfds"
        config.data.train.coco.prepared = str(prepared.absolute())
    return TrainData.load(config, create_codec(config.codec))


def stages(data: TrainData, rows: list[int]) -> dict[str, Callable[[], Any]]:
    """Functions that each run one stage for all the samples; inputs are computed beforehand."""
    people = data.sources[0]
    samples = [data.sample(i, row) for i, row in enumerate(rows)]
    pictures = [people.open(row) for row in rows]
    views = [transforms.view_of_box(np.array([0, 0, 100, 200], np.float32)).fix_aspect(data.input_size)] * len(rows)
    rng = np.random.default_rng(0)
    views = [
        transforms.random_view(rng, transforms.view_of_box(box), data.augmentation(0)).fix_aspect(data.input_size)
        for box in (np.r_[b[:2], b[:2] + b[2:]] for b in people.bbox[rows])
    ]
    matrices = [transforms.warp_matrix(view, data.input_size, data.warp) for view in views]
    regions = [transforms.shown_region(matrix, data.input_size) for matrix in matrices]
    pixels = [picture.region(*region)[0] for picture, region in zip(pictures, regions, strict=True)]

    def augment() -> None:
        for row, box in zip(rows, people.bbox[rows], strict=True):
            generator = np.random.Generator(np.random.Philox(key=0, counter=[0, 0, 0, row]))
            labels = people.points(row)
            view = transforms.view_of_box(np.r_[box[:2], box[:2] + box[2:]])
            half = transforms.random_half_body(
                generator, view, labels[:, :2], labels[:, 2], data.keypoints, data.augmentation(0).half_body
            )
            view = transforms.random_view(generator, half, data.augmentation(0)).fix_aspect(data.input_size)
            transforms.warp_points(labels[:, :2], transforms.warp_matrix(view, data.input_size, data.warp))

    def warp() -> None:
        for image, matrix in zip(pixels, matrices, strict=True):
            cv2.cvtColor(transforms.warp_image(image, matrix, data.input_size), cv2.COLOR_BGR2RGB)

    def batch() -> None:
        for start in range(0, len(samples), BATCH):
            stack(samples[start : start + BATCH])

    batches = [stack(samples[start : start + BATCH]) for start in range(0, len(samples), BATCH)]
    return {
        "open": lambda: [people.open(row) for row in rows],
        "decode": lambda: [p.region(*region) for p, region in zip(map(people.open, rows), regions, strict=True)],
        "augment": augment,
        "warp": warp,
        "sample": lambda: [data.sample(i, row) for i, row in enumerate(rows)],
        "batch": batch,
        "transfer": lambda: [jax.block_until_ready(jax.device_put(b["image"])) for b in batches],
    }


def measure(root: pathlib.Path, prepared: dict[str, pathlib.Path], rounds: int, count: int) -> dict[str, Any]:
    """Milliseconds a sample by source and stage, and of OpenCV decoding the same images."""
    sources = {"files": load(root), **{f"records, {mode}": load(root, folder) for mode, folder in prepared.items()}}
    files = sources["files"]
    order = files.order()
    rows = [order[i] for i in range(count)]
    encoded = [np.fromfile(files.sources[0].path(row), np.uint8) for row in rows]
    full_order = grain.MapDataset.range(FULL_SIZE).seed(0).shuffle().repeat()
    shared = {
        "decode by OpenCV": lambda: [cv2.imdecode(data, cv2.IMREAD_COLOR) for data in encoded],
        "read the file": lambda: [pathlib.Path(files.sources[0].path(row)).read_bytes() for row in rows],
        "shuffle": lambda: [full_order[i] for i in range(count)],
    }
    timed = {("", stage): run for stage, run in shared.items()}
    timed |= {(name, stage): run for name, data in sources.items() for stage, run in stages(data, rows).items()}
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in timed}
    for _ in range(rounds):
        for key, run in timed.items():
            start = time.perf_counter()
            run()
            seconds[key].append(time.perf_counter() - start)
    decode = np.array(seconds["", "decode by OpenCV"])
    return {
        " ".join(key).strip(): {
            "milliseconds": float(np.median(values)) / count * 1e3,
            "decodes": float(np.median(np.array(values) / decode)),
        }
        for key, values in seconds.items()
    }


def parallel(data: TrainData, batches: int) -> dict[str, float]:
    """Samples a second by threads and by worker processes, each after a warm-up."""
    rates = {}
    for kind, threads, workers in (
        ("1 thread", 1, 0),
        ("2 threads", 2, 0),
        ("1 process", 1, 1),
        ("2 processes", 1, 2),
    ):
        stream = iterate(data.batches(BATCH), threads=threads, workers=workers)
        for _ in range(12):  # past the batches that threads compute while processes start
            next(stream)
        start = time.perf_counter()
        for _ in range(batches):
            next(stream)
        rates[kind] = batches * BATCH / (time.perf_counter() - start)
        stream.close()
    return rates


def row(name: str, stages: list[dict[str, float]]) -> str:
    """A row of the table; several stages share the cells."""
    cells = [" / ".join(f"{stage[key]:.2f}" for stage in stages) for key in ("milliseconds", "decodes")]
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=pathlib.Path, required=True)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batches", type=int, default=60, help="of 64 samples, for the parallel rates")
    parser.add_argument("--json", type=pathlib.Path, help="file for the figures")
    arguments = parser.parse_args()
    cv2.setNumThreads(0)
    source = coco.get_config().data.train.coco
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        prepared = {}
        for mode in ("cells", "original"):
            prepared[mode] = pathlib.Path(folder) / f"coco_{mode}"
            prepare.prepare(
                arguments.root / source.annotations,
                arguments.root / source.images,
                source.keypoints,
                prepared[mode],
                original=mode == "original",
            )
        figures = measure(arguments.root, prepared, arguments.rounds, arguments.samples)
        rates = {"files": parallel(load(arguments.root), arguments.batches)}
        rates["records, cells"] = parallel(load(arguments.root, prepared["cells"]), arguments.batches)
    image = read_image(next(iter((arguments.root / source.images).iterdir())))
    print(f"{arguments.samples} samples of 256x192; {cores()} cores; load before {load_before:.2f}")
    print(f"(an image of the folder: {image.shape[1]}x{image.shape[0]})\n")
    print("| per sample | ms | decodes |\n| :-- | --: | --: |")
    print(row("decode by OpenCV", [figures["decode by OpenCV"]]))
    for kind in ("files", "records, cells", "records, original"):
        print(row(kind, [figures[f"{kind} sample"]]))
        inner = ("decode", "augment", "warp") if kind == "files" else ("open", "decode", "augment", "warp")
        names = " / ".join({"open": "read and parse"}.get(stage, stage) for stage in inner)
        print(row(f"of that: {names}", [figures[f"{kind} {stage}"] for stage in inner]))
    print(f"\n| samples/s | {' | '.join(rates['files'])} |\n| :-- |{' --: |' * len(rates['files'])}")
    for name, rate in rates.items():
        bases = {kind: rate["1 thread" if "thread" in kind else "1 process"] for kind in rate}
        cells = [f"{value:.0f} (x {value / bases[kind]:.2f})" for kind, value in rate.items()]
        print(f"| {name} | {' | '.join(cells)} |")
    projected = " and ".join(f"{8 * rate['2 processes']:,.0f} from {name}" for name, rate in rates.items())
    print(f"\nSixteen such cores, at the rate of two processes, would reach {projected}; not measured.")
    if arguments.json:
        record = {
            "samples": arguments.samples,
            "cores": cores(),
            "load": load_before,
            "stages": figures,
            "rates": rates,
        }
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
