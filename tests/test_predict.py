"""Prediction: what evaluation finds, from any images and boxes, by programs that are compiled once."""

import io
import json
import os
import pathlib
import shutil
import subprocess
import sys

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hrnet_jax
from data_pipelines import draw
from data_pipelines.errors import InputError
from data_pipelines.images import read_image
from data_pipelines.keypoints import AIC, COCO
from eval.coco import METRICS, evaluate_results
from hrnet_jax.evaluate import evaluate
from hrnet_jax.inference.ahead import ahead
from hrnet_jax.inference.boxes import read_boxes
from hrnet_jax.inference.evaluator import Evaluator
from hrnet_jax.inference.predictor import Predictor, load
from hrnet_jax.inference.sources import Source
from hrnet_jax.mesh import create_mesh
from hrnet_jax.predict import Look, predict
from hrnet_jax.weights import checkpoint
from tests.helpers import REPOSITORY, image, mistake, moving_square, records, run, write

ANNOTATIONS = "coco/annotations/person_keypoints_val2017.json"
IMAGES = "coco/val2017"
LOOK = Look(threshold=0.1, labels=COCO)


# The predictor. Decoding a flat map of an untrained network magnifies the rounding of programs for other batch sizes,
# so that a few keypoints may lie elsewhere.


@pytest.mark.parametrize("boxes", ["", "detected"])
def test_people_are_where_evaluation_finds_them(folder, predictor, boxes):
    trained = checkpoint.load(folder)
    if not boxes:
        trained.config.data.eval.boxes = ""
    evaluator = Evaluator(trained.config, create_mesh())
    metrics, predictions = evaluator(trained.params, trained.stats)
    assert set(METRICS) <= set(metrics)
    distances = metrics["distances"]
    assert distances["people"] == evaluator.truth.counted.sum()
    assert (distances["missed"] == 0) == (not boxes)  # noise on detected boxes matches nobody
    assert (
        distances["keypoints"]["all"]["labelled"]
        == (evaluator.truth.keypoints[evaluator.truth.counted, :, 2] > 0).sum()
    )
    instances = evaluator.data.instances
    assert len(predictions) == len(instances) > 6
    off: list[float] = []
    for at, row in enumerate(predictions.ids.tolist()):
        ((person,),) = predictor(instances.path(row), instances.bbox[row][None], clip=not boxes)
        off += np.abs(person["keypoints"] - predictions.keypoints[at]).max(-1).tolist()
        np.testing.assert_allclose(person["scores"], predictions.keypoint_scores[at], atol=1e-5)
        np.testing.assert_array_equal(person["bbox"], instances.bbox[row])
    assert np.mean(np.array(off) < 0.02) > 0.95
    assert np.ptp(predictions.keypoints) > 20


def test_results_have_the_promised_nesting(predictor, people):
    assert hrnet_jax.load is load
    assert predictor.keypoint_set is COCO
    path = next((people / IMAGES).iterdir())
    boxes = [[[10, 10, 30, 40], [20.5, 5, 30, 50]], None, np.zeros((0, 4)), []]
    answers = predictor([image(), str(path), image(90, 50), image()], boxes)
    assert [len(found) for found in answers] == [2, 1, 0, 0]
    person = answers[0][1]
    assert person["keypoints"].shape == (17, 2)
    assert person["scores"].shape == (17,)
    assert person["labels"].tolist() == list(range(17))
    np.testing.assert_array_equal(person["bbox"], [20.5, 5, 30, 50])
    height, width = cv2.imread(str(path)).shape[:2]
    assert answers[1][0]["bbox"].tolist() == [0, 0, width, height]
    assert predictor([], None) == []


def test_boxes_may_be_corners(predictor):
    xywh, xyxy = [[10, 10, 30, 40], [20.5, 5, 30, 50]], [[10, 10, 40, 50], [20.5, 5, 50.5, 55]]
    expected, found = predictor(image(), xywh)[0], predictor(image(), xyxy, box_format="xyxy")[0]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours["keypoints"], theirs["keypoints"])
        np.testing.assert_array_equal(ours["bbox"], theirs["bbox"])
    with pytest.raises(InputError, match=r"image 0: box 0: \[40.0, 10.0, 30.0, 50.0\] \(xyxy\) has no area"):
        predictor(image(), [[40, 10, 30, 50]], box_format="xyxy")
    with pytest.raises(InputError, match="box_format='yxyx': must be xywh or xyxy"):
        predictor(image(), xyxy, box_format="yxyx")


