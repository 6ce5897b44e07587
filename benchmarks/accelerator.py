"""All that is measured on one accelerator, row by row, the most important first; `make benchmark` runs it.

    python -m benchmarks.accelerator --minutes 10 --json runs/benchmarks/accelerator.json
    python -m benchmarks.accelerator --small --minutes 20 --json /tmp/rehearsal.json        # on a CPU

A row is a command of `benchmarks` with its output and figures, and the device's clocks and power while it ran. Each is
written as soon as it is measured; one that fails says why and ends only itself. Rows start until --minutes are over. A
later call with the same file goes on with the rows that it lacks, if device, versions and commit are the same;
otherwise it starts over. What the commands need is checked first, in seconds.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import Any

from data_pipelines.processes import cores

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
NEEDED_GIB = 4  # drawn files, compiled programs

# Packages by module that the steps and the loader import, and that a Python with JAX and PyTorch may lack.
_NEEDED = {
    **{"jax": "jax", "flax": "flax", "optax": "optax", "orbax": "orbax-checkpoint", "etils": "etils"},
    **{"cv2": "opencv-python-headless", "PIL": "pillow", "grain": "grain", "array_record": "array-record"},
    **{"ml_collections": "ml-collections"},
    **{"pycocotools": "pycocotools", "safetensors": "safetensors", "tqdm": "tqdm", "jaxtyping": "jaxtyping"},
    **{"absl": "absl-py", "yaml": "pyyaml", "flatbuffers": "flatbuffers", "portpicker": "portpicker"},
}

_QUERY = "name,driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu"


@dataclasses.dataclass(frozen=True)
class Row:
    """A command that is measured.

    Attributes:
      name: of the row.
      module: below `benchmarks`.
      arguments: its flags, but for --json.
      xla_flags: added to XLA_FLAGS.
    """

    name: str
    module: str
    arguments: tuple[str, ...]
    xla_flags: str = ""


def rows(small: bool) -> list[Row]:
    """All rows; `small`: on a network and a number of steps that a CPU can do, without PyTorch's compiler."""
    dtype = ("--dtype", "float32") if small else ()
    few = ("--steps-each", "1", "--repeats", "2") if small else ()
    variant, size, compiled, large = (
        ("tiny", "96x96", "eager", "tiny") if small else ("w32", "256x192", "compile", "w48")
    )
    # Batches, and how many people are drawn for jobs that read none or many JPEGs.
    middle, double, none, many = ("4", "8", "8", "16") if small else ("256", "512", "64", "4096")

    def ours(step: str, batch: str, *more: str) -> tuple[str, ...]:
        return ("--variants", variant, "--sizes", size, "--steps", step, "--batches", batch, *dtype, *few, *more)

    def both(job: str, batch: str, people: str = none) -> tuple[str, ...]:
        options = ("--variant", variant, "--size", size, "--jobs", job, "--batches", batch, "--modes", compiled)
        return (*options, "--people", people, *dtype, *few)

    def profile(step: str) -> tuple[str, ...]:
        return ("--variant", variant, "--size", size, "--step", step, "--batch", middle, *dtype)

    train = ours("train", middle)
    return [
        Row("bfloat16", "model", (*ours("train", middle if small else "64"), "--check")),
        Row("train", "versus_torch", both("train", middle)),
        Row("train, double batch", "versus_torch", both("train", double)),
        Row("predict", "versus_torch", both("predict", middle)),
        Row("profile of train", "kernel_times", profile("train")),
        Row("train from JPEG", "versus_torch", both("train_jpeg", middle, many)),
        Row("predict from JPEG", "versus_torch", both("predict_jpeg", middle, many)),
        Row("inference", "model", ours("eval", middle)),
        Row("accumulate 2", "model", (*train, "--override", "accumulate=2")),
        Row("accumulate 4", "model", (*train, "--override", "accumulate=4")),
        Row("without command buffers", "model", train, "--xla_gpu_enable_command_buffer="),
        Row("latency hiding", "model", train, "--xla_gpu_enable_latency_hiding_scheduler=true"),
        Row("without autotuning", "model", train, "--xla_gpu_autotune_level=0"),
        Row("profile of inference", "kernel_times", profile("eval")),
        Row("loops", "model", (*train, "--override", "model.scan=True")),
        Row("batches", "model", ours("train,eval", "8" if small else "64,128,1024")),
        Row("larger", "model", ("--variants", large, *ours("train,eval", "4" if small else "64,128")[2:])),
    ]


