"""Which kernels a step's time goes to, by JAX's profiler.

    python -m benchmarks.kernel_times --step train --batch 256 --json kernel_times.json
    python -m benchmarks.kernel_times --variant tiny --size 96x96 --batch 4 --dtype float32       # on a CPU

On a CPU the profiler's events are operations on threads, not kernels.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import tempfile
from collections import defaultdict
from typing import Any

import jax

from benchmarks.model import sizes
from benchmarks.steps import Step, experiment

STEPS = 5


def measure(program: Step) -> dict[str, Any]:
    """Milliseconds and launches per step, by kind of kernel, and the wall time of a step without the profiler."""
    program.seconds(2)
    wall = program.seconds(STEPS) / STEPS
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            program.seconds(STEPS)
        (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
        profile = jax.profiler.ProfileData.from_file(str(path))
        total: dict[str, float] = defaultdict(float)
        count: dict[str, int] = defaultdict(int)
        lines = [line for plane in profile.planes for line in plane.lines if _runs_kernels(plane.name, line.name)]
        for event in (event for line in lines for event in line.events):
            if "::" in event.name or event.name.startswith("end: "):  # XLA's own, around a CPU's operations
                continue
            kind = _kind(event.name)
            total[kind] += event.duration_ns
            count[kind] += 1
    kinds = [
        {"kind": kind, "milliseconds": total[kind] / STEPS / 1e6, "launches": count[kind] / STEPS}
        for kind in sorted(total, key=total.__getitem__, reverse=True)
    ]
    return {"wall_milliseconds": wall * 1e3, "kernels": kinds}


def _runs_kernels(plane: str, line: str) -> bool:
    if plane.startswith("/device:"):
        return line.startswith("Stream")  # the other lines show the same time by module and by operation
    return plane == "/host:CPU" and "XLAEigen" in line


def _kind(name: str) -> str:
    """A kernel's name without the numbers that tell its like apart."""
    return re.sub(r"(?:[._]\d+)+$", "", name)


def format_record(record: dict[str, Any], most: int = 25) -> str:
    """The table in Markdown."""
    kernels = record["kernels"]
    busy = sum(kernel["milliseconds"] for kernel in kernels)
    launches = sum(kernel["launches"] for kernel in kernels)
    lines = ["| kernel | launches | ms | share |", "| :-- | --: | --: | --: |"]
    for kernel in kernels[:most]:
        share = kernel["milliseconds"] / busy
        lines.append(f"| {kernel['kind'][:80]} | {kernel['launches']:g} | {kernel['milliseconds']:.3f} | {share:.1%} |")
    head = f"{record['model']}, {record['device']}: {busy:.2f} ms in {launches:g} kernels, "
    return head + f"{record['wall_milliseconds']:.2f} ms a step\n\n" + "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", choices=("train", "eval"), default="train")
    parser.add_argument("--variant", default="w32")
    parser.add_argument("--size", type=sizes, default=[(256, 192)], help="height x width")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--dtype", default="bfloat16", help="compute type")
    parser.add_argument("--json", type=pathlib.Path, help="file for the figures")
    arguments = parser.parse_args()
    size = arguments.size[0]
    record = measure(Step(arguments.step, experiment(arguments.variant, size, arguments.dtype, arguments.batch)))
    model = f"{arguments.step} step of {arguments.variant} {size[0]}x{size[1]}, batch {arguments.batch}"
    record = {"model": model, "device": jax.devices()[0].device_kind, **record}
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")
    print(format_record(record))


if __name__ == "__main__":
    main()