def test_nobody_depends_on_who_else_is_there(predictor):
    pictures = [image(60 + 10 * n, 200 - 13 * n, n) for n in range(5)]
    boxes = [np.array([[5.0 + i, 4, 40 + 3 * i, 50] for i in range(n)]).reshape(-1, 4) for n in (3, 0, 7, 1, 2)]
    together = predictor(pictures, boxes)
    alone = [[predictor(p, box[None])[0][0] for box in b] for p, b in zip(pictures, boxes, strict=True)]
    off: list[float] = []
    for ours, theirs in zip(together, alone, strict=True):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            off += np.abs(a["keypoints"] - b["keypoints"]).max(-1).tolist()
            np.testing.assert_array_equal(a["bbox"], b["bbox"])
    assert np.mean(np.array(off) < 0.02) > 0.95


def test_other_images_and_numbers_of_people_compile_nothing_anew(predictor):
    predictor([image(), image()], [[[1, 2, 30, 40]] * 4, [[1, 2, 30, 40]]])
    for n in (1, 2, 3, 5, 9, 0):
        predictor([image(20 + n, 30 + 7 * n), image(300, 40)], [[[1, 2, 30, 40]] * n, None])
    assert predictor._step._cache_size() == 2  # a full batch, and one person


def test_images_are_prepared_while_the_device_works(predictor):
    """Answers come at most two batches late, however many images there are."""
    prepared = 0

    def count():
        nonlocal prepared
        while True:
            prepared += 1
            yield predictor.prepare(image(), [[1, 2, 30, 40]])

    answers = predictor.people(count())
    for n in range(20):
        assert len(next(answers)[1]) == 1
        assert prepared <= n + 1 + 2 * predictor.batch_size


def test_results_come_in_order_with_images_without_people_between(predictor):
    counts = [0, 2, 0, 0, 5, 1, 0, 9, 0, 0]
    boxes = [[[float(k + 1), 2, 30 + n, 40] for k in range(count)] for n, count in enumerate(counts)]
    images = [predictor.prepare(image(seed=n), b, tag=n) for n, b in enumerate(boxes)]
    found = list(predictor.people(iter(images)))
    assert [item.tag for item, _ in found] == list(range(10))
    for (_, people), expected in zip(found, boxes, strict=True):
        assert [person["bbox"].tolist() for person in people] == expected


def test_all_local_devices_work(folder):
    assert jax.local_device_count() == 2
    predictor = load(folder, batch_size=3)
    assert predictor.batch_size == 4
    prepared = predictor.prepare(image(), [[1, 2, 30, 40]] * 4)
    keypoints, _ = predictor._send(prepared.crops, heatmaps=False)
    assert len({shard.device for shard in keypoints.addressable_shards}) == 2
    assert {shard.data.shape for shard in keypoints.addressable_shards} == {(2, 17, 2)}


def test_images_of_other_libraries_and_flat_boxes_are_accepted(predictor):
    pixels = image(60, 80)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    lying = PIL.Image.fromarray(np.rot90(pixels))
    file = io.BytesIO()
    lying.save(file, "PNG", exif=exif)
    box = [5, 6, 40, 50]
    ((expected,),) = predictor(pixels, [box])
    for same in (jnp.asarray(pixels), PIL.Image.fromarray(pixels), PIL.Image.open(file)):
        for form in (box, [box], np.array(box), jnp.asarray([box])):
            ((person,),) = predictor(same, form)
            np.testing.assert_array_equal(person["keypoints"], expected["keypoints"])
    several = predictor([jnp.asarray(pixels), PIL.Image.fromarray(pixels)], [box, box])
    assert [len(people) for people in several] == [1, 1]
    assert len(predictor(jnp.stack([pixels, pixels]))) == 2
    grey = predictor(PIL.Image.fromarray(pixels[..., 0]))
    assert np.isfinite(grey[0][0]["keypoints"]).all()


