"""The same training here and in MMPose 1.3.2: losses, accuracy, the loaders' samples and the speed.

    python -m benchmarks.versus_mmpose --peer mmpose/bin/python --root DATA/lspet --json docs/versus-mmpose.json \
        --train 3 --recorded 200 --samples 2000 --speed 10
    python docs/versus_mmpose.py                          # writes docs/versus-mmpose.md from it

MMPose runs in an environment of its own; the compiled parts that HRNet does not use are left out (`mmpose_side.py`):

    python3.11 -m venv mmpose && mmpose/bin/pip install 'setuptools<81' wheel cython 'numpy==1.26.4'
    mmpose/bin/pip install --no-build-isolation 'xtcocotools==1.14.3'
    mmpose/bin/pip install torch 'mmengine==0.10.7' 'mmcv-lite==2.1.0' 'opencv-python-headless==4.11.0.86' \
        json_tricks munkres six scipy torchvision
    mmpose/bin/pip install --no-deps 'mmpose==1.3.2'

`DATA/lspet` has `annotations/{train,val}.json`, COCO-style with AI Challenger's 14 keypoints, and `images/`. Both sides
train the same network from the same weights (drawn here) with the same people in every batch, the same schedule and the
recipe's augmentation, for which each has its own random numbers. The options choose what is measured:

  --train     mean loss of every epoch; PCK and AP by either evaluator of either side's weights.
  --recorded  the loss of every step on the same augmented batches, recorded from our loader.
  --samples   what the two loaders make of the same people: pixels, keypoints in the crop, targets, views.
  --speed     samples a second and CPU seconds a sample of the loader alone, of the step alone, and of both; in turns.

Results are added to the --json file, each with its command and the machine's load.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from benchmarks.agreement import compare_samples, pck
from benchmarks.model import sizes
from benchmarks.sides import Run, Side, measure_in_turns, serve
from configs import aic
from data_pipelines.keypoints import AIC
from data_pipelines.pipeline import TrainData, iterate, stack
from data_pipelines.processes import cores
from hrnet_jax.codecs import create_codec

HERE, THERE = "ours", "mmpose"
PROGRAMS = {HERE: "benchmarks.versus_mmpose", THERE: "benchmarks.mmpose_side"}
Task = dict[str, Any]


def configure(task: Task) -> ConfigDict:
    """The AIC recipe with UDP, on the task's files, network and schedule."""
    c = aic.get_config("udp")
    c.data.root, c.model.variant = task["root"], task["variant_name"]
    c.codec.input_size, c.codec.sigma = tuple(task["size"]), task["sigma"]
    files = {"images": "images", "annotations": "annotations/train.json"}
    c.data.train.aic.update(files)
    c.data.eval.update({**files, "annotations": "annotations/val.json"})
    c.seed, c.epochs = task["seed"], max(task.get("epochs", 1), 1)
    c.batch_size = c.eval.batch_size = task["batch_size"]
    c.model.group_size = 0
    c.optimizer.learning_rate, c.optimizer.warmup_steps = task["learning_rate"], task["warmup"]
    c.optimizer.milestones = ()
    c.data.loader.threads, c.cache_dir = task["threads"], task["cache"]
    return c


def training_data(config: ConfigDict) -> TrainData:
    """The training people of a config."""
    return TrainData.load(config, create_codec(config.codec))


def people(task: Task, samples: int) -> np.ndarray:
    """The annotation ids of our stream's first samples."""
    data = training_data(configure(task))
    order, (source,) = data.order(), data.sources
    return np.array([source.instance_id[order[i]] for i in range(samples)])


# What is measured on our side.


def draw_weights(task: Task) -> dict[str, Any]:
    """Draws the weights that a training with the task's seed starts from, and writes them for the other side."""
    from hrnet_jax.models import create_model, state_dict

    config = configure(task)
    params, stats = state_dict(create_model(config, config.seed))
    hand_over({**params, **stats}, config, task["folder"])
    return {}


def hand_over(arrays: Mapping[str, Any], config: ConfigDict, folder: str) -> None:
    """Writes arrays by canonical name as the `convert` command does, and as NumPy's file `weights.npz`."""
    from safetensors.numpy import load_file

    from hrnet_jax.convert import to_torch
    from hrnet_jax.weights.folder import save_folder

    path = pathlib.Path(folder)
    save_folder(path / "converted", config, {name: np.asarray(array) for name, array in arrays.items()})
    to_torch(path / "converted", "mmpose", path / "weights.safetensors")
    np.savez(path / "weights.npz", **load_file(path / "weights.safetensors"))


