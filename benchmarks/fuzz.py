"""A thousand damaged inputs: each ends in a result or in one line that says what is wrong.

    python -m benchmarks.fuzz                              # all kinds, a table
    python -m benchmarks.fuzz --kind results --first 17 --count 1  # one case again

Cases are mutations of valid inputs, drawn by (kind, number). What counts as a failure: any exception but InputError
and absl's flags.Error, a message of several lines or none, more than 20 seconds, more than 2 GiB.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import json
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
from absl import flags

from benchmarks import fuzz_inputs as inputs
from benchmarks.fuzz_workshop import CONFIG, Workshop
from data_pipelines.annotations import load_detections, load_instances
from data_pipelines.errors import InputError
from data_pipelines.keypoints import AIC, COCO
from eval import coco
from eval.records import Annotations
from hrnet_jax import cli
from hrnet_jax import config as config_lib
from hrnet_jax.inference.boxes import read_boxes
from hrnet_jax.inference.predictor import load
from hrnet_jax.inference.sources import Source
from hrnet_jax.weights import checkpoint
from hrnet_jax.weights.folder import load_folder

LIMIT_S = 20
LIMIT_MIB = 2048
LONGEST_LINE = 2000

Rng = random.Random


@dataclasses.dataclass(frozen=True)
class Case:
    """How an input ended: `outcome` is "result", "refused", "traceback", "lines", "hang" or "memory"."""

    kind: str
    number: int
    outcome: str
    message: str
    seconds: float
    mebibytes: float

    @property
    def failed(self) -> bool:
        """Whether this must not be."""
        return self.outcome not in ("result", "refused")


def image(rng: Rng, shop: Workshop) -> Any:
    """A damaged image file, or an array that may be none."""
    if rng.random() < 0.15:
        return shop.predictor(inputs.strange_array(rng))
    picture = cv2.imread(str(rng.choice(shop.photos)))
    data = inputs.encoded(rng, picture)
    path = shop.scratch() / ("image" + rng.choice([".jpg", ".png", ".bin", ""]))
    path.write_bytes(inputs.mutated_image(rng, data))
    return shop.predictor(path, None if rng.random() < 0.7 else [[3, 4, 50, 60]])


def boxes(rng: Rng, shop: Workshop) -> Any:
    """Tables of boxes that may be none, on a good image."""
    return shop.predictor(np.zeros((60, 80, 3), np.uint8), inputs.strange_boxes(rng), clip=rng.random() < 0.5)


def box_file(rng: Rng, shop: Workshop) -> Any:
    """A damaged file of boxes, and an image with what it gives."""
    by_name = shop.root / "by_name.json"
    by_name.write_text(json.dumps({path.name: [[10, 10, 60, 80]] for path in shop.photos}))
    table = shop.root / "boxes.npy"
    np.save(table, np.array([[10.0, 10, 60, 80], [20, 5, 40, 70]]))
    path = rng.choice([by_name, table, shop.annotations, shop.aic_annotations, shop.detections])
    labels = AIC if path == shop.aic_annotations else COCO
    annotations = str(shop.annotations) if rng.random() < 0.3 else ""
    damaged = shop.damaged(rng, path, as_json=path.suffix == ".json")
    file = read_boxes(str(damaged), labels, annotations, threshold=0.1)
    name = rng.choice(shop.photos).name
    found, _ = file.of(name)
    return shop.predictor.prepare(np.zeros((200, 300, 3), np.uint8), found, name=name)


def shots(rng: Rng, shop: Workshop) -> Any:
    """A damaged video, or a folder with damaged and oddly named images."""
    if rng.random() < 0.5:
        path = shop.damaged(rng, shop.video, as_json=False)
    else:
        path = shop.scratch() / "photos"
        path.mkdir()
        for number in range(rng.randrange(4)):
            data = inputs.mutated_bytes(rng, rng.choice(shop.photos).read_bytes())
            (path / (str(number) + rng.choice([".jpg", ".PNG", ".txt", " .jpg", "\u00e9.bmp"]))).write_bytes(data)
        if rng.random() < 0.3:
            (path / "loop.jpg").symlink_to(path)
    source = Source.find(path, shop.root / "nowhere", max_megapixels=50)
    unusable: list[str] = []
    count = sum(1 for _ in source.shots(50, unusable.append))
    if several := [line for line in unusable if "\n" in line]:
        raise ValueError(f"lines: {several[0]!r}")
    return count


def annotation_file(rng: Rng, shop: Workshop) -> Any:
    """A damaged annotation file of either layout, or a detector's boxes, as training and evaluation read them."""
    layout = rng.randrange(3)
    if layout == 0:
        path = shop.damaged(rng, shop.annotations, as_json=True)
        return load_instances(path, shop.images, COCO)
    if layout == 1:
        path = shop.damaged(rng, shop.aic_annotations, as_json=True)
        return load_instances(path, shop.aic_images, AIC), Annotations.read(path, AIC, use_area=False)
    path = shop.damaged(rng, shop.detections, as_json=True)
    return load_detections(path, shop.annotations, shop.images, COCO)


