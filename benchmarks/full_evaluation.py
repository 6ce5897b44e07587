"""An evaluation as large as COCO val2017's: 104,125 detected boxes on 5,000 images, by one host and by two.

    python -m benchmarks.full_evaluation --root /tmp/full_evaluation --json full_evaluation.json

The boxes and people are drawn at random and the network is a tiny one with random weights on 64x64 crops: what is
measured is everything around it. One host has two devices, two hosts (processes on this machine) have one each; they
must predict the same people in the same order, which may differ by rounding.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import socket
import subprocess
import sys
import time
from typing import Any

import cv2
import numpy as np

from benchmarks.full_scale import SIZE, link_pictures, random_box, random_points, write_pictures
from configs import coco
from data_pipelines.pipeline import EvalData
from hrnet_jax.codecs import create_codec

IMAGES, BOXES, PEOPLE = 5_000, 104_125, 6_352


def config_at(root: pathlib.Path) -> Any:
    """The recipe with a tiny network."""
    config = coco.get_config("runlocal")
    config.data.root = str(root)
    config.eval.batch_size = 256
    return config


def write_files(root: pathlib.Path) -> None:
    """Writes annotations, boxes and links to images; deterministic."""
    source, rng = config_at(root).data.eval, np.random.default_rng(0)
    names = [f"{number:012d}.jpg" for number in range(IMAGES)]
    link_pictures(write_pictures(root), root / source.images, names)
    people = []
    for number in range(PEOPLE):
        box = random_box(rng)
        facts = {"id": number, "image_id": int(rng.integers(IMAGES)), "category_id": 1, "iscrowd": 0}
        points = {"keypoints": random_points(rng, box, 17), "num_keypoints": 17}
        people.append({**facts, **points, "bbox": box, "area": box[2] * box[3] / 2})
    images = [{"id": i, "file_name": name, "height": SIZE[0], "width": SIZE[1]} for i, name in enumerate(names)]
    categories = [{"id": 1, "name": "person"}]
    boxes = [
        {"image_id": int(rng.integers(IMAGES)), "category_id": 1, "bbox": random_box(rng), "score": float(rng.random())}
        for _ in range(BOXES)
    ]
    for path, content in (
        (source.annotations, {"images": images, "annotations": people, "categories": categories}),
        (source.boxes, boxes),
    ):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(json.dumps(content))


def evaluate(root: pathlib.Path, output: pathlib.Path) -> dict[str, float]:
    """Evaluates in this process; writes keypoints.json."""
    from eval import coco as coco_eval
    from hrnet_jax.inference.evaluator import Evaluator
    from hrnet_jax.mesh import create_mesh, is_main_host
    from hrnet_jax.models import create_model, state_dict

    start = time.monotonic()
    config = config_at(root)
    model = create_model(config)
    evaluator = Evaluator(config, create_mesh())
    loaded = time.monotonic() - start
    result = evaluator(*state_dict(model))
    assert result is not None
    metrics, predictions = result
    if is_main_host():
        output.mkdir(parents=True, exist_ok=True)
        coco_eval.write_results(output / "keypoints.json", predictions.to_results())
    seconds = {"load": loaded, "keypoints": metrics["seconds_keypoints"], "AP": metrics["seconds_AP"]}
    return {**seconds, "all": time.monotonic() - start, "images": metrics["images"], "boxes": metrics["instances"]}


def run(root: pathlib.Path, hosts: int) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Evaluates on that many hosts; returns host 0's seconds and the content of keypoints.json."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = []
    for host in range(hosts):
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(2 // hosts)}
        environment |= {
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": str(hosts),
            "JAX_PROCESS_ID": str(host),
        }
        command = [sys.executable, "-m", "benchmarks.full_evaluation", "--root", str(root), "--child", str(hosts)]
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit(f"a host ended with {[process.returncode for process in processes]}")
    results = json.loads((root / f"hosts{hosts}" / "keypoints.json").read_text())
    return json.loads(outputs[0].splitlines()[-1]), results


def decode_seconds(root: pathlib.Path) -> tuple[float, float]:
    """Seconds of one core to open and decode every image once, and to cut all crops besides."""
    config = config_at(root)
    data = EvalData.load(config, create_codec(config.codec))
    start = time.monotonic()
    for rows in data.images:
        data.instances.open(rows[0]).pixels()
    decoding = time.monotonic() - start
    start = time.monotonic()
    for number in range(len(data.images)):
        data._crops(number)
    return decoding, time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=pathlib.Path, required=True, help="folder for about 20 MB of files")
    parser.add_argument("--json", type=pathlib.Path, help="file for the figures")
    parser.add_argument("--child", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        if arguments.child > 1:
            from hrnet_jax.mesh import join_hosts

            join_hosts()
        print(json.dumps(evaluate(arguments.root, arguments.root / f"hosts{arguments.child}")))
        return
    if not (arguments.root / "written").exists():
        write_files(arguments.root)
        (arguments.root / "written").touch()
    cv2.setNumThreads(0)
    decoding, crops = decode_seconds(arguments.root)
    print(f"One core: {decoding:.1f} s to decode {IMAGES:,} images, {crops:.1f} s with all {BOXES:,} crops.\n")
    results = {hosts: run(arguments.root, hosts) for hosts in (1, 2)}
    print("| hosts | load | keypoints | NMS, AP | all | share of decoding |")
    print("| --: | --: | --: | --: | --: | --: |")
    for hosts, (seconds, _) in results.items():
        times = " | ".join(f"{seconds[name]:.1f} s" for name in ("load", "keypoints", "AP", "all"))
        print(f"| {hosts} | {times} | {decoding / seconds['all'] / 2:.0%} |")
    one, two = (people for _, people in results.values())
    same = [person["image_id"] for person in one] == [person["image_id"] for person in two]
    if same:
        off = np.abs(np.subtract([person["keypoints"] for person in one], [person["keypoints"] for person in two]))
        equal = f"Of {len(off):,} people, {(off == 0).all(1).mean():.1%} have the same bits on one host and on two"
        print(f"\n{equal}; no number of the others differs by more than {off.max():.1g}.")
    if arguments.json:
        record = {"decoding": decoding, "crops": crops, "same": same, "load": os.getloadavg()[0]}
        record["hosts"] = {hosts: seconds for hosts, (seconds, _) in results.items()}
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")
    sys.exit(None if same else "the people are not the same on one host and on two")


if __name__ == "__main__":
    main()
