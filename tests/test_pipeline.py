"""The sample stream: the same samples for any number of hosts, workers and restarts; whole images in evaluation."""

import json
import pathlib
import shutil

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data_pipelines import create_eval_dataset, create_train_dataset
from data_pipelines.errors import InputError
from data_pipelines.images import decode_image, read_image
from data_pipelines.pipeline import EvalData, TrainData, iterate
from tests.helpers import crops, pipeline_config, with_data

CROPS = crops()


@pytest.fixture(scope="module")
def config(shared):
    """Real COCO and AIC people, merged, in 64x64 crops."""
    return pipeline_config(shared / "data")


@pytest.fixture(scope="module", params=["merge", "combine", "mixed"])
def streamed(request, config):
    """The config of a stream, and its first 60 samples, computed one by one."""
    changed = {
        "merge": config,
        "combine": {**config, "keypoints": "coco_aic"},
        "mixed": with_data(config, mix={"coco": 1.0, "aic": 3.0}, epoch_size=40),
    }
    config = changed[request.param]
    batches = TrainData.load(config, CROPS).batches(1)
    return config, [batches[i] for i in range(60)]


@pytest.fixture(scope="module")
def stream(config):
    """The first 60 samples, computed one by one."""
    data = TrainData.load(config, CROPS)
    batches = data.batches(1)
    return [batches[i] for i in range(60)]


def assert_same(batch, samples):
    for key, array in batch.items():
        np.testing.assert_array_equal(array, np.concatenate([sample[key] for sample in samples]), err_msg=key)


@settings(max_examples=15, deadline=None)
@given(hosts=st.sampled_from([1, 2, 4]), per_host=st.integers(1, 4), step=st.integers(0, 3), data=st.data())
def test_hosts_and_restarts_do_not_change_the_stream(streamed, hosts, per_host, step, data):
    config, stream = streamed
    host = data.draw(st.integers(0, hosts - 1))
    size = hosts * per_host
    config = {**config, "batch_size": size}
    dataset = create_train_dataset(config, CROPS, start_step=step, host=host, hosts=hosts)
    first = step * size + host * per_host
    assume(first + per_host <= len(stream))
    assert_same(dataset[0], stream[first : first + per_host])


@pytest.mark.parametrize("threads", [1, 4])
def test_threads_do_not_change_the_stream(streamed, threads):
    check_stream(*streamed, threads, workers=0)


@pytest.mark.parametrize("streamed", ["mixed"], indirect=True)
@pytest.mark.parametrize(("threads", "workers"), [(1, 2), (2, 4)])
def test_workers_do_not_change_the_stream(streamed, threads, workers):
    check_stream(*streamed, threads, workers)


def check_stream(config, stream, threads, workers):
    dataset = create_train_dataset({**config, "batch_size": 4}, CROPS, start_step=1)
    batches = iterate(dataset, threads=threads, workers=workers)
    try:
        for step in range(1, 15):  # workers take over after eight batches
            assert_same(next(batches), stream[4 * step : 4 * step + 4])
    finally:
        batches.close()


def test_an_epoch_shows_everybody_once_and_epochs_differ(config):
    data = TrainData.load(config, CROPS)
    order = data.order()
    epochs = [[order[i] for i in range(start, start + len(data))] for start in (0, len(data))]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(len(data)))
    assert epochs[0] != epochs[1]


