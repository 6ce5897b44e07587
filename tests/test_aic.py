"""AI Challenger as a target, in both layouts of its files, and the 19-keypoint model on COCO and on AIC."""

import json

import numpy as np
import pytest

from data_pipelines.annotations import coco_annotations, load_detections, load_instances
from data_pipelines.errors import InputError
from data_pipelines.keypoints import AIC
from eval.coco import METRICS, evaluate_results
from hrnet_jax import config as config_lib
from hrnet_jax.config import load_config
from hrnet_jax.inference.evaluator import Evaluator
from hrnet_jax.mesh import create_mesh
from tests.helpers import REPOSITORY

IMAGES = "aic/ai_challenger_keypoint_train_20170902/keypoint_train_images_20170902"
NATIVE = "aic/ai_challenger_keypoint_train_20170902/keypoint_train_annotations_20170909.json"
CONVERTED = "aic/annotations/aic_train.json"
ON_AIC = {"images": IMAGES, "keypoints": "aic", "boxes": ""}
ON_COCO = {
    "annotations": "coco_val4/annotations/person_keypoints_val2017.json",
    "images": "coco_val4/val2017",
    "keypoints": "coco",
    "boxes": "",
}


@pytest.fixture
def evaluator(shared):
    """f(config file and variants, evaluation set, use_area) -> Evaluator of a tiny network."""

    def create(spec, evaluated, use_area):
        config = load_config(str(REPOSITORY / "configs" / spec))
        config.data.root = str(shared / "data")
        config.data.eval.update(evaluated)
        config.model.variant = "tiny"
        config.eval.batch_size = 6
        config.eval.use_area = use_area
        config_lib.check(config)
        return Evaluator(config, create_mesh())

    return create


def best_possible(evaluator):
    """The ten numbers of the annotated keypoints themselves, encoded, decoded and brought back to the image."""
    predictions = []
    for batch in evaluator.data:
        predictions += evaluator._predictions(batch, *evaluator._best_possible(batch))
    metrics = evaluator._measure(predictions)
    return {name: metrics[name] for name in METRICS}, predictions


@pytest.mark.parametrize("spec", ["aic.py:udp", "coco_aic_combine.py:udp"])
def test_models_reach_aic_by_either_file(evaluator, spec):
    """The 14 keypoints of AIC, and those 14 of the union's 19; both layouts give the same numbers."""
    native, predictions = best_possible(evaluator(spec, {**ON_AIC, "annotations": NATIVE}, use_area=False))
    converted, _ = best_possible(evaluator(spec, {**ON_AIC, "annotations": CONVERTED}, use_area=False))
    assert native == converted
    assert native["AP"] > 0.95
    assert len(predictions) == 9
    assert all(p["keypoints"].shape == (14, 2) for p in predictions)


def test_the_union_reaches_coco(evaluator):
    numbers, predictions = best_possible(evaluator("coco_aic_combine.py:udp", ON_COCO, use_area=True))
    assert numbers["AP"] > 0.95
    assert len(predictions) == 12
    assert all(p["keypoints"].shape == (17, 2) for p in predictions)


def test_keypoints_are_taken_by_name(evaluator, shared):
    """What leaves an evaluation is the annotated person, keypoint by keypoint, whatever the model's order is."""
    at_work = evaluator("coco_aic_combine.py:udp", {**ON_AIC, "annotations": NATIVE}, use_area=False)
    assert at_work.order[AIC.index("head_top")] == 17
    people = load_instances(shared / "data" / NATIVE, shared / "data" / IMAGES, AIC)
    compared = 0
    for prediction in best_possible(at_work)[1]:
        points, labelled = people.keypoints[prediction["id"], :, :2], people.keypoints[prediction["id"], :, 2] > 0
        inside = ((points > prediction["bbox"][:2]) & (points < prediction["bbox"][2:])).all(-1)
        np.testing.assert_allclose(prediction["keypoints"][labelled & inside], points[labelled & inside], atol=0.1)
        compared += (labelled & inside).sum()
    assert compared > 80


def test_a_model_without_a_keypoint_is_refused(evaluator):
    with pytest.raises(InputError, match=r"eval.keypoints='aic': the model's set 'coco' lacks head_top, neck"):
        evaluator("coco_aic_merge.py", {**ON_AIC, "annotations": NATIVE}, use_area=False)


