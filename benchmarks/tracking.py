"""Identity switches of tracks, and jitter and lag of keypoints with and without smoothing, on people who move.

    python -m benchmarks.tracking [--scenes 20] [--json tracking.json]

People of 17 keypoints walk for 10 seconds at 25 frames per second through 1280x720 pixels. What a predictor would find
of them is the truth with noise: keypoints by 1 % of the height, boxes by 2 % of their sides; 5 % of detections are
missing, and one in 20 frames has a false one. Nothing is learned or drawn, so the figures hold for the tracker and the
filter alone, and not for a detector and a network.

A switch: a person's identity differs from the last one, and the person was not missing for longer than `PATIENCE`.
Jitter: root of the mean square of the second difference of (found - true) keypoints, pixels per frame^2. Lag: the delay
in milliseconds that explains most of the error, by least squares along the true velocity. Error: root mean square.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from typing import Any

import numpy as np

from data_pipelines.keypoints import COCO
from hrnet_jax.inference.smoothing import Smoother
from hrnet_jax.inference.tracks import PATIENCE, Tracker

RATE = 25.0
FRAMES = 250
WIDTH, HEIGHT = 1280, 720

# Joints of a standing person in units of the height, from the middle of the hips: x to the left, y down.
_STANDING = {
    **{"nose": (0, -0.42), "eye": (0.02, -0.44), "ear": (0.04, -0.43), "shoulder": (0.11, -0.30)},
    **{"elbow": (0.14, -0.13), "wrist": (0.15, 0.02), "hip": (0.07, 0), "knee": (0.07, 0.24), "ankle": (0.07, 0.47)},
}
# How far each swings to the side while walking; left and right by turns, the arms against the legs.
_SWING = {"elbow": -0.06, "wrist": -0.13, "knee": 0.10, "ankle": 0.20}

SCENES = {
    "standing": "3 people who shift their weight",
    "apart": "3 people in lanes of their own, one of whom runs",
    "exits and returns": "3 people who leave the picture or are hidden, for 0.2 to 3 s",
    "crossings": "6 people, each of whom crosses another; who is behind is missing while half covered",
    "meetings": "6 people, each of whom meets another, and turns back; who is behind is missing while half covered",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=20, help="of each kind")
    parser.add_argument("--json", default="", help="file for the numbers")
    arguments = parser.parse_args()
    numbers = {kind: measure(kind, arguments.scenes) for kind in SCENES}
    print("| scene | people | switches | new identities | jitter, px | lag, ms | RMS error, px |")
    print("| :-- | --: | --: | --: | --: | --: | --: |")
    for kind, found in numbers.items():
        both = [f"{found['raw'][name]:.1f} → {found['smooth'][name]:.1f}" for name in ("jitter", "lag", "error")]
        row = [SCENES[kind], found["people"], found["switches"], found["new"], *both]
        print(f"| {' | '.join(map(str, row))} |")
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(numbers))


def measure(kind: str, scenes: int) -> dict[str, Any]:
    """Tracks and smooths the people of some scenes; sums of people and switches, means of the rest."""
    sums: dict[str, Any] = {"people": 0, "switches": 0, "new": 0}
    errors: dict[str, list[dict[str, float]]] = {"raw": [], "smooth": []}
    for seed in range(scenes):
        rng = np.random.default_rng(seed)
        truth, there = walkers(kind, rng)
        tracker, smoother = Tracker(COCO, RATE), Smoother(RATE)
        identities = np.zeros(there.shape, int)
        found = {name: np.full_like(truth, np.nan) for name in errors}
        for frame in range(FRAMES):
            rows, people = detected(truth[:, frame], there[:, frame], rng)
            ids = tracker.update(people)
            steady = smoother.update(people, ids)
            for row, identity, *both in zip(rows, ids, people, steady, strict=True):
                if row >= 0:
                    identities[row, frame] = identity
                    for name, person in zip(found, both, strict=True):
                        found[name][row, frame] = person["keypoints"]
        sums["people"] += len(truth)
        for row in identities:
            for before, now in zip(*(np.flatnonzero(row)[at] for at in (slice(-1), slice(1, None))), strict=True):
                if row[before] != row[now]:
                    sums["switches" if now - before <= PATIENCE * RATE else "new"] += 1
        for name, points in found.items():
            errors[name].append(deviations(points, truth))
    means = {name: {key: float(np.mean([e[key] for e in each])) for key in each[0]} for name, each in errors.items()}
    return {**sums, **means}


def deviations(found: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Jitter, lag and error of keypoints [people, frames, K, 2], NaN where not found."""
    off = found - truth
    velocities = np.gradient(truth, axis=1) * RATE
    seen = np.isfinite(off)
    second = np.diff(off, n=2, axis=1)
    return {
        "jitter": float(np.sqrt(np.nanmean(second**2))),
        "lag": float(-1000 * (off * velocities)[seen].sum() / (velocities[seen] ** 2).sum()),
        "error": float(np.sqrt(np.nanmean(off**2))),
    }