def results(rng: Rng, shop: Workshop) -> Any:
    """Damaged results, or annotations, as the evaluation reads them."""
    use_area = rng.random() < 0.5
    if rng.random() < 0.5:
        path = shop.damaged(rng, shop.annotations, as_json=True)
        return coco.evaluate_results(path, shop.results, use_area=use_area)
    path = shop.damaged(rng, shop.results, as_json=True)
    return coco.evaluate_results(shop.annotations, path, use_area=use_area)


def overrides(rng: Rng, shop: Workshop) -> Any:
    """Flags that override a config's keys, of a config file and of a stored model."""
    config = config_lib.load_config(CONFIG) if rng.random() < 0.5 else checkpoint.stored_config(shop.folder)
    options: cli.Options = {"checkpoint": ("", "folder"), "draw": (True, "pictures")}
    arguments = inputs.strange_flags(rng, config)
    with contextlib.redirect_stdout(None):
        _, config = cli.parse(arguments, "A command.", options, lambda values: config)
    config_lib.check(config)
    config_lib.check_devices(config, 1)
    return config


def config_file(rng: Rng, shop: Workshop) -> Any:
    """A model whose config.json is damaged."""
    return load(shop.damaged_folder(rng, shop.folder, "config.json"), batch_size=1)


def weights(rng: Rng, shop: Workshop) -> Any:
    """A model whose arrays are damaged."""
    path = shop.damaged_folder(rng, shop.folder, "model.safetensors")
    return load_folder(path) and load(path, batch_size=1)


def workdir(rng: Rng, shop: Workshop) -> Any:
    """A work directory of which a file or folder is damaged or gone."""
    return load(shop.damaged_folder(rng, shop.workdir), batch_size=1)


def command(rng: Rng, shop: Workshop) -> Any:
    """A command line in a process of its own, with one of the above."""
    image_file = shop.damaged(rng, shop.photos[0], as_json=False)
    folder, photos = shop.root / "command", str(shop.images)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(shop.folder, folder)
    damaged = inputs.mutated_json(rng, (shop.folder / "config.json").read_bytes())
    (folder / "config.json").write_bytes(damaged)
    model, output = f"--checkpoint={shop.folder}", f"--output={shop.root / 'out'}"
    arguments = rng.choice(
        [
            ("hrnet_jax.predict", f"--checkpoint={folder}", f"--images={photos}", output),
            ("hrnet_jax.predict", model, f"--images={image_file}", output),
            ("hrnet_jax.predict", model, f"--images={photos}", f"--boxes={image_file}", output),
            (
                "hrnet_jax.predict",
                model,
                f"--images={photos}",
                output,
                *inputs.strange_flags(rng, config_lib.load_config(CONFIG)),
            ),
            ("hrnet_jax.evaluate", f"--checkpoint={folder}", output),
            ("hrnet_jax.evaluate", f"--checkpoint={image_file}", output),
            ("hrnet_jax.train", f"--config={CONFIG}", f"--workdir={folder}", "--config.data.root=/dev/null"),
            ("hrnet_jax.export", f"--checkpoint={folder}", output),
            ("eval.coco", f"--annotations={shop.annotations}", f"--results={image_file}"),
            ("data_pipelines.prepare", "--keypoints=coco", f"--annotations={image_file}", f"--images={photos}", output),
        ]
    )
    process = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, timeout=10 * LIMIT_S)
    errors = [line for line in process.stderr.splitlines() if line.startswith(("error:", "usage:"))]
    if process.returncode not in (0, 1, 2) or "Traceback" in process.stderr or (process.returncode and not errors):
        raise ValueError(f"{arguments}: status {process.returncode}: {process.stderr[-2000:]}")
    if process.returncode:
        raise InputError(errors[-1])
    return process


