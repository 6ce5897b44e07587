"""Annotation files: what is kept, what is dropped, and one clear line for what is wrong."""

import json

import numpy as np
import pytest

from data_pipelines.annotations import load_detections, load_instances
from data_pipelines.errors import InputError
from data_pipelines.keypoints import AIC, COCO
from data_pipelines.transforms import clip_box

AIC_NATIVE = "data/aic/ai_challenger_keypoint_train_20170902/keypoint_train_annotations_20170909.json"
AIC_IMAGES = "data/aic/ai_challenger_keypoint_train_20170902/keypoint_train_images_20170902"


@pytest.mark.parametrize(
    ("key", "annotations", "images", "joints"),
    [
        ("tests_coco", "data/coco_val4/annotations/person_keypoints_val2017.json", "data/coco_val4/val2017", COCO),
        ("tests_aic", "data/aic/annotations/aic_train.json", AIC_IMAGES, AIC),
    ],
)
def test_the_references_annotations_survive(shared, key, annotations, images, joints):
    facts = json.loads((shared / "reference/golden/dataset_facts.json").read_text())[key]
    instances = load_instances(shared / annotations, shared / images, joints)
    assert instances.instance_id.tolist() == facts["ids"]
    sizes = {i["id"]: (i["height"], i["width"]) for i in json.loads((shared / annotations).read_text())["images"]}
    first = facts["bbox_first"][0]
    np.testing.assert_allclose(clip_box(instances.bbox[0], sizes[int(instances.image_id[0])]), first, atol=1e-4)


def test_both_aic_layouts_hold_the_same_people(shared):
    native = load_instances(shared / AIC_NATIVE, shared / AIC_IMAGES, AIC)
    converted = load_instances(shared / "data/aic/annotations/aic_train.json", shared / AIC_IMAGES, AIC)
    np.testing.assert_array_equal(native.bbox, converted.bbox)
    np.testing.assert_array_equal(native.keypoints, converted.keypoints)
    assert [native.path(i) for i in range(9)] == [converted.path(i) for i in range(9)]


def test_detections_keep_every_box(shared):
    folder = shared / "data/coco_val4"
    boxes = folder / "person_detection_results/COCO_val2017_detections_AP_H_56_person.json"
    facts = json.loads((shared / "reference/golden/dataset_facts.json").read_text())["tests_coco_det"]
    annotations = folder / "annotations/person_keypoints_val2017.json"
    instances = load_detections(boxes, annotations, folder / "val2017", COCO)
    assert len(instances) == facts["kept"] == 118
    assert instances.box_score.min() == pytest.approx(facts["lowest_score"], rel=1e-6)
    assert instances.detected