def train(task: Task) -> dict[str, Any]:
    """Trains by the trainer; the mean loss by epoch. The weights go to weights.npz in the task's folder."""
    from hrnet_jax.train import train
    from hrnet_jax.training import metrics
    from hrnet_jax.weights import checkpoint

    config, folder = configure(task), pathlib.Path(task["folder"])
    steps = len(np.load(task["order"])[0]) // config.batch_size
    config.log_every, config.eval.every_epochs = steps, config.epochs
    train(config, folder / "run")
    model = checkpoint.load(folder / "run")
    hand_over({**model.params, **model.stats}, config, task["folder"])
    return {"losses": [row["loss"] for row in metrics.read(folder / "run") if "loss" in row]}


def evaluate(task: Task) -> dict[str, Any]:
    """Evaluates the task's models by our evaluator: weights of PyTorch by name. Results go to NAME/keypoints.json."""
    from hrnet_jax.convert import load_torch_state_dict
    from hrnet_jax.inference.evaluator import Evaluator, write
    from hrnet_jax.mesh import create_mesh
    from hrnet_jax.models import create_model, state_dict

    config, numbers = configure(task), {}
    evaluator, model = Evaluator(config, create_mesh(1)), create_model(config)
    for name, weights in task["models"].items():
        with np.load(weights) as arrays:
            load_torch_state_dict(model, dict(arrays))
        result = evaluator(*state_dict(model))
        assert result
        write(pathlib.Path(task["folder"]) / name, *result, evaluator)
        numbers[name] = {key: result[0][key] for key in ("AP", "AP50")}
    return {"numbers": numbers}


def make_step(task: Task) -> tuple[Any, Any]:
    """The compiled training step and its first state, from the weights of `draw_weights`."""

    from hrnet_jax.models import FunctionalModel, create_model, state_dict
    from hrnet_jax.training.optimizer import create_optimizer, learning_rate
    from hrnet_jax.training.step import make_train_step, new_state

    config = configure(task)
    model = create_model(config, config.seed)
    network = FunctionalModel.of(model)
    optimizer = create_optimizer(config, learning_rate(config, 1), network.param_layout)
    step = make_train_step(network, create_codec(config.codec), optimizer, sources=1)
    return step, new_state(network, *state_dict(model), optimizer, 0.0)


FIELDS = ("image", "keypoints", "visible", "source")


def record(task: Task) -> dict[str, Any]:
    """Writes the first batches of our loader to batches.npz, trains on them and gives the loss of every step."""
    config = configure(task)
    batches = iterate(training_data(config).batches(config.batch_size), threads=task["threads"], workers=0)
    step, state = make_step(task)
    recorded, losses = [], []
    for _ in range(task["steps"]):
        batch = next(batches)
        recorded.append({name: batch[name] for name in FIELDS})
        state, measured = step(state, recorded[-1])
        losses.append(float(measured["loss"]))
    batches.close()
    np.savez(pathlib.Path(task["folder"]) / "batches.npz", **stack(recorded))
    return {"losses": losses}


def samples(task: Task) -> dict[str, Any]:
    """Describes the first samples of our loader, as `mmpose_side.samples` does MMPose's."""
    import jax

    config = configure(task)
    data, encode = training_data(config), jax.jit(create_codec(config.codec).encode)
    order, found = data.order(), []
    for index in range(task["samples"]):
        sample = data.sample(index, order[index])
        pixels = sample["image"].reshape(-1, 3)
        targets, weights = (np.asarray(a[0]) for a in encode(sample["keypoints"][None], sample["visible"][None]))
        found.append(
            {
                "mean": pixels.mean(0),
                "std": pixels.std(0),
                "black": (pixels == 0).all(1).mean(),
                "keypoints": sample["keypoints"],
                "weights": weights,
                "target": (np.square(targets).mean((0, 1)) * weights).mean(),
            }
        )
    np.savez(pathlib.Path(task["folder"]) / "samples.npz", **stack(found))
    return {}


def speed(task: Task) -> tuple[Run, dict[str, Any]]:
    """Our training loader alone, the step on one batch, or both, as `mmpose_side.speed`."""
    import jax

    config = configure(task)
    stream = iterate(training_data(config).batches(config.batch_size), threads=task["threads"], workers=0)
    step, state = make_step(task)
    resident = {name: array for name, array in next(stream).items() if name in FIELDS}
    cpu: list[float] = []

    def run(steps: int) -> int:
        nonlocal state
        begin = time.process_time()
        for _ in range(steps):
            batch = resident if task["job"] == "step" else next(stream)
            if task["job"] != "loader":
                state, _ = step(state, {name: batch[name] for name in FIELDS})
        jax.block_until_ready(state)
        cpu.append((time.process_time() - begin) / (steps * config.batch_size))
        return steps * config.batch_size

    return run, {"cost": lambda: {"cpu_seconds": cpu[2:]}}


