"""AI Challenger as a target, in both layouts of its files, and the 19-keypoint model on COCO and on AIC."""

import json

import numpy as np
import pytest

from data_pipelines.annotations import load_detections, load_instances
from data_pipelines.errors import InputError
from data_pipelines.keypoints import AIC
from eval.coco import evaluate_results
from eval.records import Annotations
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
    """f(config file and variants, evaluation set, use_area) -> Evaluator of a small network."""

    def create(spec, evaluated, use_area):
        config = load_config(str(REPOSITORY / "configs" / spec))
        config.data.root = str(shared / "data")
        config.data.eval.update(evaluated)
        config.model.variant = "micro"
        config.eval.batch_size = 6
        config.eval.use_area = use_area
        config_lib.check(config)
        return Evaluator(config, create_mesh())

    return create


def best_possible(evaluator):
    """The ten numbers of the annotated keypoints themselves, encoded, decoded and brought back to the image."""
    batches = list(evaluator.data)
    rows = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    predictions = evaluator._predictions(rows, *evaluator._best_possible(rows))
    return evaluator._measure(predictions)[0], predictions


@pytest.mark.parametrize("spec", ["aic.py:udp", "coco_aic_combine.py:udp"])
def test_models_reach_aic_by_either_file(evaluator, spec):
    """The 14 keypoints of AIC, and those 14 of the union's 19; both layouts give the same numbers."""
    native, predictions = best_possible(evaluator(spec, {**ON_AIC, "annotations": NATIVE}, use_area=False))
    converted, _ = best_possible(evaluator(spec, {**ON_AIC, "annotations": CONVERTED}, use_area=False))
    assert native == converted
    assert native["AP"] > 0.95
    assert len(predictions) == 9
    assert predictions.keypoints.shape[1:] == (14, 2)


def test_the_union_reaches_coco(evaluator):
    numbers, predictions = best_possible(evaluator("coco_aic_combine.py:udp", ON_COCO, use_area=True))
    assert numbers["AP"] > 0.95
    assert len(predictions) == 12
    assert predictions.keypoints.shape[1:] == (17, 2)


def test_keypoints_are_taken_by_name(evaluator, shared):
    """What leaves an evaluation is the annotated person, keypoint by keypoint, whatever the model's order is."""
    at_work = evaluator("coco_aic_combine.py:udp", {**ON_AIC, "annotations": NATIVE}, use_area=False)
    assert at_work.order[AIC.index("head_top")] == 17
    people = load_instances(shared / "data" / NATIVE, shared / "data" / IMAGES, AIC)
    compared = 0
    _, predictions = best_possible(at_work)
    for found, box, row in zip(predictions.keypoints, predictions.boxes, predictions.ids, strict=True):
        points, labelled = people.keypoints[row, :, :2], people.keypoints[row, :, 2] > 0
        inside = ((points > box[:2]) & (points < box[:2] + box[2:])).all(-1)
        np.testing.assert_allclose(found[labelled & inside], points[labelled & inside], atol=0.1)
        compared += (labelled & inside).sum()
    assert compared > 80


def test_several_categories_are_evaluated_as_annotated(evaluator, shared, tmp_path):
    """Half of the annotations have category 2, none is listed; detected boxes do not tell the two apart."""
    content = json.loads((shared / "data" / CONVERTED).read_text())
    del content["categories"]
    for annotation in content["annotations"][::2]:
        annotation["category_id"] = 2
    (tmp_path / "two.json").write_text(json.dumps(content))
    two = {**ON_AIC, "annotations": str(tmp_path / "two.json")}
    numbers, predictions = best_possible(evaluator("aic.py:udp", two, use_area=False))
    assert numbers["AP"] > 0.95
    assert set(predictions.category_ids.tolist()) == {1, 2}
    box = {"image_id": content["images"][0]["id"], "bbox": [1, 1, 50, 50], "score": 1}
    (tmp_path / "boxes.json").write_text(json.dumps([box]))
    with pytest.raises(InputError, match=r"two.json: keypoints of categories \[1, 2\]; .*data.eval.boxes="):
        evaluator("aic.py:udp", {**two, "boxes": str(tmp_path / "boxes.json")}, use_area=False)


def test_a_model_without_a_keypoint_is_refused(evaluator):
    with pytest.raises(InputError, match=r"eval.keypoints='aic': the model's set 'coco' lacks head_top, neck"):
        evaluator("coco_aic_merge.py", {**ON_AIC, "annotations": NATIVE}, use_area=False)


def test_areas_that_are_not_there_are_told_at_once(evaluator):
    with pytest.raises(InputError, match=r"20170909.json: annotation 0: no 'area'; .*--config.eval.use_area=False"):
        evaluator("aic.py", {**ON_AIC, "annotations": NATIVE}, use_area=True)


def test_the_evaluation_reads_both_layouts(shared):
    root = shared / "data"
    native, converted = (Annotations.read(root / path, AIC, use_area=False) for path in (NATIVE, CONVERTED))
    for name in ("boxes", "areas", "keypoints", "crowds"):
        np.testing.assert_array_equal(getattr(native, name), getattr(converted, name))
    instances = load_instances(root / NATIVE, root / IMAGES, AIC)
    np.testing.assert_array_equal(native.ids, instances.instance_id)
    np.testing.assert_array_equal(native.image_ids, instances.image_id)
    people = zip(native.image_ids.tolist(), native.keypoints, native.ids.tolist(), strict=True)
    results = [
        {"image_id": image, "category_id": 1, "keypoints": points.ravel().tolist(), "score": 1 / (1 + number)}
        for image, points, number in people
    ]
    numbers = evaluate_results(root / NATIVE, results, keypoint_set="aic", use_area=False)
    assert numbers["AP"] == pytest.approx(1)
    assert numbers["people"] == 9


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
    truth = Annotations.read(odd / "aic.json", AIC, use_area=False)
    assert (instances.instance_id.tolist(), instances.image_id.tolist()) == ([0, 3], [1, 2])
    assert (truth.ids.tolist(), truth.image_ids.tolist(), truth.images) == ([0, 1, 2, 3], [1, 1, 1, 2], [0, 1, 2])
    assert truth.counted.tolist() == [True, False, True, True]
    assert truth.boxes[2:].tolist() == [[9, 9, 0, 0], [1, 2, 8, 6]]


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