def conditions() -> dict[str, Any]:
    """The device, versions and commit that the figures are of. Ends the program if something needed is missing."""
    if lacking := [package for module, package in _NEEDED.items() if importlib.util.find_spec(module) is None]:
        install = f"{sys.executable} -m pip install --no-deps --constraint requirements.txt {' '.join(lacking)}"
        raise SystemExit(f"missing: {', '.join(lacking)}; {install}")
    free = shutil.disk_usage(tempfile.gettempdir()).free / 2**30
    if free < NEEDED_GIB:
        raise SystemExit(f"{tempfile.gettempdir()}: {free:.1f} GiB free, {NEEDED_GIB} are needed; set TMPDIR")
    code = "import jax, json; d = jax.devices(); print(json.dumps([len(d), d[0].platform, d[0].device_kind]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"JAX finds no device: {done.stderr.strip().splitlines()[-1]}")
    count, platform, kind = json.loads(done.stdout.splitlines()[-1])
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")}
    try:
        versions["torch"] = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        print("PyTorch is missing: rows beside it will fail", file=sys.stderr)
    git = ("git", "-C", str(REPOSITORY), "describe", "--always", "--dirty")
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    return {
        "device": f"{count} x {kind} ({platform})",
        "cores": cores(),
        "versions": versions,
        "commit": commit,
    }


def measure(row: Row, seconds: float) -> dict[str, Any]:
    """Runs a row's command: its figures, what it printed, and the device's state meanwhile."""
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder) / "figures.json"
        command = [sys.executable, "-m", f"benchmarks.{row.module}", *row.arguments, "--json", str(output)]
        flags = f"{os.environ.get('XLA_FLAGS', '')} {row.xla_flags}".strip()
        started = time.monotonic()
        with _Watch() as watch:
            try:
                done = subprocess.run(
                    command,
                    cwd=REPOSITORY,
                    env={**os.environ, "XLA_FLAGS": flags},
                    capture_output=True,
                    text=True,
                    timeout=seconds,
                )
                problem = done.returncode and (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
                printed = done.stdout.strip()
            except subprocess.TimeoutExpired:
                problem, printed = "time was over", ""
        result = {
            "command": " ".join(["python -m", f"benchmarks.{row.module}", *row.arguments]),
            "xla_flags": flags,
            "seconds": round(time.monotonic() - started, 1),
            "device_state": watch.summary(),
            "printed": printed,
        }
        if output.exists():
            result["figures"] = json.loads(output.read_text())
        if problem:
            result["failed"] = problem
        return result


class _Watch:
    """Reads the clocks, the power and the temperature of an NVIDIA device once a second, where nvidia-smi is."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._samples: list[list[str]] = []
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits", "--id=0"]
        while shutil.which(command[0]) and not self._over.wait(1):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode == 0:
                self._samples.append([part.strip() for part in done.stdout.split(",")])

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def summary(self) -> dict[str, Any]:
        """Medians and maxima; empty without nvidia-smi."""
        if not self._samples:
            return {}
        state: dict[str, Any] = dict(zip(("name", "driver"), self._samples[-1], strict=False))
        for number, key in enumerate(("sm_mhz", "memory_mhz", "watts", "celsius"), start=2):
            values = [float(sample[number]) for sample in self._samples]
            state[key] = {"median": statistics.median(values), "max": max(values)}
        return state


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30, help="after which no row starts, and one that runs ends")
    parser.add_argument("--small", action="store_true", help="tiny networks: a rehearsal on a CPU")
    parser.add_argument("--only", default="", help="names of rows, separated by ;")
    parser.add_argument(
        "--json", type=pathlib.Path, required=True, help="file of all rows; an earlier one is continued"
    )
    arguments = parser.parse_args(argv)
    ends = time.monotonic() + 60 * arguments.minutes
    everything = rows(arguments.small)
    if unknown := set(filter(None, arguments.only.split(";"))) - {row.name for row in everything}:
        parser.error(f"--only: unknown {', '.join(unknown)}; there are {'; '.join(row.name for row in everything)}")
    record: dict[str, Any] = {"conditions": {**conditions(), "small": arguments.small}, "rows": {}}
    if arguments.json.exists():
        earlier = json.loads(arguments.json.read_text())
        if earlier["conditions"] == record["conditions"]:
            record = earlier
        else:
            print(f"{arguments.json}: of other conditions, starting over", file=sys.stderr)
    print(" ".join(f"{key}: {value}" for key, value in record["conditions"].items()))
    for row in everything:
        if arguments.only and row.name not in arguments.only.split(";"):
            continue
        if "figures" in record["rows"].get(row.name, {}) and "failed" not in record["rows"][row.name]:
            continue
        if (seconds := ends - time.monotonic()) < 10:
            break
        result = record["rows"][row.name] = measure(row, seconds)
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")
        print(f"\n## {row.name} ({result['seconds']:.0f} s)\n\n{result['printed']}", flush=True)
        if "failed" in result:
            print(f"failed: {result['failed']}", flush=True)
    failed = [name for name, result in record["rows"].items() if "failed" in result]
    left = [row.name for row in everything if row.name not in record["rows"]]
    print(f"\nfailed: {'; '.join(failed) or 'nothing'}\nnot measured: {'; '.join(left) or 'nothing'}")


if __name__ == "__main__":
    main()
