"""Kills a training run again and again, and compares where it ends with one that was never touched.

    python -m benchmarks.kill_and_resume --root DATA --output /tmp/kills --kills 200 --json kills.json

Trains a tiny network on CPU, with evaluation, twice: once in peace, and once with SIGKILL in each phase of a run: while
it starts, while a checkpoint is being written, during an evaluation and at random moments; one restart is certain to
fall into the first epoch, one on the boundary of two and one into the last epoch. Another process loads the run's best
checkpoint all the while. All arrays of the final checkpoints and all losses are then compared bit for bit.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np
import optax
from etils import epath

from hrnet_jax.config import from_json
from hrnet_jax.mesh import create_mesh, on_mesh, replicated
from hrnet_jax.models import FunctionalModel, abstract_model
from hrnet_jax.training import metrics
from hrnet_jax.training.step import abstract_items
from hrnet_jax.weights import checkpoint

EVALUATED = 4  # epochs from one evaluation to the next
SAVING = "*.orbax-checkpoint-tmp*"

# Loads a run's best checkpoint again and again until its input ends, then tells how often.
_READER = """
import select, sys
from hrnet_jax.weights import checkpoint
from data_pipelines.errors import InputError
loads = 0
while not select.select([sys.stdin], [], [], 0.5)[0]:
    try:
        checkpoint.load(sys.argv[1])
        loads += 1
    except InputError as error:
        if "no such f" not in str(error) and "holds no checkpoint yet" not in str(error):
            raise
print(loads)
"""


def command(root: pathlib.Path, workdir: pathlib.Path, epochs: int) -> list[str]:
    """The run: short epochs, each saved, every fourth evaluated."""
    overrides = {
        "epochs": epochs,
        "log_every": 5,
        "ema": 0.9,
        "eval.every_epochs": EVALUATED,
        "eval.batch_size": 32,
        "data.root": root,
        "data.eval.boxes": "",
    }
    config = pathlib.Path(__file__).resolve().parent.parent / "configs/coco_aic_merge.py:runlocal"
    flags = [f"--config.{key}={value}" for key, value in overrides.items()]
    return [sys.executable, "-m", "hrnet_jax.train", "--config", str(config), "--workdir", str(workdir), *flags]


class Run:
    """One start of the command, and what its log says so far."""

    def __init__(self, root: pathlib.Path, workdir: pathlib.Path, log: pathlib.Path | None = None, epochs: int = 120):
        self.workdir, self.started = workdir, time.monotonic()
        self._left = self._being_saved()  # by kills before
        self._log = (log or workdir.parent / f"{workdir.name}.log").open("a+")
        self._from = self._log.seek(0, 2)
        line = command(root, workdir, epochs)
        self.process = subprocess.Popen(line, stdout=self._log, stderr=subprocess.STDOUT, text=True)

    def text(self) -> str:
        """What it printed."""
        self._log.flush()
        self._log.seek(self._from)
        return self._log.read()

    def step(self) -> int:
        """The last step that it told of; -1 before the first."""
        steps = re.findall(r"^step (\d+)/", self.text(), re.MULTILINE)
        return int(steps[-1]) if steps else -1

    def saving(self) -> bool:
        """Whether it is writing a checkpoint now."""
        return bool(self._being_saved() - self._left)

    def evaluating(self, steps_per_epoch: int) -> bool:
        """Whether a state was saved that it evaluates now."""
        there = [int(path.name) for path in self.workdir.glob("checkpoints/*") if path.name.isdecimal()]
        newest = max(there, default=0)
        is_due = newest and newest % (EVALUATED * steps_per_epoch) == 0
        return bool(is_due) and not (self.workdir / f"checkpoints/{newest}/metrics.json").exists()

    def _being_saved(self) -> set[tuple[str, int]]:
        found = set()
        for folder in self.workdir.glob(f"checkpoints/{SAVING}"):
            with contextlib.suppress(FileNotFoundError):
                found.add((folder.name, folder.stat().st_ino))
        return found

    def running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def kill(self) -> None:
        """SIGKILL, and the end of its log."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self._log.close()


def kill_once(
    run: Run, kind: str, rng: random.Random, steps_per_epoch: int, last_step: int, to_first_step: float
) -> dict[str, Any] | None:
    """Waits for a moment of that kind and kills; None when the run ended before."""
    last_epoch = last_step - steps_per_epoch
    # From its first imports to the first step, or to some epochs on.
    deadline = run.started + rng.uniform(0.2, 1.0 if kind == "starting" else 1.6) * to_first_step
    while run.running():
        step = run.step()
        due = {
            "starting": time.monotonic() > deadline,
            "saving": run.saving(),
            "evaluating": run.evaluating(steps_per_epoch),
            "first epoch": 0 <= step <= steps_per_epoch,
            "boundary": step > 0 and step % steps_per_epoch == 0,
            "last epoch": step >= last_epoch,
            "random": time.monotonic() > deadline,
        }[kind]
        if due:
            if kind == "evaluating":
                time.sleep(rng.uniform(0, 1))  # anywhere in it
            phase = "saving" if run.saving() else "evaluating" if run.evaluating(steps_per_epoch) else "training"
            phase = "starting" if run.step() < 0 else phase
            run.kill()
            return {"kind": kind, "step": step, "phase": phase, "seconds": time.monotonic() - run.started}
        time.sleep(0.0005 if kind == "saving" else 0.01)
    return None