def test_areas_that_are_not_there_are_told_at_once(evaluator):
    with pytest.raises(InputError, match=r"20170909.json: annotates no areas; set config.eval.use_area=False"):
        evaluator("aic.py", {**ON_AIC, "annotations": NATIVE}, use_area=True)


def test_native_annotations_become_coco(shared):
    root = shared / "data"
    ours = coco_annotations(root / NATIVE, AIC)
    instances = load_instances(root / NATIVE, root / IMAGES, AIC)
    people = {person["id"]: person for person in ours["annotations"]}
    for row, number in enumerate(instances.instance_id.tolist()):
        assert people[number]["image_id"] == instances.image_id[row]
        np.testing.assert_allclose(people[number]["bbox"], instances.bbox[row])
        np.testing.assert_allclose(np.reshape(people[number]["keypoints"], (-1, 3)), instances.keypoints[row])
    theirs = json.loads((root / CONVERTED).read_text())
    assert [image["file_name"] for image in ours["images"]] == [image["file_name"] for image in theirs["images"]]
    assert [p["num_keypoints"] for p in ours["annotations"]] == [p["num_keypoints"] for p in theirs["annotations"]]
    assert coco_annotations(root / CONVERTED, AIC) == root / CONVERTED


def test_the_evaluation_takes_both_layouts(shared):
    path = shared / "data" / NATIVE
    content = coco_annotations(path, AIC)
    results = [{**person, "score": 1 / (1 + person["id"])} for person in content["annotations"]]
    numbers = [evaluate_results(truth, results, keypoint_set="aic", use_area=False) for truth in (path, content)]
    assert numbers[0] == numbers[1]
    assert numbers[0]["AP"] == pytest.approx(1)
    with pytest.raises(InputError, match=r"image \w+, human1: no 'area'; .*--no-use_area"):
        evaluate_results(path, results, keypoint_set="aic")


@pytest.fixture
def odd(tmp_path):
    """A native file of three images: somebody without keypoints and somebody without a box stand between two others."""
    seen, absent = [7, 8, 1] * 14, [0, 0, 3] * 14
    content = [
        {"image_id": "a", "human_annotations": {}, "keypoint_annotations": {}},
        {
            "image_id": "b",
            "human_annotations": {"human1": [0, 0, 9, 9], "human2": [0, 0, 9, 9], "human3": [9, 9, 3, 3]},
            "keypoint_annotations": {"human1": seen, "human2": absent, "human3": seen},
        },
        {"image_id": "c", "human_annotations": {"human1": [1, 2, 9, 8]}, "keypoint_annotations": {"human1": seen}},
    ]
    for name in "abc":
        (tmp_path / f"{name}.jpg").touch()
    (tmp_path / "aic.json").write_text(json.dumps(content))
    return tmp_path


def test_ids_survive_people_who_are_not_trained_on(odd):
    """Evaluation counts everybody and every image, under the ids of those who are cropped."""
    instances = load_instances(odd / "aic.json", odd, AIC)
    content = coco_annotations(odd / "aic.json", AIC)
    assert (instances.instance_id.tolist(), instances.image_id.tolist()) == ([0, 3], [1, 2])
    assert [(p["id"], p["image_id"], p["num_keypoints"]) for p in content["annotations"]] == [
        (0, 1, 14),
        (1, 1, 0),
        (2, 1, 14),
        (3, 2, 14),
    ]
    assert [person["bbox"] for person in content["annotations"]][2:] == [[9, 9, 0, 0], [1, 2, 8, 6]]
    assert content["images"] == [{"id": i, "file_name": f"{name}.jpg"} for i, name in enumerate("abc")]


def test_detections_on_native_images(odd):
    (odd / "boxes.json").write_text(json.dumps([{"image_id": 2, "bbox": [1, 2, 3, 4], "score": 0.5}]))
    instances = load_detections(odd / "boxes.json", odd / "aic.json", odd, AIC)
    assert instances.path(0) == str(odd / "c.jpg")


def test_images_outside_of_the_folder_are_refused(odd):
    content = json.loads((odd / "aic.json").read_text())
    content[2]["image_id"] = "../c"
    (odd / "aic.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"aic.json: entry 2: image_id '../c.jpg' leaves the image folder"):
        load_instances(odd / "aic.json", odd, AIC)
