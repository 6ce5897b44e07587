"""The same model here and in PyTorch, on the same device, in the same run.

    python -m benchmarks.versus_torch --json versus.json
    python -m benchmarks.versus_torch --variant tiny --size 96x96 --batches 4 --dtype float32 \
        --modes eager --steps-each 2 --repeats 2 --people 32          # on a CPU

Four jobs: `train` (uint8 crops on the device to new weights), `predict` (uint8 crops on the device to keypoints by the
flip test, decoded on the device by both), and the whole of both from JPEG files: `train_jpeg` and `predict_jpeg`.
Inputs, targets, loss, crops and augmentation are the same. PyTorch runs `torch_hrnet.py`: channels last, autocast (in
prediction BatchNorm folded and weights of the compute type), fused Adam, eager and compiled in two modes; its BatchNorm
takes statistics over the whole batch, ours over groups of 64. The loaders have as many worker processes as there are
cores; our prediction has threads.

Each side is a process of its own for every job, setting and batch size, and both live while they are measured in turns;
medians are shown. The ratio is ours at its best batch size over PyTorch's best setting at its best batch size. Before
that, both compute the heatmaps of the same weights and image in float32 on the CPU. Without --root, files are drawn.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.model import numbers, sizes, words
from benchmarks.sides import Side, measure_in_turns
from data_pipelines.processes import cores

# The recipe's training: people of COCO train2017 and AIC with keypoints.
EPOCHS, PEOPLE = 210, 528_165

JOBS = ("train", "predict", "train_jpeg", "predict_jpeg")


def compare(job: str, arguments: argparse.Namespace, shared: dict[str, Any], ends: float) -> list[dict[str, Any]]:
    """Measures a job at each batch size: ours in turns with PyTorch, whose settings come one after the other."""
    rows = []
    for batch_size in arguments.batches:
        task = {**shared, "job": job, "batch_size": batch_size, "mode": ""}
        with open(arguments.log, "a") as log:

            def started(task: dict[str, Any], log: Any = log) -> Side:
                # At once, if time is over: the process is killed after a second.
                side = Side(task, log, max(ends - time.monotonic(), 1), "benchmarks.versus_sides")
                side.ask("start")
                return side

            ours = started({**task, "side": "ours"})
            for mode in arguments.modes:
                torch = started({**task, "side": "torch", "mode": mode})
                measure_in_turns((ours, torch), arguments.repeats)
                torch.close()
                rows.append(torch.row())
            ours.close()
            rows.append(ours.row())
        for row in rows[-1 - len(arguments.modes) :]:
            print(_line(row), file=sys.stderr, flush=True)
    return rows


def ratios(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By job: our best rate, PyTorch's best rate with its setting, and their ratio."""
    result = {}
    for job in dict.fromkeys(row["job"] for row in rows):
        best = {}
        for side in ("ours", "torch"):
            measured = [r for r in rows if r["job"] == job and r["side"] == side and "images_per_second" in r]
            best[side] = max(measured, key=lambda row: row["images_per_second"], default=None)
        ours, theirs = best["ours"], best["torch"]
        if ours is None or theirs is None:
            result[job] = {"ratio": None}
            continue
        result[job] = {
            "ours": ours["images_per_second"],
            "ours_batch_size": ours["batch_size"],
            "torch": theirs["images_per_second"],
            "torch_batch_size": theirs["batch_size"],
            "torch_mode": theirs["mode"],
            "ratio": ours["images_per_second"] / theirs["images_per_second"],
        }
    return result


