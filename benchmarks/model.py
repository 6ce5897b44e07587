"""How fast one device trains and predicts, how near that is to what it can do, and whether bfloat16 computes rightly.

    python -m benchmarks.model --json model.json            # W32 and W48, both sizes, batches until memory ends
    python -m benchmarks.model --check --json check.json    # gradients in bfloat16 against float32
    XLA_FLAGS=... python -m benchmarks.model --override model.scan=True ...                    # an experiment
    python -m benchmarks.model --variants tiny --sizes 96x96 --batches 4 --dtype float32       # on a CPU

The steps are the trainer's ("train": uint8 crops to new weights) and the evaluator's ("eval": uint8 crops to keypoints
by the flip test, BatchNorm folded into the convolutions), on random crops that already lie on the device. Every row of
the table is a process of its own, so that memory and compilation are that row's. The device's ceilings are measured in
the same run: copying a large array, and the product of two large bfloat16 matrices. FLOPs are what XLA's cost analysis
counts in the program as it is handed to the compiler, bytes what `compiled.cost_analysis()` counts in the compiled one;
neither is read from a counter of the device.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from benchmarks.steps import Step, experiment, random_batch
from hrnet_jax.codecs import create_codec
from hrnet_jax.models import FunctionalModel, create_model, state_dict
from hrnet_jax.training.step import make_train_step, new_state

# How far bfloat16 may be from float32: relative L2 distance of all gradients together, the smallest cosine of one
# kernel's gradients, relative distance of the losses. A convolution that computes something else is far outside.
TOLERANCES = {"gradients": 0.25, "cosine": 0.9, "loss": 0.02}

Gradients = dict[str, np.ndarray]  # by the parameter's name


def measure(step: str, config: ConfigDict, steps: int, repeats: int) -> dict[str, Any]:
    """A row of the table."""
    program = Step(step, config)
    program.seconds(2)  # the first calls load the program and grow the allocator's pool
    times = [program.seconds(steps) / steps for _ in range(repeats)]
    return {
        "step_seconds": float(np.median(times)),
        "step_seconds_all": times,
        "images_per_second": config.batch_size / float(np.median(times)),
        "trace_seconds": program.trace_seconds,
        "compile_seconds": program.compile_seconds,
        **program.cost(),
    }


def ceilings() -> dict[str, Any]:
    """Bytes/s of copying (read and written) and FLOP/s of a bfloat16 product, and what measured them."""
    large = jax.default_backend() != "cpu"
    count, side, repeats = (2**30, 8192, 20) if large else (2**26, 1024, 2)
    keys = jax.random.split(jax.random.key(0), 2)
    a, b = (jax.random.normal(key, (side, side), jnp.bfloat16) for key in keys)
    copy = jax.jit(lambda x: x + 1, donate_argnums=0)
    # Scaled, so that a chain of products stays finite.
    product = jax.jit(lambda a, b: (a @ b) * jnp.bfloat16(side**-0.5))

    def seconds(function: Any, x: Any, *rest: Any) -> float:
        times = []
        for _ in range(4):
            begin = time.perf_counter()
            for _ in range(repeats):
                x = function(x, *rest)
            jax.block_until_ready(x)
            times.append((time.perf_counter() - begin) / repeats)
        return min(times[1:])

    return {
        "copy_bytes_per_second": 2 * 4 * count / seconds(copy, jnp.zeros(count, jnp.int32)),
        "matmul_flops_per_second": 2 * side**3 / seconds(product, a, b),
        "copied_bytes": 4 * count,
        "matmul_side": side,
    }


def check(config: ConfigDict) -> dict[str, Any]:
    """How far gradients and loss of the bfloat16 training step are from those of the float32 one."""
    results = []
    for dtype, precision in (("float32", "highest"), ("bfloat16", "default")):
        config.model.dtype = dtype
        with jax.default_matmul_precision(precision):
            results.append(gradients(config))
    return compare(*results)


def compare(exact: tuple[Gradients, float], rounded: tuple[Gradients, float]) -> dict[str, Any]:
    """Compares gradients and loss with exact ones: the three figures of TOLERANCES, and whether they are within."""
    (truth, loss), (found, found_loss) = exact, rounded
    square = sum(float(np.sum(np.square(g, dtype=np.float64))) for g in truth.values())
    error = sum(float(np.sum(np.square(found[name] - g, dtype=np.float64))) for name, g in truth.items())
    # Of kernels: in BatchNorm's gradients what is left of sums that nearly cancel is rounding.
    cosines = {name: _cosine(found[name], g) for name, g in truth.items() if g.ndim == 4}
    worst = min(cosines, key=cosines.__getitem__)
    figures = {"gradients": (error / square) ** 0.5, "cosine": cosines[worst], "loss": abs(found_loss - loss) / loss}
    agrees = (
        figures["gradients"] <= TOLERANCES["gradients"]
        and figures["cosine"] >= TOLERANCES["cosine"]
        and figures["loss"] <= TOLERANCES["loss"]
    )
    return {**figures, "worst": worst, "tolerances": TOLERANCES, "agrees": agrees}


def gradients(config: ConfigDict) -> tuple[Gradients, float]:
    """The gradients that the trainer's step hands to the optimizer, by name, and the loss."""
    model = create_model(config)
    # An optimizer whose state is what it was given last.
    keep = optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda updates, state, params=None: (jax.tree.map(jnp.zeros_like, updates), updates),
    )
    network = FunctionalModel.of(model)
    step = make_train_step(network, create_codec(config.codec), keep, sources=1)
    batch = jax.tree.map(jnp.asarray, random_batch(config))
    # Compiled: one by one, their hundreds of operations take longer.
    state = jax.jit(lambda arrays: new_state(network, *arrays, keep, 0.0))(state_dict(model))
    state, measured = step(state, batch)
    assert bool(measured["finite"]), "the step was skipped: its loss or gradients are not finite"
    return jax.device_get(jax.jit(network.param_layout.arrays)(state.opt_state)), float(measured["loss"])


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    norms = np.linalg.norm(a.astype(np.float64)) * np.linalg.norm(b.astype(np.float64))
    return float(np.sum(a.astype(np.float64) * b) / norms) if norms else float(np.array_equal(a, b))