def walkers(kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Keypoints [people, frames, 17, 2] in pixels, and whether they can be seen [people, frames]."""
    seconds = np.arange(FRAMES) / RATE
    pairs = kind in ("crossings", "meetings")
    count = 6 if pairs else 3
    people = []
    for number in range(count):
        height = rng.uniform(150, 250)
        if pairs:  # they meet in the middle of their lane
            lane, side = divmod(number, 2)
            start, end, y = (
                WIDTH * (0.1 + 0.8 * side),
                WIDTH * (0.9 - 0.8 * side),
                140 + 220 * lane + rng.uniform(-9, 9),
            )
        else:
            start, end, y = WIDTH * rng.uniform(0.1, 0.4), WIDTH * rng.uniform(0.6, 0.9), 120 + 240 * number
        pace = rng.uniform(0.9, 1.1) * (2.5 if kind == "apart" and number == 0 else 1.0)
        share = seconds / 10 * pace
        if kind == "standing":
            end, pace = start + 0.1 * height, 0.3 * pace
        elif kind == "meetings":
            share = np.minimum(share, pace - share)
        elif pace > 2:  # to and fro
            share = (1 - np.cos(np.pi * share)) / 2
        stride = np.sin(2 * np.pi * 0.9 * pace * seconds + rng.uniform(0, 6))
        people.append(_walk(start + (end - start) * share, np.full(FRAMES, y), height, stride))
    there = np.ones((count, FRAMES), bool)
    if kind == "exits and returns":
        for number in range(count):
            for begin, length in zip((40, 90, 150), rng.permutation([0.2, 0.6, 3.0]), strict=True):
                there[number, begin + 5 * number : begin + 5 * number + round(length * RATE)] = False
    return np.array(people), there


def _walk(x: np.ndarray, y: np.ndarray, height: float, stride: np.ndarray) -> np.ndarray:
    points = np.zeros((len(x), len(COCO), 2))
    for at, name in enumerate(COCO.names):
        side, _, part = name.rpartition("_")
        sign = {"left": 1, "right": -1, "": 0}[side]
        dx, dy = _STANDING[part]
        points[:, at, 0] = x + height * (sign * dx + sign * _SWING.get(part, 0) * stride)
        points[:, at, 1] = y + height * dy
    return points


def detected(truth: np.ndarray, there: np.ndarray, rng: np.random.Generator) -> tuple[list[int], list[dict[str, Any]]]:
    """Who is found in a frame, in any order (-1: nobody), and as what."""
    low, high = truth.min(axis=1), truth.max(axis=1)
    sizes = high - low
    boxes = np.concatenate([low - 0.12 * sizes, 1.24 * sizes], axis=1)
    rows, people = [], []
    for row in rng.permutation(len(truth)).tolist():
        covered = any(_share(boxes[row], boxes[other]) > 0.5 for other in np.flatnonzero(there) if other > row)
        if there[row] and not covered and rng.random() > 0.05:
            noise = rng.normal(size=(len(COCO), 2)) * 0.01 * sizes[row, 1]
            box = boxes[row] + rng.normal(size=4) * 0.02 * np.tile(boxes[row, 2:], 2)
            rows.append(row)
            people.append({"keypoints": truth[row] + noise, "bbox": box, "scores": np.full(len(COCO), 0.8)})
    if rng.random() < 0.05:
        box = np.array([*rng.uniform(0, [WIDTH - 100, HEIGHT - 200]), 100, 200])
        rows.append(-1)
        people.append(
            {"keypoints": box[:2] + rng.random((len(COCO), 2)) * box[2:], "bbox": box, "scores": np.full(17, 0.4)}
        )
    return rows, people


def _share(box: np.ndarray, other: np.ndarray) -> float:
    """How much of a box another covers."""
    sides = np.minimum(box[:2] + box[2:], other[:2] + other[2:]) - np.maximum(box[:2], other[:2])
    return float(np.maximum(sides, 0).prod() / box[2:].prod())


if __name__ == "__main__":
    main()
