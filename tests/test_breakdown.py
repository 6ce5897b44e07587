"""Kinds of mistakes: hand-computed ones, and properties on random people."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.errors import InputError
from data_pipelines.keypoints import AIC, COCO, KeypointSet
from eval.breakdown import KINDS, diagnose
from eval.coco import evaluate_results

# With sigma 0.05 and an area of 100 x 100 the similarity is exp(-d^2 / 200).
HANDS = KeypointSet(
    name="hands",
    names=("nose", "left_hand", "right_hand"),
    sigmas=(0.05, 0.05, 0.05),
    flip_pairs=(("left_hand", "right_hand"),),
    upper_body=(),
    skeleton=(),
)


def person(keypoints, visible=2, image_id=1, number=1, **fields):
    """An annotation of area 10000 with all or given visibilities."""
    keypoints = np.column_stack([keypoints, np.broadcast_to(visible, len(keypoints))])
    return {
        "id": number,
        "image_id": image_id,
        "category_id": 1,
        "keypoints": keypoints.ravel().tolist(),
        "bbox": [0.0, 0.0, 100.0, 100.0],
        "area": 10_000.0,
        "iscrowd": 0,
        **fields,
    }


def detection(keypoints, score=0.5, image_id=1):
    flat = np.column_stack([keypoints, np.ones(len(keypoints))]).ravel().tolist()
    return {"image_id": image_id, "category_id": 1, "keypoints": flat, "score": score}


def dataset(*people, images=(1,)):
    return {"images": [{"id": i} for i in images], "categories": [{"id": 1}], "annotations": list(people)}


def names(breakdown, row=0):
    return ["unlabelled" if kind < 0 else KINDS[kind] for kind in breakdown.kinds[row]]


BODY = np.array([[50.0, 10.0], [90.0, 50.0], [10.0, 50.0]])
OTHER = BODY + [300, 0]


def moved(**by_name):
    """The body with some keypoints moved to places."""
    points = BODY.copy()
    for name, place in by_name.items():
        points[HANDS.index(name)] = place
    return points


def test_by_hand():
    """d = 5: 0.882; d = 10: 0.607; d = 12: 0.487."""
    found = BODY + [[5, 0], [0, 10], [-12, 0]]
    result = diagnose(dataset(person(BODY)), [detection(found)], keypoint_set=HANDS)
    assert names(result) == ["good", "jitter", "miss"]
    expected = [math.exp(-25 / 200), math.exp(-100 / 200), math.exp(-144 / 200)]
    np.testing.assert_allclose(result.similarity[0], expected, rtol=1e-9)
    assert result.oks[0] == pytest.approx(np.mean(expected))
    np.testing.assert_allclose(result.distance[0], [0.05, 0.10, 0.12])
    assert result.matched.tolist() == [True]
    assert result.extra == 0
    np.testing.assert_array_equal(result.counts(), [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 1]])


@pytest.mark.parametrize("pixels", [5.70, 5.71, 11.77, 11.78])
def test_the_edges_lie_at_085_and_05(pixels):
    """sqrt(-200 ln 0.85) = 5.7012, sqrt(-200 ln 0.5) = 11.774."""
    result = diagnose(dataset(person(BODY)), [detection(moved(nose=BODY[0] - [pixels, 0]))], keypoint_set=HANDS)
    kind = {5.70: "good", 5.71: "jitter", 11.77: "jitter", 11.78: "miss"}[pixels]
    assert names(result) == [kind, "good", "good"]


@pytest.mark.parametrize(
    ("found", "kinds"),
    [
        (BODY, ["good", "good", "good"]),
        (BODY[[0, 2, 1]], ["good", "inversion", "inversion"]),
        (moved(left_hand=BODY[2]), ["good", "inversion", "good"]),
        (moved(left_hand=BODY[2] + 8), ["good", "inversion", "good"]),  # d^2 = 128, 0.527
        (moved(left_hand=BODY[0]), ["good", "miss", "good"]),  # on a keypoint that is not its mirror image
        (moved(left_hand=OTHER[1]), ["good", "swap", "good"]),
        (moved(left_hand=OTHER[2]), ["good", "swap", "good"]),
        (moved(nose=OTHER[0]), ["swap", "good", "good"]),
        (moved(nose=OTHER[1]), ["miss", "good", "good"]),
        (moved(nose=(50, 200)), ["miss", "good", "good"]),
        (moved(right_hand=(10, 58)), ["good", "good", "jitter"]),
    ],
)
def test_each_kind(found, kinds):
    """Someone else stands 300 pixels to the right, whom another detection fits."""
    people = dataset(person(BODY), person(OTHER, number=2))
    result = diagnose(people, [detection(found), detection(OTHER, score=0.9)], keypoint_set=HANDS)
    assert names(result) == kinds
    assert names(result, 1) == ["good", "good", "good"]
    assert result.detections.tolist() == [0, 1]


def test_the_nearest_place_decides():
    """A hand within reach of its own place, and nearer to another person's."""
    near = BODY + [16, 0]
    people = dataset(person(BODY), person(near, number=2))
    result = diagnose(people, [detection(moved(left_hand=BODY[1] + [10, 0])), detection(near)], keypoint_set=HANDS)
    assert result.similarity[0, 1] == pytest.approx(math.exp(-0.5))  # would be jitter
    assert names(result) == ["good", "swap", "good"]


