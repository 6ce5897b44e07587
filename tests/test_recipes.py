"""Every recipe is the reference's, every published number is its own, and docs/recipes.md follows from the records."""

import json
import re
import runpy

import pytest

from benchmarks.size import size
from data_pipelines import pixels
from data_pipelines.keypoints import KeypointMapping, keypoint_set
from data_pipelines.transforms import Augmentation
from hrnet_jax import config as config_lib
from hrnet_jax.codecs import create_codec
from hrnet_jax.config import load_config
from hrnet_jax.models import VARIANTS
from hrnet_jax.weights import published
from tests.helpers import REPOSITORY

DOCS = REPOSITORY / "docs"
PAGE = runpy.run_path(str(DOCS / "recipes.py"))
OURS = json.loads((DOCS / "recipes.json").read_text())
RECIPES = {  # the reference's files, and their newest checkpoints in the record
    f"{'aic' if name.endswith('_aic-256x192') else 'coco'}/{name}.py": published.find(name) for name in OURS["recipes"]
}


@pytest.fixture(scope="module")
def golden(shared):
    return json.loads((shared / "reference/golden/config.json").read_text())


@pytest.fixture(scope="module")
def reference(golden):
    return {config["file"]: config for config in golden["configs"]}


@pytest.fixture(params=list(RECIPES))
def recipe(request, reference):
    """Our config and the reference's."""
    config = load_config(RECIPES[request.param].config_spec)
    config_lib.check(config)
    config_lib.check_devices(config, 8)
    return config, reference[request.param]


def test_every_config_has_a_recipe(reference):
    assert set(RECIPES) == set(reference)
    assert len({recipe.config for recipe in RECIPES.values()}) == len(reference) == 20


def test_every_published_result_is_recorded(golden):
    """The reference's rows, with the addresses of their checkpoints, and the two checkpoints of 2022-10."""
    models = {recipe.model: name for name, recipe in RECIPES.items()}
    ours = {
        (models[entry.model], entry.page.rpartition("/")[2], entry.urls, *entry.results.items())
        for entry in published.record()
        if entry.model in models
    }
    numbers = ("AP", "AP50", "AP75", "AR", "AR50")
    theirs = {
        (row["config"], row["md"], (row["ckpt"],), *((key, row[key]) for key in numbers))
        for row in golden["published"]
        if row["label"] != "coco"  # hrnet_coco_aic.md repeats the plain recipe's row
    }
    assert len(theirs) == 20
    assert theirs <= ours
    earlier = {(urls[0].rpartition("_")[2], *(value for _, value in results)) for _, _, urls, *results in ours - theirs}
    assert earlier == {
        ("20221025.pth", 0.757, 0.907, 0.829, 0.809, 0.944),
        ("20221026.pth", 0.756, 0.906, 0.826, 0.807, 0.943),
    }


def test_codec(recipe):
    ours, theirs = recipe
    codec = create_codec(ours.codec)
    expected = dict(theirs["codec"])
    height, width = codec.input_size
    assert [width, height] == expected.pop("input_size")
    assert [*codec.heatmap_size][::-1] == expected.pop("heatmap_size")
    sigma = expected.pop("sigma")
    if ours.codec.name != "udp_combined":  # whose discs have a radius and no sigma
        assert codec.sigma == sigma
    names = {"msra": ("MSRAHeatmap", {}), "dark": ("MSRAHeatmap", {"unbiased": True}), "udp": ("UDPHeatmap", {})}
    names["udp_combined"] = ("UDPHeatmap", {"heatmap_type": "combined"})
    assert (expected.pop("type"), expected) == names[ours.codec.name]
    # MMPose's defaults: all that the configs leave open.
    assert getattr(codec, "blur_kernel", 11) == 11
    assert getattr(codec, "radius_factor", 0.0546875) == 0.0546875
    affine = next(step for step in theirs["train_pipeline"] if step["type"] == "TopdownAffine")
    assert codec.warp == ("udp" if affine.get("use_udp") else "msra")


def test_network(recipe):
    ours, theirs = recipe
    stages = theirs["backbone"]["extra"]
    assert f"w{stages['stage4']['num_channels'][0]}" == ours.model.variant
    variant = VARIANTS[ours.model.variant]
    for number in (2, 3, 4):
        stage = stages[f"stage{number}"]
        assert stage["num_channels"] == [variant.width * 2**branch for branch in range(number)]
        assert stage["num_blocks"] == [variant.blocks] * number
        assert stage["num_modules"] == variant.modules[number - 2]
    assert create_codec(ours.codec).channels(len(keypoint_set(ours.keypoints))) == theirs["head"]["out_channels"]
    assert ours.model.group_size == theirs["batch_per_gpu"]
    assert ours.model.dtype == ("bfloat16" if theirs["optim_wrapper"].get("type") == "AmpOptimWrapper" else "float32")
    assert theirs["head"]["loss"]["use_target_weight"]
    assert ("Combined" in theirs["head"]["loss"]["type"]) == (ours.codec.name == "udp_combined")


def test_schedule(recipe):
    ours, theirs = recipe
    warmup, steps = theirs["param_scheduler"]
    assert theirs["optim_wrapper"]["optimizer"] == {"type": "Adam", "lr": ours.optimizer.learning_rate}
    assert (ours.batch_size, ours.epochs) == (theirs["total_batch"], theirs["max_epochs"])
    assert (ours.optimizer.warmup_steps, ours.optimizer.warmup_factor) == (warmup["end"], warmup["start_factor"])
    assert (list(ours.optimizer.milestones), ours.optimizer.decay) == (steps["milestones"], steps["gamma"])
    assert ours.eval.every_epochs == theirs["val_interval"]