def test_results_become_coco_results_that_are_measured(predictor, people, tmp_path):
    content = json.loads((people / ANNOTATIONS).read_text())
    files = [str(people / IMAGES / record["file_name"]) for record in content["images"]]
    ids = [record["id"] for record in content["images"]]
    boxes = [[a["bbox"] for a in content["annotations"] if a["image_id"] == i and not a["iscrowd"]] for i in ids]
    results = predictor(files, boxes)
    for found in results:  # as a perfect model would answer
        for person in found:
            record = next(a for a in content["annotations"] if np.allclose(a["bbox"], person["bbox"], atol=1e-3))
            person["keypoints"] = np.array(record["keypoints"], np.float32).reshape(-1, 3)[:, :2]
    records = predictor.to_coco(results, ids)
    path = write(tmp_path / "results.json", records)
    assert len(records) == sum(map(len, boxes))
    assert records[0]["score"] == pytest.approx(results[0][0]["scores"].mean())
    assert evaluate_results(str(people / ANNOTATIONS), path)["AP"] == pytest.approx(1.0)
    assert [record["image_id"] for record in predictor.to_coco(results[:1])] == [0] * len(results[0])


def test_people_are_drawn_where_they_are(predictor):
    pixels = np.full((60, 80, 3), 90, np.uint8)
    (found,) = predictor(pixels, [[5, 6, 60, 50]])
    found[0]["keypoints"] = np.full((17, 2), 20, np.float32)
    found[0]["scores"] = np.full(17, 0.5, np.float32)
    drawn = predictor.draw(pixels, found)
    assert (drawn[20, 20] != 90).any()
    assert (drawn[30:] == 90).all()
    assert (pixels == 90).all()
    np.testing.assert_array_equal(predictor.draw(pixels, found, threshold=0.6), pixels)


def test_the_flip_test_can_be_chosen_and_the_model_is_shown(folder, predictor):
    once = load(folder, batch_size=4, flip_test=False)
    pixels = image(90, 70)
    assert np.abs(once(pixels)[0][0]["scores"] - predictor(pixels)[0][0]["scores"]).max() > 1e-4
    assert repr(once) == f"Predictor({once.origin}: HRNet tiny, 96x96, {once.config.codec.name}, 17 keypoints, " + (
        "flip_test=False, 2 x cpu)"
    )
    assert "flip_test=True" in repr(predictor)


def test_the_package_tells_what_it_offers_without_importing_it():
    code = (
        "import sys, hrnet_jax; print(sorted(n for n in dir(hrnet_jax) if not n.startswith('_')), "
        "hrnet_jax.__version__ > '0', [n for n in ('jax', 'numpy', 'cv2') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout.strip() == "['create_model', 'load'] True []"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        hrnet_jax.nothing  # noqa: B018


def test_threads_keep_the_order_and_stop_at_an_error():
    asked = []

    def items():
        for n in range(1000):
            asked.append(n)
            yield n

    def work(n):
        if n == 30:
            raise InputError("thirty")
        return 2 * n

    results = ahead(work, items())
    assert [next(results) for _ in range(30)] == list(range(0, 60, 2))
    with pytest.raises(InputError, match="thirty"):
        next(results)
    assert len(asked) <= 31 + 2 * len(os.sched_getaffinity(0))


def test_heatmaps_lie_on_the_keypoints(predictor):
    (found,) = predictor(image(200, 300), [[50, 20, 90, 160], [10, 10, 40, 40]], heatmaps=True)
    for person in found:
        maps, matrix = person["heatmaps"], person["heatmap_matrix"]
        assert maps.shape == (24, 24, 17)
        peaks = np.array([np.unravel_index(maps[..., k].argmax(), (24, 24))[::-1] for k in range(17)])
        cells = person["keypoints"] @ matrix[:, :2].T + matrix[:, 2]
        # Decoding moves a keypoint by its refinement only, which noise can make large.
        assert np.median(np.abs(cells - peaks)) < 0.75
        np.testing.assert_allclose(maps.max((0, 1)), person["scores"], atol=1e-5)


def test_rgb_is_rgb(predictor, people):
    path = next((people / IMAGES).iterdir())
    pixels = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    from_file, from_array, wrong = (predictor(i)[0][0]["scores"] for i in (path, pixels, pixels[..., ::-1].copy()))
    np.testing.assert_array_equal(from_file, from_array)
    assert np.abs(from_file - wrong).max() > 1e-3


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 10, 3), np.uint8),
        np.zeros((10, 10), np.uint8),
        np.zeros((10, 10, 4), np.uint8),
        np.zeros((10, 10, 3), np.float32),
        np.array("x"),
    ],
)
def test_arrays_that_are_no_images_are_refused(predictor, array):
    with pytest.raises(InputError, match=r"image 1: .* an image is uint8 RGB"):
        predictor([image(), array])


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([[1, 2, 3, 4], [0, 0, np.nan, 5]], "box 1: .* is not finite"),
        ([[0, 0, 9, np.inf]], "box 0: .* is not finite"),
        ([[0, 0, 0, 5]], "has no area"),
        ([[0, 0, 5, -5]], "has no area"),
        ([[80, 0, 5, 5]], "box 0: .* lies outside the image"),
        ([[10, -9, 5, 9]], "lies outside the image"),
        ([[0, 0, 1e300, 5]], "lies outside any image"),
        ([[1, 2, 3]], "shape"),
        ([1, 2, 3], "shape"),
        ([1, 2, np.nan, 4], "box 0: .* is not finite"),
        ([["a", 2, 3, 4]], "must be a table of numbers"),
        ([[1, 2, 3, 4], [1]], "must be a table of numbers"),
        ({"a": 1}, "must be a table of numbers"),
        (5, "shape"),
    ],
)
def test_bad_boxes_are_named(predictor, boxes, message):
    with pytest.raises(InputError, match=f"image 0: .*{message}"):
        predictor(image(), boxes)
    with pytest.raises(InputError, match="must be a list of 2 tables"):
        predictor([image(), image()], [None])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.floats(width=32), min_size=4, max_size=4), st.integers(1, 90), st.integers(1, 90), st.booleans())
