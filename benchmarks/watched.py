"""Reads a run in every way there is while it trains, and compares where it ends with one that nobody looked at.

    python -m benchmarks.watched --root DATA --output /tmp/watched --minutes 10 --json watched.json

Beside the small training of kill_and_resume.py run evaluate, predict, export, convert, report and hrnet_jax.load, one
after the other without a pause. Each must end with status 0 and the training with the bits of the one left alone.
"""

from __future__ import annotations

import argparse
import collections
import json
import pathlib
import re
import shutil
import subprocess
import sys
import time

from benchmarks.kill_and_resume import Run, differing_bits, final_state, losses


def readers(root: pathlib.Path, workdir: pathlib.Path, output: pathlib.Path) -> dict[str, list[str]]:
    """The commands that read a run, by name."""
    load = "import sys, hrnet_jax; print(hrnet_jax.load(sys.argv[1]).origin)"
    evaluate = ["--config.data.eval.boxes=", "--config.eval.batch_size=32", f"--config.data.root={root}"]
    predict = ["--images", root / "coco/val2017", "--output", output / "predicted"]
    convert = ["--input", workdir, "--to", "mmpose", "--output", output / "converted.safetensors"]
    lines = {
        "load": ["-c", load, workdir],
        "load latest": ["-c", load, f"{workdir}@latest"],
        "evaluate": ["-m", "hrnet_jax.evaluate", "--checkpoint", workdir, "--output", output / "val", *evaluate],
        "predict": ["-m", "hrnet_jax.predict", "--checkpoint", workdir, *predict],
        "report": ["-m", "hrnet_jax.report", workdir, "--output", output / "report.html"],
        "convert": ["-m", "hrnet_jax.convert", *convert],
        "export": ["-m", "hrnet_jax.export", "--checkpoint", workdir, "--output", output / "exported"],
    }
    return {name: [sys.executable, *map(str, line)] for name, line in lines.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=pathlib.Path, required=True, help="COCO + AIC, laid out like the recipes'")
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--minutes", type=float, default=10, help="that the training must last at least")
    parser.add_argument("--epochs", type=int, default=1200, help="of the training")
    parser.add_argument("--json", type=pathlib.Path, help="file for the figures")
    arguments = parser.parse_args()
    shutil.rmtree(arguments.output, ignore_errors=True)
    arguments.output.mkdir(parents=True)

    workdir = arguments.output / "watched"
    run = Run(arguments.root, workdir, epochs=arguments.epochs)
    while run.running() and not list(workdir.glob("checkpoints/*/digests.json")):
        time.sleep(0.1)
    read: collections.Counter[str] = collections.Counter()
    failed: list[str] = []
    steps = set()
    while run.running():
        for name, command in readers(arguments.root, workdir, arguments.output).items():
            shutil.rmtree(arguments.output / "exported", ignore_errors=True)
            done = subprocess.run(command, capture_output=True, text=True)
            read[name] += 1
            if done.returncode:
                failed.append(f"{name}: {done.stderr.strip()[-300:]}")
            steps.update(re.findall(r"watched, step (\d+)", done.stdout))
            if not run.running():
                break
    status, minutes = run.process.wait(), (time.monotonic() - run.started) / 60

    alone = Run(arguments.root, arguments.output / "alone", epochs=arguments.epochs)
    if alone.process.wait():
        raise SystemExit(alone.text())
    (found, step), (expected, last_step) = final_state(workdir), final_state(alone.workdir)
    (logged, loss, ap), (_, their_loss, their_ap) = losses(workdir), losses(alone.workdir)
    summary = {
        "minutes": round(minutes, 1),
        "status": status,
        "last step": step,
        **{f"{name}, times": count for name, count in read.items()},
        "readers that failed": len(failed),
        "checkpoints that readers named": len(steps),
        "differing bits": sum(differing_bits(found[name], array) for name, array in expected.items()),
        "log steps twice or out of order": len(logged) - len(sorted(set(logged))),
        "losses that differ": sum(loss.get(s) != value for s, value in their_loss.items()),
        "APs that differ": sum(ap.get(s) != value for s, value in their_ap.items()),
    }
    for key, value in summary.items():
        print(f"{key:34}{value}")
    print(*failed, sep="\n")
    if arguments.json:
        arguments.json.write_text(json.dumps({"summary": summary, "failed": failed}, indent=2) + "\n")
    is_good = not (status or failed or summary["differing bits"] or step != last_step)
    sys.exit(not (is_good and minutes >= arguments.minutes))


if __name__ == "__main__":
    main()