def sweep(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measures row by row; after the batch at which memory ends, none larger of that model and step."""
    ends = time.monotonic() + 60 * arguments.minutes
    for variant in arguments.variants:
        for size in arguments.sizes:
            for step in ("check",) if arguments.check else arguments.steps:
                for batch_size in arguments.batches if step != "check" else arguments.batches[:1]:
                    row = {"step": step, "variant": variant, "size": list(size), "batch_size": batch_size}
                    row |= in_process({**row, "dtype": arguments.dtype}, arguments, ends - time.monotonic())
                    yield row
                    if "out_of_memory" in row:
                        break


def in_process(task: dict[str, Any], arguments: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Runs one task of `perform` in a new process; a row that fails or finds no time says so instead of figures."""
    if seconds <= 0:
        return {"not_measured": f"--minutes {arguments.minutes:g} were over"}
    task = {**task, "steps": arguments.steps_each, "repeats": arguments.repeats, "overrides": dict(arguments.override)}
    command = [sys.executable, "-m", "benchmarks.model", "--task", json.dumps(task)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=_environment())
    except subprocess.TimeoutExpired:
        return {"not_measured": f"--minutes {arguments.minutes:g} were over"}
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    if "RESOURCE_EXHAUSTED" in done.stderr or "out of memory" in done.stderr.lower():
        return {"out_of_memory": True}
    return {"failed": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}


def perform(task: dict[str, Any]) -> dict[str, Any]:
    """What a process of `in_process` does."""
    if task["step"] == "ceilings":
        device = jax.devices()[0]
        return {**ceilings(), "device": device.device_kind, "platform": device.platform}
    config = experiment(task["variant"], tuple(task["size"]), task["dtype"], task["batch_size"], task["overrides"])
    if task["step"] == "check":
        return check(config)
    return measure(task["step"], config, task["steps"], task["repeats"])


def _environment() -> dict[str, str]:
    # What a program needs, not what the allocator took in advance; and compiling is to be measured, not remembered.
    return {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false", "JAX_ENABLE_COMPILATION_CACHE": "false"}


def format_rows(record: dict[str, Any]) -> str:
    """The table in Markdown."""
    top = record["ceilings"]
    head = ("step", "model", "batch", "images/s", "ms a step", "compile, s", "memory, GiB", "TFLOP/s", "GB/s")
    lines = [" | ".join(head), " | ".join([":--", ":--", *["--:"] * 7])]
    for row in record["rows"]:
        name = [row["step"], f"{row['variant']} {row['size'][0]}x{row['size'][1]}", str(row["batch_size"])]
        if "agrees" in row:
            cells = [f"{key} {row[key]:.3g} (limit {limit:g})" for key, limit in TOLERANCES.items()]
            cells += [row["worst"], "agrees" if row["agrees"] else "**DIFFERS**"]
        elif "step_seconds" in row:
            cells = _cells(row, top)
        else:
            cells = [str(row.get("failed") or row.get("not_measured") or "out of memory")]
        lines.append(" | ".join(name + cells))
    summary = (
        f"{top['device']}, jax {record['versions']['jax']}, {record['dtype']}; measured ceilings: copying "
        f"{top['copy_bytes_per_second'] / 1e9:.0f} GB/s, bfloat16 product of side {top['matmul_side']} "
        f"{top['matmul_flops_per_second'] / 1e12:.2f} TFLOP/s"
    )
    return summary + "\n\n" + "\n".join(f"| {line} |" for line in lines)


def _cells(row: dict[str, Any], top: dict[str, Any]) -> list[str]:
    seconds, times = row["step_seconds"], row["step_seconds_all"]
    memory = row["peak_bytes"] or row["planned_bytes"]
    cells = [f"{row['images_per_second']:.0f}", f"{seconds * 1e3:.2f} ({min(times) * 1e3:.2f}-{max(times) * 1e3:.2f})"]
    cells += [f"{row['trace_seconds'] + row['compile_seconds']:.0f}"]
    cells += ["not known" if memory is None else f"{memory / 2**30:.2f}{'' if row['peak_bytes'] else ' planned'}"]
    for key, ceiling, unit in (
        ("flops", "matmul_flops_per_second", 1e12),
        ("bytes", "copy_bytes_per_second", 1e9),
    ):
        rate = row[key] and row[key] / seconds
        cells.append("not known" if not rate else f"{rate / unit:.2f} ({rate / top[ceiling]:.0%})")
    return cells


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def sizes(text: str) -> list[tuple[int, int]]:
    return [tuple(int(side) for side in part.split("x")) for part in text.split(",")]  # type: ignore[misc]


def override(text: str) -> tuple[str, Any]:
    key, _, value = text.partition("=")
    return key, ast.literal_eval(value)


def words(text: str) -> Sequence[str]:
    return text.split(",")


def main(argv: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", type=words, default=["w32", "w48"])
    parser.add_argument("--sizes", type=sizes, default=[(256, 192), (384, 288)], help="height x width")
    parser.add_argument("--steps", type=words, default=["train", "eval"])
    parser.add_argument("--batches", type=numbers, default=[64 * 2**k for k in range(7)], help="rising")
    parser.add_argument("--dtype", default="bfloat16", help="compute type")
    parser.add_argument("--steps-each", type=int, default=20, help="steps that are timed together")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--override", type=override, action="append", default=[], help="KEY=VALUE of the recipe")
    parser.add_argument("--minutes", type=float, default=1440, help="after which rows are left unmeasured")
    parser.add_argument("--check", action="store_true", help="compare gradients at the first batch instead")
    parser.add_argument("--json", type=pathlib.Path, help="file for the figures, rewritten after every row")
    parser.add_argument("--task", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)  # type: ignore[arg-type]
    if arguments.task:
        print(json.dumps(perform(arguments.task)))
        return
    top = in_process({"step": "ceilings"}, arguments, 600)
    if "device" not in top:
        raise SystemExit(f"the ceilings could not be measured: {top}")
    record = {"ceilings": top, "dtype": arguments.dtype, "overrides": dict(arguments.override), "rows": []}
    record["xla_flags"] = os.environ.get("XLA_FLAGS", "")
    record["versions"] = {"jax": jax.__version__, "python": sys.version.split()[0]}
    for row in sweep(arguments):
        record["rows"].append(row)
        print({key: value for key, value in row.items() if not isinstance(value, list)}, file=sys.stderr, flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(record, indent=2) + "\n")
    print(format_rows(record))
    if not all(row.get("agrees", True) and "failed" not in row for row in record["rows"]):
        sys.exit(1)


if __name__ == "__main__":
    main()