def test_any_box_gives_a_result_or_one_line(predictor, box, height, width, clip):
    pixels = np.full((height, width, 3), 99, np.uint8)
    problem = None
    try:
        ((person,),) = predictor(pixels, [box], clip=clip)
    except InputError as error:
        problem = str(error)
    if problem is None:
        assert np.isfinite(person["keypoints"]).all()
    else:
        assert "image 0: box 0: " in problem
        assert "\n" not in problem


def test_damaged_models_get_one_line(folder, tmp_path):
    content = json.loads((folder / "config.json").read_text())
    for section, key in (("model", "variant"), ("codec", "input_size"), ("data", "root")):
        broken = {**content, section: {k: v for k, v in content[section].items() if k != key}}
        target = tmp_path / f"{section}.{key}"
        shutil.copytree(folder, target)
        (target / "config.json").write_text(json.dumps(broken))
        with pytest.raises(InputError, match=r"config|codec"):
            load(target)
    trained = checkpoint.load(folder)
    trained.params["head.final_layer.bias"] = trained.params["head.final_layer.bias"] + np.nan
    with pytest.raises(InputError, match="not finite; its weights are damaged"):
        Predictor(trained)(image())
    trained.config.model.variant = "small"
    with pytest.raises(InputError, match="arrays do not fit the config"):
        Predictor(trained)
    with pytest.raises(InputError, match="arrays do not fit the config"):
        evaluate(trained, tmp_path / "evaluated")
    with pytest.raises(InputError, match="batch_size=0"):
        Predictor(trained, batch_size=0)


# Box files

BOX = [1.0, 2.0, 3.0, 4.0]


def test_annotated_boxes_come_with_the_truth(people):
    file = read_boxes(str(people / ANNOTATIONS), COCO)
    content = json.loads((people / ANNOTATIONS).read_text())
    assert file.annotated
    seen = 0
    for record in content["images"]:
        own = [a for a in content["annotations"] if a["image_id"] == record["id"] and not a["iscrowd"]]
        assert file.of(record["file_name"])[0] == [a["bbox"] for a in own]
        truth = np.array([a["keypoints"] for a in own]).reshape(-1, 17, 3)
        np.testing.assert_array_equal(np.array(file.truth[record["file_name"]]).reshape(-1, 17, 3), truth)
        seen += len(own)
    assert seen > 6
    assert file.of("other.jpg") == ([], [])


