"""The synthetic data set: exact files, honest visibility, the same bytes every time, and not too easy."""

import contextlib
import dataclasses
import io
import json
import pathlib

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO as CocoFile
from pycocotools.cocoeval import COCOeval

from benchmarks.difficulty import mean_pose_predictions
from data_pipelines.errors import InputError
from data_pipelines.keypoints import AIC, COCO, COCO_AIC
from data_pipelines.synthetic import describe, figures, formats, poses, render, wardrobe
from data_pipelines.synthetic.__main__ import main
from data_pipelines.synthetic.write import (
    AIC_ANNOTATIONS,
    AIC_IMAGES,
    COCO_ANNOTATIONS,
    COCO_IMAGES,
    DETECTIONS,
    MARKER,
    write_dataset,
)

TRAIN, VAL = (COCO_ANNOTATIONS.format(split=split) for split in ("train", "val"))
SMALL = {"coco_train": 6, "coco_val": 4, "aic_train": 3}


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("synthetic")
    write_dataset(root, coco_train=120, coco_val=200, aic_train=20, processes=2)
    return root


@pytest.fixture(scope="session")
def scenes() -> list[render.Scene]:
    return [render.render_scene(np.random.default_rng([7, i]), (240, 320), render.COCO_SETTINGS) for i in range(60)]


def contents(root: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def load(path: pathlib.Path) -> CocoFile:
    with contextlib.redirect_stdout(io.StringIO()):
        return CocoFile(str(path))


def average_precision(truth: CocoFile, results: list[dict]) -> float:
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(results), "keypoints")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[0]


# --- files ---


def test_same_bytes_for_any_number_of_processes(tmp_path):
    counts = {"coco_train": 20, "coco_val": 10, "aic_train": 10}
    for processes in (1, 2):
        write_dataset(tmp_path / str(processes), seed=5, **counts, processes=processes)
    one, two = contents(tmp_path / "1"), contents(tmp_path / "2")
    assert len(one) == sum(counts.values()) + 5
    assert one == two


def test_more_images_leave_the_first_ones_as_they_were(tmp_path):
    write_dataset(tmp_path / "few", **SMALL, processes=1)
    write_dataset(tmp_path / "more", **{split: n + 3 for split, n in SMALL.items()}, processes=1)
    write_dataset(tmp_path / "other", **SMALL, seed=1, processes=1)
    few, more, other = (contents(tmp_path / name) for name in ("few", "more", "other"))
    coco_images = [name for name in few if name.startswith("coco") and name.endswith(".jpg")]
    aic_images = [name for name in few if name.startswith("aic") and name.endswith(".jpg")]
    assert (len(coco_images), len(aic_images)) == (10, 3)
    assert all(few[name] == more[name] for name in coco_images + aic_images)
    assert not any(few[name] == other[name] for name in coco_images)
    assert not set(aic_images) & set(other)


def test_a_finished_data_set_is_not_written_again(tmp_path):
    first = write_dataset(tmp_path, **SMALL, processes=1)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert write_dataset(tmp_path, **SMALL, processes=2) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == written
    with pytest.raises(InputError, match="other parameters"):
        write_dataset(tmp_path, **SMALL, seed=1)


def test_an_interrupted_data_set_is_finished_by_the_next_call(tmp_path, monkeypatch):
    wanted = tmp_path / "wanted"
    write_dataset(wanted, **SMALL, processes=1)
    calls, detections = [], formats.detections

    def interrupt(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return detections(*args)

    monkeypatch.setattr(formats, "detections", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "broken", **SMALL, processes=1)
    assert not (tmp_path / "broken" / MARKER).exists()
    with pytest.raises(InputError, match="other parameters"):
        write_dataset(tmp_path / "broken", **SMALL, seed=1, processes=1)
    write_dataset(tmp_path / "broken", **SMALL, processes=1)
    assert contents(tmp_path / "broken") == contents(wanted)


def test_other_data_are_not_overwritten(tmp_path):
    (tmp_path / "coco").mkdir()
    with pytest.raises(InputError, match="not a synthetic data set"):
        write_dataset(tmp_path, **SMALL)
    (tmp_path / MARKER).write_text("[]")
    with pytest.raises(InputError, match=r"synthetic\.json"):
        write_dataset(tmp_path, **SMALL)


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"coco_val": -1}, {"image_size": (32, 320)}])
def test_impossible_parameters_are_refused(tmp_path, wrong):
    with pytest.raises(InputError, match="synthetic data set"):
        write_dataset(tmp_path / "new", **(SMALL | wrong))
    assert not (tmp_path / "new").exists()


