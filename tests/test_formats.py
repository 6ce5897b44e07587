"""Raw files and prepared records give the same stream."""

import shutil

import numpy as np
import pytest

from data_pipelines import create_eval_dataset, create_train_dataset
from data_pipelines.errors import InputError
from data_pipelines.pipeline import TrainData, iterate
from data_pipelines.prepare import prepare
from tests.helpers import crops, pipeline_config, with_data

VAL = "coco_val4/annotations/person_keypoints_val2017.json", "coco_val4/val2017"
CROPS = crops(256, 192)


@pytest.fixture(scope="module")
def config(shared):
    """Real COCO and AIC people in 256x192 crops, evaluated with a real detector's boxes."""
    config = {**pipeline_config(shared / "data"), "eval": {"batch_size": 16}}
    boxes = "coco_val4/person_detection_results/COCO_val2017_detections_AP_H_56_person.json"
    config["data"]["eval"].update({"annotations": VAL[0], "images": VAL[1], "boxes": boxes})
    return config


@pytest.fixture(scope="module")
def prepared(config, shared, tmp_path_factory):
    """A function from a mode to the config of records prepared in it."""
    root = tmp_path_factory.mktemp("prepared")

    def of(mode):
        sources = {}
        for name, source in config["data"]["train"].items():
            folder = root / mode / f"{name}_train"
            paths = (shared / "data" / source[key] for key in ("annotations", "images"))
            if not folder.exists():
                prepare(*paths, source["keypoints"], folder, original=mode == "original", images_per_shard=10)
            sources[name] = {**source, "prepared": str(folder)}
        val = root / mode / "coco_val"
        if not val.exists():
            paths = (shared / "data" / path for path in VAL)
            prepare(*paths, "coco", val, original=mode == "original", all_images=True, images_per_shard=3)
        evaluated = {**config["data"]["eval"], "prepared": str(val)}
        return with_data(config, format="tfds", train=sources, eval=evaluated)

    return of


def pixels_apart(ours, theirs):
    """The mean difference in grey levels of two streams that are equal in all else."""
    apart = []
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            if key != "image":
                np.testing.assert_array_equal(a[key], b[key], err_msg=key)
        apart.append(np.abs(a["image"].astype(int) - b["image"]).mean())
    return np.mean(apart)


@pytest.mark.parametrize(("mode", "least", "most"), [("original", 0, 0), ("cells", 1e-3, 0.3)])
def test_training_samples_are_the_files(config, prepared, mode, least, most):
    ours, theirs = (create_train_dataset(c, CROPS) for c in (prepared(mode), config))
    assert least <= pixels_apart([ours[i] for i in range(12)], [theirs[i] for i in range(12)]) <= most


@pytest.mark.parametrize(("mode", "least", "most"), [("original", 0, 0), ("cells", 1e-3, 0.3)])
@pytest.mark.parametrize("boxes", ["detector", "annotated"])
def test_evaluation_crops_are_the_files(config, prepared, mode, least, most, boxes):
    both = [prepared(mode), config]
    if boxes == "annotated":
        both = [with_data(c, eval={**c["data"]["eval"], "boxes": ""}) for c in both]
    ours, theirs = (list(create_eval_dataset(c, CROPS)) for c in both)
    assert least <= pixels_apart(ours, theirs) <= most
    assert sum(batch["valid"].sum() for batch in ours) == (118 if boxes == "detector" else 12)


def test_workers_read_records(prepared):
    dataset = create_train_dataset(prepared("cells"), CROPS)
    batches = iterate(dataset, threads=2, workers=2)
    try:
        pixels_apart([next(batches) for _ in range(12)], [dataset[i] for i in range(12)])
    finally:
        batches.close()


def test_a_truncated_shard_is_named_and_its_people_replaced(prepared, tmp_path, caplog):
    config = prepared("cells")
    folder = tmp_path / "coco_train"
    coco = config["data"]["train"]["coco"]
    shutil.copytree(coco["prepared"], folder)
    shard = sorted(folder.glob("*.array_record-*"))[0]
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    source = {"coco": {**coco, "prepared": str(folder)}}
    data = TrainData.load(with_data(config, train=source, mix={"coco": 0.0}), CROPS)
    batch = data.batches(32)[0]
    assert 0 < (~batch["valid"]).sum() < 32
    assert f"{shard.name}: record" in caplog.text
    assert "the shard is damaged" in caplog.text


def test_folders_that_do_not_fit_are_named(config, prepared, tmp_path):
    coco = config["data"]["train"]["coco"]
    missing = {"coco": {**coco, "prepared": str(tmp_path / "none")}}
    with pytest.raises(InputError, match=r"none: the prepared folder does not exist; run `python -m data_pipelines"):
        TrainData.load(with_data(config, format="tfds", train=missing, mix={"coco": 0.0}), CROPS)
    aic_for_coco = {"coco": {**coco, "prepared": prepared("cells")["data"]["train"]["aic"]["prepared"]}}
    with pytest.raises(InputError, match="its people have 14 keypoints, set 'coco' has 17"):
        TrainData.load(with_data(config, format="tfds", train=aic_for_coco, mix={"coco": 0.0}), CROPS)
    with pytest.raises(InputError, match="config.data.format='zip'"):
        TrainData.load(with_data(config, format="zip"), CROPS)