def test_places_that_nobody_labelled_are_none():
    """Without the label of the mirrored hand an inversion is a miss; an unlabelled keypoint is of no kind."""
    found = moved(left_hand=BODY[2])
    result = diagnose(dataset(person(BODY, [2, 1, 0])), [detection(found)], keypoint_set=HANDS)
    assert names(result) == ["good", "miss", "unlabelled"]
    assert np.isnan(result.similarity[0, 2])
    assert np.isnan(result.distance[0, 2])
    assert result.oks[0] == pytest.approx((1 + math.exp(-(80**2) / 200)) / 2)


def test_the_best_score_chooses_first_and_the_rest_match_nobody():
    close, exact = BODY + 2, BODY
    people = dataset(person(BODY))
    result = diagnose(people, [detection(exact, 0.3), detection(close, 0.8)], keypoint_set=HANDS)
    assert result.detections.tolist() == [1]
    assert result.scores.tolist() == [0.8]
    assert result.oks[0] == pytest.approx(math.exp(-8 / 200))
    np.testing.assert_allclose(result.found[0], close)
    assert result.extra == 1


def test_who_is_matched_and_who_is_near():
    """OKS of 0.1 is at d^2 = 460.5 for all keypoints, that of 0.01 at 921."""
    for shift, matched, near in ((21.4, True, True), (21.5, False, True), (30.3, False, True), (30.4, False, False)):
        result = diagnose(dataset(person(BODY)), [detection(BODY + [shift, 0])], keypoint_set=HANDS)
        assert result.matched.tolist() == [matched], shift
        assert result.detections.tolist() == [0 if near else -1], shift
        assert result.extra == (not matched)
        assert (names(result) == ["unlabelled"] * 3) is not matched
        assert np.isnan(result.found).all() is np.bool_(not near)


def test_a_detection_is_one_persons_only():
    """Someone else stands so close that the detection would be near to them too."""
    people = dataset(person(BODY + [22, 0], number=1), person(BODY, number=2))
    result = diagnose(people, [detection(BODY)], keypoint_set=HANDS)
    assert result.detections.tolist() == [-1, 0]
    assert result.oks.tolist() == [0.0, 1.0]


def test_crowds_people_without_labels_and_other_images_are_nobody():
    people = dataset(
        person(BODY, number=1, iscrowd=1), person(BODY, 0, number=2), person(BODY, number=3, image_id=2), images=(1, 2)
    )
    result = diagnose(people, [detection(BODY)], keypoint_set=HANDS)
    assert result.people.image_ids.tolist() == [2]
    assert result.matched.tolist() == [False]
    assert result.extra == 1
    assert result.counts().sum() == 0


def test_without_results_or_people():
    assert len(diagnose(dataset(person(BODY)), [], keypoint_set=HANDS)) == 1
    empty = diagnose(dataset(), [detection(BODY)], keypoint_set=HANDS)
    assert (len(empty), empty.extra) == (0, 1)
    assert empty.counts().shape == (3, 5)


def test_twenty_detections_an_image():
    extra = [detection(BODY + [1000, 0], 0.9 - i / 100) for i in range(20)]
    assert diagnose(dataset(person(BODY)), [*extra, detection(BODY, 0.1)], keypoint_set=HANDS).matched.tolist() == [
        False
    ]
    assert diagnose(dataset(person(BODY)), [*extra[1:], detection(BODY, 0.1)], keypoint_set=HANDS).matched[0]


def test_sizes_from_boxes():
    """0.53 x the box halves the area: d = 10 is then exp(-100 / 106)."""
    results = [detection(BODY + [10, 0])]
    with_area = diagnose(dataset(person(BODY)), results, keypoint_set=HANDS)
    without = diagnose(dataset(person(BODY, area=7.0)), results, keypoint_set=HANDS, use_area=False)
    assert with_area.oks[0] == pytest.approx(math.exp(-100 / 200))
    assert without.oks[0] == pytest.approx(math.exp(-100 / 106))


def test_an_area_of_nothing_and_numbers_beyond_all_bounds():
    huge = detection(np.full((3, 2), 1e38))
    result = diagnose(dataset(person(BODY, area=0.0)), [detection(BODY), huge], keypoint_set=HANDS)
    assert result.oks.tolist() == [1.0]
    assert result.extra == 1