JOBS = {"weights": draw_weights, "train": train, "evaluate": evaluate, "recorded": record, "samples": samples}


def begin(task: Task) -> tuple[Run, dict[str, Any]]:
    """Starts a job of our side; see `benchmarks.sides.serve`."""
    import cv2
    import jax

    from hrnet_jax.training.compilation import use_cache

    # The jobs share their programs; compiling is not measured.
    jax.config.update("jax_enable_compilation_cache", True)
    use_cache(task["cache"])
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: task["threads"]])
    cv2.setNumThreads(0)
    if task["job"] not in JOBS:
        return speed(task)
    return lambda steps: 0, {**JOBS[task["job"]](task), "versions": {"jax": jax.__version__}}


# The driver.


class Bench:
    """Runs jobs on both sides, in a temporary folder."""

    def __init__(self, arguments: argparse.Namespace, folder: str, log: Any):
        from hrnet_jax.models import VARIANTS

        self.arguments, self.folder, self.log = arguments, pathlib.Path(folder), log
        self.shared: Task = {
            "root": str(arguments.root),
            "cache": str(self.folder / "cache"),
            "variant_name": arguments.variant,
            "variant": dataclasses.asdict(VARIANTS[arguments.variant]),
            "keypoints": len(AIC),
            "size": list(arguments.size[0]),
            **{key: getattr(arguments, key) for key in ("sigma", "batch_size", "learning_rate", "warmup", "threads")},
        }
        self.versions = {"python": platform.python_version()}

    def start(self, side: str, job: str, task: Task, folder: str = "") -> Side:
        """Starts a job of a side, which may write into its own folder."""
        own = self.folder / (folder or f"{side}-{job}-{task['seed']}")
        own.mkdir(exist_ok=True)
        task = {**self.shared, "mode": "", **task, "side": side, "job": job, "folder": str(own)}
        python = self.arguments.peer if side == THERE else sys.executable
        process = Side(task, self.log, 86400, PROGRAMS[side], python)
        process.ask("start")
        if "failed" in process.answer:
            raise SystemExit(f"{side}, {job}: {process.answer['failed']}; --log FILE keeps what it said")
        return process

    def do(self, side: str, job: str, task: Task, folder: str = "") -> tuple[dict[str, Any], pathlib.Path]:
        """Runs a job to its end: its answer and its folder."""
        print(f"{time.strftime('%H:%M:%S')} {side}: {job}", file=sys.stderr, flush=True)
        process = self.start(side, job, task, folder)
        process.close()
        self.versions |= process.answer.get("versions", {})
        return process.answer, pathlib.Path(process.task["folder"])

    def prepared(self, seed: int, epochs: int, samples: int) -> Task:
        """What both sides share for a seed: first weights, and the order of the people, `samples` an epoch."""
        weights, order = (self.folder / f"{name}-{seed}" for name in ("weights", f"order-{epochs}-{samples}"))
        if not weights.exists():
            self.do(HERE, "weights", {"seed": seed}, weights.name)
        task = {"seed": seed, "weights": str(weights / "weights.npz"), "order": f"{order}.npy"}
        np.save(task["order"], people({**self.shared, **task}, epochs * samples).reshape(epochs, samples))
        return task

    def truth(self, name: str) -> dict[str, Any]:
        """An annotation file's content."""
        return json.loads((self.arguments.root / f"annotations/{name}.json").read_text())

    def train(self) -> dict[str, Any]:
        """Both trainings of every seed, and both evaluators on both results."""
        a, rows = self.arguments, []
        batches = -(-len(training_data(configure({**self.shared, "seed": 0}))) // a.batch_size)
        for seed in range(a.seeds):
            task = {**self.prepared(seed, a.train, batches * a.batch_size), "epochs": a.train}
            models, losses = {}, {}
            for side in (HERE, THERE):
                answer, folder = self.do(side, "train", task)
                models[side], losses[side] = str(folder / "weights.npz"), answer["losses"]
            evaluated = {}
            for side in (HERE, THERE):
                answer, folder = self.do(side, "evaluate", {**task, "models": models})
                for trained, numbers in answer["numbers"].items():
                    results = json.loads((folder / trained / "keypoints.json").read_text())
                    evaluated[trained, side] = {"PCK": pck(self.truth("val"), results), **numbers}
            for side in (HERE, THERE):
                by = {evaluator: evaluated[side, evaluator] for evaluator in (HERE, THERE)}
                rows.append({"seed": seed, "trained": side, "losses": losses[side], "evaluated": by})
        return {"rows": rows}

    def recorded(self) -> dict[str, Any]:
        """The losses of both sides on the same batches."""
        a = self.arguments
        task = {**self.prepared(0, 1, a.batch_size), "steps": a.recorded}
        ours, folder = self.do(HERE, "recorded", task)
        theirs, _ = self.do(THERE, "recorded", {**task, "batches": str(folder / "batches.npz")})
        return {"losses": {HERE: ours["losses"], THERE: theirs["losses"]}}

    def samples(self) -> dict[str, Any]:
        """What the loaders make of the same people."""
        count = self.arguments.samples
        task = {**self.prepared(0, 1, count), "samples": count}
        found = {}
        for side in (HERE, THERE):
            _, folder = self.do(side, "samples", task)
            with np.load(folder / "samples.npz") as arrays:
                found[side] = dict(arrays)
        ids = np.load(task["order"])[0]
        return {"samples": count, **compare_samples(self.truth("train"), ids, found, self.shared["size"])}

    def speed(self) -> dict[str, Any]:
        """Loader, step and both, of the two sides in turns."""
        a, rows = self.arguments, []
        task = {**self.prepared(0, 1, 100 * a.batch_size), "steps": a.speed}
        for job in ("loader", "step", "both"):
            sides = [self.start(side, job, task) for side in (HERE, THERE)]
            measure_in_turns(sides, a.repeats)
            for side in sides:
                side.close()
                cpu = side.answer["cpu_seconds"]
                row = {key: side.row()[key] for key in ("job", "side", "images_per_second", "spread", "all")}
                rows.append({**row, "cpu_seconds": statistics.median(cpu), "cpu_spread": [min(cpu), max(cpu)]})
        return {"rows": rows}


def command(arguments: argparse.Namespace, parser: argparse.ArgumentParser, job: str) -> str:
    """The command that measures a job as it was measured; places have general names."""
    words = [
        "python -m benchmarks.versus_mmpose --peer mmpose/bin/python --root DATA/lspet --json docs/versus-mmpose.json"
    ]
    others = {"peer", "root", "json", "log", "size", *MEASURED} - {job}
    for name, value in vars(arguments).items():
        if name not in others and value != parser.get_default(name):
            words.append(f"--{name.replace('_', '-')} {value}")
    if arguments.size != parser.get_default("size"):
        words.append("--size {}x{}".format(*arguments.size[0]))
    return " ".join(words)


MEASURED = ("train", "recorded", "samples", "speed")


def main() -> None:
    # `Side` gives the task as the only argument.
    if sys.argv[1:2] and sys.argv[1][0] == "{":
        task = json.loads(sys.argv[1])
        serve(task, lambda: begin(task))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, help="Python of MMPose's environment")
    parser.add_argument("--root", type=pathlib.Path, required=True, help="folder with annotations/ and images/")
    parser.add_argument("--json", type=pathlib.Path, required=True, help="file for the results")
    parser.add_argument("--train", type=int, default=0, metavar="EPOCHS")
    parser.add_argument("--seeds", type=int, default=1, help="of --train")
    parser.add_argument("--recorded", type=int, default=0, metavar="STEPS")
    parser.add_argument("--samples", type=int, default=0, metavar="SAMPLES")
    parser.add_argument("--speed", type=int, default=0, metavar="STEPS", help="that are timed together")
    parser.add_argument("--repeats", type=int, default=9, help="of --speed")
    parser.add_argument("--variant", default="small")
    parser.add_argument("--size", type=sizes, default=[(96, 64)], help="height x width")
    parser.add_argument("--sigma", type=float, default=2.0, help="of the targets, in cells")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--warmup", type=int, default=50, help="steps")
    parser.add_argument("--threads", type=int, default=1, help="cores, loader threads, and worker processes if above 1")
    parser.add_argument("--log", default=os.devnull, help="file for what the sides write to standard error")
    arguments = parser.parse_args()
    record = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
    with open(arguments.log, "a") as log, tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments, folder, log)
        settings = {key: value for key, value in bench.shared.items() if key not in ("root", "cache", "variant")}
        for job in (job for job in MEASURED if getattr(arguments, job)):
            load = os.getloadavg()[0]
            result = getattr(bench, job)()
            record[job] = {
                "command": command(arguments, parser, job),
                "settings": settings,
                "versions": bench.versions,
                "cores": cores(),
                "load": [load, os.getloadavg()[0]],
                **result,
            }
            arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
