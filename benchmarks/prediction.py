"""Whether prediction is bound by decoding and the network, or by Python: images per second and CPU time of each part.

    python -m benchmarks.prediction [--images 1000] [--boxes 3] [--json prediction.json]

`predict` is the command's function, without pictures, with a tiny untrained network of 96x96 pixels, on JPEGs of
640x480. `decode and warp` makes the same crops by the same threads and drops them; `network` runs the same batches.
What they leave of predict's CPU time is Python: boxes, results, JSON. Peak memory is read after a quarter of the images
and at the end.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import resource
import tempfile
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from data_pipelines.processes import cores
from hrnet_jax import config as config_lib
from hrnet_jax.inference.ahead import ahead
from hrnet_jax.inference.boxes import BoxFile
from hrnet_jax.inference.predictor import Predictor
from hrnet_jax.inference.sources import Source
from hrnet_jax.models import abstract_model, initial_arrays, state_dict
from hrnet_jax.predict import predict
from hrnet_jax.weights.folder import Model

CONFIG = str(pathlib.Path(__file__).resolve().parent.parent / "configs/coco.py:runlocal")
SIZE = (480, 640)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--boxes", type=int, default=3, help="per image")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--json", default="", help="file for the numbers")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        numbers = measure(pathlib.Path(folder), arguments.images, arguments.boxes, arguments.batch_size)
    print(table(numbers))
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(numbers))


def measure(folder: pathlib.Path, images: int, boxes_per_image: int, batch_size: int) -> dict[str, Any]:
    """Writes the images below `folder` and measures the three parts, see the top of this file."""
    photos = folder / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    encoded = []
    for _ in range(8):
        coarse = rng.integers(0, 255, (SIZE[0] // 8, SIZE[1] // 8, 3), np.uint8)
        encoded.append(cv2.imencode(".jpg", cv2.resize(coarse, SIZE[::-1]))[1].tobytes())
    for number in range(images):
        (photos / f"{number:06}.jpg").write_bytes(encoded[number % len(encoded)])
    boxes = BoxFile(same=np.array([[40.0 + 150 * n, 30, 140, 400] for n in range(boxes_per_image)]))

    predictor = Predictor(_model(), batch_size=batch_size)
    source = Source.find(photos, folder / "out", 50.0)
    warm = Source(source.path, source.names[: 2 * batch_size], 2 * batch_size)
    predict(predictor, warm, folder / "out", boxes, None)  # compiles

    crops = np.zeros((batch_size, *predictor.input_size, 3), np.uint8)

    def network() -> None:
        for _ in range(-(-images * boxes_per_image // batch_size)):
            list(predictor._answers(iter(crops), heatmaps=False))

    def decode_and_warp() -> None:
        shots = source.shots(50.0, print)
        for _ in ahead(lambda shot: predictor.prepare(shot.read(), boxes.same, name=shot.where), shots):
            pass

    quarter = Source(source.path, source.names[: images // 4], images // 4)
    predict(predictor, quarter, folder / "out", boxes, None)
    memory = [_peak_megabytes()]
    parts = {
        "predict": _timed(lambda: predict(predictor, source, folder / "out", boxes, None)),
        "decode and warp": _timed(decode_and_warp),
        "network": _timed(network),
    }
    memory.append(_peak_megabytes())
    cpu = {name: part["cpu_seconds"] for name, part in parts.items()}
    return {
        "images": images,
        "boxes": images * boxes_per_image,
        "processors": cores(),
        **{name: {**part, "images_per_second": images / part["seconds"]} for name, part in parts.items()},
        "python_cpu_seconds": cpu["predict"] - cpu["decode and warp"] - cpu["network"],
        "peak_megabytes": dict(zip(("a quarter", "all"), memory, strict=True)),
    }


def table(numbers: dict[str, Any]) -> str:
    """The parts, their share and memory as Markdown."""
    parts = {name: numbers[name] for name in ("predict", "decode and warp", "network")}
    lines = [f"| {numbers['images']:,} images, {numbers['boxes']:,} boxes | s | CPU s |", "| :-- | --: | --: |"]
    lines += [f"| {name} | {part['seconds']:.2f} | {part['cpu_seconds']:.2f} |" for name, part in parts.items()]
    lines.append(f"| Python: the rest | | {numbers['python_cpu_seconds']:.2f} |")
    share = 1 - numbers["python_cpu_seconds"] / parts["predict"]["cpu_seconds"]
    rate, memory = parts["predict"]["images_per_second"], numbers["peak_megabytes"]
    lines.append(f"| images/s; CPU share of decoding, warping and the network | {rate:.0f} | {share:.2f} |")
    lines.append(f"| peak MB after a quarter; after all | {memory['a quarter']:.0f} | {memory['all']:.0f} |")
    return "\n".join(lines)


def _model() -> Model:
    config = config_lib.load_config(CONFIG)
    config.codec.input_size = (96, 96)
    params, stats = (initial_arrays(arrays, seed=0) for arrays in state_dict(abstract_model(config)))
    return Model(config, params, stats, {}, "untrained")


def _timed(function: Callable[[], Any]) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}


def _peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
