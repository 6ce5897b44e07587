"""How long COCO evaluation takes at val2017's full size, against pycocotools alone.

    python -m benchmarks.evaluation [--repeats 3] [--output evaluation.json]

Synthetic data: 5,000 images, 11,004 people, 104,125 predictions of 17 keypoints. `ours` is eval.coco.evaluate:
checks, instance scores, OKS-NMS and the measurement. `pycocotools` is its own part on what stayed after the
suppression: loadRes, evaluate, accumulate and summarize. Both must give the same ten numbers.
"""

import argparse
import contextlib
import io
import json
import os
import platform
import statistics
import time

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from data_pipelines.keypoints import COCO as JOINTS
from eval import coco
from eval.records import Annotations, Predictions

IMAGES, PEOPLE, PREDICTIONS = 5_000, 11_004, 104_125
SELECTION = {"nms": "oks_nms", "nms_threshold": 0.9, "score_mode": "bbox_keypoint", "keypoint_threshold": 0.2}


def synthetic(images=IMAGES, people=PEOPLE, predictions=PREDICTIONS, seed=0):
    """Returns (COCO annotations, predictions): people with 17 keypoints, and boxes that find or miss them.

    Three of ten predictions lie near a person, from exact to poor, and so compete for it; the others are noise, most
    of it small and of low score, as a person detector without a threshold delivers it.
    """
    random = np.random.default_rng(seed)
    count = len(JOINTS)
    size = np.exp(random.uniform(np.log(30), np.log(300), people))
    corner = random.uniform(0, 300, (people, 2))
    boxes = np.stack([corner[:, 0], corner[:, 1], size * 0.5, size], axis=1)
    points = boxes[:, None, :2] + random.random((people, count, 2)) * boxes[:, None, 2:]
    visible = random.choice(3, (people, count), p=(0.35, 0.05, 0.6))
    crowd = random.random(people) < 0.02
    image_of_person = np.sort(random.choice(images // 2, people)) * 2  # half the images show nobody
    annotations = {
        "images": [{"id": i + 1, "width": 640, "height": 480} for i in range(images)],
        "categories": [{"id": 1, "name": "person", "keypoints": list(JOINTS.names)}],
        "annotations": [
            {
                "id": i + 1,
                "image_id": int(image_of_person[i]) + 1,
                "category_id": 1,
                "bbox": boxes[i].tolist(),
                "area": float(boxes[i, 2] * boxes[i, 3] * 0.6),
                "iscrowd": int(crowd[i]),
                "keypoints": np.column_stack([points[i], visible[i]]).ravel().tolist(),
                "num_keypoints": int((visible[i] > 0).sum()),
            }
            for i in range(people)
        ],
    }
    near = random.random(predictions) < 0.3
    person = random.integers(0, people, predictions)
    image = np.where(near, image_of_person[person], random.integers(0, images, predictions))
    noise = np.exp(random.uniform(np.log(0.002), np.log(0.1), predictions)) * size[person]
    keypoints = points[person] + noise[:, None, None] * random.standard_normal((predictions, count, 2))
    keypoints[~near] += random.uniform(-200, 200, (predictions, 1, 2))[~near]
    xyxy = np.concatenate([keypoints.min(axis=1), keypoints.max(axis=1)], axis=1)
    areas = np.prod(xyxy[:, 2:] - xyxy[:, :2], axis=1) * 1.25**2
    scores = random.random((predictions, count)) * np.where(near, 1.0, 0.5)[:, None]
    box_scores = random.random(predictions) * np.where(near, 1.0, 0.4)
    order = np.argsort(image, kind="stable")
    return annotations, [
        {
            "id": i,
            "image_id": int(image[j]) + 1,
            "category_id": 1,
            "keypoints": keypoints[j].astype(np.float32),
            "keypoint_scores": scores[j].astype(np.float32),
            "box_score": float(box_scores[j]),
            "bbox": xyxy[j].astype(np.float32),
            "area": float(areas[j]),
        }
        for i, j in enumerate(order)
    ]


def pycocotools_alone(truth, results):
    """Seconds by part and the ten numbers, as pycocotools is used everywhere."""
    seconds = {}
    with contextlib.redirect_stdout(io.StringIO()):
        with timed(seconds, "loadRes"):
            found = truth.loadRes(results)
        evaluation = COCOeval(truth, found, "keypoints")
        for part in ("evaluate", "accumulate", "summarize"):
            with timed(seconds, part):
                getattr(evaluation, part)()
    return seconds, evaluation.stats.tolist()


def ours_by_part(annotations, predictions):
    """Seconds of the parts of eval.coco.evaluate."""
    seconds = {}
    with timed(seconds, "read predictions"):
        table = Predictions.from_records(predictions, JOINTS)
    with timed(seconds, "instance scores and OKS-NMS"):
        kept = coco.select(table, JOINTS, **SELECTION)
    with timed(seconds, "read annotations"):
        truth = Annotations.read(annotations, JOINTS, True, kept)
    with timed(seconds, "measure"):
        coco.measure(truth, kept, JOINTS)
    return seconds


@contextlib.contextmanager
def timed(seconds, part):
    start = time.perf_counter()
    yield
    seconds[part] = time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="rounds; the median counts")
    parser.add_argument("--output", help="JSON file for the figures")
    arguments = parser.parse_args()

    annotations, predictions = synthetic()
    kept = coco.select(Predictions.from_records(predictions, JOINTS), JOINTS, **SELECTION)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = annotations
        truth.createIndex()
    rounds = []
    for _ in range(arguments.repeats):
        seconds = {}
        with timed(seconds, "ours"):
            metrics = coco.evaluate(annotations, predictions, keypoint_set="coco")
        # loadRes writes into the results, so each round gets its own.
        parts, expected = pycocotools_alone(truth, kept.to_results())
        deviation = max(abs(metrics[name] - value) for name, value in zip(coco.METRICS, expected, strict=True))
        assert deviation < 1e-9, f"the numbers differ from pycocotools' by {deviation}"
        seconds["pycocotools"] = sum(parts.values())
        seconds["ratio"] = seconds["ours"] / seconds["pycocotools"]
        seconds |= {f"pycocotools: {part}": value for part, value in parts.items()}
        seconds |= {f"ours: {part}": value for part, value in ours_by_part(annotations, predictions).items()}
        rounds.append(seconds)

    figures = {name: statistics.median(seconds[name] for seconds in rounds) for name in rounds[0]}
    for name, value in figures.items():
        print(f"{name:<34} {value:8.3f}{'' if name == 'ratio' else ' s'}")
    print(f"{len(predictions)} predictions on {IMAGES} images, {len(kept)} kept, AP {metrics['AP']:.5f}")
    if arguments.output:
        conditions = {
            "images": IMAGES,
            "people": PEOPLE,
            "predictions": len(predictions),
            "kept": len(kept),
            "repeats": arguments.repeats,
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            "numpy": np.__version__,
        }
        with open(arguments.output, "w", encoding="utf-8") as file:
            json.dump({"seconds": figures, "conditions": conditions, "rounds": rounds}, file, indent=2)


if __name__ == "__main__":
    main()