def test_ai_challengers_own_file_is_read(people):
    (path,) = (people / "aic").rglob("*.json")
    file = read_boxes(str(path), AIC)
    (first, *_) = json.loads(path.read_text())
    boxes, _ = file.of(f"{first['image_id']}.jpg")
    (x0, y0, x1, y1) = next(iter(first["human_annotations"].values()))
    assert boxes[0] == [x0, y0, x1 - x0, y1 - y0]
    assert file.truth[f"{first['image_id']}.jpg"][0].shape == (14, 3)


def test_detections_find_their_images(tmp_path):
    detections = [
        {"image_id": 139, "bbox": BOX, "score": 0.9, "category_id": 1},
        {"image_id": 139, "bbox": BOX, "score": 0.2, "category_id": 1},
        {"image_id": 139, "bbox": BOX, "score": 0.9, "category_id": 18},
        {"file_name": "cats/a.jpg", "bbox": BOX, "score": 0.5},
    ]
    path = write(tmp_path / "detections.json", detections)
    file = read_boxes(path, COCO, threshold=0.3)
    assert not file.annotated
    assert file.of("000000000139.jpg") == ([BOX], [0.9])
    assert file.of("cats/a.jpg") == ([BOX], [0.5])
    assert file.of("a.jpg") == ([], [])
    assert read_boxes(path, COCO).of("139.png") == ([BOX, BOX], [0.9, 0.2])
    images = [{"id": 139, "file_name": "street.jpg"}, {"id": 7, "file_name": "000000000139.jpg"}]
    known = write(tmp_path / "annotations.json", {"images": images, "annotations": []})
    file = read_boxes(path, COCO, annotations=known, threshold=0.3)
    assert file.of("street.jpg") == ([BOX], [0.9])
    assert file.of("000000000139.jpg") == ([], [])


def test_boxes_by_name_and_the_same_for_all(tmp_path):
    file = read_boxes(write(tmp_path / "boxes.json", {"a.jpg": [BOX, BOX], "b/c.png": []}), COCO)
    assert file.of("a.jpg") == ([BOX, BOX], [1.0, 1.0])
    assert file.of("b/c.png") == file.of("d.png") == ([], [])
    np.save(tmp_path / "boxes.npy", np.array([BOX]))
    file = read_boxes(str(tmp_path / "boxes.npy"), COCO)
    assert file.of("any.jpg")[0].tolist() == [BOX]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "detection 0: not an object with named fields, but int"),
        ('[{"bbox": [1, 2, 3, 4]}]', "'image_id' or a 'file_name'"),
        ('[{"image_id": 1, "bbox": [1, 2, 3, 4], "score": NaN}]', "'score' holds a number that is not finite"),
        ('[{"image_id": 1, "bbox": [1, 2, 3, 4], "score": "0.9"}]', "detection 0: 'score' is '0.9', not a number"),
        (
            '[{"image_id": 1, "bbox": [1, 2, 3, 4], "score": 1e300}]',
            r"detection 0: 'score' holds .* too large: 1e\+300",
        ),
        ('[{"image_id": 1, "bbox": [1, 2, 1e300, 4]}]', r"detection 0: 'bbox' holds .* too large: 1e\+300"),
        ('[{"image_id": 1, "bbox": ["1", 2, 3, 4]}]', r"detection 0: 'bbox' is \['1'"),
        ('[{"file_name": "../a.jpg", "bbox": [1, 2, 3, 4]}]', "leaves the image folder"),
        ('{"/etc/a.jpg": [[1, 2, 3, 4]]}', "leaves the image folder"),
        ('{"images": [{"id": 1, "file_name": "a/../../b.jpg"}]}', "image 1: file_name 'a/../../b.jpg' leaves"),
        ('{"images": [{"id": "x", "file_name": "a.jpg"}]}', "'id' must be an integer, not 'x'"),
        (
            '{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 2}]}',
            "annotation at position 0: image_id 2 is not among",
        ),
        (
            '{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "keypoints": [1, 2, 2]}]}',
            "no 'bbox'; expected x, y, width and height",
        ),
        (
            '{"images": [{"id": 1, "file_name": "a.jpg"}], '
            '"annotations": [{"image_id": 1, "bbox": [1, 2, 3, 4], "keypoints": [1, 2, 2]}]}',
            "'keypoints' has 3 numbers, not 51: .* 17 keypoints of set 'coco'",
        ),
        (
            '{"images": [{"id": 1, "file_name": "a.jpg"}], '
            '"annotations": [{"image_id": 1, "bbox": [1, 2, 3, 4], "keypoints": [1, 2]}]}',
            "'keypoints' has 2 numbers, not 51",
        ),
        *(
            (
                json.dumps(
                    {
                        "images": [{"id": 1, "file_name": "a.jpg"}],
                        "annotations": [{"image_id": 1, "bbox": BOX} | fields],
                    }
                ),
                f"annotation at position 0: {message}",
            )
            for fields, message in [
                ({"iscrowd": "0"}, "'iscrowd' must be 0 or 1, not '0'"),
                ({"keypoints": [1, 2, -1] * 17}, "visibility must be .*, not -1"),
                ({"keypoints": [1e300, 2, 1] * 17}, r"'keypoints' holds a number .* too large: 1e\+300"),
                ({"bbox": [1, 2, 3, -1e300]}, r"'bbox' holds a number .* too large: 1e\+300"),
            ]
        ),
    ],
)
def test_box_files_that_are_none_get_one_line(tmp_path, content, message):
    path = tmp_path / "boxes.json"
    path.write_text(content)
    with pytest.raises(InputError, match=f"boxes.json: .*{message}"):
        read_boxes(str(path), COCO)