def test_unknown_images_are_an_error_of_one_line():
    with pytest.raises(InputError, match="record 0: image_id 5 does not occur"):
        diagnose(dataset(person(BODY)), [detection(BODY, image_id=5)], keypoint_set=HANDS)


def crowd_of(rng, joints, count, spread):
    """People of some size at random places of one image."""
    bodies = rng.uniform(0, 100, (count, len(joints), 2)) + rng.uniform(0, spread, (count, 1, 2))
    visible = rng.choice([0, 1, 2], (count, len(joints)), p=[0.3, 0.2, 0.5])
    visible[:, 0] = 2
    return bodies, dataset(*(person(b, v, number=i) for i, (b, v) in enumerate(zip(bodies, visible, strict=True), 1)))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.integers(1, 5), st.sampled_from([COCO, AIC]))
def test_perfect_predictions_are_all_good(seed, count, joints):
    rng = np.random.default_rng(seed)
    bodies, people = crowd_of(rng, joints, count, spread=50)
    result = diagnose(people, [detection(b, rng.random()) for b in bodies], keypoint_set=joints)
    labelled = result.people.keypoints[..., 2] > 0
    assert result.matched.all()
    np.testing.assert_array_equal(result.kinds[labelled], KINDS.index("good"))
    np.testing.assert_array_equal(result.kinds[~labelled], -1)
    np.testing.assert_allclose(result.similarity[labelled], 1)
    assert result.counts().sum() == labelled.sum()


# Keypoints that are far from each other.
APART = np.column_stack([np.arange(len(COCO)) * 1000.0, np.zeros(len(COCO))])


@settings(deadline=None, max_examples=30)
@given(st.floats(0, 2 * math.pi), st.floats(0.02, 0.99))
def test_the_similarity_decides_for_a_person_alone(angle, similarity):
    """Every keypoint moved to the same similarity by its own sigma, in any direction."""
    distance = np.sqrt(-2 * np.log(similarity) * (2 * np.array(COCO.sigmas)) ** 2 * 1e4)
    found = APART + distance[:, None] * [math.cos(angle), math.sin(angle)]
    result = diagnose(dataset(person(APART)), [detection(found)])
    assert result.oks[0] == pytest.approx(similarity, rel=1e-6)
    if min(abs(similarity - edge) for edge in (0.1, 0.5, 0.85)) > 1e-6:
        kind = next(
            (kind for kind, least in (("good", 0.85), ("jitter", 0.5), ("miss", 0.1)) if similarity > least), ""
        )
        assert names(result) == [kind or "unlabelled"] * len(COCO)


@settings(deadline=None, max_examples=30)
@given(st.sets(st.integers(0, 16), max_size=15))
def test_swapped_sides_are_inversions_and_nothing_else(wrong):
    found = APART.copy()
    found[list(wrong)] = APART[COCO.flip_indices[list(wrong)]]
    result = diagnose(dataset(person(APART)), [detection(found)])
    expected = ["inversion" if i in wrong and i > 0 else "good" for i in range(len(COCO))]
    assert names(result) == expected


@settings(deadline=None, max_examples=30)
@given(st.sets(st.integers(0, 16), max_size=15), st.booleans())
def test_keypoints_of_others_are_swaps(wrong, mirrored):
    someone = APART + [0, 5000]
    found = APART.copy()
    found[list(wrong)] = (someone[COCO.flip_indices] if mirrored else someone)[list(wrong)]
    people = dataset(person(APART), person(someone, number=2))
    result = diagnose(people, [detection(found, 0.2), detection(someone, 0.9)])
    assert names(result) == ["swap" if i in wrong else "good" for i in range(len(COCO))]


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32), st.integers(1, 6))
def test_matches_are_those_of_the_evaluation(seed, count):
    """AP at OKS 0.5 and the share of people found at that OKS agree with pycocotools' recall."""
    rng = np.random.default_rng(seed)
    bodies, people = crowd_of(rng, COCO, count, spread=400)
    noise = rng.normal(0, 1, bodies.shape) * rng.uniform(0, 20, (count, 1, 1))
    results = [detection(b, float(rng.random())) for b in bodies + noise]
    ours = diagnose(people, results)
    recall = evaluate_results(people, results)["AR50"]
    # COCO's matches at 0.5 are greedy too; those at 0.1 may give somebody away, so ours are no more.
    assert (ours.oks >= 0.5).mean() <= recall + 1e-9
    if count == 1:
        assert (ours.oks >= 0.5).mean() == recall


def test_files_are_read_and_named(tmp_path):
    truth, results = tmp_path / "truth.json", tmp_path / "found.json"
    truth.write_text(json.dumps(dataset(person(BODY))))
    results.write_text(json.dumps([detection(BODY)]))
    assert names(diagnose(truth, results, keypoint_set=HANDS)) == ["good"] * 3
    results.write_text("[{}]")
    with pytest.raises(InputError, match=r"found\.json: record 0"):
        diagnose(truth, results, keypoint_set=HANDS)
