"""Boxes, views and warps against the reference's numbers."""

import json
import zlib

import cv2
import numpy as np
import pytest

from configs import common
from data_pipelines.images import read_image
from data_pipelines.keypoints import AIC, COCO
from data_pipelines.pipeline import TrainData
from data_pipelines.transforms import (
    Augmentation,
    View,
    clip_box,
    half_body_views,
    mirrored,
    random_half_body,
    random_view,
    view_of_box,
    warp_image,
    warp_matrix,
    warp_points,
)
from tests.helpers import crops, with_data
from tests.parity_table import record

SETS = {"coco": COCO, "aic": AIC}
SOURCES = {
    "coco": {
        "annotations": "coco_val4/annotations/person_keypoints_val2017.json",
        "images": "coco_val4/val2017",
    },
    "aic": {
        "annotations": "aic/annotations/aic_train.json",
        "images": "aic/ai_challenger_keypoint_train_20170902/keypoint_train_images_20170902",
    },
}
SIZES = {"256x192": (256, 192), "384x288": (384, 288)}


@pytest.fixture(scope="module")
def golden(shared):
    return json.loads((shared / "reference/golden/transforms.json").read_text())


@pytest.fixture(scope="module")
def image(shared):
    paths = {path.name: path for path in (shared / "data").glob("**/*.jpg")}
    return lambda name: read_image(paths[name])


def warps(case):
    """The size, the kind and the golden content of each warp of a case."""
    return [(SIZES[key[:7]], key[8:], value) for key, value in case.items() if key[:7] in SIZES]


def views(golden):
    """Every golden view before its aspect is fixed, with its case."""
    for case in golden["instances"]:
        yield case, view_of_box(clip_box(np.float32(case["raw_bbox_xywh"]), tuple(case["img_shape_hw"])))
    for case in golden["manual"]:
        yield case, View(np.float32(case["bbox_center"]), np.float32(case["bbox_scale"]), case["rotation"])


def test_images_are_decoded_alike(golden, image):
    for name, expected in golden["images"].items():
        assert zlib.crc32(image(name).tobytes()) == expected["crc32_bgr"]


def test_boxes_become_the_references_views(golden):
    for case in golden["instances"]:
        box = clip_box(np.float32(case["raw_bbox_xywh"]), tuple(case["img_shape_hw"]))
        view = view_of_box(box)
        record("boxes, centres and scales", np.abs(box - case["bbox_xyxy"]).max(), 1e-4, " px")
        record("boxes, centres and scales", np.abs(view.center - case["center"]).max(), 1e-4, " px")
        record("boxes, centres and scales", np.abs(view.scale - case["scale_padded"]).max(), 1e-4, " px")


def test_warps_are_the_references(golden):
    count = 0
    for case, view in views(golden):
        points = np.float32(case["keypoints"])
        for size, kind, expected in warps(case):
            fixed = view.fix_aspect(size)
            matrix = warp_matrix(fixed, size, kind)
            moved = warp_points(points, matrix)
            record("fixed scales", np.abs(fixed.scale - expected["scale_fixed"]).max(), 1e-3, " px")
            record("warp matrices", np.abs(matrix - expected["warp_mat"]).max(), 1e-4)
            record("transformed keypoints", np.abs(moved - expected["transformed_keypoints"]).max(), 1e-2, " px")
            count += 1
    assert count == 4 * len(golden["instances"]) + sum(len(warps(case)) for case in golden["manual"]) > 60


def test_crops_are_the_references(golden, image, shared):
    compared = 0
    for case, view in views(golden):
        for size, kind, expected in warps(case):
            crop = warp_image(image(case["file"]), warp_matrix(view.fix_aspect(size), size, kind), size)
            mean = np.abs(crop.mean((0, 1)) - expected["crop_mean_bgr"]).max()
            record("crops: mean of a channel", mean, 0.3, " grey levels")
            if "crop_png" in expected:
                theirs = cv2.imread(str(shared / "reference/golden/crops" / expected["crop_png"]))
                difference = np.abs(crop.astype(int) - theirs)
                record("crops: mean difference", difference.mean(), 0.3, " grey levels")
                record("crops: 99% of the differences", np.quantile(difference, 0.99), 2, " grey levels")
                record("crops: largest difference", difference.max(), 6, " grey levels")
                compared += 1
    assert compared > 10


