"""Labels of real tools, each imported by one command; and what cannot be meant, told in one line."""

import json
import pathlib

import numpy as np
import pytest

from data_pipelines.import_labels import main
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
# Keypoints that are numbers only: which of them change places in a mirror must be said.
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
        options = ["--keypoints", "coco"]
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
        keypoints = config.data.keypoints
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
