"""Boxes as detectors write them: every format for predicting and for evaluating, and one line for what is wrong."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.annotations import load_detections
from data_pipelines.detections import people_of, read_detections
from data_pipelines.errors import InputError
from data_pipelines.keypoints import COCO
from hrnet_jax.inference.boxes import read_boxes

CATEGORIES = [{"id": 1, "name": "person", "keypoints": list(COCO.names)}, {"id": 18, "name": "dog"}]


def boxes_of(file, *arguments):
    boxes, scores = file.of(*arguments)
    return np.round(boxes, 6).tolist(), scores


@pytest.fixture
def place(tmp_path):
    """Two images of 200 x 100 with their annotation file; f(name, text or content) writes a file beside them."""
    (tmp_path / "images").mkdir()
    for name in ("000000000007.jpg", "street.jpg"):
        (tmp_path / "images" / name).touch()
    images = [
        {"id": 7, "file_name": "000000000007.jpg", "height": 100, "width": 200},
        {"id": 9, "file_name": "street.jpg", "height": 100, "width": 200},
    ]
    content = {"images": images, "annotations": [], "categories": CATEGORIES}
    (tmp_path / "annotations.json").write_text(json.dumps(content))

    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def evaluated(path, categories=None):
    """Image ids, boxes and scores of the boxes to evaluate."""
    annotations = path.parent / "annotations.json"
    if not annotations.exists():
        annotations = path.parent.parent / "annotations.json"
    if categories is not None:
        annotations.write_text(json.dumps({**json.loads(annotations.read_text()), "categories": categories}))
    people = load_detections(path, annotations, annotations.parent / "images", COCO)
    assert people.detected
    boxes, scores = (np.round(column.astype(float), 4).tolist() for column in (people.bbox, people.box_score))
    return people.image_id.tolist(), boxes, scores


def test_ultralytics_labels(place):
    """Class, centre and size as shares; the person is class 0; the confidence is the last number."""
    place("labels/000000000007.txt", "5 0.5 0.5 1 1 0.9\n0 0.5 0.5 0.25 0.5 0.75\n\n")
    path = place("labels/street.txt", f"0 0.1 0.5 0.2 1 {' '.join(['0.5 0.5 2'] * 17)} 0.5\n")
    folder = path.parent
    file = read_boxes(str(folder), COCO, threshold=0.6)
    assert boxes_of(file, "000000000007.jpg", (100, 200)) == ([[75, 25, 50, 50]], [0.75])
    assert boxes_of(file, "a/000000000007.png", (100, 200))[1] == [0.75]
    assert file.of("street.jpg", (100, 200)) == ([], [])
    assert file.unknown(["000000000007.jpg"]) == []
    assert evaluated(folder) == ([7, 9], [[75, 25, 50, 50], [0, 0, 40, 100]], [0.75, 0.5])
    assert boxes_of(read_boxes(str(path), COCO), "street.png", (100, 200)) == ([[0, 0, 40, 100]], [0.5])


def test_ultralytics_labels_without_confidence(place):
    path = place("labels/street.txt", "0 0.5 0.5 0.25 0.5\n")
    assert boxes_of(read_boxes(str(path.parent), COCO), "street.jpg", (100, 200)) == ([[75, 25, 50, 50]], [1])
    with pytest.raises(InputError, match=r"street.txt: line 1: no 'score'; .*save_conf=True"):
        evaluated(path.parent)


def test_real_ultralytics_predictions(shared):
    case = shared / "data/formats/yolo_pred_txt_bus"
    expected = json.loads((case / "expected.json").read_text())
    for name, count in zip(("with_conf", "without_conf", "without_conf_v5order"), expected["n_person"], strict=True):
        file = read_boxes(str(case / name), COCO)
        boxes, scores = file.of("bus.jpg", (1080, 810))
        assert len(boxes) == count
        if name == "with_conf":
            np.testing.assert_allclose(boxes[0], expected["examples"][0]["bbox_xywh"], atol=1e-3)
            assert scores[0] == expected["examples"][0]["score"]


def test_mot_tracks(place):
    """Frames count from 1; -1 stands for an unknown confidence; classes other than 1 are no people."""
    path = place("det.txt", "7,-1,10,20,30,40,0.5,-1,-1,-1\n1,2,1,2,3,4,-1\n7,3,0,0,9,9,1,3,1\n")
    file = read_boxes(str(path), COCO)
    assert file.of("000007.jpg") == ([[10, 20, 30, 40]], [0.5])
    assert file.of("0") == ([[1, 2, 3, 4]], [1.0])  # a video's first frame
    assert file.of("6") == ([[10, 20, 30, 40]], [0.5])
    path.write_text("7,-1,10,20,30,40,0.5\n")
    assert evaluated(path) == ([7], [[10, 20, 30, 40]], [0.5])
    path.write_text("0,1,1,1,5,5,1\n7,1,2,2,5,5,1\n")  # counts from 0
    assert read_boxes(str(path), COCO).of("0")[0] == [[1, 1, 5, 5]]


def test_coco_results_of_several_detectors(place):
    box = [1, 2, 30, 40]
    detectron2 = [{"image_id": 7, "bbox": box, "score": 0.5, "category_id": i} for i in (0, 17)]
    mmdetection = [{"image_id": 7, "bbox": box, "score": 0.5, "category_id": i} for i in (1, 18)]
    names = [{"image_id": 7, "bbox": box, "score": 0.5, "category_name": name} for name in ("person", "dog")]
    ultralytics = [{"image_id": "street", "file_name": "street.jpg", "bbox": box, "score": 0.5, "category_id": 1}]
    corners = [{"image_id": 7, "xyxy": [1, 2, 31, 42], "score": 0.5}]
    for number, content in enumerate((detectron2, mmdetection, names, ultralytics, corners)):
        path = place(f"{number}.json", content)
        image_id, name = (9, "street.jpg") if content is ultralytics else (7, "000000000007.jpg")
        assert evaluated(path) == ([image_id], [box], [0.5])
        assert read_boxes(str(path), COCO).of(name) == ([box], [0.5])


def test_categories_of_the_annotations_decide(place):
    """A file that annotates the keypoints of category 3 is evaluated on the boxes of category 3."""
    box = [1, 2, 30, 40]
    path = place("d.json", [{"image_id": 7, "bbox": box, "score": i / 10, "category_id": i} for i in (1, 3, 4)])
    assert evaluated(path, [{"id": 3, "name": "mouse", "keypoints": ["a"]}, {"id": 1, "name": "box"}])[2] == [0.3]
    assert evaluated(path, [{"id": 3, "name": "mouse"}])[2] == [0.3]
    assert people_of([]) == ({1}, {"person"})
    assert people_of([{"id": 0, "name": "fly"}]) == ({0}, {"fly"})
    with pytest.raises(InputError, match=r"d.json: holds no detection of category 5 \(mouse\)"):
        evaluated(path, [{"id": 5, "name": "mouse"}])


def test_corners_and_scores_by_name(place):
    path = place("boxes.json", {"street.jpg": [[1, 2, 31, 42, 0.5], [1, 2, 11, 12]]})
    assert read_boxes(str(path), COCO, box_format="xyxy").of("street.jpg") == (
        [[1, 2, 30, 40], [1, 2, 10, 10]],
        [0.5, 1.0],
    )
    np.save(path.with_suffix(".npy"), np.array([[1, 2, 31, 42]]))
    assert read_boxes(str(path.with_suffix(".npy")), COCO, box_format="xyxy").of("x")[0].tolist() == [[1, 2, 30, 40]]
    with pytest.raises(InputError, match=r"box_format='cxcywh': must be xywh or xyxy"):
        read_boxes(str(path), COCO, box_format="cxcywh")
    path.write_text(json.dumps({"street.jpg": [[1, 2, 30, 40, 0.5]]}))
    assert evaluated(path) == ([9], [[1, 2, 30, 40]], [0.5])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "0 0.5 0.5 0.5\n", "a.txt: line 1: '0 0.5 0.5 0.5' is not class, x, y, width, height"),
        ("a.txt", "\n0 50 50 10 10\n", "a.txt: line 2: .* shares of the image from 0 to 1"),
        ("a.txt", "0 0.5 0.5 nan 0.5\n", "a.txt: line 1: .*not finite"),
        (
            "a.txt",
            "person 0.5 0.5 0.5 0.5\n",
            "a.txt: line 1: 'person 0.5 0.5 0.5 0.5' has something other than numbers",
        ),
        ("a.txt", "1,2,3\n", "a.txt: line 1: '1,2,3' is not frame, track"),
        ("a.txt", "1.5,2,3,4,5,6\n", "a.txt: line 1: '1.5,2,3,4,5,6' is not frame, track"),
        ("a.json", {"a.jpg": [[1, 2, 3]]}, r"a.json: a.jpg: \[1, 2, 3\] is no box of 4 numbers"),
        ("a.json", {"a.jpg": 5}, "a.json: a.jpg: 5 is no box"),
    ],
)
def test_wrong_files_get_one_line(place, name, content, message):
    with pytest.raises(InputError, match=message) as error:
        read_detections(place(name, content))
    assert "\n" not in str(error.value)


def test_folders_and_files_that_are_not_there(place, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: holds no text files; .*Ultralytics labels"):
        read_detections(tmp_path / "empty")
    for name in ("none.txt", "none.json"):
        with pytest.raises(InputError, match=f"{name}: no such file"):
            read_detections(tmp_path / name)
    path = place("boxes.json", {"other.jpg": [[1, 2, 3, 4, 1]]})
    with pytest.raises(InputError, match="boxes.json: other.jpg: image_id other.jpg is not in"):
        evaluated(path)
    content = json.loads((tmp_path / "annotations.json").read_text())
    del content["images"][0]["width"]
    place("annotations.json", content)
    labels = place("labels/000000000007.txt", "0 0.5 0.5 0.25 0.5 1\n").parent
    with pytest.raises(InputError, match="line 1: is relative to the image, whose 'width' and 'height' .* not give"):
        evaluated(labels)


@settings(deadline=None, max_examples=200)
@given(text=st.text("0123456789.,-e nN\n", max_size=60))
def test_any_text_is_boxes_or_one_line(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "fuzz.txt"
    path.write_text(text)
    problem = ""
    try:
        found = read_detections(path)
        assert np.isfinite(found.boxes).all()
        assert found.boxes.shape == (len(found), 4)
    except InputError as error:
        problem = str(error)
    assert not problem or problem.startswith(f"{path}: ")
    assert "\n" not in problem
