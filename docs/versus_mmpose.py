"""Writes docs/versus-mmpose.md from docs/versus-mmpose.json, which benchmarks/versus_mmpose.py writes.

python docs/versus_mmpose.py
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

RECORD = pathlib.Path(__file__).with_name("versus-mmpose.json")
SIDES = {"ours": "here", "mmpose": "MMPose"}

Record = dict[str, Any]

_HEAD = """\
<!-- Written by docs/versus_mmpose.py from docs/versus-mmpose.json; change those. -->
# The same training here and in MMPose 1.3.2

Both sides train the same network from the same weights, with the same people in every batch, the recipe's augmentation
(each with its own random numbers), UDP targets and the same schedule, on people of Leeds Sports Pose Extended in AI
Challenger's keypoints. MMPose runs in its own environment, with MMEngine's runner;
[benchmarks/versus_mmpose.py](../benchmarks/versus_mmpose.py) describes its installation and the options. `DATA`
is not part of the repository.
"""


def conditions(record: Record) -> list[str]:
    """The command, and what else the numbers depend on."""
    s, versions = record["settings"], record["versions"]
    height, width = s["size"]
    settings = (
        f"`{s['variant_name']}` {height}x{width}, UDP with sigma {s['sigma']:g}, batches of {s['batch_size']}, Adam at "
        f"{s['learning_rate']:g} after {s['warmup']} steps of warm-up, no decay, float32. "
        f"{s['threads']} thread{'s' * (s['threads'] > 1)} on as many of {record['cores']} shared CPU cores, load "
        f"{record['load'][0]:.1f} at the start and {record['load'][1]:.1f} at the end."
    )
    names = ", ".join(f"{name} {version}" for name, version in versions.items())
    return ["```", record["command"].replace(" --json", " \\\n    --json"), "```", "", settings, names + ".", ""]


def table(header: list[str], rows: list[list[str]], texts: int = 1) -> list[str]:
    """A table whose first columns are text."""
    alignment = [":--"] * texts + ["--:"] * (len(header) - texts)
    return [f"| {' | '.join(cells)} |" for cells in (header, alignment, *rows)] + [""]


def train(record: Record) -> list[str]:
    """Losses and accuracy of the trainings."""
    epochs = len(record["rows"][0]["losses"])
    losses = [
        [str(row["seed"]), SIDES[row["trained"]], *(f"{1e3 * loss:.3f}" for loss in row["losses"])]
        for row in record["rows"]
    ]
    numbers = [
        [
            str(row["seed"]),
            SIDES[row["trained"]],
            SIDES[evaluator],
            *(f"{found[name]:.4f}" for name in ("PCK", "AP", "AP50")),
        ]
        for row in record["rows"]
        for evaluator, found in row["evaluated"].items()
    ]
    return [
        "Mean loss of every epoch, 1e-3:",
        "",
        *table(["seed", "trained", *(f"epoch {n + 1}" for n in range(epochs))], losses, 2),
        "The weights of each side, evaluated by each side: crops, flip test, decoding, AP with AI "
        "Challenger's sigmas (pycocotools here, xtcocotools there). PCK at 0.2 of the torso, from both results files "
        "by one function:",
        "",
        *table(["seed", "trained", "evaluated", "PCK", "AP", "AP50"], numbers, 3),
    ]


def recorded(record: Record) -> list[str]:
    """Losses of both sides on the same batches."""
    ours, theirs = (record["losses"][side] for side in SIDES)
    apart = [abs(a / b - 1) for a, b in zip(ours, theirs, strict=True)]
    part = -(-len(ours) // 4)
    rows = []
    for first in range(0, len(ours), part):
        chosen = slice(first, first + part)
        means = [sum(losses[chosen]) / len(losses[chosen]) for losses in (ours, theirs)]
        cells = [f"{1e3 * mean:.4f}" for mean in means] + [f"{100 * (means[0] / means[1] - 1):+.3f} %"]
        rows.append([f"{first + 1} to {first + len(ours[chosen])}", *cells, f"{100 * max(apart[chosen]):.3f} %"])
    header = ["steps", "here, 1e-3", "MMPose, 1e-3", "difference", "largest of a step"]
    text = "One stream of augmented batches from our loader, on which both train. The first step's losses differ by"
    return [f"{text} {apart[0]:.1e}.", "", *table(header, rows)]


def samples(record: Record) -> list[str]:
    """What the loaders make of the same people."""
    rows = [
        [name, *(f"{found[side]:.5g}" for side in SIDES), f"{found['standard_errors']:+.1f}"]
        for name, found in record["quantities"].items()
    ]
    distances = ", ".join(f"{name} {value:.3f}" for name, value in record["views"].items())
    return [
        f"{record['samples']:,} samples of the same people from either loader. The last column is the mean difference "
        "of a person's two samples in standard errors.",
        "",
        *table(["mean of", *SIDES.values(), "difference"], rows),
        f"Largest distances between the distribution functions of the views: {distances}; two samples of one "
        f"distribution exceed {record['views_exceeded_once_in_20']:.3f} once in twenty times.",
        "",
    ]


def speed(record: Record) -> list[str]:
    """Rates of the parts."""
    names = {"loader": "loader alone", "step": "training step alone", "both": "both"}
    rows = []
    for row in record["rows"]:
        low, high = row["spread"]
        cpu = f"{1e3 * row['cpu_seconds']:.2f}"
        rows.append(
            [names[row["job"]], SIDES[row["side"]], f"{row['images_per_second']:.0f}", f"{low:.0f} to {high:.0f}", cpu]
        )
    return [
        "Medians over alternating rounds. Targets are rendered by the step here, by the loader in MMPose, whose step "
        "also measures an accuracy. CPU time is the process's.",
        "",
        *table(["", "side", "samples/s", "range", "CPU ms per sample"], rows, 2),
    ]


PARTS: dict[str, tuple[str, Callable[[Record], list[str]]]] = {
    "train": ("Training", train),
    "recorded": ("The same batches", recorded),
    "samples": ("The loaders' samples", samples),
    "speed": ("Speed", speed),
}


def render(record: Record) -> str:
    """The page for a record."""
    lines = [_HEAD]
    for job, (title, describe) in PARTS.items():
        measured = [*conditions(record[job]), *describe(record[job])] if job in record else ["Not measured yet.", ""]
        lines += [f"## {title}", "", *measured]
    return "\n".join(lines)


def main() -> None:
    """Writes the page beside the record."""
    RECORD.with_suffix(".md").write_text(render(json.loads(RECORD.read_text())))


if __name__ == "__main__":
    main()