def format_record(record: dict[str, Any]) -> str:
    """The table in Markdown."""
    lines = ["job | side | batch | images/s | spread | until the first step, s | memory, GiB"]
    lines += [" | ".join([":--", ":--", *["--:"] * 5])]
    lines += [_line(row) for row in record["rows"]]
    verdicts = [
        f"{job}: {r['ours']:.1f} images/s against {r['torch']:.1f} ({r['torch_mode']}): x {r['ratio']:.2f}"
        if r["ratio"]
        else f"{job}: not measured on both sides"
        for job, r in record["ratios"].items()
    ]
    if rate := record["ratios"].get("train_jpeg", {}).get("ours"):
        hours = EPOCHS * PEOPLE / rate / 3600
        verdicts.append(
            f"{EPOCHS} epochs of COCO + AIC ({PEOPLE:,} people) at ours of train_jpeg, {record['workers']} processes "
            f"decoding: {hours:,.1f} hours, evaluation apart"
        )
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    head = f"{record['model']}, {record['device']}, {versions}"
    same = f"largest deviation of the heatmaps in float32, of their largest value: {record['deviation']:.1e}"
    return "\n".join([head, same, "", *(f"| {line} |" for line in lines), "", *verdicts])


def _line(row: dict[str, Any]) -> str:
    name = [row["job"], row["side"] + (f" {row['mode']}" if row["side"] == "torch" else ""), str(row["batch_size"])]
    if "images_per_second" not in row:
        return " | ".join([*name, str(row.get("failed", "not measured"))])
    low, high = row["spread"]
    memory = row.get("peak_bytes")
    cells = [f"{row['images_per_second']:.1f}", f"{low:.1f}-{high:.1f}", f"{row['start_seconds']:.0f}"]
    return " | ".join(name + cells + ["not known" if memory is None else f"{memory / 2**30:.2f}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="w32")
    parser.add_argument("--size", type=sizes, default=[(256, 192)], help="height x width")
    parser.add_argument("--dtype", default="bfloat16", help="compute type")
    parser.add_argument("--jobs", type=words, default=JOBS)
    parser.add_argument("--modes", type=words, default=["eager", "compile", "max-autotune"], help="of PyTorch")
    parser.add_argument("--batches", type=numbers, default=[256])
    parser.add_argument("--steps-each", type=int, default=10, help="steps that are timed together")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=1440, help="after which the rest stays unmeasured")
    parser.add_argument("--root", type=pathlib.Path, help="folder with coco/..., instead of files that are drawn")
    parser.add_argument("--people", type=int, default=4096, help="people, one an image, to draw")
    parser.add_argument("--workers", type=int, default=cores(), help="processes of the loaders")
    parser.add_argument("--log", default=os.devnull, help="file for what the sides write to standard error")
    parser.add_argument("--json", type=pathlib.Path, help="file for the figures")
    arguments = parser.parse_args()
    if unknown := set(arguments.jobs) - set(JOBS):
        parser.error(f"--jobs: there are {', '.join(JOBS)}, not {', '.join(sorted(unknown))}")
    ends = time.monotonic() + 60 * arguments.minutes
    shared = {"variant": arguments.variant, "size": list(arguments.size[0]), "dtype": arguments.dtype}
    shared |= {"steps": arguments.steps_each, "workers": arguments.workers}

    with tempfile.TemporaryDirectory() as folder, open(arguments.log, "a") as log:
        shared["root"] = str(arguments.root or folder)
        shared["people"] = 0 if arguments.root else arguments.people
        shared["weights"] = folder
        # The first also draws the files.
        checks = {}
        for name in ("ours", "torch"):
            task = {**shared, "job": "check", "side": name, "mode": "eager", "batch_size": 1}
            side = Side(task, log, 1200, "benchmarks.versus_sides")
            side.ask("start")
            side.close()
            checks[name] = side.answer
            if "failed" in side.answer:
                raise SystemExit(f"{name}: {side.answer['failed']}; --log FILE keeps what it said")
        record: dict[str, Any] = {
            "model": f"{arguments.variant} {arguments.size[0][0]}x{arguments.size[0][1]} {arguments.dtype}",
            "device": checks["torch"]["device"],
            "versions": {"jax": checks["ours"]["version"], "torch": checks["torch"]["version"]},
            "deviation": checks["torch"]["deviation"],
            "workers": arguments.workers,
            "rows": [],
        }
        for job in arguments.jobs:
            record["rows"] += compare(job, arguments, shared, ends)
            record["ratios"] = ratios(record["rows"])
            if arguments.json:
                arguments.json.write_text(json.dumps(record, indent=2) + "\n")
    print(format_record(record))


if __name__ == "__main__":
    main()