def test_a_mix_draws_by_weight_and_shows_all_of_a_source_before_any_again(config):
    data = TrainData.load(with_data(config, mix={"coco": 1.0, "aic": 3.0}, epoch_size=40), CROPS)
    assert len(data) == 40
    order = data.order()
    people = sum(map(len, data.sources))
    rows = np.array([order[i] for i in range(400)])
    first = rows < len(data.sources[0])
    weights = dict(zip([source.name for source in data.sources], data.weights, strict=True))
    share = weights[data.sources[0].name] / sum(weights.values())
    assert abs(first.mean() - share) < 0.01
    for part, count in ((rows[first], len(data.sources[0])), (rows[~first], people - len(data.sources[0]))):
        for start in range(0, len(part) - count, count):
            assert len(set(part[start : start + count])) == count


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mix": {"coco": 1.0}, "epoch_size": 40}, r"config.data.mix names \['coco'\], config.data.train"),
        ({"mix": {"coco": 1.0, "aic": 0.0}, "epoch_size": 40}, "weights must be above 0"),
        ({"mix": {"coco": 1.0, "aic": 1.0}}, "config.data.epoch_size must say"),
        ({"epoch_size": 40}, "config.data.epoch_size=40: is only for a weighted mix"),
    ],
)
def test_bad_mixes_are_refused(config, changes, message):
    with pytest.raises(InputError, match=message):
        TrainData.load(with_data(config, **changes), CROPS)


def test_seeds_and_indices_differ(config, stream):
    other = create_train_dataset({**config, "seed": 4}, CROPS)[0]
    assert not np.array_equal(other["instance_id"], np.concatenate([s["instance_id"] for s in stream[:8]]))
    # The same person at two indices is seen in two views.
    data = TrainData.load(config, CROPS)
    assert not np.array_equal(data.sample(0, 5)["image"], data.sample(1, 5)["image"])
    assert np.array_equal(data.sample(1, 5)["image"], data.sample(1, 5)["image"])


def test_batches_are_what_the_trainer_expects(config):
    batch = create_train_dataset({**config, "batch_size": 4}, CROPS)[0]
    shapes = {key: (array.shape, array.dtype.name) for key, array in batch.items()}
    assert shapes == {
        "image": ((4, 64, 64, 3), "uint8"),
        "keypoints": ((4, 17, 2), "float32"),
        "visible": ((4, 17), "float32"),
        "index": ((4,), "int64"),
        "source": ((4,), "int32"),
        "instance_id": ((4,), "int64"),
        "valid": ((4,), "bool"),
    }
    assert batch["valid"].all()
    assert set(np.unique(batch["visible"])) <= {0, 1}


def test_keypoints_move_with_the_pixels(config, tmp_path):
    """Where the crop is red, the keypoint is: through flip, rotation, scale and the warp."""
    points = [(x, y) for x in (60, 100, 140) for y in (50, 90, 130)] + [(100, 150)] * 8
    image = np.zeros((200, 200, 3), np.uint8)
    image[points[0][1] - 6 : points[0][1] + 7, points[0][0] - 6 : points[0][0] + 7] = (0, 0, 255)  # BGR: the nose
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.png"), image)
    person = {
        **{"id": 1, "image_id": 1, "bbox": [40, 30, 120, 140], "num_keypoints": 17, "iscrowd": 0, "category_id": 1},
        **{"keypoints": [v for x, y in points for v in (x, y, 2)], "area": 9000},
    }
    content = {"images": [{"id": 1, "file_name": "a.png", "height": 200, "width": 200}], "annotations": [person]}
    (tmp_path / "people.json").write_text(json.dumps(content))
    source = {"coco": {"annotations": "people.json", "images": "images", "keypoints": "coco"}}
    for codec in ("msra", "udp"):
        data = TrainData.load(with_data(config, root=str(tmp_path), train=source), crops(codec=codec))
        compared = 0
        for index in range(40):
            sample = data.sample(index, 0)
            red = sample["image"][..., 0].astype(float)
            assert sample["image"][..., 2].max() == 0  # the crop is RGB
            x, y = sample["keypoints"][0]
            if not (8 < x < 55 and 8 < y < 55):
                continue
            rows, columns = np.indices(red.shape)
            centre = (columns * red).sum() / red.sum(), (rows * red).sum() / red.sum()
            np.testing.assert_allclose(centre, (x, y), atol=0.3)
            compared += 1
        assert compared > 15


