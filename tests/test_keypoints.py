"""Keypoint sets and mappings against the reference's metadata and conversions."""

import json

import numpy as np
import pytest

from data_pipelines.errors import InputError
from data_pipelines.keypoints import AIC, COCO, COCO_AIC, KEYPOINT_SETS, KeypointMapping, KeypointSet, keypoint_set


@pytest.mark.parametrize("name", list(KEYPOINT_SETS))
def test_sets_are_the_references(shared, name):
    ours = KEYPOINT_SETS[name]
    theirs = json.loads((shared / "reference/golden/convert.json").read_text())["metainfo"][name]
    assert list(ours.names) == theirs["names"]
    assert list(ours.sigmas) == theirs["sigmas"]
    assert ours.flip_indices.tolist() == theirs["flip_indices"]
    assert np.flatnonzero(ours.is_upper).tolist() == sorted(theirs["upper_body_ids"])
    lines = {tuple(sorted(line)) for line in ours.skeleton_indices}
    assert lines == {tuple(sorted(line)) for line in theirs["skeleton_links"]}


def test_mapping_and_flip_are_exact(shared):
    cases = json.loads((shared / "reference/golden/convert.json").read_text())["cases"]
    assert len(cases) == 18
    for case in cases:
        source = keypoint_set(case["dataset"])
        target = COCO if case["mode"] == "merge" else COCO_AIC
        points = np.column_stack([case["in_keypoints"], case["in_visible"]]).astype(np.float32)
        mapped = KeypointMapping(source, target).apply(points)
        np.testing.assert_array_equal(mapped[:, :2], case["out_keypoints"])
        np.testing.assert_array_equal(mapped[:, 2], case["out_visible"])
        flipped = mapped[target.flip_indices]
        flipped[:, 0] = 640 - 1 - flipped[:, 0]
        np.testing.assert_array_equal(flipped[:, :2], case["flipped_keypoints"])
        np.testing.assert_array_equal(flipped[:, 2], case["flipped_visible"])


def test_mapping_to_the_own_set_changes_nothing():
    points = np.random.default_rng(0).random((3, 14, 3)).astype(np.float32)
    np.testing.assert_array_equal(KeypointMapping(AIC, AIC).apply(points), points)


def test_flip_is_an_involution():
    for joints in KEYPOINT_SETS.values():
        np.testing.assert_array_equal(joints.flip_indices[joints.flip_indices], np.arange(len(joints)))


def test_wrong_definitions_are_refused():
    with pytest.raises(InputError, match="3 keypoints given where set 'aic' has 14"):
        KeypointMapping(AIC, COCO).apply(np.zeros((3, 3)))
    with pytest.raises(InputError, match="unknown keypoint set 'hand'"):
        keypoint_set("hand")
    with pytest.raises(InputError, match="1 sigmas for 2 names"):
        KeypointSet("x", ("a", "b"), (0.1,), (), (), ())
    tail = KeypointSet("tail", ("tip",), (0.1,), (), (), ())
    with pytest.raises(InputError, match="share no keypoint"):
        KeypointMapping(tail, COCO)