def final_state(workdir: pathlib.Path) -> tuple[dict[str, np.ndarray], int]:
    """All arrays of the newest checkpoint by path, and its step."""
    config = from_json(workdir / "config.json")
    network = FunctionalModel.of(abstract_model(config))
    abstract = abstract_items(network, optax.adam(lambda step: 1e-3), config.ema)
    newest = epath.Path(workdir) / "checkpoints" / str(checkpoint.steps(workdir / "checkpoints")[-1])
    assert checkpoint.damage(newest) is None
    items, meta = checkpoint.restore(newest, on_mesh(abstract, replicated(create_mesh(jax.devices()[:1]))))
    leaves, _ = jax.tree_util.tree_flatten_with_path(jax.device_get(items))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}, meta["step"]


def differing_bits(a: np.ndarray, b: np.ndarray) -> int:
    """In how many bits two arrays differ."""
    x, y = (np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in (a, b))
    return int(np.unpackbits(x ^ y).sum())


def losses(workdir: pathlib.Path) -> tuple[list[int], dict[int, float], dict[int, float]]:
    """The steps of the log, and by step the losses and APs."""
    records = list(metrics.read(workdir))
    trained, evaluated = ([r for r in records if key in r] for key in ("loss", "eval/AP"))
    steps = [record["step"] for record in trained]
    return steps, {r["step"]: r["loss"] for r in trained}, {r["step"]: r["eval/AP"] for r in evaluated}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=pathlib.Path, required=True, help="COCO + AIC, laid out like the recipes'")
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=0, help="of the run; default: two for each kill, 120 at least")
    parser.add_argument("--minutes", type=float, default=1e9, help="after which no more kills follow")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=pathlib.Path, help="file for the figures")
    arguments = parser.parse_args()
    shutil.rmtree(arguments.output, ignore_errors=True)
    arguments.output.mkdir(parents=True)
    rng = random.Random(arguments.seed)
    epochs = arguments.epochs or max(120, 2 * arguments.kills)

    whole = Run(arguments.root, arguments.output / "whole", epochs=epochs)
    while whole.running() and whole.step() < 0:
        time.sleep(0.1)
    to_first_step = time.monotonic() - whole.started
    if whole.process.wait():
        raise SystemExit(whole.text())
    undisturbed = time.monotonic() - whole.started
    expected, last_step = final_state(whole.workdir)
    steps_per_epoch = last_step // epochs

    random_kinds = (["starting", "saving", "evaluating", "random"] * arguments.kills)[: arguments.kills - 3]
    rng.shuffle(random_kinds)
    kinds = ["first epoch", "boundary", *random_kinds, "last epoch"]
    kills, resumed, fell_back = [], 0, 0
    workdir = arguments.output / "killed"
    line = [sys.executable, "-c", _READER, str(workdir)]
    reader = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    killing = time.monotonic()
    for number, kind in enumerate(kinds):
        if time.monotonic() - killing > 60 * arguments.minutes:
            break
        run = Run(arguments.root, workdir, epochs=epochs)
        kill = kill_once(run, kind, rng, steps_per_epoch, last_step, to_first_step)
        if kill is None:
            print(f"the run ended before kill {number + 1} ({kind}); more --epochs give room for more", flush=True)
            break
        kills.append(kill)
        print(f"kill {number + 1:3} {kind:12} step {kill['step']:4} {kill['phase']}", flush=True)
    run = Run(arguments.root, workdir, epochs=epochs)
    if run.process.wait():
        raise SystemExit(run.text())
    loads = int(reader.communicate("")[0])
    log = (arguments.output / "killed.log").read_text()
    resumed = len(re.findall(r"^continuing at step", log, re.MULTILINE))
    fell_back = len(re.findall(r"trying the one before", log))

    found, step = final_state(workdir)
    bits = sum(differing_bits(found[name], array) for name, array in expected.items())
    assert found.keys() == expected.keys()
    steps, loss, ap = losses(workdir)
    their_steps, their_loss, their_ap = losses(arguments.output / "whole")
    common = set(loss) & set(their_loss)
    summary = {
        "kills": len(kills),
        **{f"while {phase}": count for phase, count in collections.Counter(k["phase"] for k in kills).items()},
        "loads by another process meanwhile": loads,
        "resumes": resumed,
        "checkpoints fallen back over": fell_back,
        "last step": step,
        "arrays": len(expected),
        "differing bits": bits,
        "log steps twice or out of order": len(steps) - len(sorted(set(steps))),
        "log steps missing": len(set(their_steps) - set(steps)),
        "losses that differ": sum(loss[s] != their_loss[s] for s in common),
        "APs that differ": sum(ap.get(s) != value for s, value in their_ap.items()),
        "seconds undisturbed": round(undisturbed, 1),
    }
    for key, value in summary.items():
        print(f"{key:34}{value}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"summary": summary, "kills": kills}, indent=2) + "\n")
    sys.exit(bool(bits) or step != last_step)


if __name__ == "__main__":
    main()