@pytest.mark.parametrize("data", [b"", b"\x93NUMPY\x01\x00v\x00{", b"PK\x03\x04", None])
def test_arrays_that_are_no_boxes_get_one_line(tmp_path, data):
    path = tmp_path / "boxes.npy"
    for number, array in enumerate([np.zeros((3, 5)), np.array(["a"] * 4)[None], np.array([[None] * 4])]):
        if data is None:
            np.save(path, array)
        else:
            path.write_bytes(data + bytes(number))
        with pytest.raises(InputError, match="boxes.npy: "):
            read_boxes(str(path), COCO)


@pytest.mark.parametrize(
    ("box", "fault"),
    [([0, 0, 1e300, 5], "lies outside any image"), ([0, 0, np.nan, 5], "is not finite"), ([0, 0, 0, 5], "has no area")],
)
def test_arrays_of_boxes_that_are_none_name_the_box(tmp_path, box, fault):
    np.save(tmp_path / "boxes.npy", np.array([BOX, box]))
    with pytest.raises(InputError, match=rf"boxes.npy: box 1: \[0.0, .*{fault}"):
        read_boxes(str(tmp_path / "boxes.npy"), COCO)


# Folders, and the command


def test_a_folder_with_a_broken_image(predictor, people, tmp_path, caplog):
    photos = tmp_path / "photos"
    shutil.copytree(people / IMAGES, photos / "inner")
    (photos / "broken.jpg").write_bytes(b"none")
    (photos / "notes.txt").write_text("none")
    names = sorted(p.relative_to(photos).as_posix() for p in photos.rglob("*.jpg"))
    boxes = {name: [[10, 20, 50, 60], [5, 5, 60, 70]] for name in names[1:-1]} | {names[-1]: [[0, 0, -1, 5]]}
    file = read_boxes(write(tmp_path / "boxes.json", boxes), COCO)

    output = photos / "found"
    for _ in range(2):  # its own pictures are not predicted on
        source = Source.find(photos, output, 50.0)
        assert list(source.names) == names
        images, found, unusable, empty = predict(predictor, source, output, file, LOOK)
        assert (images, found, unusable, empty) == (len(names) - 2, 2 * (len(names) - 2), 2, 0)
    assert "broken.jpg: not an image" in caplog.text
    assert f"{names[-1]}: box 0: [0.0, 0.0, -1.0, 5.0] (xywh) has no area" in caplog.text

    written = records(output)
    assert [record["file"] for record in written] == names[1:-1]
    for record in written:
        pixels = cv2.imread(str(photos / record["file"]))
        assert pixels.shape[:2] == (record["height"], record["width"])
        expected = predictor(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), boxes[record["file"]])[0]
        for person, known in zip(record["people"], expected, strict=True):
            np.testing.assert_allclose(person["keypoints"], known["keypoints"], atol=8e-3)
            np.testing.assert_allclose(person["scores"], known["scores"], atol=1e-4)
            np.testing.assert_allclose(person["bbox"], known["bbox"])
        drawn = cv2.imread(str(output / "drawn" / f"{record['file']}.png"))
        assert drawn.shape == pixels.shape
        assert np.abs(drawn.astype(int) - pixels).max() > 100


