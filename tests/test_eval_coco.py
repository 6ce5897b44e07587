"""eval.coco and eval.nms against MMPose's numbers, pycocotools itself, and their definitions."""

import ast
import contextlib
import copy
import io
import json
import os
import pathlib
import subprocess
import sys

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from data_pipelines import keypoints
from data_pipelines.errors import InputError
from eval import coco, nms
from eval.records import Annotations, Predictions

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
STATS = ("AP", "AP .5", "AP .75", "AP (M)", "AP (L)", "AR", "AR .5", "AR .75", "AR (M)", "AR (L)")
COCO_FILE = "data/coco_val4/annotations/person_keypoints_val2017.json"
AIC_FILE = "data/aic/annotations/aic_train.json"
RESULTS_FILE = "data/coco_val4/example_coco_preds.json"


@pytest.fixture(scope="module")
def golden(shared):
    return json.loads((shared / "reference/golden/metric.json").read_text())


def golden_predictions(golden, name):
    return [
        {
            "id": record["id"],
            "image_id": record["img_id"],
            "category_id": 1,
            "keypoints": record["keypoints"],
            "keypoint_scores": record["keypoint_scores"],
            "box_score": record["bbox_score"],
            "bbox": record["bbox_xyxy"],
            "area": float(np.prod(record["bbox_scale"])),
        }
        for record in golden["predictions"][name]
    ]


def synthetic(seed=0, images=12, people=30, predictions=200, joints=keypoints.COCO):
    """People of every size, crowds, people without keypoints, ties and more than 20 detections an image."""
    random = np.random.default_rng(seed)
    count = len(joints)
    size = np.exp(random.uniform(np.log(20), np.log(400), people))
    points = random.uniform(0, 200, (people, 1, 2)) + random.random((people, count, 2)) * size[:, None, None]
    visible = random.choice(3, (people, count)) * (random.random((people, 1)) < 0.8)
    low, high = points.min(axis=1), points.max(axis=1)
    annotations = {
        "images": [{"id": 10 * i} for i in range(images)],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [
            {
                "id": i + 1,
                "image_id": 10 * int(random.integers(images - 2)),
                "category_id": 1,
                "bbox": [*low[i].tolist(), *(high[i] - low[i]).tolist()],
                "area": float(np.prod(high[i] - low[i]) * 0.6),
                "iscrowd": int(random.random() < 0.1),
                "keypoints": np.column_stack([points[i], visible[i]]).ravel().tolist(),
                "num_keypoints": int((visible[i] > 0).sum()),
            }
            for i in range(people)
        ],
    }
    found = []
    for i in range(predictions):
        person = int(random.integers(people))
        noise = size[person] * np.exp(random.uniform(np.log(0.001), np.log(0.3)))
        guess = points[person] + noise * random.standard_normal((count, 2))
        box = np.concatenate([guess.min(axis=0), guess.max(axis=0)])
        found.append(
            {
                "id": i,
                "image_id": annotations["annotations"][person]["image_id"],
                "category_id": 1,
                "keypoints": guess,
                "keypoint_scores": random.random(count),
                "box_score": float(random.choice([0.25, 0.5, random.random()])),
                "bbox": box,
                "area": float(np.prod(box[2:] - box[:2]) * 1.5),
            }
        )
    return annotations, found


def one_person(score=1.0, image_id=1, **changes):
    """A COCO document with one image and one person, and a perfect prediction of it."""
    points = np.arange(34.0).reshape(17, 2) * 5
    person = {
        "id": 7,
        "image_id": 1,
        "category_id": 1,
        "bbox": [0.0, 0.0, 160.0, 165.0],
        "area": 12000.0,
        "iscrowd": 0,
        "keypoints": np.column_stack([points, np.full(17, 2)]).ravel().tolist(),
        "num_keypoints": 17,
    }
    document = {"images": [{"id": 1}], "categories": [{"id": 1}], "annotations": [person]}
    prediction = {
        "id": 3,
        "image_id": image_id,
        "category_id": 1,
        "keypoints": points.tolist(),
        "keypoint_scores": [score] * 17,
        "box_score": 1.0,
        "bbox": [0, 0, 160, 165],
        "area": 30000.0,
    }
    return document, prediction | changes