def test_half_bodies_are_the_references(golden):
    people = {(case["dataset"], case["ann_id"]): case for case in golden["instances"]}
    rng = np.random.default_rng(0)
    for case in golden["half_body"]:
        person, joints = people[case["dataset"], case["ann_id"]], SETS[case["dataset"]]
        keypoints, visible = np.float32(person["keypoints"]), np.float32(person["keypoints_visible"])
        pair = half_body_views(keypoints, visible, joints)
        for part, view, least in zip(("upper", "lower"), pair, (2, 3), strict=True):
            assert (view is not None) == (len(case[f"{part}_valid_ids"]) >= least)
            if view is not None:
                record("half bodies", np.abs(view.center - case[part]["center"]).max(), 1e-4, " px")
                record("half bodies", np.abs(view.scale - case[part]["scale"]).max(), 1e-4, " px")
        whole = view_of_box(np.float32([0, 0, 1, 1]))
        chosen = [random_half_body(rng, whole, keypoints, visible, joints, 1.0) for _ in range(50)]
        assert all((view is not whole) == case["eligible"] for view in chosen)


@pytest.mark.parametrize("dataset", list(SOURCES))
def test_flipped_samples_are_the_references(golden, shared, dataset):
    augment = {"flip": 1.0, "half_body": 0.0, "shift_probability": 0.0, "scale": 0.0, "rotation_probability": 0.0}
    source = {**SOURCES[dataset], "keypoints": dataset}
    config = common.recipe(keypoints=dataset, train={dataset: source}, evaluate=source).to_dict()
    data = TrainData.load(with_data(config, root=str(shared / "data"), augment=augment), crops(256, 192))
    flips = {case["ann_id"]: case for case in golden["flips"] if case["dataset"] == dataset}
    people = {case["ann_id"]: case for case in golden["instances"]}
    seen = 0
    for row in range(len(data)):
        sample = data.sample(row, row)
        if (person := int(sample["instance_id"])) not in flips:
            continue
        case, size = flips[person], (256, 192)
        view = View(np.float32(case["center"]), np.float32(people[person]["scale_padded"])).fix_aspect(size)
        expected = warp_points(np.float32(case["keypoints"]), warp_matrix(view, size, "msra"))
        record("flips", np.abs(sample["keypoints"] - expected).max(), 1e-3, " px")
        np.testing.assert_array_equal(sample["visible"], case["keypoints_visible"])
        seen += 1
    assert seen == len(flips) > 0


@pytest.mark.parametrize("kind", ["msra", "udp"])
def test_a_mirrored_warp_is_the_warp_of_the_mirrored_image(kind):
    rng = np.random.default_rng(0)
    smooth = cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (80, 60), interpolation=cv2.INTER_CUBIC)
    view = View(np.float32([30.25, 28.5]), np.float32([50, 40]), 33.0).fix_aspect((64, 48))
    matrix = warp_matrix(view, (64, 48), kind)
    ours = warp_image(smooth, mirrored(matrix, 80), (64, 48)).astype(int)
    theirs = warp_image(np.ascontiguousarray(smooth[:, ::-1]), matrix, (64, 48))
    assert np.abs(ours - theirs)[1:-1, 1:-1].mean() < 1
    points = rng.random((5, 2)).astype(np.float32) * 60
    flipped = points * [-1, 1] + [79, 0]
    np.testing.assert_allclose(warp_points(points, mirrored(matrix, 80)), warp_points(flipped, matrix), atol=1e-3)


def test_the_two_warps_turn_in_opposite_directions():
    view = View(np.float32([50, 50]), np.float32([40, 40]), 30.0)
    right = np.float32([[50, 50], [60, 50]])
    ends = {kind: warp_points(right, warp_matrix(view, (64, 64), kind)) for kind in ("msra", "udp")}
    turns = {kind: np.sign((points[1] - points[0])[1]) for kind, points in ends.items()}
    assert turns == {"msra": -1, "udp": 1}


def test_random_views_have_the_references_distribution(shared):
    golden = json.loads((shared / "reference/golden/bbox_transform_distribution.json").read_text())
    rng, augmentation = np.random.default_rng(0), Augmentation()
    start = View(np.zeros(2, np.float32), np.ones(2, np.float32))
    drawn = [random_view(rng, start, augmentation) for _ in range(60_000)]
    shift, scale = np.array([view.center for view in drawn]), np.array([view.scale[0] for view in drawn])
    rotation = np.array([view.rotation for view in drawn])
    shifted, rotated = shift.any(axis=1), rotation != 0
    assert (shift[shifted] != 0).all()  # both axes together
    record("random views: share shifted", abs(shifted.mean() - golden["shift_fraction_nonzero"]), 0.008)
    record("random views: share rotated", abs(rotated.mean() - golden["rot_fraction_nonzero"]), 0.008)
    for name, values, half in [
        ("shift", shift[shifted].ravel(), augmentation.shift),
        ("scale", scale, augmentation.scale),
        ("rot", rotation[rotated], augmentation.rotation),
    ]:
        quantiles = np.quantile(values, golden["quantiles"])
        worst = np.abs(quantiles - golden[f"{name}_q"]).max() / half
        record(f"random views: quantiles of the {name}, of its range", worst, 0.02)
        assert np.abs(values - (name == "scale")).max() <= half * (1 + 1e-6)
        assert values.std() == pytest.approx(golden[f"{name}_std"], rel=0.02)
