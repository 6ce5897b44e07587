"""PCK, AUC, NME, pixel errors and estimated sigmas: closed forms, and numbers of public implementations."""

import math

import numpy as np
import pytest

from data_pipelines.keypoints import AIC, COCO, DEFAULT_SIGMA, KeypointSet, keypoint_set
from data_pipelines.sigmas import estimate_sigmas
from eval.distances import NUMBERS, format_distances, measure_distances, reference_lengths

PAWS = KeypointSet("paws", tuple("abcd"), (0.1,) * 4, (), (), ())


def one(joints, places=()):
    """A person with all keypoints at (0, 0), except some by name, and a box of 100 x 50."""
    truth = np.zeros((1, len(joints), 3))
    truth[..., 2] = 2
    for name, place in dict(places).items():
        truth[0, joints.index(name), :2] = place
    return truth, np.array([[0.0, 0, 100, 50]])


def test_by_hand():
    """Distances 5, 10, 20 and 50 pixels, of a box of 100."""
    truth, boxes = one(PAWS)
    found = np.array([[[3.0, 4], [0, 10], [-20, 0], [30, 40]]])
    section = measure_distances(PAWS, truth, boxes, found)
    assert section["reference"] == "box (longer side)"
    assert (section["people"], section["missed"], section["without_reference"]) == (1, 0, 0)
    total = section["keypoints"]["all"]
    expected = {"labelled": 4, "PCK@0.1": 0.5, "PCK@0.2": 0.75, "AUC": (0.9 + 0.8 + 0.6 + 0) / 4, "NME": 0.2125}
    expected |= {"error": 21.25, "RMSE": math.sqrt((25 + 100 + 400 + 2500) / 4)}
    assert total == pytest.approx(expected)
    assert section["keypoints"]["b"] == pytest.approx(
        {"labelled": 1, "PCK@0.1": 1, "PCK@0.2": 1, "AUC": 0.8, "NME": 0.1, "error": 10, "RMSE": 10}
    )


def test_auc_is_the_area_under_pck():
    rng = np.random.default_rng(1)
    truth, boxes = np.tile(one(PAWS)[0], (50, 1, 1)), np.tile(one(PAWS)[1], (50, 1))
    distances = rng.uniform(0, 80, (50, 4))
    found = np.stack([distances, np.zeros_like(distances)], -1)
    thresholds = (np.arange(10_000) + 0.5) / 10_000 * 0.5
    area = np.mean([(distances <= 100 * threshold).mean() for threshold in thresholds])
    assert measure_distances(PAWS, truth, boxes, found)["keypoints"]["all"]["AUC"] == pytest.approx(area, abs=1e-4)


def test_unlabelled_and_missed_keypoints():
    truth, boxes = (np.concatenate([part, part, part]) for part in one(PAWS))
    truth[0, 0, 2] = 0
    boxes[2, 2:] = 0
    found = np.zeros((3, 4, 2))
    found[0, 0] = 1e6  # unlabelled: of no consequence
    found[1] = np.nan
    found[2] = 7  # no reference length: pixel errors only
    section = measure_distances(PAWS, truth, boxes, found)
    assert (section["people"], section["missed"], section["without_reference"]) == (3, 1, 1)
    total = section["keypoints"]["all"]
    assert total["labelled"] == 11
    assert (total["PCK@0.1"], total["AUC"], total["NME"]) == (3 / 7, 3 / 7, 0)
    assert total["error"] == pytest.approx(4 * math.hypot(7, 7) / 7)
    nothing = measure_distances(PAWS, truth[:0], boxes[:0], found[:0])
    assert nothing["keypoints"]["all"] == {"labelled": 0, **dict.fromkeys(NUMBERS)}
    lines = format_distances(nothing).splitlines()
    assert lines[0].split() == ["keypoint", "labelled", *NUMBERS]
    assert [line.split()[0] for line in lines[1:-1]] == [*PAWS.names, "all"]
    assert "0 people" in lines[-1]


def test_reference_lengths_follow_the_names_of_the_set():
    places = {"left_shoulder": (30, 40), "right_shoulder": (0, 5), "left_hip": (12, 0)}
    for joints in (COCO, AIC):
        truth, boxes = one(joints, places)
        name, lengths = reference_lengths(joints, truth, boxes)
        assert (name, lengths.tolist()) == ("torso", [50.0])
        truth[0, joints.index("right_hip"), 2] = 0
        assert reference_lengths(joints, truth, boxes)[1].tolist() == [13.0]
        truth[0, joints.index("left_hip"), 2] = 0
        assert np.isnan(reference_lengths(joints, truth, boxes)[1]).all()
    heads = KeypointSet("heads", ("head_top", "neck"), (0.1, 0.1), (), (), ())
    truth, boxes = one(heads, {"neck": (0, 9)})
    assert reference_lengths(heads, truth, boxes)[0] == "head"
    assert reference_lengths(heads, truth, boxes)[1].tolist() == [9.0]
    assert reference_lengths(PAWS, *one(PAWS))[1].tolist() == [100.0]