def test_command_line(tmp_path, capsys):
    flags = [f"--{split}={n}" for split, n in SMALL.items()]
    assert main(["--root", str(tmp_path), *flags, "--processes=1"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["images"] == SMALL
    assert printed["coco"]["train"]["people"] == printed["people"]["coco_train"] > 0
    assert main(["--root", str(tmp_path), *flags, "--seed=2"]) == 1
    assert capsys.readouterr().err.startswith("error: ")


# --- COCO ---


@pytest.mark.parametrize(("split", "images"), [("train", 120), ("val", 200)])
def test_coco_files(dataset, split, images):
    truth = load(dataset / COCO_ANNOTATIONS.format(split=split))
    assert len(truth.imgs) == images
    category = truth.loadCats(1)[0]
    assert category["keypoints"] == list(COCO.names)
    assert np.min(category["skeleton"]) == 1
    assert np.max(category["skeleton"]) == 17
    for image in truth.imgs.values():
        assert image["file_name"] == f"{image['id']:012d}.jpg"
        pixels = cv2.imread(str(dataset / COCO_IMAGES.format(split=split) / image["file_name"]))
        assert pixels.shape == (image["height"], image["width"], 3)
    for annotation in truth.anns.values():
        image = truth.imgs[annotation["image_id"]]
        keypoints = np.array(annotation["keypoints"]).reshape(17, 3)
        assert annotation["num_keypoints"] == (keypoints[:, 2] > 0).sum()
        assert set(keypoints[:, 2]) <= {0, 1, 2}
        assert (keypoints[keypoints[:, 2] == 0] == 0).all()
        assert (keypoints[:, :2] >= 0).all()
        assert (keypoints[:, :2] < (image["width"], image["height"])).all()
        x, y, width, height = annotation["bbox"]
        assert min(x, y) >= 0
        assert min(width, height) >= 1
        assert x + width <= image["width"]
        assert y + height <= image["height"]
        assert 0 < annotation["area"] <= width * height
        mask = truth.annToMask(annotation)
        assert mask.shape == (image["height"], image["width"])
        if annotation["iscrowd"]:
            assert annotation["num_keypoints"] == 0
            assert mask.sum() == annotation["area"]
            assert coco_masks.toBbox(truth.annToRLE(annotation)).tolist() == annotation["bbox"]
        elif annotation["num_keypoints"]:
            # A polygon through pixel centres loses half a pixel all around, and keeps holes.
            assert 0.6 * annotation["area"] < mask.sum() < 1.6 * annotation["area"]
    kinds = {(a["iscrowd"], a["num_keypoints"] > 0) for a in truth.anns.values()}
    assert kinds == {(0, True), (0, False), (1, False)}
    assert len({a["image_id"] for a in truth.anns.values()}) < images, "some images show nobody"


def test_splits_share_no_id(dataset):
    train, val = load(dataset / TRAIN), load(dataset / VAL)
    assert not set(train.imgs) & set(val.imgs)
    assert not set(train.anns) & set(val.anns)


def test_occlusion_truncation_and_company(dataset):
    train, val = describe(dataset / TRAIN), describe(dataset / VAL)
    for key, least in {"occluded": 0.15, "truncated": 0.15, "several_people": 0.4}.items():
        # Together: each is a small draw of what the shares hold for.
        people = train["people"] + val["people"]
        assert (train[key] * train["people"] + val[key] * val["people"]) / people >= least


def test_describe_counts(tmp_path):
    def person(image_id, visibility, iscrowd=0):
        keypoints = [value for v in visibility for value in ((5, 5, v) if v else (0, 0, 0))]
        labelled = sum(v > 0 for v in visibility)
        return {"image_id": image_id, "keypoints": keypoints, "num_keypoints": labelled, "iscrowd": iscrowd}

    annotations = [
        person(1, [2] * 17),
        person(1, [1] * 6 + [2] * 6 + [0] * 5),
        person(2, [2] * 16 + [1]),
        person(2, [0] * 17),
        person(3, [0] * 17, iscrowd=1),
    ]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps({"images": [{"id": i} for i in range(5)], "annotations": annotations}))
    assert describe(path) == {
        "images": 5,
        "images_with_people": 2,
        "people": 3,
        "crowds": 1,
        "people_without_keypoints": 1,
        "occluded": pytest.approx(7 / 46),
        "truncated": pytest.approx(1 / 3),
        "several_people": 0.5,
    }
    path.write_text("{")
    with pytest.raises(InputError, match=r"annotations\.json"):
        describe(path)


def test_the_mean_pose_does_not_do(dataset):
    truth = load(dataset / VAL)
    predictions = mean_pose_predictions(dataset / TRAIN, dataset / VAL)
    people = [a for a in truth.anns.values() if a["num_keypoints"]]
    assert len(predictions) == len(people)

    def results(keypoints):
        return [
            {"image_id": p["image_id"], "category_id": 1, "score": 1.0, "keypoints": np.ravel(xyv).tolist()}
            for p, xyv in zip(predictions, keypoints, strict=True)
        ]

    answered = [np.c_[p["keypoints"], p["keypoint_scores"]] for p in predictions]
    assert average_precision(truth, results(answered)) <= 0.10
    # The truth itself, measured alike, has AP 1.
    assert average_precision(truth, results([p["keypoints"] for p in people])) == pytest.approx(1.0)
    for prediction, person in zip(predictions, people, strict=True):
        x, y, width, height = person["bbox"]
        np.testing.assert_allclose(prediction["bbox"], (x, y, x + width, y + height))
        assert prediction["area"] == pytest.approx(1.25**2 * width * height)
        assert (prediction["keypoints"] >= (x, y)).all()
        assert (prediction["keypoints"] <= (x + width, y + height)).all()


def test_detector_boxes(dataset):
    truth = load(dataset / VAL)
    detections = json.loads((dataset / DETECTIONS).read_text())
    assert {frozenset(d) for d in detections} == {frozenset(("bbox", "category_id", "image_id", "score"))}
    assert {d["image_id"] for d in detections} <= set(truth.imgs)
    assert all(0 <= d["score"] <= 1 and min(d["bbox"][2:]) > 0 and d["category_id"] == 1 for d in detections)
    assert len(detections) > 5 * len(truth.imgs)

    found, boxes = [], 0
    for image_id in truth.imgs:
        people = [a["bbox"] for a in truth.imgToAnns[image_id] if a["num_keypoints"]]
        certain = [d["bbox"] for d in detections if d["image_id"] == image_id and d["score"] > 0.5]
        boxes += len(certain)
        if people:
            overlap = coco_masks.iou(certain, people, [0] * len(people)) if certain else np.zeros((1, len(people)))
            found.extend(overlap.max(0) > 0.6)
    assert 0.85 < np.mean(found) < 1.0
    assert boxes < 1.2 * len(found), "worse boxes have lower scores"


# --- AI Challenger ---


def test_aic_files(dataset, shared):
    records = json.loads((dataset / AIC_ANNOTATIONS).read_text())
    real = json.loads((shared / "data/aic" / AIC_ANNOTATIONS.removeprefix("aic/")).read_text())
    assert len(records) == len(list((dataset / AIC_IMAGES).iterdir())) == 20
    seen = set()
    for record in records:
        assert record.keys() == real[0].keys()
        assert len(record["image_id"]) == len(real[0]["image_id"])
        height, width = cv2.imread(str(dataset / AIC_IMAGES / f"{record['image_id']}.jpg")).shape[:2]
        names = [f"human{i + 1}" for i in range(len(record["human_annotations"]))]
        assert names == list(record["human_annotations"]) == list(record["keypoint_annotations"])
        for name in names:
            x1, y1, x2, y2 = record["human_annotations"][name]
            assert 0 <= x1 < x2 < width
            assert 0 <= y1 < y2 < height
            flat = record["keypoint_annotations"][name]
            assert {type(value) for value in flat} == {int}
            keypoints = np.array(flat).reshape(len(AIC), 3)
            assert (keypoints[keypoints[:, 2] == 3, :2] == 0).all()
            seen |= set(keypoints[:, 2])
    assert seen == {1, 2, 3}


def test_aic_and_coco_tell_the_same_of_a_scene(scenes):
    shared_names = [name for name in AIC.names if name in COCO.names]
    assert len(shared_names) == 12
    compared = 0
    for scene in scenes:
        people = [a for a in formats.coco_annotations(scene, 1) if a["num_keypoints"]]
        record = formats.aic_record(scene, "x")
        assert len(people) == len(record["keypoint_annotations"])
        for person, box, flat in zip(
            people, record["human_annotations"].values(), record["keypoint_annotations"].values(), strict=True
        ):
            x, y, width, height = person["bbox"]
            assert box == [x, y, x + width - 1, y + height - 1]
            coco, aic = np.reshape(person["keypoints"], (-1, 3)), np.reshape(flat, (-1, 3))
            for name in shared_names:
                np.testing.assert_array_equal(coco[COCO.index(name), :2], aic[AIC.index(name), :2])
                assert coco[COCO.index(name), 2] == {1: 2, 2: 1, 3: 0}[aic[AIC.index(name), 2]]
            compared += 1
    assert compared > 50


# --- pictures ---


def standing(**changes) -> figures.Pose:
    pose = figures.Pose(
        yaw=0.0,
        pitch=0.1,
        roll=0.0,
        lean=0.0,
        bend=0.0,
        twist=0.0,
        head=(0.0, 0.0, 0.0),
        hip_flexion=(0.0, 0.0),
        hip_abduction=(0.1, 0.1),
        knee=(0.1, 0.1),
        shoulder_flexion=(0.0, 0.0),
        shoulder_abduction=(0.4, 0.4),
        elbow=(0.3, 0.3),
        elbow_towards=((0.0, 0.0, 1.0), (0.0, 0.0, 1.0)),
    )
    return dataclasses.replace(pose, **changes)


def figure(pose: figures.Pose, seed: int = 0) -> figures.Figure:
    rng = np.random.default_rng(seed)
    body = figures.random_body(rng)
    return figures.build_figure(body, pose, wardrobe.random_clothes(rng, (90, 110, 140)), 200.0)


def test_left_and_right_trade_places_from_behind():
    front, back = figure(standing()), figure(standing(yaw=np.pi))
    for a, b in COCO.flip_pairs:
        left, right = COCO_AIC.index(a), COCO_AIC.index(b)
        assert front.points[left, 0] > front.points[right, 0], f"facing us, their {a} is on our right"
        assert back.points[left, 0] < back.points[right, 0]
    face = [COCO_AIC.index(name) for name in ("nose", "left_eye", "right_eye")]
    assert not front.turned_away.any()
    assert back.turned_away[face].all()


def test_the_far_side_is_hidden_in_profile():
    profile = figure(standing(yaw=np.pi / 2))  # the person looks to our right
    far = {COCO_AIC.names[i] for i in np.flatnonzero(profile.far | profile.turned_away)}
    assert far == {"left_eye", "left_ear", "left_shoulder", "left_hip"}
    nose, ear = profile.points[COCO_AIC.index("nose")], profile.points[COCO_AIC.index("right_ear")]
    assert nose[0] > ear[0]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("yaw", "hidden"),
    [
        (0.0, set()),
        (np.pi, {"nose", "left_eye", "right_eye"}),
        (np.pi / 2, {"left_eye", "left_ear", "left_shoulder", "left_hip"}),
        (-np.pi / 2, {"right_eye", "right_ear", "right_shoulder", "right_hip"}),
    ],
)
def test_what_is_seen_from_a_side(monkeypatch, seed, yaw, hidden):
    """With arms and legs apart nothing but the sides of head and trunk hides a keypoint."""
    apart = {"shoulder_flexion": (0.9, -0.9), "hip_flexion": (0.5, -0.5)} if abs(yaw) == np.pi / 2 else {}
    monkeypatch.setattr(render, "random_pose", lambda rng: standing(yaw=yaw, **apart))
    settings = render.Settings(
        people=(0.0, 1.0), heights=(200.0, 201.0), truncated=0.0, occluder=0.0, tiny=0.0, crowd=0.0
    )
    (person,) = render.render_scene(np.random.default_rng(seed), (240, 320), settings).people
    visibility = dict(zip(COCO_AIC.names, person.keypoints[:, 2].tolist(), strict=True))
    # The near arm may hide the neck, long hair also the ears and the top from behind.
    unsure = {0.0: set(), np.pi: {"neck", "left_ear", "right_ear", "head_top"}}.get(yaw, {"neck"})
    visibility = {name: v for name, v in visibility.items() if name not in unsure}
    assert {name for name, v in visibility.items() if v == 1} == hidden
    assert set(visibility.values()) <= {1, 2}