def pycocotools_alone(annotations, results):
    """The ten numbers as the library gives them, with nothing of ours in between."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(annotations)
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), "keypoints")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def kept(predictions, joints=keypoints.COCO, **settings):
    """The predictions that `evaluate` keeps."""
    defaults = {"nms": "oks_nms", "nms_threshold": 0.9, "score_mode": "bbox_keypoint", "keypoint_threshold": 0.2}
    return coco.select(Predictions.from_records(predictions, joints), joints, **(defaults | settings))


def ten(metrics):
    return [metrics[name] for name in coco.METRICS]


# The reference's numbers.


def test_all_golden_cases(shared, golden):
    assert len(golden["cases"]) == 54
    for case in golden["cases"]:
        name = case["predictions"]
        data_set = "coco" if name.startswith("coco") else "aic"
        predictions = golden_predictions(golden, name)
        settings = {
            "nms": case["nms_mode"],
            "nms_threshold": case["nms_thr"],
            "score_mode": case["score_mode"],
            "keypoint_threshold": case["keypoint_score_thr"],
        }
        path = shared / (COCO_FILE if data_set == "coco" else AIC_FILE)
        metrics = coco.evaluate(path, predictions, keypoint_set=data_set, use_area=case["use_area"], **settings)
        label = str({key: value for key, value in case.items() if key != "kept"})
        assert set(metrics) == {*coco.METRICS, "kept", "scores"}
        np.testing.assert_allclose(
            ten(metrics), [case["stats"][key] for key in STATS], rtol=0, atol=1e-6, err_msg=label
        )
        ids, scores = zip(*case["kept"], strict=True)
        # Where all scores tie, soft suppression's order hangs on the last bit of OKS near zero.
        comparable = set if name.endswith("_gt") else list
        assert comparable(metrics["kept"]) == comparable(ids), label
        np.testing.assert_allclose(metrics["scores"], scores, rtol=0, atol=1e-6, err_msg=label)


def test_golden_oks_matrix(golden):
    expected = golden["oks_matrix"]
    chosen = [p for p in golden_predictions(golden, "coco_dups") if p["id"] in expected["ids"]]
    oks = nms.oks_matrix(
        np.array([p["keypoints"] for p in chosen]),
        np.array([p["area"] for p in chosen]),
        np.array(keypoints.COCO.sigmas),
    )
    np.testing.assert_allclose(oks, expected["oks"], rtol=0, atol=1e-6)


def test_golden_example_results(shared, golden):
    example = golden["example_coco"]
    metrics = coco.evaluate_results(shared / COCO_FILE, shared / RESULTS_FILE)
    np.testing.assert_allclose(ten(metrics), example["pycocotools"], rtol=0, atol=1e-12)
    assert (metrics["images"], metrics["people"], metrics["instances"], metrics["nms"]) == (4, 12, 73, "none")
    metrics = coco.evaluate_results(shared / COCO_FILE, shared / RESULTS_FILE, use_area=False)
    np.testing.assert_allclose(ten(metrics), example["xtcocotools_no_area"], rtol=0, atol=1e-12)


# pycocotools.


@pytest.mark.parametrize("with_boxes", [True, False])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_numbers_and_oks_are_pycocotools_own(seed, with_boxes):
    annotations, predictions = synthetic(seed)
    if not with_boxes:
        predictions = [prediction | {"bbox": None} for prediction in predictions]
    results = kept(predictions, nms_threshold=0.95).to_results()
    assert ("bbox" in results[0]) == with_boxes
    theirs = pycocotools_alone(annotations, results)
    metrics = coco.evaluate(annotations, predictions, keypoint_set="coco", nms_threshold=0.95)
    np.testing.assert_allclose(ten(metrics), theirs.stats, rtol=0, atol=1e-12)
    assert 0.05 < metrics["AP"] < 0.95
    assert metrics["AP"] == coco.evaluate_results(annotations, results)["AP"]

    ours = coco._Evaluation(theirs.cocoGt, theirs.cocoDt, "keypoints")
    ours._gts, ours._dts = theirs._gts, theirs._dts
    for records in (*ours._gts.values(), *ours._dts.values()):
        for record in records:
            record["keypoints"] = np.array(record["keypoints"], float)
    assert max(map(len, theirs._dts.values())) > 20
    for key, expected in theirs.ious.items():
        np.testing.assert_array_equal(ours.computeOks(*key), expected)


def test_another_keypoint_set_is_measured_by_its_own_sigmas():
    annotations, predictions = synthetic(joints=keypoints.AIC)
    as_aic = coco.evaluate(annotations, predictions, keypoint_set="aic")
    wider = keypoints.KeypointSet("wide", keypoints.AIC.names, (0.1,) * 14, (), (), ())
    assert coco.evaluate(annotations, predictions, keypoint_set=wider)["AP"] > as_aic["AP"] > 0


def test_an_annotation_with_id_zero_can_be_matched():
    document, prediction = one_person()
    document["annotations"][0]["id"] = 0
    assert coco.evaluate(document, [prediction], keypoint_set="coco")["AP"] == pytest.approx(1)


def test_labelled_keypoints_are_counted_not_read():
    document, prediction = one_person()
    document["annotations"][0]["num_keypoints"] = 0
    assert coco.evaluate(document, [prediction], keypoint_set="coco")["AP"] == pytest.approx(1)


def test_missed_people_and_images_without_predictions_count():
    document, prediction = one_person()
    document["images"].append({"id": 2})
    document["annotations"].append(document["annotations"][0] | {"id": 8, "image_id": 2})
    metrics = coco.evaluate(document, [prediction], keypoint_set="coco")
    assert metrics["AR"] == 0.5
    assert metrics["ARM"] == -1


def test_nothing_found_is_zero():
    document, _ = one_person()
    for mode in nms.NMS_MODES:
        metrics = coco.evaluate(document, [], keypoint_set="coco", nms=mode)
        assert (metrics["AP"], metrics["AR50"], metrics["kept"]) == (0, 0, [])
    assert coco.evaluate_results(document, [])["AP"] == 0


def test_only_the_predicted_categories_are_evaluated():
    document, prediction = one_person(category_id=np.int64(1))
    document["categories"].append({"id": 18})
    # A category without keypoints, as in instance annotations, and one that nobody asked for.
    document["annotations"].append({"id": 9, "image_id": 1, "category_id": 18, "bbox": [0, 0, 9, 9], "area": 81})
    assert coco.evaluate(document, [prediction], keypoint_set="coco")["AP"] == pytest.approx(1)
    del prediction["category_id"]
    assert coco.evaluate(document, [prediction], keypoint_set="coco")["AP"] == pytest.approx(1)


def test_a_file_without_a_list_of_categories_or_with_category_0():
    document, prediction = one_person()
    del document["categories"]
    assert coco.evaluate(document, [prediction], keypoint_set="coco")["AP"] == pytest.approx(1)
    document["annotations"][0]["category_id"] = 0
    with pytest.raises(InputError, match="category_id 1 does not occur"):
        coco.evaluate(document, [prediction], keypoint_set="coco")
    assert coco.evaluate(document, [prediction | {"category_id": 0}], keypoint_set="coco")["AP"] == pytest.approx(1)
    assert Annotations.read(document, keypoints.COCO, True).categories == [0]


def test_objects_without_keypoints_beside_people():
    """A ball of another category is left out; a person without keypoints hides detections as an unlabelled one does."""
    document, prediction = one_person()
    person = document["annotations"][0]
    ball = {"id": 8, "image_id": 1, "category_id": 2, "bbox": [0, 0, 9, 9]}
    for other in (ball, {**person, "id": 8, "keypoints": []}, changed({**person, "id": 8}, keypoints=..., bbox=...)):
        content = document | {"annotations": [person, other], "categories": [{"id": 1}, {"id": 2}]}
        truth = Annotations.read(content, keypoints.COCO, True)
        assert truth.categories == [1]
        assert truth.counted.tolist() == [True, *[False] * (len(truth) - 1)]
        twice = [prediction, prediction | {"id": 4, "box_score": 0.5}]
        numbers = coco.evaluate(content, twice, keypoint_set="coco", nms="none")
        assert numbers["AP"] == pytest.approx(1)


def test_categories_do_not_suppress_each_other():
    document, prediction = one_person()
    document["categories"].append({"id": 2})
    document["annotations"].append(document["annotations"][0] | {"id": 8, "category_id": 2})
    twins = [prediction, prediction | {"id": 4, "category_id": 2}]
    metrics = coco.evaluate(document, twins, keypoint_set="coco")
    assert (metrics["AP"], metrics["AR"]) == (pytest.approx(1), 1)
    assert metrics["kept"] == [3, 4]


def test_large_ids_survive():
    document, prediction = one_person(id=np.int64(2**60 + 1), image_id=np.int64(2**60 + 3))
    document["images"][0]["id"] = document["annotations"][0]["image_id"] = 2**60 + 3
    metrics = coco.evaluate(document, [prediction], keypoint_set="coco")
    assert metrics["AP"] == pytest.approx(1)
    assert metrics["kept"] == [2**60 + 1]


def test_arguments_are_not_changed_and_nothing_is_printed(capsys):
    annotations, predictions = synthetic()
    results = kept(predictions).to_results()
    before = copy.deepcopy((annotations, predictions, results))
    coco.evaluate(annotations, predictions, keypoint_set="coco", use_area=False)
    coco.evaluate_results(annotations, results)
    assert json.dumps(before[0]) == json.dumps(annotations)
    assert before[2] == results
    for old, new in zip(before[1], predictions, strict=True):
        assert old.keys() == new.keys()
        assert all(np.array_equal(old[key], new[key]) for key in old)
    assert capsys.readouterr().out == ""


def test_order_of_delivery_does_not_matter():
    annotations, predictions = synthetic()
    predictions = [prediction | {"box_score": 0.5, "keypoint_scores": np.ones(17)} for prediction in predictions]
    shuffled = [predictions[i] for i in np.random.default_rng(0).permutation(len(predictions))]
    first = coco.evaluate(annotations, predictions, keypoint_set="coco")
    second = coco.evaluate(annotations, shuffled, keypoint_set="coco")
    assert ten(first) == ten(second)
    assert len(first["kept"]) < len(predictions)
    image_of = {prediction["id"]: prediction["image_id"] for prediction in predictions}
    for given, kept in ((predictions, first["kept"]), (shuffled, second["kept"])):
        appearance = list(dict.fromkeys(prediction["image_id"] for prediction in given))
        assert list(dict.fromkeys(image_of[i] for i in kept)) == appearance
    assert sorted(first["kept"]) == sorted(second["kept"])


# Scores and suppression.


def test_instance_scores_by_hand():
    box_scores = np.array([0.5, 0.5, 0.8])
    # Exactly at the threshold does not count.
    scores = np.array([[0.2, 0.4, 0.8], [0.2, 0.1, 0.0], [0.3, 0.3, 0.9]])
    expected = {
        "bbox_keypoint": [0.5 * 0.6, 0.0, 0.8 * 0.5],
        "bbox": [0.5, 0.5, 0.8],
        "keypoint": [1.4 / 3, 0.1, 0.5],
        "bbox_rle": [0.5 + 1.4 / 3 + 0.8, 0.5 + 0.1 + 0.2, 0.8 + 0.5 + 0.9],
    }
    assert set(expected) == set(nms.SCORE_MODES)
    for mode, values in expected.items():
        np.testing.assert_allclose(nms.instance_scores(box_scores, scores, mode=mode), values, rtol=1e-12)
    moved = nms.instance_scores(box_scores, scores, keypoint_threshold=0.5)
    np.testing.assert_allclose(moved, [0.5 * 0.8, 0.0, 0.8 * 0.9], rtol=1e-12)


def crowd_of(count, seed=0, joints=5):
    random = np.random.default_rng(seed)
    people = random.uniform(0, 100, (max(count // 4, 1), joints, 2))
    points = people[random.integers(len(people), size=count)] + random.normal(0, 2, (count, joints, 2))
    return points, random.random(count), random.uniform(2000, 9000, count), random.uniform(0.03, 0.1, joints)


def test_oks_matrix_of_many_equals_its_definition(monkeypatch):
    # Blocks of one, a few and all rows.
    points, _, areas, sigmas = crowd_of(23)
    expected = np.empty((23, 23))
    for i in range(23):
        for j in range(23):
            squared = ((points[i] - points[j]) ** 2).sum(axis=-1)
            expected[i, j] = np.exp(-squared / (2 * (areas[i] + areas[j]) / 2 * (2 * sigmas) ** 2)).mean()
    for elements in (1, 23 * 5 * 4, 2**20):
        monkeypatch.setattr(nms, "_BLOCK_ELEMENTS", elements)
        np.testing.assert_allclose(nms.oks_matrix(points, areas, sigmas), expected, rtol=1e-12)


@hypothesis.given(
    count=strategies.integers(0, 40), seed=strategies.integers(0, 99), threshold=strategies.floats(0.1, 1)
)
@hypothesis.settings(max_examples=40, deadline=None)
def test_oks_nms_keeps_the_best_of_each_group_of_duplicates(count, seed, threshold):
    points, scores, areas, sigmas = crowd_of(count, seed)
    kept = nms.oks_nms(points, scores, areas, sigmas, threshold)
    oks = nms.oks_matrix(points, areas, sigmas)
    assert np.all(np.diff(scores[kept]) <= 0)
    assert len(set(kept.tolist())) == len(kept)
    assert np.all(oks[np.ix_(kept, kept)][~np.eye(len(kept), dtype=bool)] <= threshold)
    for removed in set(range(count)) - set(kept.tolist()):
        better = kept[scores[kept] >= scores[removed]]
        assert np.any(oks[removed, better] > threshold)


def test_oks_equal_to_the_threshold_stays():
    points = np.zeros((2, 3, 2))
    two = nms.oks_nms(points, np.array([0.1, 0.2]), np.ones(2), np.full(3, 0.1), 1.0)
    assert two.tolist() == [1, 0]
    assert nms.oks_nms(points, np.array([0.1, 0.2]), np.ones(2), np.full(3, 0.1), 0.99).tolist() == [1]


def test_soft_nms_orders_keeps_twenty_and_leaves_scores():
    points, scores, areas, sigmas = crowd_of(50)
    before = scores.copy()
    kept = nms.soft_oks_nms(points, scores, areas, sigmas, 0.9)
    np.testing.assert_array_equal(scores, before)
    assert len(set(kept.tolist())) == 20
    assert kept[0] == np.argmax(scores)
    # Three of one place and one elsewhere: the lone one overtakes the duplicates.
    points = np.zeros((4, 5, 2))
    points[3] += 1000
    order = nms.soft_oks_nms(points, np.array([0.9, 0.8, 0.7, 0.4]), np.full(4, 100.0), sigmas, 0.9)
    assert order.tolist() == [0, 3, 1, 2]


# Files and the command line.


def test_results_round_trip(tmp_path):
    annotations, predictions = synthetic()
    for prediction in predictions[::2]:
        prediction["keypoints"] = prediction["keypoints"].astype(np.float32)
        prediction["image_id"] = np.int64(prediction["image_id"])
    path = tmp_path / "keypoints.json"
    coco.write_results(path, kept(predictions).to_results())
    metrics = coco.evaluate(annotations, predictions, keypoint_set="coco")
    assert ten(coco.evaluate_results(annotations, path)) == pytest.approx(ten(metrics), rel=0, abs=1e-12)
    record = json.loads(path.read_text())[0]
    source = next(p for p in predictions if p["id"] == metrics["kept"][0])
    assert set(record) == {"image_id", "category_id", "keypoints", "score", "bbox"}
    rows = np.reshape(record["keypoints"], (17, 3))
    np.testing.assert_array_equal(rows[:, :2], source["keypoints"])
    np.testing.assert_array_equal(rows[:, 2], source["keypoint_scores"])
    np.testing.assert_allclose(record["bbox"], [*source["bbox"][:2], *(source["bbox"][2:] - source["bbox"][:2])])
    assert os.listdir(tmp_path) == ["keypoints.json"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "keypoints.json"
    coco.write_results(path, [])
    with pytest.raises(ValueError, match="not JSON compliant"):
        coco.write_results(path, [{"score": float("nan")}])
    assert path.read_text() == "[]\n"
    assert os.listdir(tmp_path) == ["keypoints.json"]
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/keypoints.json: cannot be written \(Not a directory\)"):
        coco.write_results(tmp_path / "file/keypoints.json", [])


def test_table():
    metrics = dict.fromkeys(coco.METRICS, 0.5) | {"APM": -1, "AP": 0.860894}
    lines = coco.format_table(metrics, {"boxes": "detector, AP 56.4", "flip_test": True}).splitlines()
    assert lines[0].split() == list(coco.METRICS)
    assert lines[1].split()[:4] == ["0.86089", "0.50000", "0.50000", "n/a"]
    assert len(lines[0]) == len(lines[1])
    assert lines[2:] == ["boxes      detector, AP 56.4", "flip_test  True"]


def test_command_line(shared, tmp_path):
    output = tmp_path / "metrics.json"
    command = [sys.executable, "-m", "eval.coco", "--annotations", shared / COCO_FILE]
    command += ["--results", shared / RESULTS_FILE, "--output", output]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert run.stderr == ""
    assert run.stdout.splitlines()[1].split()[0] == "0.86089"
    metrics = json.loads(output.read_text())
    assert metrics["AP"] == pytest.approx(0.86089, abs=1e-5)
    assert set(coco.METRICS) | {"images", "instances", "nms", "use_area", "keypoint_set"} <= set(metrics)
    assert all(isinstance(value, str | int | float) for value in metrics.values())


def test_evaluation_needs_only_numpy_pycocotools_keypoint_definitions_and_files():
    allowed = {"numpy", "jaxtyping", "pycocotools.coco", "pycocotools.cocoeval", "eval.nms", "eval.records"}
    data_pipelines = ("checks", "coco_files", "errors", "json_files", "keypoints")
    allowed |= {"data_pipelines", *(f"data_pipelines.{name}" for name in data_pipelines), *sys.stdlib_module_names}
    for path in (REPOSITORY / "eval").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert {alias.name for alias in node.names} <= allowed, path.name
            if isinstance(node, ast.ImportFrom):
                assert node.module in allowed or node.module == "collections.abc", path.name


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def changed(record, **changes):
    return {key: value for key, value in (record | changes).items() if value is not ...}


# What is wrong -> (how to spoil the annotations, how to spoil the results, what the message must say).
BROKEN_FILES = {
    "annotations are not JSON": (lambda gt: "{", None, r"gt.json: not JSON"),
    "results are not JSON": (None, lambda dt: "\xff", r"dt.json: not JSON"),
    "not a COCO file": (
        lambda gt: [1],
        None,
        r"gt.json: entry 0: not AI Challenger.s annotation .* nor is the file COCO.s",
    ),
    "two images with one id": (
        lambda gt: changed(gt, images=[{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}]),
        None,
        r"gt.json: images a.jpg and b.jpg both have id 1; give each its own",
    ),
    "image without id": (lambda gt: changed(gt, images=[{}]), None, r"gt.json: image at position 0: no 'id'"),
    "results are an object": (None, lambda dt: {"AP": 1}, r"dt.json: not a COCO results file"),
    "results are numbers": (None, lambda dt: [1, 2], r"dt.json: record 0: not an object .* but int"),
    "no score": (None, lambda dt: [dt[0], changed(dt[0], score=...)], r"dt.json: record 1: no 'score'"),
    "score is null": (None, lambda dt: [changed(dt[0], score=None)], r"dt.json: record 0: 'score' .* null"),
    "score is text": (
        None,
        lambda dt: [changed(dt[0], score="high")],
        r"dt.json: record 0: 'score' is .*, not a number",
    ),
    "only boxes": (
        None,
        lambda dt: [changed(dt[0], keypoints=...)],
        r"dt.json: record 0: no 'keypoints'; .* 17 keypoints of set 'coco'",
    ),
    "16 keypoints": (
        None,
        lambda dt: [dt[0], changed(dt[0], keypoints=dt[0]["keypoints"][:48])],
        r"dt.json: record 1: 'keypoints' has 48 numbers, not 51: .* set 'coco'",
    ),
    "NaN": (None, lambda dt: [changed(dt[0], keypoints=[float("nan")] * 51)], r"dt.json: record 0: 'keypoints' .* NaN"),
    "infinite": (None, lambda dt: [changed(dt[0], score=float("inf"))], r"dt.json: record 0: 'score' .* infinite"),
    "a huge integer": (None, lambda dt: [changed(dt[0], score=10**400)], r"dt.json: record 0: 'score' is 1000"),
    "a box of three": (
        None,
        lambda dt: [dt[0], changed(dt[0], bbox=[1, 2, 3])],
        r"dt.json: record 1: 'bbox' has 3 numbers, not 4",
    ),
    "unknown image": (None, lambda dt: [changed(dt[0], image_id=99)], r"dt.json: record 0: image_id 99 .*gt.json"),
    "image by name": (None, lambda dt: [changed(dt[0], image_id="a.jpg")], r"record 0: 'image_id' must be an integer"),
    "unknown category": (None, lambda dt: [changed(dt[0], category_id=5)], r"dt.json: record 0: category_id 5 .*gt"),
    "annotation without keypoints": (
        lambda gt: changed(gt, annotations=[changed(gt["annotations"][0], keypoints=...)]),
        None,
        r"gt.json: no annotation has keypoints; expected .* 17 keypoints of set 'coco'",
    ),
    "annotation of another set": (
        lambda gt: changed(gt, annotations=[changed(gt["annotations"][0], keypoints=[1] * 42)]),
        None,
        r"gt.json: annotation 7: 'keypoints' has 42 numbers, not 51",
    ),
    "annotation with NaN": (
        lambda gt: changed(gt, annotations=[changed(gt["annotations"][0], bbox=[0, 0, float("nan"), 1])]),
        None,
        r"gt.json: annotation 7: 'bbox' .* NaN",
    ),
    "annotation with a number that is too large": (
        lambda gt: changed(gt, annotations=[changed(gt["annotations"][0], bbox=[0, 0, 1e300, 1])]),
        None,
        r"gt.json: annotation 7: 'bbox' .* too large: 1e\+300",
    ),
    "annotation of unknown visibility": (
        lambda gt: changed(gt, annotations=[changed(gt["annotations"][0], keypoints=[5, 5, -1] * 17)]),
        None,
        r"gt.json: annotation 7: visibility must be .*, not -1",
    ),
    "annotation of a crowd, perhaps": (
        lambda gt: changed(gt, annotations=[changed(gt["annotations"][0], iscrowd="0")]),
        None,
        r"gt.json: annotation 7: 'iscrowd' must be 0 or 1, not '0'",
    ),
    "result with a score that is too large": (
        None,
        lambda dt: [changed(dt[0], score=1e300)],
        r"dt.json: record 0: 'score' .* too large: 1e\+300",
    ),
    "result with a score in quotes": (
        None,
        lambda dt: [changed(dt[0], score="0.9")],
        r"dt.json: record 0: 'score' is .*, not a number",
    ),
    "annotation without area": (
        lambda gt: changed(gt, annotations=[changed(gt["annotations"][0], area=...)]),
        None,
        r"gt.json: annotation 7: no 'area'; .*--config.eval.use_area=False, or --no-use_area",
    ),
}


@pytest.mark.parametrize("case", BROKEN_FILES)
def test_broken_files_end_in_one_line(case, tmp_path, capsys):
    spoil_annotations, spoil_results, message = BROKEN_FILES[case]
    document, prediction = one_person()
    results = kept([prediction]).to_results()
    annotations = write(tmp_path / "gt.json", spoil_annotations(document) if spoil_annotations else document)
    path = tmp_path / "dt.json"
    write(path, spoil_results(results) if spoil_results else results)
    if case == "results are not JSON":
        path.write_bytes(b"\xff\xfe\x00")
    status = coco.main(["--annotations", annotations, "--results", str(path)])
    out, error = capsys.readouterr()
    assert status == 1
    assert out == ""
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    with pytest.raises(InputError, match=message) as caught:
        coco.evaluate_results(annotations, path)
    assert error == f"error: {caught.value}\n"


def test_missing_files_and_wrong_usage(tmp_path, capsys):
    document, prediction = one_person()
    annotations = write(tmp_path / "gt.json", document)
    results = write(tmp_path / "dt.json", kept([prediction]).to_results())
    good = ["--annotations", annotations, "--results", results]
    for arguments, message in (
        (["--annotations", annotations, "--results", str(tmp_path / "no.json")], "no.json: no such file"),
        (["--annotations", str(tmp_path), "--results", results], f"{tmp_path}: Is a directory"),
        (["--annotations", annotations], "missing --results"),
        ([*good, "--keypoints", "hand"], "unknown keypoint set 'hand'"),
        ([*good, "--output", str(tmp_path / "gt.json/m.json")], "m.json: cannot be written (Not a directory)"),
    ):
        assert coco.main(arguments) == 1
        out, error = capsys.readouterr()
        assert (out, error.count("\n")) == ("", 1)
        assert message in error
    assert coco.main([*good, "--no-use_area"]) == 0
    assert "use_area      False" in capsys.readouterr().out
    assert coco.main(["--annotations", annotations, "--results", write(tmp_path / "dt.json", [])]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:3] == ["0.00000"] * 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keypoints": [[0, 0]] * 19}, r"prediction 3: 'keypoints' has 19x2 numbers, not 17x2: .* set 'coco'"),
        ({"keypoints": [[0, 0]] * 16 + [[0]]}, r"prediction 3: 'keypoints' is .*, not x and y of the 17 keypoints"),
        ({"keypoints": [[0, 0]] * 16 + [[0, np.nan]]}, r"prediction 3: 'keypoints' .* NaN"),
        ({"keypoint_scores": [np.inf] * 17}, r"prediction 3: 'keypoint_scores' .* infinite"),
        ({"keypoint_scores": [1.0] * 16}, r"prediction 3: 'keypoint_scores' has 16 numbers, not 17: a score for each"),
        ({"box_score": None}, r"prediction 3: 'box_score'"),
        ({"bbox": [0, 0, np.nan, 1]}, r"prediction 3: 'bbox' .* NaN"),
        ({"area": -1.0}, r"prediction 3: 'area' is negative"),
        ({"area": ...}, r"prediction 3: no 'area'"),
        ({"keypoints": [[1e300, 0]] * 17}, r"prediction 3: 'keypoints' .* too large: 1e\+300"),
        ({"image_id": 12}, r"prediction 3: image_id 12 does not occur in annotations"),
        ({"image_id": 1.0}, r"prediction 3: 'image_id' must be an integer, not 1.0"),
        ({"id": ...}, r"prediction at position 1: no 'id'"),
        ({"id": 5}, r"prediction 5: its id occurs more than once"),
    ],
)
def test_broken_predictions_are_named(changes, message):
    document, prediction = one_person()
    predictions = [prediction | {"id": 5}, changed(prediction, **changes)]
    with pytest.raises(InputError, match=message) as caught:
        coco.evaluate(document, predictions, keypoint_set="coco")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nms": "soft"}, "unknown nms 'soft'; there are oks_nms, soft_oks_nms, none"),
        ({"score_mode": "area"}, "unknown score_mode 'area'; there are bbox_keypoint"),
        ({"keypoint_set": "hand"}, "unknown keypoint set 'hand'"),
        ({"nms_threshold": 0.0}, "nms_threshold must be above 0"),
    ],
)
def test_unknown_settings(settings, message):
    document, prediction = one_person()
    for predictions in ([prediction], []):
        with pytest.raises(InputError, match=message):
            coco.evaluate(document, predictions, **({"keypoint_set": "coco"} | settings))