def test_the_truth_is_drawn_beside(predictor, people, tmp_path):
    source = Source.find(people / IMAGES, tmp_path, 50.0)
    boxes = read_boxes(str(people / ANNOTATIONS), COCO)
    predict(predictor, source, tmp_path, boxes, LOOK)
    record = records(tmp_path)[0]
    pixels = cv2.imread(str(people / IMAGES / record["file"]))
    drawn = cv2.imread(str(tmp_path / "drawn" / f"{record['file']}.png"))[-record["height"] :]
    left, right = drawn[:, : record["width"]], drawn[:, -record["width"] :]
    points = np.array([p for p in np.concatenate(boxes.truth[record["file"]]) if p[2] > 0])[:, :2].round().astype(int)
    points = points[(points < pixels.shape[1::-1]).all(1) & (points >= 0).all(1)]
    changed = [np.abs(side.astype(int) - pixels).max(-1) > 20 for side in (left, right)]
    assert np.mean([changed[0][y, x] for x, y in points]) > 0.9
    assert (changed[0] != changed[1]).any()


def test_nothing_that_can_be_used_is_an_error(predictor, tmp_path):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"")
    output = tmp_path / "output"
    with pytest.raises(InputError, match="none of its 2 images could be used"):
        predict(predictor, Source.find(tmp_path, output, 50.0), output, None, None)
    with pytest.raises(InputError, match=r"a.jpg: not an image"):
        predict(predictor, Source.find(tmp_path / "a.jpg", output, 50.0), output, None, None)
    assert not list(output.iterdir())
    for path, message in ((tmp_path / "none", "no such file or folder"), (output, "holds no image")):
        with pytest.raises(InputError, match=message):
            Source.find(path, tmp_path / "x", 50.0)


