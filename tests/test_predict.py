"""Prediction: what evaluation finds, from any images and boxes, by programs that are compiled once."""

import dataclasses
import io
import json
import os
import pathlib
import re
import shutil
import struct
import subprocess
import sys

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

import hrnet_jax
from data_pipelines import draw
from data_pipelines.errors import InputError
from data_pipelines.images import read_image
from data_pipelines.keypoints import AIC, COCO
from data_pipelines.synthetic import write_dataset
from eval.coco import METRICS, evaluate_results
from hrnet_jax.config import load_config
from hrnet_jax.evaluate import evaluate
from hrnet_jax.inference.ahead import ahead
from hrnet_jax.inference.boxes import read_boxes
from hrnet_jax.inference.evaluator import Evaluator
from hrnet_jax.inference.pictures import Pictures
from hrnet_jax.inference.predictor import Predictor, load
from hrnet_jax.inference.sources import Source
from hrnet_jax.mesh import create_mesh
from hrnet_jax.models import abstract_model, initial_arrays, state_dict
from hrnet_jax.predict import Look, predict
from hrnet_jax.weights import checkpoint
from hrnet_jax.weights.folder import save_folder
from tests.helpers import REPOSITORY, mistake, run

ANNOTATIONS = "coco/annotations/person_keypoints_val2017.json"
IMAGES = "coco/val2017"
LOOK = Look(threshold=0.1, labels=COCO)


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """A small synthetic data set."""
    root = tmp_path_factory.mktemp("people")
    write_dataset(root, coco_train=1, coco_val=6, aic_train=2, processes=1)
    return root


@pytest.fixture(scope="module")
def folder(people, tmp_path_factory):
    """A converted folder of an untrained network whose heatmaps have peaks of about 1."""
    config = load_config(str(REPOSITORY / "configs/quickstart.py"))
    config.data.root = str(people)
    config.model.variant = "tiny"
    config.eval.batch_size = 4
    config.eval.nms = "none"
    params, stats = state_dict(abstract_model(config))
    arrays = initial_arrays({**params, **stats}, seed=0)
    arrays["head.final_layer.weight"] = arrays["head.final_layer.weight"] * 300
    path = tmp_path_factory.mktemp("models") / "tiny"
    save_folder(path, config, arrays)
    return path


@pytest.fixture(scope="module")
def predictor(folder):
    return load(folder, batch_size=4)


