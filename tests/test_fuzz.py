"""Damaged inputs end in a result or in one line. benchmarks/fuzz.py runs a thousand of them."""

import json

import jaxtyping
import numpy as np
import pytest

from benchmarks import fuzz
from configs import common
from data_pipelines.annotations import load_detections, load_instances
from data_pipelines.errors import InputError, brief
from data_pipelines.keypoints import AIC, COCO
from eval import coco
from hrnet_jax import config as config_lib
from hrnet_jax.inference.boxes import read_boxes
from hrnet_jax.weights import checkpoint

CASES = {
    **{fuzz.image: 15, fuzz.boxes: 15, fuzz.box_file: 15, fuzz.shots: 5, fuzz.annotation_file: 20, fuzz.results: 15},
    # The names of a checkpoint's files differ by run, and so does which is damaged; some damage is harmless.
    **{fuzz.overrides: 12, fuzz.config_file: 3, fuzz.weights: 2, fuzz.workdir: 10},
}


@pytest.fixture(autouse=True)
def as_users_meet_it():
    """Without the tests' checks of annotated types and shapes, which refuse much before it is reached."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return fuzz.Workshop(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_every_case_ends_in_a_result_or_in_one_line(shop, make):
    cases = [fuzz.run(make, number, shop) for number in range(CASES[make])]
    failed = [f"{case.kind} {case.number}: {case.outcome}\n{case.message}" for case in cases if case.failed]
    assert not failed, "\n".join(failed)
    assert any(case.outcome == "refused" for case in cases)


def test_failures_are_told_from_results(shop):
    def lines(rng, shop):
        raise InputError("one line\nand another")

    def bug(rng, shop):
        raise KeyError("image_id")

    assert [fuzz.run(make, 0, shop).outcome for make in (lines, bug)] == ["lines", "traceback"]
    assert all(case.failed for case in (fuzz.run(make, 0, shop) for make in (lines, bug)))


def test_valid_inputs_give_results(shop):
    assert len(load_instances(shop.annotations, shop.images, COCO)) > 0
    assert len(load_instances(shop.aic_annotations, shop.aic_images, AIC)) > 0
    assert coco.evaluate_results(shop.annotations, shop.results)["AP"] == pytest.approx(1)
    assert set(config_lib.from_json(shop.folder / "config.json")) >= set(
        config_lib.from_json(shop.workdir / "config.json")
    )


# What it found


def refused(message, function, *arguments, **named):
    """Asserts that a call is refused with a line that holds the message."""
    with pytest.raises(InputError, match=message) as error:
        function(*arguments, **named)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


def changed(shop, path, change):
    """A copy of a JSON file whose content a function changed."""
    content = json.loads(path.read_text())
    change(content)
    copy = shop.scratch() / path.name
    copy.write_text(json.dumps(content))
    return copy


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_keypoints", [1, 2], "'num_keypoints' must be an integer"),
        ("image_id", [[1, 2]] * 9999, "'image_id' must be an integer"),
        ("id", "a\nb" * 999, "'id' must be an integer"),
        ("keypoints", [float("nan")] * 51, "not finite"),
    ],
)
def test_people_with_damaged_fields(shop, field, value, message):
    path = changed(shop, shop.annotations, lambda content: content["annotations"][0].update({field: value}))
    refused(message, load_instances, path, shop.images, COCO)


@pytest.mark.parametrize("name", [None, 7, ["a.jpg"], "\ud800.jpg", "x" * 9999])
def test_images_with_names_that_are_none(shop, name):
    path = changed(shop, shop.annotations, lambda content: content["images"][0].update(file_name=name))
    refused("cannot be the name of a file", load_instances, path, shop.images, COCO)
    if name != 7:
        path = changed(shop, shop.aic_annotations, lambda content: content[0].update(image_id=name))
        refused("cannot be the name of a file", load_instances, path, shop.aic_images, AIC)


def test_an_image_without_a_name(shop):
    path = changed(shop, shop.aic_annotations, lambda content: content[0].pop("image_id"))
    refused("image_id None cannot be the name", load_instances, path, shop.aic_images, AIC)


@pytest.mark.parametrize("name", ["../a.jpg", "/etc/passwd", "a/../../b.jpg", "..", "a\0.jpg"])
def test_names_cannot_leave_the_folder_of_images(shop, name):
    """Of annotations of both layouts, of those that detections refer to, and of files of boxes."""
    path = changed(shop, shop.annotations, lambda content: content["images"][0].update(file_name=name))
    refused("leaves the image folder", load_instances, path, shop.images, COCO)
    refused("leaves the image folder", load_detections, shop.detections, path, shop.images, COCO)
    refused("leaves the image folder", read_boxes, str(path), COCO)
    boxes = shop.scratch() / "boxes.json"
    for content in ({name: [[1, 2, 3, 4]]}, [{"file_name": name, "bbox": [1, 2, 3, 4]}]):
        boxes.write_text(json.dumps(content))
        refused("leaves the image folder", read_boxes, str(boxes), COCO)
    if name != "..":  # "...jpg" is a name
        path = changed(shop, shop.aic_annotations, lambda content: content[0].update(image_id=name))
        refused("leaves the image folder", load_instances, path, shop.aic_images, AIC)


@pytest.mark.parametrize("images", [5, None, object()])
def test_what_is_no_image(shop, images):
    refused("neither an image .* nor a list", shop.predictor, images)


def test_results_with_uneven_boxes(shop):
    path = changed(shop, shop.results, lambda content: content[0].update(bbox=[1, [2], 3, 4]))
    refused("record 0: 'bbox' is .*, not four numbers", coco.evaluate_results, shop.annotations, path)
    path = changed(shop, shop.results, lambda content: [record.update(bbox=[]) for record in content])
    assert coco.evaluate_results(shop.annotations, path)["AP"] == pytest.approx(1)


def test_scores_beyond_all_floats(shop):
    boxes = shop.scratch() / "boxes.json"
    boxes.write_text(json.dumps([{"image_id": 1, "bbox": [1, 2, 3, 4], "score": 10**400}]))
    refused("'score' is 1000", read_boxes, str(boxes), COCO)
    boxes.write_text(json.dumps({"images\n": 1, "images": [{"id": "x\ny"}]}))
    refused(": images: 1 is no box of 4 numbers", read_boxes, str(boxes), COCO)


def test_configs_of_older_versions_say_which_keys_they_lack(shop):
    def older(content):
        del content["eval"]["flip_test"], content["data"]["eval"]["boxes"], content["model"]["variant"]

    path = changed(shop, shop.folder / "config.json", older)
    refused(
        r"config.json: lacks model.variant, data.eval.boxes, eval.flip_test; add them to this file, configs/common.py",
        *(checkpoint.stored_config, path.parent),
    )
    config = config_lib.load_config(fuzz.CONFIG)
    config.unlock()
    del config.batch_size
    refused("config: lacks batch_size; set them in the config file", config_lib.check, config)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("model", "variant", [], r"config.json: model.variant=\(\)"),
        ("eval", "flip_test", "yes", "eval.flip_test='yes'"),
        ("eval", "nms_threshold", float("nan"), "eval.nms_threshold=nan"),
        ("data", "loader", None, "data.loader=None"),
        ("data", "a.b", 1, "not a config"),
        ("", "keypoints", {"name": "x"}, "a keypoint set has name, names"),
        ("codec", "input_size", [96000, 96000], "each a multiple of 32 from 32 to 4096"),
    ],
)
def test_configs_with_damaged_values(shop, section, key, value, message):
    def change(content):
        (content[section] if section else content).update({key: value})

    path = changed(shop, shop.folder / "config.json", change)

    def load_and_check():
        config = checkpoint.stored_config(path.parent)
        config_lib.check(config)

    refused(message, load_and_check)


def test_every_recipe_has_the_keys_that_are_needed():
    """And a stored config's lists are tuples again, which flags can override."""
    config = common.recipe(keypoints="aic", train=common.train_sources("aic"), evaluate=common.AIC_VAL)
    config_lib.check(config)


def test_stored_sizes_can_be_overridden(shop):
    stored = config_lib.from_json(shop.folder / "config.json")
    _, config = fuzz.cli.parse(["--config.codec.input_size=128,96"], "", {}, lambda values: stored)
    config_lib.check(config)
    assert tuple(config.codec.input_size) == (128, 96)


def test_values_in_messages_are_brief():
    assert brief("a\n b") == "a b"
    assert brief(list(range(999))) == "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21..."
    assert len(brief(np.zeros(9999))) <= 80