def test_photos_of_phones_in_a_folder(predictor, tmp_path, caplog):
    """A motion photo, an upright WebP, a GIF, and a HEIC photo that is left out with its remedy."""
    photos = tmp_path / "photos"
    photos.mkdir()
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    picture = PIL.Image.fromarray(image(60, 80))
    for name in ("motion.JPG", "upright.webp", "moving.gif"):
        picture.save(photos / name, exif=exif)
    (photos / "motion.JPG").write_bytes((photos / "motion.JPG").read_bytes() + bytes(range(255)) * 100)
    (photos / "apple.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    assert predict(predictor, Source.find(photos, tmp_path, 50.0), tmp_path / "o", None, None) == (3, 3, 1, 0)
    sizes = {record["file"]: (record["height"], record["width"]) for record in records(tmp_path / "o")}
    assert sizes == {"motion.JPG": (80, 60), "upright.webp": (80, 60), "moving.gif": (60, 80)}
    assert "apple.HEIC: a HEIC image, which is not decoded here; convert it to JPEG or PNG" in caplog.text


def test_names_that_are_not_utf8_are_escaped(predictor, tmp_path):
    """An old archive's Latin-1, for one. OpenCV crashes on paths with it."""
    folder = pathlib.Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9"))
    folder.mkdir()
    cv2.imwrite(str(tmp_path / "a.png"), image(60, 80))
    (tmp_path / "a.png").rename(folder / os.fsdecode(b"caf\xe9.png"))
    boxes = read_boxes(write(tmp_path / "b.json", {r"caf\xe9.png": [[1, 2, 50, 50]]}), COCO)
    source, output = Source.find(folder, tmp_path / "x", 50.0), folder / "out"
    assert predict(predictor, source, output, boxes, Look(0.1, COCO)) == (1, 1, 0, 0)
    assert [record["file"] for record in records(output)] == [r"caf\xe9.png"]
    assert read_image(output / r"drawn/caf\xe9.png.png").shape == (60, 80, 3)

    copy = folder / os.fsdecode(b"clip\xe9.avi")
    moving_square(tmp_path / "clip.avi", "MJPG", frames=7).rename(copy)
    assert predict(predictor, Source.find(copy, tmp_path, 50.0), output, boxes, Look(0.1, COCO))[0] == 7
    assert [record["file"] for record in records(output)] == [r"clip\xe9.avi"] * 7
    (output / "drawn.mp4").rename(tmp_path / "drawn.mp4")
    assert cv2.VideoCapture(str(tmp_path / "drawn.mp4")).read()[0]


def test_large_images_are_drawn_small(predictor, tmp_path):
    cv2.imwrite(str(tmp_path / "wide.png"), image(100, 3000))
    predict(predictor, Source.find(tmp_path / "wide.png", tmp_path, 50.0), tmp_path / "o", None, LOOK)
    assert cv2.imread(str(tmp_path / "o/drawn/wide.png.png")).shape == (68, draw.LONGEST, 3)
    assert records(tmp_path / "o")[0]["width"] == 3000


def test_the_command(folder, people, tmp_path):
    photos = tmp_path / "photos"
    shutil.copytree(people / IMAGES, photos)
    gone = sorted(photos.iterdir())[0]
    gone.unlink()
    command = ("hrnet_jax.predict", "--checkpoint", folder, "--output", tmp_path / "out", "--images", photos)
    done = run(*command, "--boxes", people / ANNOTATIONS, "--noflip_test", "--config.eval.keypoint_threshold=0.1")
    assert f"1 names are not images in {photos}, e.g. {gone.name}" in done.stdout
    assert "5 images" in done.stdout
    assert len(records(tmp_path / "out")) == 5
    assert len(list((tmp_path / "out/drawn").iterdir())) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "{tmp}/none"], "none: no such file or folder"),
        (["--images", "{images}", "--boxes", "{tmp}/boxes.json"], "boxes.json: has no box for"),
        (["--images", "{tmp}/broken.jpg"], "broken.jpg: not an image"),
    ],
)
def test_mistakes_get_one_line_and_status_1(folder, people, tmp_path, arguments, message):
    write(tmp_path / "boxes.json", {"other.jpg": [BOX]})
    (tmp_path / "broken.jpg").write_bytes(b"none")
    arguments = [argument.format(tmp=tmp_path, images=people / IMAGES) for argument in arguments]
    assert message in mistake("hrnet_jax.predict", "--checkpoint", folder, "--output", tmp_path / "o", *arguments)
    assert not pathlib.Path(tmp_path / "o/predictions.json").exists()


# Drawing


def test_heatmaps_colour_the_image_where_they_are_high():
    canvas = np.full((40, 60, 3), 100, np.uint8)
    maps = np.zeros((10, 15, 17), np.float32)
    maps[5, 10, COCO.index("left_wrist")] = 1.0
    draw.heatmap_overlay(canvas, maps, np.array([[0.25, 0, 0], [0, 0.25, 0]]), COCO)
    expected = 0.4 * 100 + 0.6 * np.array(COCO.colours[COCO.index("left_wrist")])
    np.testing.assert_allclose(canvas[20, 40], expected, atol=1)
    assert (canvas[:15] == 100).all()
    assert (canvas[:, :35] == 100).all()


def test_tiles_of_a_sheet_are_in_the_middle_of_their_squares():
    sheet = draw.sheet([np.zeros((20, 40, 3), np.uint8)] * 5, 40)
    assert sheet.shape == (80, 160, 3)
    rows, columns = np.nonzero((sheet == 0).all(-1)[:, :40])
    assert (rows.min(), columns.min(), columns.max()) == (10, 0, 39)
    assert np.unique(rows).tolist() == [*range(10, 30), *range(50, 70)]


def test_pictures_stand_side_by_side_under_their_names():
    joined = draw.side_by_side({"a": np.zeros((20, 30, 3), np.uint8), "b": np.full((20, 40, 3), 7, np.uint8)})
    assert joined.shape == (42, 74, 3)
    assert (joined[22:, :30] == 0).all()
    assert (joined[22:, 34:] == 7).all()
    assert (joined[:22] < 120).any()