def image(height=60, width=80, seed=0):
    noise = np.random.default_rng(seed).integers(0, 255, (height // 4, width // 4, 3), np.uint8)
    return cv2.resize(noise, (width, height))


def write(path, content):
    path.write_text(json.dumps(content))
    return str(path)


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


# Folders, videos, and the command


def records(output):
    content = json.loads((output / "predictions.json").read_text())
    assert content["keypoints"] == list(COCO.names)
    return content["images"]


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
        images, found, unusable = predict(predictor, source, output, file, LOOK)
        assert (images, found, unusable) == (len(names) - 2, 2 * (len(names) - 2), 2)
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


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Seven frames that a bright square moves through."""
    path = tmp_path_factory.mktemp("video") / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"MJPG"), 12.0, (96, 64))
    for n in range(7):
        frame = np.full((64, 96, 3), 30, np.uint8)
        frame[20:50, 10 * n : 10 * n + 20] = 230
        writer.write(frame)
    writer.release()
    return path


def test_a_video_becomes_records_and_a_video(predictor, video, tmp_path):
    source = Source.find(video, tmp_path, 50.0)
    assert (source.total, source.frames_a_second) == (7, 12.0)
    boxes = read_boxes(write(tmp_path / "b.json", {"0": [[0, 20, 20, 30]], "4": [[1, 2, 50, 60], BOX]}), COCO)
    assert predict(predictor, source, tmp_path, boxes, Look(0.1, COCO, heatmaps=True)) == (7, 3, 0)
    written = records(tmp_path)
    assert [record["frame"] for record in written] == list(range(7))
    assert [len(record["people"]) for record in written] == [1, 0, 0, 0, 2, 0, 0]
    assert written[0]["file"] == "clip.avi"
    drawn = cv2.VideoCapture(str(tmp_path / "drawn.mp4"))
    frames = [drawn.read()[1] for _ in range(7)]
    assert not drawn.read()[0]
    assert drawn.get(cv2.CAP_PROP_FPS) == 12.0
    assert frames[0].shape == (64, 96, 3)
    assert [frame[35, 10 * n + 10].mean() > 150 for n, frame in enumerate(frames[1:4])] == [True] * 3


def moving_square(path, codec="mp4v", rate=25.0, frames=8, size=(96, 64)):
    """A video; the square is in the upper left of the first frame, and moves to the right."""
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), rate, size)
    for n in range(frames):
        frame = np.full((size[1], size[0], 3), 30, np.uint8)
        frame[:20, 8 * n : 8 * n + 20] = 230
        writer.write(frame)
    writer.release()
    return path


def edited(path, box, change, *parents):
    """Replaces the content of an MP4 file's first `box`, which lies at the end of each of its parents."""
    data = bytearray(path.read_bytes())
    start = data.index(box)
    end = start - 4 + int.from_bytes(data[start - 4 : start], "big")
    content = change(bytes(data[start + 4 : end]))
    growth = len(content) - (end - start - 4)
    data[start + 4 : end] = content
    for name in (box, *parents):
        place = data.index(name) - 4
        data[place : place + 4] = (int.from_bytes(data[place : place + 4], "big") + growth).to_bytes(4, "big")
    path.write_bytes(data)
    return path


ONE = 1 << 16  # in an MP4's matrix


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [((0, ONE, -ONE, 0), -1), ((-ONE, 0, 0, -ONE), 2), ((0, -ONE, ONE, 0), 1)],
    ids=["clockwise", "upside down", "anticlockwise"],
)
def test_a_phones_video_is_upright(predictor, tmp_path, matrix, turn):
    flat = moving_square(tmp_path / "flat.mp4")
    shutil.copy(flat, tmp_path / "phone.mp4")
    plain, turned = (struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) for a, b, c, d in ((ONE, 0, 0, ONE), matrix))
    phone = edited(tmp_path / "phone.mp4", b"tkhd", lambda content: content.replace(plain, turned))
    expected, shots = ([*Source.find(p, tmp_path, 50.0).shots(50.0, pytest.fail)] for p in (flat, phone))
    assert len(shots) == 8
    for shot, known in zip(shots, expected, strict=True):
        np.testing.assert_array_equal(shot.read(), np.rot90(known.read(), turn))
    size = shots[0].read().shape[:2]
    assert predict(predictor, Source.find(phone, tmp_path, 50.0), tmp_path / "o", None, LOOK) == (8, 8, 0)
    assert (records(tmp_path / "o")[0]["height"], records(tmp_path / "o")[0]["width"]) == size
    assert cv2.VideoCapture(str(tmp_path / "o/drawn.mp4")).read()[1].shape[:2] == size
    with pytest.raises(InputError, match=f"frames of {size[1]}x{size[0]}, above"):
        Source.find(phone, tmp_path, 0.001)


@pytest.mark.parametrize("rate", [0.0004, 7.123, 30000 / 1001, 65.5349, 66.667, 240.123, 9999.0])
def test_frame_rates_of_any_kind_are_drawn(predictor, tmp_path, rate):
    source = Source.find(moving_square(tmp_path / "clip.avi", "MJPG", max(rate, 0.01), frames=2), tmp_path, 50.0)
    source = dataclasses.replace(source, frames_a_second=rate)
    assert predict(predictor, source, tmp_path / "o", None, LOOK) == (2, 2, 0)
    drawn = cv2.VideoCapture(str(tmp_path / "o/drawn.mp4")).get(cv2.CAP_PROP_FPS)
    assert drawn == pytest.approx(max(rate, 0.002), rel=1e-4)


def test_a_variable_frame_rate_is_drawn_at_its_mean(predictor, tmp_path):
    """Frames of a phone or a browser, whose times vary: the rate and number that OpenCV estimates are wrong."""
    path = moving_square(tmp_path / "clip.mkv", "MJPG", rate=30.0, frames=40)
    assert Source.find(path, tmp_path, 50.0).frames_a_second == 30.0
    data = bytearray(path.read_bytes())
    duration = data.index(b"\x23\xe3\x83")  # of every frame: made void
    data[duration : duration + 8] = b"\xec\x86" + bytes(6)
    blocks = list(re.finditer(rb"\xa3..\x81(..)\x80\xff\xd8", bytes(data), re.DOTALL))
    assert len(blocks) == 40
    for number, block in enumerate(blocks):
        time = int.from_bytes(block[1], "big") + number * 7 % 23  # milliseconds
        data[block.start(1) : block.end(1)] = time.to_bytes(2, "big")
    path.write_bytes(data)
    source = Source.find(path, tmp_path, 50.0)
    assert source.total == 40
    assert source.frames_a_second == pytest.approx(39 / 1.32, rel=0.01)
    stated = cv2.VideoCapture(str(path))
    assert stated.get(cv2.CAP_PROP_FPS) > 40
    assert stated.get(cv2.CAP_PROP_FRAME_COUNT) > 50
    assert predict(predictor, source, tmp_path / "o", None, None) == (40, 40, 0)


