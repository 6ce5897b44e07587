"""Labels of real tools, each imported by one command; contradictory ones are refused in one line."""

import base64
import itertools
import json
import pathlib
import shutil

import cv2
import jaxtyping
import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest

from benchmarks import fuzz, fuzz_labels
from data_pipelines.images import read_image
from data_pipelines.import_labels import main
from data_pipelines.labels.left_right import pairs_by_name
from hrnet_jax.config import check, load_config

CASES = (
    *(
        "coco_annotator_harness18",
        "cvat_coco_tiger13",
        "cvat_xml_skeletons_pen_mouse",
        "dlc_multi_mice",
        "labelstudio_mice",
    ),
    *(
        "mmpose_300w",
        "mmpose_animalpose",
        "mmpose_ap10k",
        "mmpose_cofw",
        "mmpose_crowdpose",
        "mmpose_fly",
        "mmpose_freihand",
    ),
    *(
        "mmpose_halpe",
        "mmpose_horse10",
        "mmpose_jhmdb",
        "mmpose_mpii",
        "mmpose_ochuman",
        "mmpose_posetrack18",
        "mmpose_wflw",
    ),
    *("mmpose_zebra", "roboflow_coco_mocap18", "roboflow_yolo_pose_person17", "tlpss_coco_box12"),
    *("xanylabeling_coco_two_categories", "xanylabeling_labelme_person"),
)
# Keypoints that are numbers only: the left-right pairs must be given.
NUMBERS = {"cvat_coco_tiger13": "--no-pairs", "cvat_xml_skeletons_pen_mouse": "--no-pairs"}


@pytest.fixture(scope="module")
def formats(shared):
    return shared / "data/formats"


def run(source, output, *arguments):
    """The status of one command."""
    return main([str(source), "--output", str(output), *map(str, arguments)])


def annotations(output, part="all"):
    return json.loads((output / f"annotations/{part}.json").read_text())


