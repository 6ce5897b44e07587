"""docs/own-data.md: its code blocks, run in order on a drawn animal of nine keypoints."""

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import textwrap

import cv2
import numpy as np
import pytest

from data_pipelines.errors import InputError
from data_pipelines.keypoints import KeypointSet, keypoint_set
from eval.coco import METRICS, evaluate_results
from hrnet_jax import config as config_lib
from hrnet_jax.export import describe
from tests.helpers import REPOSITORY

PAGE = (REPOSITORY / "docs/own-data.md").read_text()
SIZE = 128


def blocks(language):
    """The page's code blocks in a language."""
    return [textwrap.dedent(code) for code in re.findall(rf"^ *```{language}\n(.*?)^ *```$", PAGE, re.M | re.S)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where the page is followed: the user's data and config, then the training and evaluation of its commands."""
    place = tmp_path_factory.mktemp("own_data")
    (place / "configs").mkdir()
    (place / "configs/dogs.py").write_text(blocks("python")[0])
    draw_dogs(place / "data/dogs")
    _, commands = blocks("sh")
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.run(
        ["bash", "-ec", commands], cwd=place, env=environment, capture_output=True, text=True, timeout=300
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return place


@pytest.fixture(scope="module")
def dog(place):
    return config_lib.load_config(f"{place}/configs/dogs.py").keypoints


def draw_dogs(root, count=24):
    """Dogs in profile, facing either way, with the page's nine keypoints."""
    (root / "images").mkdir(parents=True)
    (root / "annotations").mkdir()
    generator = np.random.default_rng(0)
    (example,) = (json.loads(block) for block in blocks("json"))
    images, annotations = [], []
    for number in range(1, count + 1):
        name = example["images"][0]["file_name"] if number == 1 else f"{number}.png"
        picture, points = draw_dog(generator)
        cv2.imwrite(str(root / "images" / name), picture)
        low, high = points.min(0) - 5, points.max(0) + 5
        box = [*low.tolist(), *(high - low).tolist()]
        area = 0.5 * box[2] * box[3]
        keypoints = np.column_stack([points, np.full(len(points), 2)]).ravel().tolist()
        own = {"id": number, "image_id": number, "bbox": box, "area": area, "keypoints": keypoints}
        assert len(keypoints) == len(example["annotations"][0]["keypoints"]) == 27
        annotations.append({**example["annotations"][0], **own})
        images.append({"id": number, "file_name": name})
    content = {"images": images, "annotations": annotations, "categories": example["categories"]}
    for split in ("train", "val"):
        (root / f"annotations/{split}.json").write_text(json.dumps(content))


def draw_dog(generator):
    """A picture, and its keypoints [9,2] in the page's order."""
    noise = generator.integers(90, 160, (8, 8, 3), np.uint8)
    picture = cv2.resize(noise, (SIZE, SIZE))
    jitter = generator.uniform(-4, 4, (9, 2))
    # Nose, withers, tail, front paws, hind paws, ears, of a dog that looks to the right.
    points = np.array([[34, -8], [18, -6], [-30, -10], [24, 26], [14, 26], [-22, 26], [-30, 26], [24, -20], [18, -18]])
    points = (points + jitter) * generator.uniform(0.9, 1.3) * [generator.choice([-1, 1]), 1]
    points = points + SIZE / 2 + generator.uniform(-6, 6, 2)
    pixels = [tuple(int(v) for v in np.round(point)) for point in points]
    nose, withers, tail, *paws, left_ear, right_ear = pixels
    cv2.line(picture, withers, tail, (20, 60, 120), 9)
    cv2.line(picture, withers, nose, (20, 60, 120), 6)
    for joint, paw in zip((withers, withers, tail, tail), paws, strict=True):
        cv2.line(picture, joint, paw, (30, 90, 160), 4)
    for ear in (left_ear, right_ear):
        cv2.line(picture, withers, ear, (10, 30, 60), 3)
    for index, pixel in enumerate(pixels):
        cv2.circle(picture, pixel, 3, [int(v) for v in np.random.default_rng(index).integers(0, 255, 3)], -1)
    return picture, points


def test_the_loss_falls(place):
    lines = (place / "runs/dogs_try/metrics.jsonl").read_text().splitlines()
    losses = [record["loss"] for record in map(json.loads, lines) if "loss" in record]
    assert len(losses) >= 3
    assert losses[-1] < 0.8 * losses[0]


def test_metrics_are_measured_with_the_sets_sigmas(place, dog):
    metrics = json.loads((place / "runs/dogs_try/evaluation/metrics.json").read_text())
    assert set(METRICS) <= set(metrics)
    assert metrics["keypoints"] == "dog"
    assert (metrics["images"], metrics["instances"]) == (24, 24)
    annotations = place / "data/dogs/annotations/val.json"
    results = place / "runs/dogs_try/evaluation/keypoints.json"
    again = evaluate_results(annotations, results, keypoint_set=dog)
    assert again["AP"] == pytest.approx(metrics["AP"], abs=1e-6)
    lax = dataclasses.replace(dog, sigmas=tuple(8 * sigma for sigma in dog.sigmas))
    assert evaluate_results(annotations, results, keypoint_set=lax)["AP"] > again["AP"]


def test_the_stored_model_knows_its_keypoints(place, dog, monkeypatch, capsys):
    assert isinstance(dog, KeypointSet)
    assert len(dog) == 9
    stored = config_lib.from_json(place / "runs/dogs_try/config.json")
    config_lib.check(stored)
    for keypoints in (stored.keypoints, stored.data.train.dogs.keypoints):
        assert keypoint_set(keypoints) == dog
    exported = describe(stored, "float32", "weights")["keypoints"]
    assert (exported["names"], exported["sigmas"]) == (dog.names, dog.sigmas)

    monkeypatch.chdir(place)
    names = {}
    exec(blocks("python")[1], names)
    assert names["predictor"].keypoint_set == dog
    (person,) = names["dogs"]
    assert person["keypoints"].shape == (9, 2)
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == list(dog.names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigmas": None}, "not lists"),
        ({"flip_pairs": [["nose"]]}, "some pairs not pairs"),
        ({"flip_pairs": [["nose", "beak"]]}, "unknown keypoints"),
        ({"sigmas": [0.1, -1.0]}, "above 0"),
        ({"sigmas": ["0.1", 0.1]}, "above 0"),
        ({"names": ["nose", 1]}, "not strings"),
        ({"names": [], "sigmas": [], "skeleton": []}, "no names"),
        ({"colour": 1}, "a keypoint set has"),
    ],
)
def test_a_damaged_set_is_told_in_one_line(change, message):
    duck = {"name": "duck", "names": ["nose", "tail"], "sigmas": [0.1, 0.1]}
    duck.update(flip_pairs=[], upper_body=[], skeleton=[["nose", "tail"]])
    assert len(keypoint_set(duck)) == 2
    with pytest.raises(InputError, match=message) as error:
        keypoint_set({**duck, **change})
    assert "\n" not in str(error.value)