def test_evaluation(recipe):
    ours, theirs = recipe
    test = dict(theirs["test_cfg"])
    assert ours.eval.flip_test == test["flip_test"]
    assert create_codec(ours.codec).shift == test["shift_heatmap"]
    labels = keypoint_set(ours.data.eval.keypoints)
    kept = test.get("output_keypoint_indices", list(range(len(keypoint_set(ours.keypoints)))))
    assert [keypoint_set(ours.keypoints).index(name) for name in labels.names] == kept
    assert ours.eval.use_area == theirs["val_evaluator"].get("use_area", True)
    # No config says otherwise than these defaults of CocoMetric.
    assert set(theirs["val_evaluator"]) <= {"type", "ann_file", "use_area"}
    defaults = ("oks_nms", 0.9, "bbox_keypoint", 0.2)
    e = ours.eval
    assert (e.nms, e.nms_threshold, e.score_mode, e.keypoint_threshold) == defaults
    data = theirs["val_dataset"]
    assert f"data/{ours.data.eval.boxes}" == data.get("bbox_file", "data/")
    assert f"data/{ours.data.eval.images}/" == data["data_root"] + data["data_prefix"]["img"]


def test_training_data(recipe):
    ours, theirs = recipe
    data = theirs["train_dataset"]
    names = {"CocoDataset": "coco", "AicDataset": "aic"}
    sources = {names[source["type"]]: source for source in data.get("datasets", [data])}
    assert {source.keypoints for source in ours.data.train.values()} == set(sources)
    assert len(ours.data.train) == len(sources)
    for source in ours.data.train.values():
        expected = sources[source.keypoints]
        assert f"data/{source.images}/" == expected["data_root"] + expected["data_prefix"]["img"]
        mapping = KeypointMapping(keypoint_set(source.keypoints), keypoint_set(ours.keypoints))
        count = len(keypoint_set(source.keypoints))
        (converter,) = expected.get("pipeline") or [{"mapping": [[i, i] for i in range(count)]}]
        assert [list(pair) for pair in mapping.pairs] == converter["mapping"]


def test_augmentations(recipe):
    """The views are drawn by MMPose's defaults, whose numbers tests/test_transforms.py checks; pixels come last."""
    ours, theirs = recipe
    steps = {step["type"]: {k: v for k, v in step.items() if k != "type"} for step in theirs["train_pipeline"]}
    assert steps["RandomFlip"] == {"direction": "horizontal"}
    assert steps["RandomHalfBody"] == steps["RandomBBoxTransform"] == {}
    expected = Augmentation()
    if "PhotometricDistortion" in steps:
        assert steps["PhotometricDistortion"] == {}
        expected = Augmentation(photometric=1.0)
    if "Albumentation" in steps:
        (cut,) = steps["Albumentation"]["transforms"]
        if cut["type"] == "CoarseDropout":
            expected = Augmentation(coarse_dropout=cut["p"])
            assert (cut["min_holes"], cut["max_holes"]) == pixels.HOLES
            assert (cut["min_height"], cut["max_height"]) == (cut["min_width"], cut["max_width"]) == pixels.HOLE_SIDE
        else:
            expected = Augmentation(grid_mask=cut["p"])
            assert cut["type"] == "GridDropout"
            assert cut["random_offset"]
            assert (cut["unit_size_min"], cut["unit_size_max"]) == pixels.GRID_UNIT
    assert Augmentation(**ours.data.augment) == expected
    order = list(steps)
    for last in {"PhotometricDistortion", "Albumentation"} & set(order):
        assert order[order.index(last) - 1] == "TopdownAffine"


@pytest.mark.parametrize("name", list(RECIPES))
def test_initial_weights(reference, name):
    assert published.find(RECIPES[name].init).urls == (reference[name]["backbone"]["init_cfg"]["checkpoint"],)


def test_what_is_said_to_be_verified_has_its_tests():
    notes = OURS["verified"]
    assert {claim for claims in OURS["recipes"].values() for claim in claims} == set(notes)
    for note in notes.values():
        file = note.rpartition("(")[2].rstrip(")")
        assert (REPOSITORY / file).is_file(), note


def test_the_page_is_the_records():
    """If this fails: python docs/recipes.py."""
    page = (DOCS / "recipes.md").read_text()
    assert page == PAGE["render"](published.record(), OURS)
    for recipe in RECIPES.values():
        assert f"| `{recipe.config}` |" in page


def test_sizes_are_counted():
    """28.5 million parameters are also the paper's."""
    config = load_config(str(REPOSITORY / "configs/coco.py"))
    parameters, products = size(config)
    assert [round(parameters / 1e6, 1), round(products / 1e9, 1)] == OURS["sizes"]["w32 256x192"]
    assert round(parameters / 1e6, 1) == 28.5
    assert {PAGE["network"](load_config(entry.config_spec)) for entry in RECIPES.values()} == set(OURS["sizes"])


def test_the_readmes_table_is_the_records():
    rows = re.findall(r"^\| `(configs/[^`]+)` \|(.*)\|$", (REPOSITORY / "README.md").read_text(), re.MULTILINE)
    assert len(rows) >= 3
    for config, cells in rows:
        *_, parameters, products, ap = (cell.strip() for cell in cells.split("|"))
        sizes = OURS["sizes"][PAGE["network"](load_config(f"{REPOSITORY}/{config}"))]
        assert [float(parameters), float(products)] == sizes
        published_ap = {f"{e.results['AP']:.3f}" for e in published.record() if e.config == config and e.results}
        assert ap in published_ap, config