@pytest.fixture
def coco_file(tmp_path):
    """Writes a COCO file of one good person, changed by a function; returns its path and the image folder."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"not read here")

    def write(change=lambda content: None):
        content = {
            "images": [{"id": 7, "file_name": "a.jpg", "height": 50, "width": 40}],
            "annotations": [
                {
                    "id": 3,
                    "image_id": 7,
                    "bbox": [1, 2, 30, 40],
                    "keypoints": [5, 6, 2] * 17,
                    "num_keypoints": 17,
                    "area": 900,
                    "iscrowd": 0,
                    "category_id": 1,
                }
            ],
            "categories": [{"id": 1, "name": "person"}],
        }
        change(content)
        path = tmp_path / "people.json"
        path.write_text(json.dumps(content))
        return path, tmp_path / "images"

    return write


def _set(key, value):
    def change(content):
        content["annotations"][0][key] = value

    return change


def _remove(content):
    del content["annotations"][0]["keypoints"]


def _without_images(content):
    del content["images"]


def _escape(content):
    content["images"][0]["file_name"] = "../../secret.jpg"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_remove, "people.json: no annotation has keypoints; expected .*person_keypoints"),
        (_set("keypoints", []), "people.json: no annotation has keypoints; expected .* 17 keypoints of set 'coco'"),
        (
            lambda content: content["images"].append({"id": 7, "file_name": "b.jpg"}),
            "people.json: images a.jpg and b.jpg both have id 7; give each its own",
        ),
        (
            _set("keypoints", [1, 2, 2] * 14),
            "annotation 3: 'keypoints' has 42 numbers, not 51: .* 17 keypoints of set 'coco'",
        ),
        (_set("keypoints", [float("nan"), 2, 2] * 17), "annotation 3: 'keypoints' holds a number that is not finite"),
        (_set("bbox", [0, 0, float("inf"), 5]), "annotation 3: 'bbox' holds a number that is not finite"),
        (_set("bbox", [0, 0, 5]), "annotation 3: 'bbox' has 3 numbers, not 4"),
        (_set("bbox", "wide"), "annotation 3: 'bbox' is 'wide', not x, y, width and height"),
        (_set("bbox", [5, 5, 0, 10]), "holds no person with labelled keypoints and a box with an area"),
        (_set("image_id", 8), "annotation 3: image_id 8 is not among the file's images"),
        (_set("keypoints", [1e300, 2, 2] * 17), r"annotation 3: 'keypoints' holds a number that is too large: 1e\+300"),
        (_set("bbox", [0, 0, 5, 2e6]), r"annotation 3: 'bbox' holds a number that is too large: 2e\+06"),
        (_set("bbox", ["1", "2", "30", "40"]), "annotation 3: 'bbox' is .'1', '2', '30', '40'., not x, y"),
        (_set("keypoints", [5, 6, -1] * 17), r"annotation 3: visibility must be .*, not -1"),
        (_set("keypoints", [5, 6, 2] * 16 + [5, 6, 7]), r"annotation 3: visibility must be .*, not 7"),
        (_set("iscrowd", "0"), "annotation 3: 'iscrowd' must be 0 or 1, not '0'"),
        (_without_images, "not a COCO annotation file"),
        (lambda content: content.update(images=[5]), "image at position 0: not an object with named fields, but int"),
        (lambda content: content.update(images=[{"id": "7"}]), "image at position 0: 'id' must be an integer, not '7'"),
        (_escape, "file_name '../../secret.jpg' leaves the image folder"),
    ],
)
def test_bad_coco_records_are_named(coco_file, change, message):
    path, images = coco_file(change)
    with pytest.raises(InputError, match=message) as error:
        load_instances(path, images, COCO)
    assert "\n" not in str(error.value)
    assert "people.json" in str(error.value)


@pytest.mark.parametrize("fields", [{}, {"keypoints": []}, {"keypoints": None}])
def test_objects_without_keypoints_are_dropped(coco_file, fields):
    ball = {"id": 4, "image_id": 7, "bbox": [0, 0, 9, 9], "category_id": 2, **fields}
    instances = load_instances(*coco_file(lambda content: content["annotations"].append(ball)), COCO)
    assert instances.instance_id.tolist() == [3]
    assert instances.dropped == {"without keypoints": 1}


def test_a_good_file_loads(coco_file):
    instances = load_instances(*coco_file(), COCO)
    assert len(instances) == 1
    assert instances.instance_id[0] == 3


def test_lists_come_in_any_order(coco_file):
    expected = load_instances(*coco_file(), COCO)
    found = load_instances(*coco_file(lambda content: content.update(images=content.pop("images"))), COCO)
    assert found.digest() == expected.digest()


def test_files_that_are_no_annotations_are_named(tmp_path):
    with pytest.raises(InputError, match="none.json: no such file"):
        load_instances(tmp_path / "none.json", tmp_path, COCO)
    path = tmp_path / "bad.json"
    path.write_text("{'not': json}")
    with pytest.raises(InputError, match="bad.json: not JSON"):
        load_instances(path, tmp_path, COCO)
    path.write_text("[1, 2]")
    with pytest.raises(
        InputError, match=r"bad.json: entry 0: not AI Challenger.s annotation .*, nor is the file COCO.s"
    ):
        load_instances(path, tmp_path, COCO)


def test_missing_folder_and_first_image_are_named(coco_file, tmp_path):
    path, images = coco_file()
    with pytest.raises(InputError, match="elsewhere: no such folder"):
        load_instances(path, tmp_path / "elsewhere", COCO)
    (images / "a.jpg").unlink()
    with pytest.raises(InputError, match="a.jpg: no such file"):
        load_instances(path, images, COCO)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ({"image_id": 9, "bbox": [1, 1, 5, 5], "score": 1}, "detection 0: image_id 9 is not in"),
        ({"image_id": 7, "bbox": [1, 1, 0, 5], "score": 1}, "detection 0: the box .* has no area"),
        ({"image_id": 7, "bbox": [1, 1, 5, float("nan")], "score": 1}, "'bbox' holds a number that is not finite"),
        ({"image_id": 7, "bbox": [1, 1, 5, 5]}, "'score'"),
        ({"image_id": 7, "bbox": [1, 1, 5, 5], "score": "0.9"}, "detection 0: 'score' is '0.9', not a number"),
        ({"image_id": 7, "bbox": [1, 1, 5, 5], "score": 1e300}, r"detection 0: 'score' .* too large: 1e\+300"),
        ({"image_id": 7, "bbox": [1e300, 1, 5, 5], "score": 1}, r"detection 0: 'bbox' .* too large: 1e\+300"),
    ],
)
def test_bad_detections_are_named(coco_file, tmp_path, box, message):
    path, images = coco_file()
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps([box]))
    with pytest.raises(InputError, match=message):
        load_detections(boxes, path, images, COCO)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"image_id": "a"}, "entry 0: not AI Challenger.s annotation"),
        (
            {"image_id": "a", "human_annotations": {"human1": [0, 0, 5, 5]}, "keypoint_annotations": {"human1": [1]}},
            "image a, human1: 'keypoint_annotations' has 1 numbers, not 42: .* set 'aic'",
        ),
        (
            {
                "image_id": "a",
                "human_annotations": {"human1": [0, 0, 5, 5]},
                "keypoint_annotations": {"human1": [1, 1, 4] * 14},
            },
            "image a, human1: visibility must be",
        ),
    ],
)
def test_bad_aic_records_are_named(tmp_path, entry, message):
    path = tmp_path / "aic.json"
    good = {"image_id": "b", "human_annotations": {}, "keypoint_annotations": {}}
    path.write_text(json.dumps([entry, good] if "human_annotations" in entry else [good, entry]))
    message = message.replace("entry 0", "entry 1")
    with pytest.raises(InputError, match=message):
        load_instances(path, tmp_path, AIC)