def test_a_broken_end_is_told(predictor, tmp_path, caplog):
    path = moving_square(tmp_path / "clip.avi", "MJPG", rate=5.0, frames=40)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    images, people, unusable = predict(predictor, Source.find(path, tmp_path, 50.0), tmp_path / "o", None, LOOK)
    assert 5 < images == people < 25
    assert unusable == 1
    assert f"clip.avi: ends after {images} of 40 frames" in caplog.text
    assert cv2.VideoCapture(str(tmp_path / "o/drawn.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == images
    moved = moving_square(tmp_path / "clip.mp4", frames=40)
    moved.write_bytes(moved.read_bytes()[: moved.stat().st_size // 2])
    with pytest.raises(InputError, match="clip.mp4: not a video that can be read"):
        Source.find(moved, tmp_path, 50.0)


def test_a_video_without_frames_gets_one_line(tmp_path):
    path = moving_square(tmp_path / "clip.avi", "MJPG")
    data = path.read_bytes()
    start = data.index(b"movi") + 4
    path.write_bytes(data[:start] + bytes(len(data) - start))
    with pytest.raises(InputError, match="clip.avi: not a video that can be read"):
        Source.find(path, tmp_path, 50.0)


def test_odd_sizes_and_sizes_that_change_are_drawn(predictor, tmp_path):
    source = Source.find(moving_square(tmp_path / "clip.avi", "MJPG", size=(97, 65)), tmp_path, 50.0)
    assert predict(predictor, source, tmp_path / "o", None, LOOK) == (8, 8, 0)
    pictures = Pictures(epath.Path(tmp_path / "p"), 25.0)
    with pictures:
        for height in (64, 64, 80):
            pictures.add("", np.full((height, 96, 3), height, np.uint8))
    assert not pictures.problem
    drawn = cv2.VideoCapture(str(tmp_path / "p/drawn.mp4"))
    assert [drawn.read()[1].shape for _ in range(3)] == [(64, 96, 3)] * 3


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
    assert predict(predictor, Source.find(photos, tmp_path, 50.0), tmp_path / "o", None, None) == (3, 3, 1)
    sizes = {record["file"]: (record["height"], record["width"]) for record in records(tmp_path / "o")}
    assert sizes == {"motion.JPG": (80, 60), "upright.webp": (80, 60), "moving.gif": (60, 80)}
    assert "apple.HEIC: a HEIC image, which is not decoded here; convert it to JPEG or PNG" in caplog.text


def test_names_that_are_not_utf8_are_escaped(predictor, video, tmp_path):
    """An old archive's Latin-1, for one. OpenCV crashes on paths with it."""
    folder = pathlib.Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9"))
    folder.mkdir()
    cv2.imwrite(str(tmp_path / "a.png"), image(60, 80))
    (tmp_path / "a.png").rename(folder / os.fsdecode(b"caf\xe9.png"))
    boxes = read_boxes(write(tmp_path / "b.json", {r"caf\xe9.png": [[1, 2, 50, 50]]}), COCO)
    source, output = Source.find(folder, tmp_path / "x", 50.0), folder / "out"
    assert predict(predictor, source, output, boxes, Look(0.1, COCO)) == (1, 1, 0)
    assert [record["file"] for record in records(output)] == [r"caf\xe9.png"]
    assert read_image(output / r"drawn/caf\xe9.png.png").shape == (60, 80, 3)

    copy = folder / os.fsdecode(b"clip\xe9.avi")
    copy.write_bytes(video.read_bytes())
    assert predict(predictor, Source.find(copy, tmp_path, 50.0), output, boxes, Look(0.1, COCO))[0] == 7
    assert [record["file"] for record in records(output)] == [r"clip\xe9.avi"] * 7
    (output / "drawn.mp4").rename(tmp_path / "drawn.mp4")
    assert cv2.VideoCapture(str(tmp_path / "drawn.mp4")).read()[0]


def test_videos_that_are_none_get_one_line(video, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(video.read_bytes()[:100])
    with pytest.raises(InputError, match="broken.mp4: not a video"):
        Source.find(tmp_path / "broken.mp4", tmp_path, 50.0)
    with pytest.raises(InputError, match="frames of 96x64, above max_megapixels=0.001"):
        Source.find(video, tmp_path, 0.001)


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


def test_pictures_stand_side_by_side_under_their_names():
    joined = draw.side_by_side({"a": np.zeros((20, 30, 3), np.uint8), "b": np.full((20, 40, 3), 7, np.uint8)})
    assert joined.shape == (42, 74, 3)
    assert (joined[22:, :30] == 0).all()
    assert (joined[22:, 34:] == 7).all()
    assert (joined[:22] < 120).any()