KINDS: dict[Callable[[Rng, Workshop], Any], int] = {
    **{image: 180, boxes: 120, box_file: 140, shots: 40, annotation_file: 180, results: 120, overrides: 100},
    **{config_file: 50, weights: 30, workdir: 30, command: 10},
}


def run(make: Callable[[Rng, Workshop], Any], number: int, shop: Workshop) -> Case:
    """Draws a case and tells how it ended."""
    rng = Rng(zlib.crc32(f"{make.__name__} {number}".encode()))
    before, start = _peak(), time.monotonic()
    limit = LIMIT_S * (10 if make is command else 1)
    try:
        with _time_limit(limit):
            make(rng, shop)
        outcome, message = "result", ""
    except (InputError, flags.Error) as error:
        message = str(error)
        clear = message.strip() and "\n" not in message and len(message) <= LONGEST_LINE
        outcome = "refused" if clear else "lines"
    except SystemExit as error:
        outcome, message = ("traceback" if error.code else "result"), f"exit {error.code}"
    except _HangError:
        outcome, message = "hang", traceback.format_exc()
    except Exception:
        outcome, message = "traceback", traceback.format_exc()
    seconds, growth = time.monotonic() - start, _peak() - before
    if outcome in ("result", "refused") and (seconds > limit or growth > LIMIT_MIB):
        outcome = "hang" if seconds > limit else "memory"
    return Case(make.__name__, number, outcome, message, seconds, growth)


def report(cases: list[Case]) -> None:
    """Prints the counts, and on standard error the cases that failed."""
    for case in cases:
        if case.failed:
            print(f"--- {case.kind} {case.number}: {case.outcome}\n{case.message}", file=sys.stderr)
    print(table(cases))


def table(cases: list[Case]) -> str:
    """Counts by kind, as Markdown."""
    by_kind = collections.defaultdict(list)
    for case in cases:
        by_kind[case.kind].append(case)
    by_kind["all"] = cases
    lines = ["| input | cases | a result | one line | tracebacks, unclear | hangs | memory | slowest s | MiB |"]
    lines += ["| :-- |" + " --: |" * 8]
    for kind, group in by_kind.items():
        count = collections.Counter(case.outcome for case in group)
        bad = count["traceback"] + count["lines"], count["hang"], count["memory"]
        slowest, most = max(case.seconds for case in group), max(case.mebibytes for case in group)
        numbers = (len(group), count["result"], count["refused"], *bad, f"{slowest:.1f}", f"{most:.0f}")
        lines.append(f"| {kind.replace('_', ' ')} | " + " | ".join(map(str, numbers)) + " |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=[make.__name__ for make in KINDS], help="one kind only")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--count", type=int, help="cases of each kind")
    parser.add_argument("--json", help="writes all cases to this file")
    arguments = parser.parse_args()
    cases = []
    with tempfile.TemporaryDirectory(prefix="hrnet_jax_fuzz_") as root:
        shop = Workshop(pathlib.Path(root))
        if arguments.kind in (None, image.__name__, boxes.__name__, box_file.__name__):
            shop.predictor(np.zeros((1, 1, 3), np.uint8))
        for make, count in KINDS.items():
            if arguments.kind in (None, make.__name__):
                numbers = range(arguments.first, arguments.first + (arguments.count or count))
                cases += [run(make, number, shop) for number in numbers]
    report(cases)
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps([dataclasses.asdict(case) for case in cases], indent=1))
    sys.exit(any(case.failed for case in cases))


class _HangError(BaseException):
    """A case took too long; no handler of errors may take this for one."""


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    def stop(*unused: Any) -> None:
        raise _HangError

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _peak() -> float:
    """The most memory that this process, or a child of it, has had so far, in MiB."""
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024


if __name__ == "__main__":
    main()