def test_flip_swaps_left_and_right(config):
    quiet = ("half_body", "shift_probability", "scale", "rotation_probability")
    still = {**config["data"]["augment"], **dict.fromkeys(quiet, 0.0)}
    plain = TrainData.load(with_data(config, augment={**still, "flip": 0.0}), CROPS)
    mirrored = TrainData.load(with_data(config, augment={**still, "flip": 1.0}), CROPS)
    a, b = plain.sample(0, 0), mirrored.sample(0, 0)
    order = plain.keypoints.flip_indices
    np.testing.assert_array_equal(b["visible"], a["visible"][order])
    # The MSRA warp centres the view on pixel 32, so the mirror image of x is 64 - x.
    np.testing.assert_allclose(b["keypoints"][:, 0], 64 - a["keypoints"][order, 0], atol=1e-3)
    np.testing.assert_allclose(b["keypoints"][:, 1], a["keypoints"][order, 1], atol=1e-3)


@pytest.fixture
def damaged(shared, tmp_path):
    """A copy of the real data in which one COCO image is truncated; returns the config and the file."""
    source = shared / "data/coco"
    config = pipeline_config(tmp_path)
    config["data"]["train"] = {"coco": config["data"]["train"]["coco"]}
    for folder in ("annotations", "train2017"):
        (tmp_path / "coco" / folder).mkdir(parents=True)
        for file in (source / folder).iterdir():
            (tmp_path / "coco" / folder / file.name).write_bytes(file.read_bytes())
    data = TrainData.load(config, CROPS)
    victim = pathlib.Path(data.sources[0].path(10))
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    return config, victim