def told(capsys, *arguments):
    """The one line that the command ends with."""
    assert run(*arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    return line


def command(case, expected, folder, tmp_path):
    """SOURCE and options for a case."""
    source = folder / expected.get("annotation_file", "")
    facts = folder / "dataset_facts.json"
    names, pairs = expected.get("keypoint_names"), expected.get("flip_pairs")
    options = []
    if case in NUMBERS:
        options = [NUMBERS[case]]
    elif case == "roboflow_yolo_pose_person17":
        options = ["--no-pairs"]  # they are not in COCO's order, as the contact sheet shows
    elif facts.exists() and not expected.get("categories", [{"n_keypoints": 1}])[0]["n_keypoints"]:
        (tmp_path / "names.txt").write_text("\n".join(names))
        options = ["--keypoints", tmp_path / "names.txt", "--pairs", ",".join(f"{a}-{b}" for a, b in pairs)]
    return source, options


@pytest.mark.parametrize("case", CASES)
def test_every_case_gives_its_counts_names_and_examples(case, formats, tmp_path, capsys):
    folder = formats / case
    expected = json.loads((folder / "expected.json").read_text())
    source, options = command(case, expected, folder, tmp_path)
    if case.startswith("cvat_xml"):
        parts = []
        for category in ("pen_skeleton", "mouse_skeleton"):
            assert run(source, tmp_path / category, *options, "--category", category) == 0
            part = annotations(tmp_path / category)
            assert part["categories"][0]["keypoints"] == expected["keypoint_names"][category]
            parts.append(part)
        content = {"images": parts[0]["images"], "annotations": parts[0]["annotations"] + parts[1]["annotations"]}
        output = tmp_path / "mouse_skeleton"
    else:
        output = tmp_path / "out"
        assert run(source, output, *options) == 0, capsys.readouterr().err
        content = annotations(output)
        names = content["categories"][0]["keypoints"]
        assert names == expected["keypoint_names"] or (
            not expected["keypoint_names"] and len(names) == expected["n_keypoints"]
        )
    people = content["annotations"]
    assert len(content["images"]) == expected["n_images"]
    assert len(people) == expected["n_instances"]
    labelled = sum(person["num_keypoints"] > 0 for person in people)
    assert labelled == expected.get("n_instances_with_labelled_keypoint", len(people))
    files = [path for path in (output / "images").rglob("*") if path.is_file()]
    if "n_images_with_file_here" in expected:
        assert len(files) == expected["n_images_with_file_here"]
    config = load_config(str(output / "config.py"))
    check(config)
    if "flip_pairs" in expected:
        keypoints = config.keypoints
        found = {frozenset(map(keypoints.index, pair)) for pair in keypoints.flip_pairs}
        assert found == {frozenset(pair) for pair in expected["flip_pairs"]}
    if expected.get("skeleton") and case != "mmpose_crowdpose":
        assert content["categories"][0]["skeleton"] == expected["skeleton"]
    for example in expected["examples"]:
        assert_is_there(example, content, people)


def assert_is_there(example, content, people):
    """A worked example of expected.json is among the people."""
    points = np.array(example.get("keypoints_zero_based") or example["keypoints_xyv"])
    places = [np.array(person["keypoints"]).reshape(-1, 3) for person in people]
    same = [len(place) == len(points) and np.allclose(place, points, atol=6e-4) for place in places]
    found = [person for person, is_it in zip(people, same, strict=True) if is_it]
    assert found, example
    if example.get("bbox_xywh"):
        found = [person for person in found if np.allclose(person["bbox"], example["bbox_xywh"], atol=6e-3)]
        assert found, example
    if "annotation_id" in example:
        assert found[0]["id"] == example["annotation_id"]
    if "image" in example:
        (image,) = (image for image in content["images"] if image["id"] == found[0]["image_id"])
        name = example["image"].partition("…")[2] or example["image"]
        assert image["file_name"].endswith(pathlib.PurePosixPath(name).name.lstrip("…"))
        if "size" in example:
            assert [image["width"], image["height"]] == example["size"]


@pytest.fixture
def exported(tmp_path):
    """A function that writes a valid export of a format, and returns its folder."""

    def write(name):
        folder = tmp_path / name
        folder.mkdir()
        fuzz_labels.FORMATS[name](folder)
        return folder

    return write


def changed(path, change):
    """Rewrites a JSON file as a function changes its content."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edited(path, *replacements):
    text = path.read_text()
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)


@pytest.mark.parametrize("name", fuzz_labels.FORMATS)
def test_every_format_gives_the_same_points(exported, tmp_path, name):
    assert run(exported(name), tmp_path / "out") == 0
    people = annotations(tmp_path / "out")["annotations"]
    points = np.array([person["keypoints"] for person in people]).reshape(len(people), -1, 3)
    if name == "mpii":
        assert points.shape == (3, 16, 3)
        np.testing.assert_array_equal(points[0, :2], [[2, 3, 1], [3, 5, 1]])
        return
    expected = np.array(fuzz_labels.POINTS)
    for person, own in zip(people, points, strict=True):
        labelled = own[:, 2] > 0
        np.testing.assert_allclose(own[labelled, :2], expected[labelled, :2], atol=1e-3)
        if name not in ("deeplabcut", "cvat") and person["id"] != 8:
            assert labelled.all()
    keypoints = load_config(str(tmp_path / "out/config.py")).keypoints
    assert name == "ultralytics" or keypoints.names == fuzz_labels.NAMES
    assert [tuple(map(keypoints.index, pair)) for pair in keypoints.flip_pairs] == [(1, 2)]
    shown = {person["keypoints"][8] for person in people}
    assert shown <= ({1} if name in ("coco", "ultralytics", "cvat") else {2, 0})
    assert (tmp_path / "out/contact_sheet.png").exists()


def test_the_written_config_trains(exported, tmp_path):
    from hrnet_jax.train import train

    assert run(exported("ultralytics"), tmp_path / "out") == 0
    config = load_config(f"{tmp_path / 'out/config.py'}:runlocal")
    config.codec.input_size, config.batch_size, config.epochs = (96, 96), 2, 1
    metrics = train(config, tmp_path / "run")
    assert np.isfinite(metrics["loss"] if "loss" in metrics else metrics["AP"])


def test_sigmas_are_estimated_from_repeated_labels(exported, tmp_path, capsys):
    folder = exported("coco")
    shutil.copytree(folder, tmp_path / "again")

    def shift(content):
        for person in content["annotations"]:
            person["keypoints"][::3] = [x + 2 for x in person["keypoints"][::3]]

    changed(tmp_path / "again/labels.json", shift)
    assert run(folder, tmp_path / "out", "--repeats", tmp_path / "again") == 0
    people = [p for p in annotations(tmp_path / "out")["annotations"] if p["num_keypoints"] and not p["iscrowd"]]
    keypoints = load_config(str(tmp_path / "out/config.py")).keypoints
    for k, sigma in enumerate(keypoints.sigmas):
        areas = [person["area"] for person in people if person["keypoints"][3 * k + 2]]
        # Two labels 2 pixels apart: the squared deviations from their mean sum to 2.
        assert sigma == pytest.approx(np.sqrt(np.mean(2 / np.array(areas))), abs=1e-4)
    assert "estimated from" in keypoints.sigmas_from
    assert keypoints.sigmas_from in (tmp_path / "out/summary.txt").read_text()
    capsys.readouterr()
    assert "a copy, not a second labelling" in told(capsys, folder, tmp_path / "no", "--repeats", folder)


def test_the_tools_splits_are_kept(exported, tmp_path):
    assert run(exported("ultralytics"), tmp_path / "out") == 0
    parts = {part: annotations(tmp_path / "out", part) for part in ("train", "val")}
    assert {part: sorted(image["file_name"] for image in content["images"]) for part, content in parts.items()} == {
        part: [f"images/{part}/img 0.png", f"images/{part}/img 1.png"] for part in ("train", "val")
    }


def test_a_split_by_names_does_not_depend_on_the_files_order(exported, tmp_path):
    folder = exported("coco")
    assert run(folder, tmp_path / "a", "--val-share", 0.4) == 0
    changed(folder / "labels.json", lambda content: content["images"].reverse())
    assert run(folder, tmp_path / "b", "--val-share", 0.4) == 0
    names = [{image["file_name"] for image in annotations(tmp_path / side, "val")["images"]} for side in "ab"]
    assert names[0] == names[1]
    assert len(names[0]) == 1


def keep_relative(content):
    for person in content["annotations"]:
        person["keypoints"] = [v if i % 3 == 2 else v / 64 for i, v in enumerate(person["keypoints"])]


def corners(content):
    x, y, w, h = fuzz_labels.BOX
    for person in content["annotations"]:
        person["bbox"] = [x, y, x + w, y + h]


def repeat_id(content):
    content["images"][1]["id"] = 0


def numbers_for_names(content):
    for category in content["categories"][1:]:
        category["keypoints"] = ["1", "2", "3"]


def two_skeletons(content):
    content["categories"][1]["keypoints"] = ["nose", "left_ear", "tail"]


def one_more_keypoint(content):
    content["annotations"][1]["keypoints"] += [1, 2, 2]


def visibility_of_three(content):
    content["annotations"][1]["keypoints"][2] = 3


def no_images(content):
    content["images"] = []


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (keep_relative, ["annotation 7", "relative to the image", "multiply"]),
        (corners, ["annotation 7", "3 of 3 boxes fit their keypoints as left, top, right, bottom", "--boxes xyxy"]),
        (repeat_id, ["image 0", "have one id, 0", "give every image a different one"]),
        (
            numbers_for_names,
            ["labels.json", "3 keypoints have no names that tell left from right", "--pairs", "--no-pairs"],
        ),
        (two_skeletons, ["'kind 1' (3 keypoints, 2 people), 'kind 2' (3 keypoints, 1 people)", "--category"]),
        (one_more_keypoint, ["annotation 8", "has 12 numbers", "need 9"]),
        (
            visibility_of_three,
            ["annotation 8", "visibility must be 0 (unlabelled), 1 (occluded) or 2 (visible), not 3"],
        ),
        (no_images, ["labels.json", "'images' is empty", "export it again"]),
    ],
)
def test_a_coco_file_that_cannot_be_meant_is_told_with_the_remedy(exported, tmp_path, capsys, change, parts):
    file = exported("coco") / "labels.json"
    changed(file, change)
    line = told(capsys, file, tmp_path / "out")
    for part in (str(file), *parts):
        assert part in line
    assert not (tmp_path / "out").exists()


def test_the_remedies_work(exported, tmp_path, capsys):
    for change, options, check_it in (
        (corners, ["--boxes", "xyxy"], lambda c: c["annotations"][0]["bbox"] == list(fuzz_labels.BOX)),
        (numbers_for_names, ["--pairs", "1-2"], lambda c: c["categories"][0]["keypoints"] == ["1", "2", "3"]),
        (numbers_for_names, ["--keypoints", "nose,left ear,right ear"], lambda c: len(c["annotations"]) == 3),
        (two_skeletons, ["--category", "kind 2"], lambda c: len(c["annotations"]) == 1),
    ):
        file = exported("coco") / "labels.json"
        changed(file, change)
        assert run(file, tmp_path / "out", *options) == 0, capsys.readouterr().err
        assert check_it(annotations(tmp_path / "out"))
        shutil.rmtree(tmp_path / "out")
        shutil.rmtree(file.parent)


@pytest.mark.parametrize(
    ("replacements", "parts"),
    [
        ([("flip_idx: [0, 2, 1]", "flip_idx: [0, 1, 2]")], ["data.yaml", "flip_idx", "Roboflow", "--pairs"]),
        ([("flip_idx: [0, 2, 1]", "flip_idx: [1, 2, 0]")], ["data.yaml", "flip_idx sends keypoint 0 to 1", "--pairs"]),
        (
            [("kpt_shape: [3, 3]", "kpt_shape: [4, 3]"), ("flip_idx: [0, 2, 1]", "")],
            ["img 0.txt, line 1", "14 numbers", "[3, 3]"],
        ),
        ([("names:\n  0: mouse", "names:\n0: mouse")], ["data.yaml", "'names' must list the classes", "indent"]),
        ([("names:", "names: [mouse")], ["data.yaml, line", "not YAML", "correct that line"]),
        ([("kpt_shape: [3, 3]", "")], ["data.yaml", "no kpt_shape", "add kpt_shape"]),
    ],
)
def test_a_data_yaml_that_cannot_be_meant_is_told_with_the_remedy(exported, tmp_path, capsys, replacements, parts):
    folder = exported("ultralytics")
    edited(folder / "data.yaml", *replacements)
    line = told(capsys, folder, tmp_path / "out")
    for part in parts:
        assert part in line


def test_a_detectors_boxes_are_no_labels(formats, tmp_path, capsys):
    line = told(capsys, formats / "yolo_pred_txt_bus", tmp_path / "out")
    assert "without keypoints" in line
    assert "--boxes" in line
    line = told(capsys, formats / "mmpose_crowdpose/test_crowdpose_det_AP_40.json", tmp_path / "out")
    assert "--boxes" in line


def test_two_files_that_label_one_image_are_told(formats, tmp_path, capsys):
    line = told(capsys, formats / "tlpss_coco_box12", tmp_path / "out")
    assert "coco_dataset.json and" in line
    assert "both label images/" in line


@pytest.mark.parametrize(
    "names",
    [
        "left_eye right_eye", "L_Eye R_Eye", "l_hip r_hip", "LHip RHip", "eyeL eyeR",
        "hip_l hip_r", "forelegL1 forelegR1", "LeftArm RightArm", "leftear rightear",
        "LEFT_EAR RIGHT_EAR", "左肩 右肩", "FL_paw FR_paw", "lsho rsho", "eye.L eye.R",
        "oeil_gauche oeil_droit", "mano_izquierda mano_derecha", "moth_leftear moth_rightear",
        "Hand-links Hand-rechts", "medial_left_bow medial_right_bow", "левый_глаз правый_глаз",
        "왼쪽눈 오른쪽눈", "Left-Eye Right-Eye", "lEye rEye",
    ],
)  # fmt: skip
def test_left_and_right_are_found_in_names(names):
    left, right = names.split()
    assert pairs_by_name(["nose", right, left, "tail"]) == ((2, 1),)


@pytest.mark.parametrize(
    "names", ["Nearknee Offknee", "leg arm", "eal ear_2", "1 2", "collar corner", "安全带1 安全带2"]
)
def test_other_names_are_no_pair(names):
    assert pairs_by_name(names.split()) == ()


@pytest.mark.parametrize(
    ("skeleton", "lines"),
    [
        ([[1, 2], [1, 3]], [[1, 2], [1, 3]]),
        ([[0, 1], [0, 2]], [[1, 2], [1, 3]]),
        ([["nose", "right_ear"]], [[1, 3]]),
        ([[16, 14], [1, 2]], []),
        ([[0, 3], [1, 2]], []),
        ([[1, 1], [2, 3], "x", [1]], [[2, 3]]),
        (None, []),
    ],
)
def test_skeletons_count_from_one_or_from_zero(exported, tmp_path, skeleton, lines):
    file = exported("coco") / "labels.json"
    changed(file, lambda content: [category.update(skeleton=skeleton) for category in content["categories"]])
    assert run(file, tmp_path / "out") == 0
    assert annotations(tmp_path / "out")["categories"][0]["skeleton"] == lines


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([30, 10, True, 20, 20, False, 0, 0, False], [2, 1, 0]),
        ([30, 10, 20, 20, -1, -1], [2, 2, 0]),
        ([[30, 10, 2.0], [20, 20, 1.0], [0, 0, 0.0]], [2, 1, 0]),
        ([30, 10, 0.9, 20, 20, None, 0, 0, 2], [2, 2, 0]),
        ([{"x": 30, "y": 10, "visible": True}, {"x": 20, "y": 20, "v": 1}, {"x": 0, "y": 0}], [2, 1, 0]),
        (["30", "10", "2", "20", "20", "1", None, None, 0], [2, 1, 0]),
    ],
)
def test_visibilities_as_files_write_them(exported, tmp_path, values, shown):
    file = exported("coco") / "labels.json"
    changed(file, lambda content: content["annotations"][0].update(keypoints=values, num_keypoints=9))
    assert run(file, tmp_path / "out") == 0
    assert annotations(tmp_path / "out")["annotations"][0]["keypoints"][2::3] == shown


def test_names_as_windows_and_hosts_write_them(exported, tmp_path):
    folder = exported("coco")
    (folder / "images/img 1.png").rename(folder / "images/IMG 1.PNG")
    written = ["images\\img 0.png", "C:\\Users\\x\\images\\img 1.png", "https://host/a%20b/img%202.png?token=1"]
    changed(
        folder / "labels.json", lambda c: [i.update(file_name=n) for i, n in zip(c["images"], written, strict=True)]
    )
    text = (folder / "labels.json").read_text()
    (folder / "labels.json").write_bytes(text.encode("utf-16"))
    assert run(folder, tmp_path / "out") == 0
    files = {str(path.relative_to(tmp_path / "out/images")) for path in (tmp_path / "out/images").rglob("*.*")}
    assert files == {"images/img 0.png", "Users/x/images/img 1.png", "a b/img 2.png"}


def test_a_zip_is_unpacked(exported, tmp_path):
    folder = exported("cvat")
    archive = shutil.make_archive(str(tmp_path / "export"), "zip", folder)
    assert run(archive, tmp_path / "out") == 0
    assert len([*(tmp_path / "out/images").rglob("*.png")]) == 3


@pytest.mark.parametrize("orientation", [6, 8])
def test_labels_made_before_an_exif_turn_are_turned(exported, tmp_path, orientation):
    folder = exported("coco")
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[5:9, 18:23] = 255  # around one of the points: x 20, y 6
    exif = PIL.Image.Exif()
    exif[274] = orientation
    for path in (folder / "images").iterdir():
        PIL.Image.fromarray(picture).save(path.with_suffix(".jpg"), exif=exif, quality=100)
        path.unlink()
    flat = [20, 7, 2, 20, 6, 2, 21, 7, 2]
    changed(folder / "labels.json", lambda c: [person.update(keypoints=flat) for person in c["annotations"]])
    assert run(folder, tmp_path / "out") == 0
    content = annotations(tmp_path / "out")
    assert {(image["width"], image["height"]) for image in content["images"]} == {(48, 64)}
    turned = read_image(tmp_path / "out/images" / content["images"][0]["file_name"])
    for x, y, _ in np.array(content["annotations"][0]["keypoints"]).reshape(3, 3):
        assert turned[round(y), round(x)].min() > 200


def test_labels_of_resized_images_are_scaled(exported, tmp_path):
    folder = exported("coco")
    for path in (folder / "images").iterdir():
        cv2.imwrite(str(path), np.zeros((96, 128, 3), np.uint8))
    assert run(folder, tmp_path / "out") == 0
    people = annotations(tmp_path / "out")["annotations"]
    assert people[0]["keypoints"][:3] == [60, 20, 2]
    assert people[0]["bbox"] == [2 * value for value in fuzz_labels.BOX]
    assert people[0]["area"] == 800
    assert "labels scaled" in (tmp_path / "out/summary.txt").read_text()


def test_images_of_another_shape_are_told(exported, tmp_path, capsys):
    folder = exported("coco")
    for path in (folder / "images").iterdir():
        cv2.imwrite(str(path), np.zeros((96, 96, 3), np.uint8))
    line = told(capsys, folder, tmp_path / "out")
    assert "has 96x96 pixels, its labels" in line
    assert "are for 64x48" in line


def test_ultralytics_as_people_have_it(exported, tmp_path):
    """No path, names as a list, two numbers a keypoint; images, labels and keypoints that are not there; an outline."""
    folder = exported("ultralytics")
    paths = "train: ../somewhere/images/train\nval: ./images/val\n"
    (folder / "data.yaml").write_text(paths + "kpt_shape: [3, 2]\nflip_idx: [0, 2, 1]\nnames: [mouse]\n")
    for path in folder.rglob("*.txt"):
        values = path.read_text().splitlines()[0].split()
        path.write_text(" ".join(v for i, v in enumerate(values) if i < 5 or (i - 5) % 3 != 2) + "\n0 .5 .5 .2 .2")
    (folder / "labels/train/img 1.txt").write_text("")
    (folder / "labels/val/gone.txt").write_text("0 .5 .5 .2 .2 .5 .5 .5 .5 .5 .5")
    (folder / "labels/val/img 1.txt").unlink()
    with open(folder / "labels/val/img 0.txt", "a") as file:
        file.write("\n0 .1 .1 .2 .2 .3 .3 .4 .1\n")
    assert run(folder, tmp_path / "out") == 0
    content = annotations(tmp_path / "out")
    assert len(content["images"]) == 4
    points = [person["keypoints"][:3] for person in content["annotations"]]
    np.testing.assert_allclose(points, [[30, 10, 2]] * 2, atol=1e-3)
    summary = (tmp_path / "out/summary.txt").read_text()
    for note in (
        "images without a label file",
        "label files without an image",
        "(outlines?)",
        "a box and no keypoints",
    ):
        assert note in summary


def test_label_studio_min(exported, tmp_path):
    folder = exported("label_studio")
    tasks = json.loads((folder / "export.json").read_text())
    flat = []
    for task in tasks:
        regions = [{**r["value"], **r} for r in task["annotations"][0]["result"] if r["type"] != "relation"]
        regions = [{k: v for k, v in r.items() if k not in ("value", "type", "id", "parentID")} for r in regions]
        flat.append({"image": task["data"]["image"], "id": task["id"], "kp": regions[1:], "box": regions[:1]})
    (folder / "export.json").write_text(json.dumps(flat))
    assert run(folder, tmp_path / "out") == 0
    people = annotations(tmp_path / "out")["annotations"]
    assert [person["num_keypoints"] for person in people] == [3, 3, 3]
    np.testing.assert_allclose(people[2]["bbox"], fuzz_labels.BOX, atol=1e-6)


def test_labelme_with_its_image_inside_and_two_people_in_boxes(exported, tmp_path):
    folder = exported("labelme")
    file = folder / "img 1.json"
    data = base64.b64encode((folder / "img 1.png").read_bytes()).decode()
    (folder / "img 1.png").unlink()

    def second(content):
        content.update(imageData=data, imagePath="..\\elsewhere\\img 1.png")
        content["shapes"] += [
            {"label": "mouse", "points": [[60, 46], [45, 30]], "group_id": None, "shape_type": "rectangle"},
            {"label": "nose", "points": [[50, 40]], "group_id": None, "shape_type": "point", "difficult": True},
        ]

    changed(file, second)
    assert run(folder, tmp_path / "out") == 0
    content = annotations(tmp_path / "out")
    (image,) = (image for image in content["images"] if image["file_name"] == "elsewhere/img 1.png")
    people = [person for person in content["annotations"] if person["image_id"] == image["id"]]
    assert [person["num_keypoints"] for person in people] == [3, 1]
    assert people[1]["bbox"] == [45, 30, 15, 16]
    assert people[1]["keypoints"][:3] == [50, 40, 1]
    assert (tmp_path / "out/images/elsewhere/img 1.png").exists()


def test_cvats_points_without_skeletons(exported, tmp_path):
    folder = exported("cvat")
    text = "".join(
        f'<image id="{i}" name="img {i}.png" width="64" height="48"><points label="fish" occluded="1" '
        'points="1.5,2.0;30,10;20,20"/></image>'
        for i in range(3)
    )
    (folder / "annotations.xml").write_text(f"<annotations>{text}</annotations>")
    assert run(folder, tmp_path / "out", "--no-pairs") == 0
    people = annotations(tmp_path / "out")["annotations"]
    assert [person["keypoints"] for person in people] == [[1.5, 2, 1, 30, 10, 1, 20, 20, 1]] * 3


def test_deeplabcut_of_one_animal_from_windows(exported, tmp_path):
    folder = exported("deeplabcut")
    header = "scorer;me;me;me;me\nbodyparts;snout;snout;tail;tail\ncoords;x;y;x;y\n"
    text = header + "labeled-data\\clip\\img 0.png;1,5;2,25;;\n"
    (folder / "labeled-data/clip/CollectedData_me.csv").write_text(text)
    assert run(folder, tmp_path / "out") == 0
    (person,) = annotations(tmp_path / "out")["annotations"]
    assert person["keypoints"] == [1.5, 2.25, 2, 0, 0, 0]
    assert (tmp_path / "out/images/labeled-data/clip/img 0.png").exists()


def test_output_that_holds_files_is_kept(exported, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    assert "holds files already" in told(capsys, exported("coco"), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("name", fuzz_labels.FORMATS)
def test_damaged_exports_end_in_a_result_or_one_line(tmp_path, name):
    exports = fuzz_labels.Exports(tmp_path)
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        cases = [fuzz.run(fuzz_labels.kind(name), number, exports) for number in range(15)]
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)
    assert not [f"{case.number}: {case.message}" for case in cases if case.failed]
    assert {case.outcome for case in cases} == {"result", "refused"}


def test_what_else_lies_in_a_project_is_left_out(exported, tmp_path):
    """DeepLabCut's predictions and training tables; a model's yaml; a damaged yaml; a COCO file of boxes."""
    folder = exported("deeplabcut")
    table = folder / "labeled-data/clip/CollectedData_me.csv"
    (folder / "training-datasets").mkdir()
    shutil.copy(table, folder / "training-datasets")
    predictions = "scorer,a,a,a\nbodyparts,nose,nose,nose\ncoords,x,y,likelihood\n0,1,2,.5\n"
    (folder / "clipDLC_resnet50.csv").write_text(predictions)
    (folder / "yolov8-pose.yaml").write_text("kpt_shape: [17, 3]\nnc: 1\nbackbone: []\n")
    (folder / "broken.yaml").write_text("names: [")
    (folder / "instances.json").write_text('{"images": [{"id": 1}], "annotations": [], "categories": []}')
    assert run(folder, tmp_path / "out") == 0
    assert len(annotations(tmp_path / "out")["images"]) == 3


def test_roboflows_folders_are_splits(tmp_path):
    folder = tmp_path / "roboflow"
    for split in ("train", "valid", "test"):
        fuzz_labels.FORMATS["coco"](folder / split)
        (folder / split / "labels.json").rename(folder / split / "_annotations.coco.json")
    assert run(folder, tmp_path / "out") == 0
    assert [len(annotations(tmp_path / "out", part)["annotations"]) for part in ("train", "val", "test", "all")] == [
        3,
        3,
        3,
        9,
    ]
    assert len([*(tmp_path / "out/images").rglob("*.png")]) == 9


def test_cvats_ultralytics_export_lists_images_that_lie_elsewhere(exported, tmp_path, capsys):
    folder = exported("ultralytics")
    (folder / "images").rename(tmp_path / "pictures")
    edited(folder / "data.yaml", ("path: ../data\ntrain: images/train\nval: images/val", "path: .\ntrain: train.txt"))
    (folder / "train.txt").write_text("data/images/train/img 0.png\ndata/images/train/img 1.png\n")
    assert "--images FOLDER" in told(capsys, folder, tmp_path / "out")
    assert run(folder, tmp_path / "out", "--images", tmp_path / "pictures/train") == 0
    assert len(annotations(tmp_path / "out")["annotations"]) == 4


def test_all_annotations_of_another_number_than_the_category_names(exported, tmp_path, capsys):
    file = exported("coco") / "labels.json"
    changed(
        file,
        lambda content: [(p["keypoints"].extend([5, 6, 2]), p.update(category_id=1)) for p in content["annotations"]],
    )
    assert "the category names 3 keypoints, and all its annotations have 4" in told(capsys, file, tmp_path / "out")
    assert run(file, tmp_path / "out", "--keypoints", "nose,left ear,right ear,tail") == 0
    assert annotations(tmp_path / "out")["categories"][0]["keypoints"][3] == "tail"


def test_ultralytics_keypoint_names_by_class(exported, tmp_path, capsys):
    """Lists within a list; classes without names; a class with fewer keypoints, zeros for the rest."""
    folder = exported("ultralytics")
    edited(folder / "data.yaml", ("names:\n  0: mouse\n", "nc: 1\nkpt_names: [[nose, left ear, right ear]]\n"))
    assert run(folder, tmp_path / "out") == 0
    content = annotations(tmp_path / "out")
    assert content["categories"][0]["keypoints"] == ["nose", "left ear", "right ear"]
    assert {person["category"] for person in content["annotations"]} == {"class_0"}
    two = "names: [mouse, pen]\nkpt_names:\n  0: [nose, left ear, right ear]\n  1: [tip, end]\n"
    edited(folder / "data.yaml", ("nc: 1\nkpt_names: [[nose, left ear, right ear]]\n", two))
    for path in (folder / "labels/train").iterdir():
        path.write_text("1 .5 .5 .5 .5 .25 .5 2 .5 .25 1 0 0 0\n")
    capsys.readouterr()
    assert "'mouse' (3 keypoints, 4 people), 'pen' (2 keypoints, 2 people)" in told(capsys, folder, tmp_path / "pen")
    assert run(folder, tmp_path / "pen", "--category", "pen", "--no-pairs", "--boxes", "xywh") == 0
    people = annotations(tmp_path / "pen")["annotations"]
    assert [person["keypoints"] for person in people] == [[16, 24, 2, 32, 12, 1]] * 2


def test_lists_of_images_in_which_names_repeat(exported, tmp_path):
    folder = exported("ultralytics")
    for split in ("train", "val"):
        (folder / f"{split}.txt").write_text("".join(f"./images/{split}/img {i}.png\n" for i in range(2)))
    edited(folder / "data.yaml", ("images/train", "train.txt"), ("images/val", "val.txt"))
    assert run(folder, tmp_path / "out") == 0
    assert len(annotations(tmp_path / "out")["annotations"]) == 8
    assert "without an image" not in (tmp_path / "out/summary.txt").read_text()


def test_coco_categories_that_are_not_listed_and_names_as_objects(exported, tmp_path):
    file = exported("coco") / "labels.json"

    def change(content):
        content["annotations"][0]["category_id"] = 9
        for category in content["categories"][1:]:
            category["keypoints"] = [{"id": i, "name": name} for i, name in enumerate(fuzz_labels.NAMES)]

    changed(file, change)
    assert run(file, tmp_path / "out") == 0
    content = annotations(tmp_path / "out")
    assert content["categories"][0]["keypoints"] == list(fuzz_labels.NAMES)
    assert len(content["annotations"]) == 3
    assert "categories that are not listed" in (tmp_path / "out/summary.txt").read_text()


def test_one_box_that_leaves_its_image_by_a_little_is_meant_as_it_is(exported, tmp_path):
    file = exported("coco") / "labels.json"
    box = [10, 6, 58, 42]
    changed(
        file, lambda content: content["annotations"][0].update(bbox=box, keypoints=[30, 10, 2, 12, 20, 2, 55, 42, 2])
    )
    assert run(file, tmp_path / "out") == 0
    assert annotations(tmp_path / "out")["annotations"][0]["bbox"] == box


def flattened(tasks):
    """JSON-MIN's records, the first of an image without regions."""
    sized = {"original_width": fuzz_labels.WIDTH, "original_height": fuzz_labels.HEIGHT}
    records = [{"img": task["data"]["image"], "id": task["id"], "annotator": 1} for task in tasks]
    for task, record in zip(tasks[1:], records[1:], strict=True):
        record["kp-1"] = [{**r["value"], **sized} for r in task["annotations"][0]["result"] if r["type"] != "relation"]
    return records


def with_empty_annotations(tasks):
    for task in tasks:
        task["annotations"].append({"id": 9, "result": [], "completed_by": 2})
    return tasks


def with_choices(tasks):
    for task in tasks:
        choice = {"id": "nose", "type": "choices", "from_name": "seen", "value": {"choices": ["Occluded"]}}
        task["annotations"][0]["result"].append(choice)
    return tasks


def as_chains(tasks):
    """Two animals without boxes, the keypoints of each in a chain of relations."""
    for task in tasks:
        one = [r for r in task["annotations"][0]["result"] if r["type"] == "keypointlabels"]
        for region in one:
            region.pop("parentID", None)
        other = json.loads(json.dumps(one))
        for region in other:
            region["id"] += "'"
        chains = [{"from_id": a["id"], "to_id": b["id"], "type": "relation"} for a, b in itertools.pairwise(one)]
        again = [{"from_id": f"{c['from_id']}'", "to_id": f"{c['to_id']}'", "type": "relation"} for c in chains]
        task["annotations"][0]["result"] = one + other + again + chains
    return tasks


def as_outlines(tasks):
    for task in tasks:
        region = task["annotations"][0]["result"][0]
        x, y, w, h = (region["value"][key] for key in ("x", "y", "width", "height"))
        corners = [[x, y], [x + w, y], [x + w, y + h], [x, y + h]]
        region.update(type="polygonlabels", value={"points": corners, "polygonlabels": ["mouse"], "closed": True})
    return tasks


@pytest.mark.parametrize(
    ("change", "people", "seen"),
    [
        (lambda tasks: tasks[0], 1, 2),
        (lambda tasks: {**tasks[0].pop("annotations")[0], "task": tasks[0]}, 1, 2),
        (flattened, 2, 2),
        (with_empty_annotations, 3, 2),
        (with_choices, 3, 1),
        (as_chains, 6, 2),
        (as_outlines, 3, 2),
    ],
)
def test_label_studio_in_its_other_forms(exported, tmp_path, change, people, seen):
    """A task and an annotation as clouds store them; JSON-MIN; two annotators; choices; relations; outlines."""
    file = exported("label_studio") / "export.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    assert run(file, tmp_path / "out") == 0
    found = annotations(tmp_path / "out")["annotations"]
    assert [(person["num_keypoints"], person["keypoints"][2]) for person in found] == [(3, seen)] * people
    if change in (flattened, as_outlines):
        np.testing.assert_allclose([person["bbox"] for person in found], [fuzz_labels.BOX] * people, atol=1e-6)


def test_label_studios_predictions_are_told(exported, tmp_path, capsys):
    file = exported("label_studio") / "export.json"
    changed(file, lambda tasks: [task.update(predictions=task.pop("annotations")) for task in tasks])
    assert "predictions (submit them in Label Studio)" in told(capsys, file, tmp_path / "out")


@pytest.mark.parametrize("kind", ["polygon", "rotation"])
def test_labelme_people_in_outlines(exported, tmp_path, kind):
    folder = exported("labelme")

    def second(content):
        (left, top), (right, bottom) = content["shapes"][0]["points"]
        corners = [[left, top], [right, top], [right, bottom], [left, bottom]]
        content["shapes"][0].update(points=corners, shape_type=kind)
        for shape in content["shapes"]:
            shape["group_id"] = None
        lower = [{**s, "points": [[x, y + 20] for x, y in s["points"]]} for s in content["shapes"]]
        content["shapes"] += lower

    for file in folder.glob("*.json"):
        changed(file, second)
    assert run(folder, tmp_path / "out") == 0
    people = annotations(tmp_path / "out")["annotations"]
    x, y, w, h = fuzz_labels.BOX
    assert [person["bbox"] for person in people] == [[x, y, w, h], [x, y + 20, w, h]] * 3
    assert [person["num_keypoints"] for person in people] == [3] * 6


def test_points_of_several_people_without_boxes_are_told(exported, tmp_path, capsys):
    folder = exported("labelme")
    for file in folder.glob("*.json"):
        changed(file, lambda content: content.update(shapes=content["shapes"][1:] * 2))
        edited(file, ('"group_id": 0', '"group_id": null')) if "0" in file.name else None
    assert "group its points" in told(capsys, folder, tmp_path / "out")


def test_the_tracks_of_a_cvat_project_are_apart(tmp_path):
    """Frame 0 of each of two videos, of which each has images in the folder of its subset."""
    points = "".join(f'<points label="{n}" points="{x},{y}"/>' for n, x, y in (("a", 9, 9), ("b", 30, 20)))
    tasks = tracks = ""
    for number, subset in ((1, "Train"), (2, "Validation")):
        tasks += f"<task><id>{number}</id><name>t{number}</name><source>{number}.mp4</source></task>"
        shape = f'<skeleton frame="0" keyframe="1">{points}</skeleton>'
        tracks += f'<track id="{number}" label="s" task_id="{number}" subset="{subset}">{shape}</track>'
        (tmp_path / "export/images" / subset).mkdir(parents=True)
        picture = np.full((48, 64, 3), 50 * number, np.uint8)
        cv2.imwrite(str(tmp_path / "export/images" / subset / "frame_000000.PNG"), picture)
    text = f"<annotations><meta><project><tasks>{tasks}</tasks></project></meta>{tracks}</annotations>"
    (tmp_path / "export/annotations.xml").write_text(text)
    assert run(tmp_path / "export", tmp_path / "out", "--no-pairs") == 0
    for part, number in (("train", 1), ("val", 2)):
        content = annotations(tmp_path / "out", part)
        (image,) = content["images"]
        assert len(content["annotations"]) == 1
        assert read_image(tmp_path / "out/images" / image["file_name"]).max() == 50 * number


def test_deeplabcut_with_likelihoods_and_a_row_of_the_indexs_name(exported, tmp_path, capsys):
    folder = exported("deeplabcut")
    header = "scorer,me,me,me,me,me,me\nbodyparts,a,a,a,b,b,b\ncoords,x,y,likelihood,x,y,likelihood\nimage,,,,,,\n"
    table = folder / "labeled-data/clip/CollectedData_me.csv"
    table.write_text(header + "labeled-data/clip/img 0.png,1,2,1.0,3,4,\n")
    assert run(folder, tmp_path / "out") == 0
    (person,) = annotations(tmp_path / "out")["annotations"]
    assert person["keypoints"] == [1, 2, 2, 3, 4, 2]
    table.unlink()
    capsys.readouterr()
    table.with_suffix(".h5").write_bytes(b"HDF")
    assert "give DeepLabCut's CollectedData_*.csv" in told(capsys, folder, tmp_path / "none")


def test_equal_records_of_images_with_another_shape_are_left_out(tmp_path):
    folder = tmp_path / "export"
    (folder / "images").mkdir(parents=True)
    skeleton = '<skeleton label="s"><points label="a" points="9,9"/><points label="b" points="30,20"/></skeleton>'
    records = ""
    for number in [*range(21), 20]:
        width = 99 if number == 20 else 64
        cv2.imwrite(str(folder / f"images/{number}.png"), np.zeros((48, 64, 3), np.uint8))
        records += f'<image id="{number}" name="{number}.png" width="{width}" height="48">{skeleton}</image>'
    (folder / "annotations.xml").write_text(f"<annotations>{records}</annotations>")
    assert run(folder, tmp_path / "out", "--no-pairs") == 0
    assert len(annotations(tmp_path / "out")["images"]) == 20
    assert "2 images of another shape than their labels say" in (tmp_path / "out/summary.txt").read_text()


def test_orientation_is_read_as_in_training(exported, tmp_path):
    """Of a PNG, training reads the EXIF chunk, and not the orientation that XMP repeats."""
    folder = exported("coco")
    xmp = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    text = PIL.PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", xmp)
    for path in (folder / "images").iterdir():
        PIL.Image.new("RGB", (64, 48)).save(path, pnginfo=text)
        assert read_image(path).shape == (48, 64, 3)
    before = json.loads((folder / "labels.json").read_text())["annotations"][0]["keypoints"]
    assert run(folder, tmp_path / "out") == 0
    content = annotations(tmp_path / "out")
    assert {(image["width"], image["height"]) for image in content["images"]} == {(64, 48)}
    assert content["annotations"][0]["keypoints"] == before


def test_repeats_of_images_whose_names_repeat_in_folders(exported, tmp_path):
    folder = exported("deeplabcut")
    clip = folder / "labeled-data/clip"
    shutil.copytree(clip, folder / "labeled-data/other")
    header = "scorer,me,me,me,me\nbodyparts,a,a,b,b\ncoords,x,y,x,y\n"
    for name, x in (("clip", 10), ("other", 30)):
        row = f"labeled-data/{name}/img 0.png,{x},12,{x + 9},30\n"
        (folder / f"labeled-data/{name}/CollectedData_me.csv").write_text(header + row)
    shutil.copytree(folder, tmp_path / "again")
    edited(tmp_path / "again/labeled-data/clip/CollectedData_me.csv", ("10,12", "12,12"))
    edited(tmp_path / "again/labeled-data/other/CollectedData_me.csv", ("30,12", "32,12"))
    assert run(folder, tmp_path / "out", "--no-pairs", "--repeats", tmp_path / "again") == 0
    keypoints = load_config(str(tmp_path / "out/config.py")).keypoints
    areas = [person["area"] for person in annotations(tmp_path / "out")["annotations"]]
    assert keypoints.sigmas[0] == pytest.approx(np.sqrt(np.mean(2 / np.array(areas))), abs=1e-4)
    assert "2 people" in keypoints.sigmas_from
