"""What `benchmarks/versus_mmpose.py` concludes from both sides' results, and its page."""

import json
import runpy

import numpy as np
import pytest

from benchmarks.agreement import compare_samples, distance, pck, views
from benchmarks.versus_mmpose import configure
from data_pipelines import transforms
from data_pipelines.keypoints import AIC
from data_pipelines.transforms import Augmentation
from hrnet_jax import config as config_lib
from tests.helpers import REPOSITORY

SIZE = (96, 64)


@pytest.fixture(scope="module")
def truth():
    """Annotations of forty people, one an image of 300x200."""
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.random((40, 14, 2)) * (250, 150) + 20, np.full((40, 14, 1), 2)], axis=2)
    points[3, 4] = 0
    people = [
        {"id": 100 + i, "image_id": i, "bbox": [10 + i, 15, 120, 170], "keypoints": p.ravel().tolist()}
        for i, p in enumerate(points)
    ]
    return {"annotations": people, "images": [{"id": i, "width": 300, "height": 200} for i in range(40)]}


def crops(truth, seed):
    """Every person's keypoints in an augmented crop, and the view by the names of `views`."""
    rng, keypoints, expected = np.random.default_rng(seed), [], []
    for person in truth["annotations"]:
        points = np.reshape(person["keypoints"], (-1, 3))[:, :2].astype(np.float32)
        box = transforms.view_of_box(transforms.clip_box(np.array(person["bbox"], np.float32), (200, 300)))
        flip = rng.random() < 0.5
        if flip:
            points = (points * [-1, 1] + [299, 0])[AIC.flip_indices].astype(np.float32)
            box = transforms.View(np.array([299 - box.center[0], box.center[1]], np.float32), box.scale)
        view = transforms.random_view(rng, box, Augmentation(shift_probability=0.5)).fix_aspect(SIZE)
        keypoints.append(transforms.warp_points(points, transforms.warp_matrix(view, SIZE, "udp")))
        scale = view.scale[0] / box.fix_aspect(SIZE).scale[0]
        expected.append([flip, scale, view.rotation, *((view.center - box.center) / box.scale)])
    return np.array(keypoints), np.array(expected)


def test_views_are_found_from_keypoints(truth):
    keypoints, expected = crops(truth, 1)
    found = views(truth, [person["id"] for person in truth["annotations"]], keypoints, SIZE)
    assert 5 < expected[:, 0].sum() < 35
    np.testing.assert_array_equal(found["flip"], expected[:, 0])
    for i, (name, tolerance) in enumerate(
        [("scale", 1e-3), ("rotation", 0.2), ("shift x", 1e-3), ("shift y", 1e-3)], 1
    ):
        np.testing.assert_allclose(found[name], expected[:, i], atol=tolerance)


def test_samples_of_one_distribution_agree_and_brighter_ones_do_not(truth):
    ids = [person["id"] for person in truth["annotations"]]

    def side(seed):
        rng, keypoints = np.random.default_rng(seed), crops(truth, seed)[0]
        pixels = {"mean": rng.normal(100, 10, (40, 3)), "std": rng.normal(60, 5, (40, 3)), "black": rng.random(40)}
        return {**pixels, "keypoints": keypoints, "weights": np.ones((40, 14)), "target": rng.random(40)}

    result = compare_samples(truth, ids, {"a": side(1), "b": side(2)}, SIZE)
    assert all(abs(found["standard_errors"]) < 4 for found in result["quantities"].values())
    assert max(result["views"].values()) < 1.3 * result["views_exceeded_once_in_20"]
    assert result["quantities"]["share of keypoints with a target"]["a"] == 1

    brighter = side(2)
    brighter["mean"] += 20
    result = compare_samples(truth, ids, {"a": side(1), "b": brighter}, SIZE)
    assert result["quantities"]["mean of red"]["standard_errors"] < -5


def test_distance_of_distributions():
    assert distance(np.arange(4), np.arange(4)) == 0
    assert distance(np.arange(4), np.arange(4) + 10) == 1
    assert distance(np.array([1, 2, 3, 4]), np.array([3, 4, 5, 6])) == 0.5


def test_the_config_is_a_recipe():
    task = {"root": "data", "cache": "", "variant_name": "small", "size": [96, 64], "sigma": 2.0, "seed": 1}
    task |= {"epochs": 3, "batch_size": 32, "learning_rate": 1e-3, "warmup": 50, "threads": 1}
    config = configure(task)
    config_lib.check(config)
    assert (config.keypoints, config.codec.name, config.codec.input_size) == ("aic", "udp", (96, 64))


def test_pck_of_known_errors(truth):
    person = json.loads(json.dumps(truth["annotations"][0]))
    points = np.reshape(person["keypoints"], (-1, 3))
    for side, x in (("left", 0), ("right", 30)):
        points[AIC.index(f"{side}_shoulder")] = [x, 0, 2]
        points[AIC.index(f"{side}_hip")] = [x, 40, 2]
    points[AIC.index("neck"), 2] = 0
    person["keypoints"] = points.ravel().tolist()
    # Both diagonals are 50 long, so 10 pixels count and 10.1 do not.
    answer = points.copy()
    answer[0, 0] += 10
    answer[1, 1] += 10.1
    answer[AIC.index("neck")] += 100
    result = {"image_id": 0, "keypoints": answer.ravel().tolist()}
    assert pck({"annotations": [person]}, [result]) == pytest.approx(12 / 13)
    assert pck({"annotations": [person, {**person, "image_id": 1}]}, [result]) == pytest.approx(6 / 13)


def test_the_page_is_the_records():
    """If this fails: python docs/versus_mmpose.py."""
    page = runpy.run_path(str(REPOSITORY / "docs/versus_mmpose.py"))
    record = json.loads((REPOSITORY / "docs/versus-mmpose.json").read_text())
    assert (REPOSITORY / "docs/versus-mmpose.md").read_text() == page["render"](record)
