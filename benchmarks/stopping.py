"""Stops a small training run from outside: by SIGTERM, and by a disk that is full.

    python -m benchmarks.stopping --root DATA --output /tmp/stops --json stops.json
    python -m benchmarks.stopping --root DATA --output /tmp/stops --small_disk /mnt/small

SIGTERM comes at random moments of a tiny network's run on CPU; measured is the time until the process has ended with
status 75, when its checkpoint is whole on disk. `--small_disk` is the mount point of an otherwise unused tmpfs, to be
made by `mount -t tmpfs -o size=6m none /mnt/small`; it is filled by checkpoints until nothing more fits, then remounted
with more space, which takes root.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import random
import re
import shutil
import signal
import subprocess
import time
from typing import Any

import numpy as np

from benchmarks.kill_and_resume import Run, differing_bits, final_state
from hrnet_jax.weights.checkpoint import damage


def newest(workdir: pathlib.Path) -> pathlib.Path:
    """The folder of the newest checkpoint that has its name."""
    return max((path for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()), key=lambda p: int(p.name))


def terminate(run: Run, seconds: float) -> dict[str, Any] | None:
    """SIGTERM after some seconds of training; None when the run ended before."""
    while run.running() and run.step() < 0:
        time.sleep(0.01)
    time.sleep(seconds)
    if not run.running():
        return None
    told = time.monotonic()
    run.process.send_signal(signal.SIGTERM)
    status = run.process.wait()
    took = time.monotonic() - told
    stopped = re.findall(r"^stopped at step (\d+)", run.text(), re.MULTILINE)
    folder = newest(run.workdir)
    return {
        "status": status,
        "seconds": round(took, 2),
        "saved at the step that was finished": stopped == [folder.name],
        "damage": damage(folder),
    }


def fill_disk(root: pathlib.Path, disk: pathlib.Path) -> dict[str, Any]:
    """Trains on a small disk until it is full, and goes on after there is more of it."""
    workdir = disk / "run"
    shutil.rmtree(workdir, ignore_errors=True)
    run = Run(root, workdir, log=disk.parent / "small_disk.log")
    status, text = run.process.wait(), run.text()
    kept = newest(workdir)
    figures = {"status": status, "message": text.strip().splitlines()[-1], "damage": damage(kept), "kept": kept.name}
    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
    again = Run(root, workdir, log=disk.parent / "small_disk.log")
    figures["status afterwards"] = again.process.wait()
    figures["continued at the kept checkpoint"] = f"continuing at step {kept.name} of" in again.text()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=pathlib.Path, required=True, help="COCO + AIC, laid out like the recipes'")
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--stops", type=int, default=8)
    parser.add_argument("--small_disk", type=pathlib.Path, help="mount point of a tmpfs of 6 MB")
    parser.add_argument("--json", type=pathlib.Path, help="file for the figures")
    arguments = parser.parse_args()
    shutil.rmtree(arguments.output, ignore_errors=True)
    arguments.output.mkdir(parents=True)
    rng = random.Random(0)

    stops = []
    while len(stops) < arguments.stops:
        stop = terminate(Run(arguments.root, arguments.output / "stopped"), rng.uniform(0, 5))
        if stop is None:
            raise SystemExit("the run ended before it was stopped often enough")
        stops.append(stop)
        print(stop, flush=True)
    seconds = [stop["seconds"] for stop in stops]
    summary: dict[str, Any] = {
        "stops": len(stops),
        "with status 75 and a whole checkpoint of the last step": sum(
            stop["status"] == 75 and stop["saved at the step that was finished"] and not stop["damage"]
            for stop in stops
        ),
        "seconds to the end, median": float(np.median(seconds)),
        "seconds to the end, most": max(seconds),
    }
    if arguments.small_disk:
        whole = Run(arguments.root, arguments.output / "whole")
        filled = fill_disk(arguments.root, arguments.small_disk)
        if whole.process.wait():
            raise SystemExit(whole.text())
        expected, _ = final_state(whole.workdir)
        found, _ = final_state(arguments.small_disk / "run")
        filled["differing bits at the end"] = sum(differing_bits(found[name], expected[name]) for name in expected)
        summary |= {f"full disk: {name}": value for name, value in filled.items()}
    for key, value in summary.items():
        print(f"{key:60}{value}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"summary": summary, "stops": stops}, indent=2) + "\n")


if __name__ == "__main__":
    main()
