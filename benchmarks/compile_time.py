"""What compiling the train step costs, plain and with equal blocks and modules as loops (`config.model.scan`).

    python -m benchmarks.compile_time --json compile_time.json
    python -m benchmarks.compile_time --variant small        # one block a branch: for a quick look, loops gain nothing

Each form runs in a process of its own, without the cache of compiled programs. Shown are the equations of the traced
step; seconds of tracing, of lowering, of compiling, and the processor seconds of all three (they suffer less from what
else runs); the bytes of the serialized program; the bytes of temporaries, which are mostly activations kept for the
gradients; and the median seconds of a step.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np
import optax
from jax.experimental.serialize_executable import serialize

from configs import coco
from data_pipelines.processes import cores
from hrnet_jax.codecs import create_codec
from hrnet_jax.models import FunctionalModel, create_model, state_dict
from hrnet_jax.training.step import make_train_step, new_state

FORMS = {"plain": False, "scan": True}
ROWS = {  # of the table, and how a figure is written
    "arrays": "{:,}",
    "equations": "{:,}",
    "tracing": "{:.1f} s",
    "lowering": "{:.1f} s",
    "compiling": "{:.1f} s",
    "these in CPU seconds": "{:.1f} s",
    "program": "{:.1f} MB",
    "temporaries": "{:.0f} MB",
    "time per step": "{:.1f} s",
}


def measure(scan: bool, arguments: argparse.Namespace) -> dict[str, Any]:
    """Traces, lowers, compiles and runs the recipe's train step in this process."""
    config = coco.get_config()
    config.model.variant, config.model.scan = arguments.variant, scan
    size, batch = tuple(config.codec.input_size), arguments.batch
    model = create_model(config)
    network, optimizer = FunctionalModel.of(model), optax.adam(5e-4)
    step = make_train_step(network, create_codec(config.codec), optimizer, 1)
    state = new_state(network, *state_dict(model), optimizer, 0.0)
    rng = np.random.default_rng(0)
    data = {
        "image": rng.integers(0, 256, (batch, *size, 3), dtype=np.uint8),
        "keypoints": rng.uniform(0, size[1], (batch, 17, 2)).astype(np.float32),
        "visible": np.ones((batch, 17), np.float32),
        "source": np.zeros(batch, np.int32),
    }

    figures: dict[str, Any] = {"arrays": len(network.param_layout.shapes)}
    processor, clock = time.process_time(), time.perf_counter()
    traced = step.trace(state, data)
    figures["tracing"], clock = time.perf_counter() - clock, time.perf_counter()
    lowered = traced.lower()
    figures["lowering"], clock = time.perf_counter() - clock, time.perf_counter()
    compiled = lowered.compile()
    figures["compiling"] = time.perf_counter() - clock
    figures["these in CPU seconds"] = time.process_time() - processor
    figures["equations"] = equations(traced.jaxpr.jaxpr)
    figures["program"] = len(serialize(compiled)[0])
    figures["temporaries"] = compiled.memory_analysis().temp_size_in_bytes

    seconds = []
    for _ in range(arguments.steps + 1):  # the first warms up
        clock = time.perf_counter()
        state, measured = jax.block_until_ready(compiled(state, data))
        seconds.append(time.perf_counter() - clock)
        figures.setdefault("first_loss", float(measured["loss"]))
    figures["time per step"] = statistics.median(seconds[1:])
    return figures


def equations(jaxpr: Any) -> int:
    """Counts a jaxpr's equations, those of inner ones included."""
    inner = (sub for equation in jaxpr.eqns for sub in jax.extend.core.jaxprs_in_params(equation.params))
    return len(jaxpr.eqns) + sum(equations(sub) for sub in inner)


def in_own_process(form: str, options: list[str]) -> dict[str, Any]:
    """`measure` in a fresh process, so that neither form finds anything traced or compiled."""
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    command = [sys.executable, "-m", "benchmarks.compile_time", *options, "--form", form]
    return json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout)


def table(figures: dict[str, dict[str, Any]]) -> str:
    """Figures by form side by side, and the plain one's over the other's."""
    plain, scan = figures["plain"], figures["scan"]
    lines = ["| | plain | loops | plain / loops |", "| :-- | --: | --: | --: |"]
    for name, shown in ROWS.items():
        cells = " | ".join(shown.format(form[name] / 1e6 if "MB" in shown else form[name]) for form in (plain, scan))
        lines.append(f"| {name} | {cells} | {plain[name] / scan[name]:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="w32")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=7, help="of which the median counts, after one more")
    parser.add_argument("--form", choices=FORMS, help="measure one form in this process and print JSON")
    parser.add_argument("--json", type=pathlib.Path, help="file for the figures")
    arguments = parser.parse_args()
    if arguments.form:
        print(json.dumps(measure(FORMS[arguments.form], arguments)))
        return
    options = [f"--{name}={getattr(arguments, name)}" for name in ("variant", "batch", "steps")]
    load_before = os.getloadavg()[0]
    figures = {form: in_own_process(form, options) for form in FORMS}
    conditions = {
        "variant": arguments.variant,
        "batch": arguments.batch,
        "cores": cores(),
        "load_before": load_before,
        "python": platform.python_version(),
        "jax": jax.__version__,
    }
    print(table(figures))
    if arguments.json:
        arguments.json.write_text(json.dumps({"conditions": conditions, "figures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