@pytest.mark.parametrize("seed", range(8))
def test_a_mirrored_figure_is_a_figure(seed):
    pose = poses.random_pose(np.random.default_rng(seed))
    yaw, pitch, roll = pose.head
    paired = (
        "hip_flexion",
        "hip_abduction",
        "knee",
        "shoulder_flexion",
        "shoulder_abduction",
        "elbow",
        "elbow_towards",
    )
    mirrored = dataclasses.replace(
        pose,
        **{name: -getattr(pose, name) for name in ("yaw", "roll", "bend", "twist")},
        **{name: getattr(pose, name)[::-1] for name in paired},
        head=(-yaw, pitch, -roll),
    )
    one, other = figure(pose, seed), figure(mirrored, seed)
    np.testing.assert_allclose(other.points[COCO_AIC.flip_indices] * (-1, 1), one.points, atol=1e-6)
    np.testing.assert_array_equal(other.turned_away[COCO_AIC.flip_indices], one.turned_away)
    np.testing.assert_array_equal(other.far[COCO_AIC.flip_indices], one.far)
    # The same colours cover the same places.
    boxes = [
        sorted((s.colour, *np.round([*s.corners.min(0), *s.corners.max(0)]).tolist()) for s in f.shapes)
        for f in (one, dataclasses.replace(other, shapes=tuple(flipped(s) for s in other.shapes)))
    ]
    assert len(boxes[0]) == len(boxes[1])
    close = [a[0] == b[0] and np.allclose(a[1:], b[1:], atol=3) for a, b in zip(*boxes, strict=True)]
    assert np.mean(close) > 0.8


