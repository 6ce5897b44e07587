"""Does anything pile up? 200 short evaluations and 20,000 small training batches, from threads and from workers.

    python -m benchmarks.soak --root /tmp/soak --json soak.json

Renders small people, then samples the process tree's memory (proportional set size), open files, processes and
entries of /dev/shm. Each part counts as flat when nothing but memory differs between its second tenth and its end, and
memory by less than 5 % and 20 MiB.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import pathlib
import sys
import time
from collections.abc import Iterator

import tqdm

from benchmarks.full_scale import tree_memory
from configs import coco
from data_pipelines.pipeline import EvalData, TrainData, iterate
from data_pipelines.synthetic import write_dataset
from hrnet_jax.codecs import create_codec

EVALUATIONS, BATCHES = 200, 20_000


def usage() -> dict[str, float]:
    """What this process and its children hold."""
    gc.collect()
    pids = tree(os.getpid())
    return {
        "memory_mib": tree_memory(os.getpid()) / 2**20,
        "files": sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids),
        "processes": len(pids),
        "shm": len(os.listdir("/dev/shm")),
    }


def tree(pid: int) -> list[int]:
    """A process and its descendants."""
    tasks = pathlib.Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(child) for task in tasks for child in task.read_text().split()]
    return [pid, *itertools.chain.from_iterable(map(tree, children))]


def evaluations(config) -> Iterator[None]:
    """Short evaluations, one after the other."""
    data = EvalData.load(config, create_codec(config.codec))
    while True:
        for _ in data:
            pass
        yield


def batches(config, workers: int) -> Iterator[None]:
    """Training batches of one iterator."""
    stream = iterate(TrainData.load(config, create_codec(config.codec)).batches(32), threads=2, workers=workers)
    try:
        for _ in stream:
            yield
    finally:
        stream.close()


def soak(name: str, steps: Iterator[None], count: int) -> list[dict[str, float]]:
    """Runs steps and samples the usage ten times."""
    samples = []
    for number in tqdm.tqdm(range(count), name, mininterval=5):
        next(steps)
        if (number + 1) % (count // 10) == 0:
            samples.append(usage())
    return samples


def is_flat(samples: list[dict[str, float]]) -> bool:
    """Whether the second sample and the last agree."""
    early, late = samples[1], samples[-1]
    growth = late["memory_mib"] - early["memory_mib"]
    return growth < max(20, 0.05 * early["memory_mib"]) and all(
        late[key] <= early[key] for key in ("files", "processes", "shm")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=pathlib.Path, required=True)
    parser.add_argument("--json", type=pathlib.Path, help="file for the figures")
    arguments = parser.parse_args()
    write_dataset(arguments.root, coco_train=64, coco_val=16, aic_train=0, image_size=(96, 96))
    config = coco.get_config("runlocal")
    config.data.root, config.codec.input_size, config.data.loader.threads = str(arguments.root), (64, 32), 2
    config.data.eval.boxes = ""
    parts = {
        "evaluations": (evaluations(config), EVALUATIONS),
        "batches, threads": (batches(config, 0), BATCHES),
        "batches, 2 workers": (batches(config, 2), BATCHES),
    }
    figures, flat = {}, True
    for name, (steps, count) in parts.items():
        start = time.monotonic()
        figures[name] = soak(name, steps, count)
        steps.close()
        flat &= is_flat(figures[name])
        seconds = time.monotonic() - start
        print(f"{name}: {count} in {seconds:.0f} s, {'flat' if is_flat(figures[name]) else 'NOT FLAT'}")
        for key in figures[name][0]:
            print(f"  {key:12}" + " ".join(f"{sample[key]:8.0f}" for sample in figures[name]))
    gc.collect()
    figures["afterwards"] = [usage()]
    print("afterwards", {key: round(value) for key, value in figures["afterwards"][0].items()})
    if arguments.json:
        arguments.json.write_text(json.dumps({"figures": figures, "flat": flat}, indent=2) + "\n")
    sys.exit(not flat)


if __name__ == "__main__":
    main()