def test_an_unreadable_image_is_replaced_flagged_and_named(damaged, caplog):
    config, victim = damaged
    data = TrainData.load(config, CROPS)
    order = data.order()
    affected = {i for i in range(len(data)) if pathlib.Path(data.sources[0].path(order[i])) == victim}
    batches = [data.batches(8)[step] for step in range(len(data) // 8)]
    valid = np.concatenate([batch["valid"] for batch in batches])
    assert set(np.flatnonzero(~valid)) == {i for i in affected if i < len(valid)} != set()
    assert np.concatenate([batch["index"] for batch in batches]).tolist() == list(range(len(valid)))
    assert f"{victim}: the JPEG is truncated" in caplog.text
    again = TrainData.load(config, CROPS).batches(8)
    for step, batch in enumerate(batches):
        np.testing.assert_array_equal(again[step]["image"], batch["image"])


def test_the_last_of_many_unreadable_images_is_named(damaged):
    config, victim = damaged
    for file in victim.parent.iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(InputError, match=r"sample 3: 100 images in a row .* the last: .*\.jpg: not an image"):
        TrainData.load(config, CROPS).sample(3, 0)


def test_an_unreadable_image_stops_an_evaluation(damaged):
    config, victim = damaged
    config["data"]["eval"] = {**config["data"]["train"]["coco"], "boxes": ""}
    with pytest.raises(InputError, match=f"{victim.name}: the JPEG is truncated"):
        list(create_eval_dataset(config, CROPS))


def test_images_that_are_none_are_named(tmp_path):
    with pytest.raises(InputError, match=r"none.jpg: no such image"):
        read_image(tmp_path / "none.jpg")
    for data in (b"", b"GIF89a....", b"<html>", b"\xff\xd8\xff\xe0"):
        with pytest.raises(InputError, match=r"x.jpg"):
            decode_image(data, "x.jpg")


@pytest.mark.parametrize("hosts", [1, 2, 3])
def test_evaluation_gives_every_box_once(config, hosts):
    folder = "coco_val4"
    evaluated = {
        "annotations": f"{folder}/annotations/person_keypoints_val2017.json",
        "images": f"{folder}/val2017",
        "keypoints": "coco",
        "boxes": f"{folder}/person_detection_results/COCO_val2017_detections_AP_H_56_person.json",
    }
    config = {**with_data(config, eval=evaluated), "eval": {"batch_size": 12}}
    parts = [create_eval_dataset(config, CROPS, host=host, hosts=hosts) for host in range(hosts)]
    batches = [list(part) for part in parts]
    assert {len(part) for part in batches} == {len(parts[0])}
    rows = [
        (int(b["index"][i]), int(b["image_id"][i]), host)
        for host, part in enumerate(batches)
        for b in part
        for i in np.flatnonzero(b["valid"])
    ]
    assert sorted(index for index, _, _ in rows) == list(range(118))
    for image_id in {image_id for _, image_id, _ in rows}:
        assert len({host for _, i, host in rows if i == image_id}) == 1
    assert all(b["image"].shape == (12 // hosts, 64, 64, 3) for part in batches for b in part)


def test_evaluation_crops_are_the_references(shared, config):
    """Centre, scale and box of the annotated people, as the reference prepares them."""
    golden = json.loads((shared / "reference/golden/transforms.json").read_text())["instances"]
    golden = {case["ann_id"]: case for case in golden if case["dataset"] == "coco"}
    evaluated = {
        "annotations": "coco_val4/annotations/person_keypoints_val2017.json",
        "images": "coco_val4/val2017",
        "keypoints": "coco",
        "boxes": "",
    }
    config = {**with_data(config, eval=evaluated), "eval": {"batch_size": 12}}
    data = EvalData.load(config, crops(256, 192))
    (batch,) = list(data)
    seen = 0
    for i, instance in enumerate(batch["instance_id"].tolist()):
        if instance in golden:
            case = golden[instance]
            np.testing.assert_allclose(batch["box"][i], case["bbox_xyxy"], atol=1e-4)
            np.testing.assert_allclose(batch["center"][i], case["center"], atol=1e-4)
            np.testing.assert_allclose(batch["scale"][i], case["256x192_msra"]["scale_fixed"], atol=1e-3)
            expected = case["256x192_msra"]["transformed_keypoints"]
            np.testing.assert_allclose(batch["keypoints"][i], expected, atol=1e-2)
            seen += 1
    assert seen == len(golden) > 0


def test_sizes_that_do_not_divide_are_refused(config):
    config = {**config, "batch_size": 7, "eval": {"batch_size": 7}}
    with pytest.raises(InputError, match=r"config\.batch_size=7 does not divide by 2 hosts"):
        create_train_dataset(config, CROPS, hosts=2)
    with pytest.raises(InputError, match=r"config\.eval\.batch_size=7 does not divide by 2 hosts"):
        create_eval_dataset(config, CROPS, hosts=2)


def test_absolute_paths_need_no_root(config, shared):
    evaluate, folder = config["data"]["eval"], shared / "data"
    paths = {name: str(folder / evaluate[name]) for name in ("annotations", "images")}
    expected = create_eval_dataset(config, CROPS).images
    for root in ("", "/nowhere"):
        data = {**config["data"], "root": root, "eval": {**evaluate, **paths}}
        assert create_eval_dataset({**config, "data": data}, CROPS).images == expected


def test_missing_images_of_an_evaluation_are_found_before_it(config, shared, tmp_path):
    config = {**config, "data": {**config["data"], "root": str(tmp_path)}}
    with pytest.raises(InputError, match=rf"config\.data\.root={tmp_path}/none: no such folder$"):
        create_eval_dataset({**config, "data": {**config["data"], "root": f"{tmp_path}/none"}}, CROPS)
    shutil.copytree(shared / "data/coco", tmp_path / "coco")
    images = sorted((tmp_path / config["data"]["eval"]["images"]).iterdir())
    total = len(create_eval_dataset(config, CROPS).images)
    for path in images[5:7]:
        path.unlink()
    with pytest.raises(
        InputError, match=rf"{images[5].name}: no such image; 2 of {total} images to evaluate are missing"
    ):
        create_eval_dataset(config, CROPS)
