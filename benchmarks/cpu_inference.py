"""How long one image takes without an accelerator, here, in onnxruntime and in PyTorch, on the same cores.

    python -m benchmarks.cpu_inference --json cpu_inference.json
    python -m benchmarks.cpu_inference --variant tiny --size 96x96 --repeats 2 --images 3

A normalised float32 image goes in, heatmaps come out. `ours` has BatchNorm by itself, `ours folded` has it
folded into the convolutions, as evaluation, `predict` and exported models run it; `onnxruntime` runs our folded ONNX
graph (extra `onnx`); PyTorch has channels last, eager and compiled, with BatchNorm and folded. Each is a process with
the same number of threads, on that many cores; they are measured in turns, so that other work on the machine meets them
all. Wall-clock and CPU time of an image are shown, the least and the median over all images: on a machine that is not
quiet the least is what can be compared.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.model import sizes, words
from benchmarks.sides import Side, measure_in_turns, serve
from benchmarks.steps import experiment
from data_pipelines.processes import cores

TORCH_MODES = ("torch eager", "torch eager folded", "torch compile", "torch compile folded")
MODES = ("ours", "ours folded", "onnxruntime", *TORCH_MODES)


def our_forward(task: dict[str, Any]) -> tuple[Callable[[], Any], str]:
    """f() that computes the heatmaps of the task's image, and jax's version."""
    import jax

    from hrnet_jax.models import FunctionalModel, abstract_model, create_model, state_dict
    from hrnet_jax.models.fold import fold

    config = experiment(task["variant"], tuple(task["size"]), "float32", 1)
    folded = "folded" in task["mode"]
    network = FunctionalModel.of(abstract_model(config, folded=folded))
    weights: Any = state_dict(create_model(config))
    if folded:
        weights = (jax.jit(fold)(*weights), {})
    forward = jax.jit(lambda params, stats, x: network(params, stats, x, train=False)[0])
    images = jax.numpy.asarray(_images(task))
    return lambda: np.asarray(forward(*weights, images)), jax.__version__


def onnx_forward(task: dict[str, Any]) -> tuple[Callable[[], Any], str]:
    """f() that computes the heatmaps of the task's image, and onnxruntime's version."""
    import jax
    import onnxruntime

    from hrnet_jax.models import VARIANTS, create_model, state_dict
    from hrnet_jax.models.fold import fold
    from hrnet_jax.onnx.graph import Graph
    from hrnet_jax.onnx.network import hrnet

    config = experiment(task["variant"], tuple(task["size"]), "float32", 1)
    weights = jax.device_get(jax.jit(fold)(*state_dict(create_model(config))))
    graph = Graph()
    images = graph.input("images", np.float32, ("batch", *task["size"], 3))
    heatmaps = hrnet(graph, weights, VARIANTS[task["variant"]], graph.add("Transpose", images, perm=[0, 3, 1, 2]))
    graph.output("heatmaps", heatmaps, ("batch", 17, *(side // 4 for side in task["size"])))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = task["threads"]
    model = graph.model("network").SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    data = _images(task)
    return lambda: session.run(None, {"images": data})[0], onnxruntime.__version__


def their_forward(task: dict[str, Any]) -> tuple[Callable[[], Any], str]:
    """f() that computes the heatmaps of the task's image, and torch's version."""
    import torch

    from benchmarks import torch_hrnet
    from hrnet_jax.models import VARIANTS

    torch.set_num_threads(task["threads"])
    model = torch_hrnet.HRNet(dataclasses.asdict(VARIANTS[task["variant"]]), outputs=17).eval()
    if "folded" in task["mode"]:
        torch_hrnet.fold(model)
    model.to(memory_format=torch.channels_last)
    forward = torch_hrnet.compiled(model, task["mode"].split()[1])
    images = torch.from_numpy(_images(task)).permute(0, 3, 1, 2)

    def run() -> Any:
        with torch.inference_mode():
            return forward(images).numpy()

    return run, torch.__version__


def _images(task: dict[str, Any]) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((task["batch_size"], *task["size"], 3)).astype(np.float32)


def begin(task: dict[str, Any]) -> tuple[Callable[[int], int], dict[str, Any]]:
    """Starts a mode; see `benchmarks.sides.serve`. Every image's times stand in the facts."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: task["threads"]])
    sides = {"ours": our_forward, "onnxruntime": onnx_forward, "torch": their_forward}
    forward, version = sides[task["side"]](task)
    wall: list[float] = []
    cpu: list[float] = []

    def run(images: int) -> int:
        for _ in range(images):
            begins = time.perf_counter(), time.process_time()
            forward()
            wall.append(time.perf_counter() - begins[0])
            cpu.append(time.process_time() - begins[1])
        return images

    # The first calls compile.
    return run, {"version": version, "cost": lambda: {"wall_seconds": wall[3:], "cpu_seconds": cpu[3:]}}