def flipped(shape: figures.Shape) -> figures.Shape:
    return dataclasses.replace(shape, corners=shape.corners * (-1, 1))


def test_visible_keypoints_lie_on_the_person(scenes):
    people = [person for scene in scenes for person in scene.people]
    covered = 0
    for person in people:
        for x, y, visibility in person.keypoints:
            if visibility == 2:
                assert person.mask[y, x]
            elif visibility == 1:
                covered += not person.mask[y, x]
    assert covered > 30, "others and things hide keypoints too, not only the person themselves"


def test_one_person_is_seen_at_a_pixel(scenes):
    for scene in scenes:
        assert np.sum([p.mask for p in scene.people], axis=0).max(initial=0) <= 1
        for person in scene.people:
            x, y, width, height = person.box
            outside = person.mask.copy()
            outside[y : y + height, x : x + width] = False
            assert not outside.any(), "the box holds the silhouette"


def test_a_thing_before_a_person_occludes_them():
    settings = render.Settings(
        people=(0.0, 1.0), heights=(200.0, 201.0), truncated=0.0, occluder=1.0, tiny=0.0, crowd=0.0
    )
    bare = dataclasses.replace(settings, occluder=0.0)
    fewer = 0
    for i in range(20):
        with_thing, without = (
            render.render_scene(np.random.default_rng([3, i]), (240, 320), s).people[0] for s in (settings, bare)
        )
        np.testing.assert_array_equal(with_thing.keypoints[:, :2], without.keypoints[:, :2])
        assert (with_thing.keypoints[:, 2] <= without.keypoints[:, 2]).all()
        assert not (with_thing.mask & ~without.mask).any()
        hidden = (with_thing.keypoints[:, 2] == 1) & (without.keypoints[:, 2] == 2)
        x, y = with_thing.keypoints[hidden, :2].T
        assert not with_thing.mask[y, x].any()
        fewer += hidden.any()
    assert fewer >= 10


def test_colours_tell_people_from_clutter(dataset):
    """Visible noses are warm in the written files: the labels sit on the pictures, and the channels are in order."""
    truth, warm = load(dataset / TRAIN), []
    for annotation in truth.anns.values():
        x, y, visibility = annotation["keypoints"][:3]
        if visibility == 2:
            name = truth.imgs[annotation["image_id"]]["file_name"]
            blue, _, red = cv2.imread(str(dataset / COCO_IMAGES.format(split="train") / name))[y, x].astype(int)
            warm.append(red > blue)
    assert len(warm) > 50
    assert np.mean(warm) > 0.9