def test_numbers_of_public_implementations():
    """MMPose 1.3.2 and DeepLabCut 3.0.2, both from PyPI.

    Computed with these arrays by `mmpose.evaluation.functional.keypoint_eval`: keypoint_pck_accuracy(found, points,
    mask, a, lengths), keypoint_nme, and for AUC the mean of keypoint_pck_accuracy over 2,000 thresholds; and by
    `deeplabcut.core.metrics.distance_metrics.compute_rmse(..., single_animal=True, per_keypoint_results=True)`.
    """
    rng = np.random.default_rng(0)
    visible = [0.2, 0.3, 0.5]
    truth = np.concatenate([rng.uniform(0, 200, (40, 4, 2)), rng.choice(3, (40, 4, 1), p=visible)], -1)
    boxes = np.concatenate([np.zeros((40, 2)), rng.uniform(50, 150, (40, 2))], -1)
    found = truth[..., :2] + rng.normal(0, 12, (40, 4, 2))
    numbers = measure_distances(PAWS, truth, boxes, found)["keypoints"]
    mmpose = {
        "PCK@0.1": [0.47058823529411764, 0.4, 0.34375, 0.4666666666666667],
        "PCK@0.2": [0.9117647058823529, 0.8, 0.90625, 0.9666666666666667],
        "AUC": [0.7613382352941273, 0.7236833333333325, 0.757453125, 0.7788499999999976],
    }
    deeplabcut = [13.83883588538414, 15.695643400709995, 14.090773901840231, 12.896649903101293]
    for name, expected in {**mmpose, "error": deeplabcut}.items():
        np.testing.assert_allclose([numbers[k][name] for k in "abcd"], expected, rtol=0, atol=2e-4, err_msg=name)
    assert numbers["all"]["NME"] == pytest.approx(0.12223674, abs=1e-6)
    assert numbers["all"]["error"] == pytest.approx(14.120587175208627, abs=1e-9)


def test_sigmas_come_back_from_repeated_annotations():
    """Three annotators whose deviations have the standard deviation sigma x the square root of the area."""
    rng = np.random.default_rng(0)
    sigmas, areas = np.array([0.02, 0.05, 0.1]), rng.uniform(1e3, 1e5, 4000)
    spread = sigmas / math.sqrt(2) * np.sqrt(areas)[:, None]  # of each coordinate: d^2 = dx^2 + dy^2
    places = rng.uniform(0, 500, (4000, 1, 3, 2))
    points = places + spread[:, None, :, None] * rng.standard_normal((4000, 3, 3, 2))
    repeats = np.concatenate([points, rng.choice([0, 2], (4000, 3, 3, 1), p=[0.2, 0.8])], axis=-1)
    np.testing.assert_allclose(estimate_sigmas(repeats, areas), sigmas, rtol=0.03)
    repeats[:, 1:, 2, 2] = 0
    assert np.isnan(estimate_sigmas(repeats, areas)).tolist() == [False, False, True]


def test_sigmas_by_hand():
    repeats = np.array([[[[0.0, 0, 2]], [[6, 8, 1]]]])  # two annotations, each 5 pixels from their mean
    assert estimate_sigmas(repeats, np.array([400.0])).tolist() == pytest.approx([math.sqrt((25 + 25) / 400)])


def test_a_set_without_sigmas_has_the_default_and_says_so():
    bare = KeypointSet("bare", ("a", "b"), (), (), (), ())
    assert bare.sigmas == (DEFAULT_SIGMA, DEFAULT_SIGMA)
    assert bare.sigmas_from == "0.05 for every keypoint, a default"
    assert COCO.sigmas_from == "COCO"
    stored = {"name": "bare", "names": ["a", "b"], "sigmas": [], "flip_pairs": [], "upper_body": [], "skeleton": []}
    assert keypoint_set(stored) == bare
    assert keypoint_set({**stored, "sigmas": [0.1, 0.2], "sigmas_from": "repeats"}).sigmas_from == "repeats"