def summarise(row: dict[str, Any]) -> dict[str, Any]:
    """The least and the median times of a mode."""
    if "wall_seconds" not in row:
        return row
    times = {kind: row[f"{kind}_seconds"] for kind in ("wall", "cpu")}
    least = {f"least_{kind}_seconds": min(values) for kind, values in times.items()}
    return {**row, **least, **{f"median_{kind}_seconds": statistics.median(v) for kind, v in times.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="w32")
    parser.add_argument("--size", type=sizes, default=[(256, 192)], help="height x width")
    parser.add_argument("--modes", type=words, default=MODES)
    parser.add_argument("--batch", type=int, default=1, help="images, or views of one, in a pass")
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--images", type=int, default=5, help="that are computed in a row")
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--log", default=os.devnull, help="file for what the processes write to standard error")
    parser.add_argument("--json", type=pathlib.Path, help="file for the figures")
    parser.add_argument("--task", type=json.loads, help=argparse.SUPPRESS)
    # `Side` gives the task as the only argument.
    arguments = parser.parse_args(["--task", sys.argv[1]] if sys.argv[1:2] and sys.argv[1][0] == "{" else None)
    if arguments.task:
        serve(arguments.task, lambda: begin(arguments.task))
        return
    if unknown := set(arguments.modes) - set(MODES):
        parser.error(f"--modes: there are {', '.join(MODES)}, not {', '.join(sorted(unknown))}")
    shared = {"variant": arguments.variant, "size": list(arguments.size[0]), "batch_size": arguments.batch}
    shared |= {"threads": arguments.threads, "steps": arguments.images, "job": "forward"}
    with open(arguments.log, "a") as log:
        sides = []
        for mode in arguments.modes:
            task = {**shared, "mode": mode, "side": mode.split()[0]}
            sides.append(Side(task, log, 3600, "benchmarks.cpu_inference"))
            sides[-1].ask("start")
        measure_in_turns(sides, arguments.repeats)
        for side in sides:
            side.close()
    rows = [summarise(side.row()) for side in sides]
    record = {**shared, "load": os.getloadavg()[0], "rows": rows}
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")
    print(
        f"{arguments.variant} {arguments.size[0][0]}x{arguments.size[0][1]}, batch {arguments.batch}, float32, ", end=""
    )
    print(f"{arguments.threads} threads, load {record['load']:.1f}; milliseconds\n")
    print(
        "| | wall, least | wall, median | CPU, least | CPU, median | version |\n| :-- | --: | --: | --: | --: | :-- |"
    )
    for row in rows:
        if "least_wall_seconds" not in row:
            print(f"| {row['mode']} | {row.get('failed', 'not measured')} |")
            continue
        cells = [1e3 * row[f"{which}_{kind}_seconds"] for kind in ("wall", "cpu") for which in ("least", "median")]
        print(f"| {row['mode']} | " + " | ".join(f"{cell:.1f}" for cell in cells) + f" | {row['version']} |")


if __name__ == "__main__":
    main()
