"""Preparing records, and reading them: nothing is lost on the way, and damage is noticed."""

import concurrent.futures
import hashlib
import json
import os
import pathlib
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
import zlib

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from etils import epath
from tensorflow_datasets.core import example_parser, example_serializer

from data_pipelines import prepare as command
from data_pipelines.annotations import load_instances
from data_pipelines.errors import InputError
from data_pipelines.example import decode_example, encode_example
from data_pipelines.images import ImageSource, Picture, read_image
from data_pipelines.instances import read_index
from data_pipelines.json_files import read_json
from data_pipelines.keypoints import COCO
from data_pipelines.prepare import prepare, upload
from data_pipelines.prepared import INDEX, REPORT, PreparedImages
from data_pipelines.tfds_metadata import FINISHED, dataset_name
from tests.helpers import REPOSITORY


@pytest.fixture(scope="module")
def coco(shared):
    """The 31 training images of COCO, 28 of them with people who are kept."""
    folder = shared / "data/coco"
    return folder / "annotations/person_keypoints_train2017.json", folder / "train2017"


@pytest.fixture(scope="module")
def prepared(coco, tmp_path_factory):
    """Those, in seven shards of cells."""
    output = tmp_path_factory.mktemp("prepared") / "coco_train"
    prepare(*coco, "coco", output, images_per_shard=4)
    return output


@pytest.fixture
def people(tmp_path):
    """Writes `count` small images with a person each, and returns their annotations and folder."""

    def write(count, name="people", seed=0, **changes):
        folder = tmp_path / name
        folder.mkdir()
        images, annotations = [], []
        for number in range(count):
            rng = np.random.default_rng([seed, number])
            pixels = cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (160, 120))
            cv2.imwrite(str(folder / f"{seed}_{number}.jpg"), pixels)
            images.append({"id": 10 + number, "file_name": f"{seed}_{number}.jpg", "height": 120, "width": 160})
            points = [x for k in range(17) for x in (20 + number, 30 + k, 2)]
            annotations.append(
                {"id": 100 + number, "image_id": 10 + number, "bbox": [10, 10, 50, 60], "keypoints": points}
            )
        path = folder / "people.json"
        path.write_text(json.dumps({"images": images, "annotations": annotations} | changes))
        return path, folder

    return write


def contents(folder):
    """SHA-256 by file name of all that a run wrote, but for how long it took."""
    report = read_json(folder / REPORT) | {"seconds": 0}
    digests = {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != REPORT
    }
    return digests | {REPORT: report}


def shard_paths(folder):
    return sorted(folder.glob("*.array_record-*"))


# What is written


def test_original_records_are_the_files(coco, tmp_path):
    output = tmp_path / "coco_train"
    report = prepare(*coco, "coco", output, original=True)
    images, raw = PreparedImages(output), load_instances(*coco, COCO)
    people = read_index(output / INDEX, images)
    assert len(images) == report["images"] == len(raw.files) == 28
    assert isinstance(images, ImageSource)
    for row in range(len(people)):
        picture, path = people.open(row), raw.path(row)
        assert isinstance(picture, Picture)
        assert picture.image == pathlib.Path(path).read_bytes()
        pixels, corner = picture.region(100, 100, 120, 120)
        assert corner == (0, 0)
        np.testing.assert_array_equal(pixels, read_image(path))
    assert report["bytes_before"] == sum(os.path.getsize(coco[1] / file.decode()) for file in raw.files)


def test_cells_hardly_differ_and_give_regions(coco, prepared):
    report, images, raw = read_json(prepared / REPORT), PreparedImages(prepared), load_instances(*coco, COCO)
    people = read_index(prepared / INDEX, images)
    changes = []
    for row in range(len(people)):
        picture, pixels = people.open(row), read_image(raw.path(row))
        assert picture.size == pixels.shape[:2]
        changes.append(np.abs(picture.pixels().astype(int) - pixels).mean())
        x, y = (int(v) for v in people.bbox[row, :2] + people.bbox[row, 2:] / 2)
        region, (left, top) = picture.region(x, y, x + 1, y + 1)
        assert region.size < pixels.size / 20
        np.testing.assert_array_equal(region[y - top, x - left], picture.pixels()[y, x])
    assert max(changes) < 0.15
    assert report["cells"] == 28
    assert report["largest_change"] == pytest.approx(max(changes), abs=1e-3)


def test_index_and_facts_are_the_annotations(coco, prepared):
    report, raw = read_json(prepared / REPORT), load_instances(*coco, COCO)
    people = read_index(prepared / INDEX, PreparedImages(prepared))
    for column in ("files", "file_index", "image_id", "instance_id", "bbox", "keypoints", "box_score"):
        np.testing.assert_array_equal(getattr(people, column), getattr(raw, column))
    assert report["images"] == 28
    assert report["people"] == len(raw) == 86
    assert report["dropped"] == raw.dropped == {"crowds": 5, "without keypoints": 56}
    assert [shard["records"] for shard in report["shards"]] == [4] * 7
    for shard in report["shards"]:
        assert "group_size:1," in ArrayRecordReader(str(prepared / shard["file"])).writer_options_string()
        assert hashlib.sha256((prepared / shard["file"]).read_bytes()).hexdigest() == shard["sha256"]


@pytest.mark.parametrize(
    ("annotations", "images", "keypoints", "golden"),
    [
        ("coco_val4/annotations/person_keypoints_val2017.json", "coco_val4/val2017", "coco", "tests_coco"),
        (
            "aic/annotations/aic_train.json",
            "aic/ai_challenger_keypoint_train_20170902/keypoint_train_images_20170902",
            "aic",
            "tests_aic",
        ),
        (
            "aic/ai_challenger_keypoint_train_20170902/keypoint_train_annotations_20170909.json",
            "aic/ai_challenger_keypoint_train_20170902/keypoint_train_images_20170902",
            "aic",
            None,
        ),
    ],
)
def test_counts_are_the_references(shared, tmp_path, annotations, images, keypoints, golden):
    report = prepare(shared / "data" / annotations, shared / "data" / images, keypoints, tmp_path / "some_train")
    facts = json.loads((shared / "reference/golden/dataset_facts.json").read_text())[golden or "tests_aic"]
    assert report["people"] == facts["kept"]
    assert report["dropped"].get("without keypoints", 0) == facts["dropped_num_keypoints0"]
    assert report["dropped"].get("crowds", 0) == facts["dropped_crowd"]
    if golden:
        people = read_index(tmp_path / "some_train" / INDEX, PreparedImages(tmp_path / "some_train"))
        assert people.instance_id.tolist() == facts["ids"]


def test_all_images(coco, tmp_path):
    annotations, folder = coco
    report = prepare(annotations, folder, "coco", tmp_path / "coco_all", all_images=True)
    images = PreparedImages(tmp_path / "coco_all")
    people = read_index(tmp_path / "coco_all" / INDEX, images)
    assert report["images"] == len(images) == 31
    assert set(people.files) == {image["file_name"].encode() for image in read_json(annotations)["images"]}
    assert len(people) == 86
    for number, file in enumerate(people.files):
        height, width = read_image(folder / file.decode()).shape[:2]
        assert images.open(number, file.decode()).size == (height, width)


def test_tensorflow_datasets_reads_it(coco, prepared):
    builder = tfds.builder_from_directory(prepared)
    assert (builder.info.name, list(builder.info.splits)) == ("coco", ["train"])
    source, raw = builder.as_data_source(split="train"), load_instances(*coco, COCO)
    assert len(source) == builder.info.splits["train"].num_examples == 28
    assert builder.info.splits["train"].num_bytes == sum(path.stat().st_size for path in shard_paths(prepared))
    for number in (0, 5, 27):
        record, rows = source[number], np.flatnonzero(raw.file_index == number)
        file = raw.files[number].decode()
        assert record["file_name"] == file.encode()
        assert record["image_id"] == int(file.removesuffix(".jpg"))
        np.testing.assert_array_equal(record["people"]["id"], raw.instance_id[rows])
        np.testing.assert_array_equal(record["people"]["bbox"], raw.bbox[rows])
        np.testing.assert_array_equal(record["people"]["keypoints"], raw.keypoints[rows])
        pixels = read_image(coco[1] / file)
        assert (record["height"], record["width"], 3) == pixels.shape == record["image"].shape
        assert np.abs(record["image"][..., ::-1].astype(int) - pixels).mean() < 0.15
    encoded = builder.as_data_source(split="train", decoders={"image": tfds.decode.SkipDecoding()})
    assert encoded[3]["image"] == PreparedImages(prepared).open(3).image


def test_records_without_people_are_read_by_tensorflow_datasets(people, tmp_path):
    annotations, folder = people(3)
    content = read_json(annotations)
    annotations.write_text(json.dumps(content | {"annotations": content["annotations"][:1]}))
    prepare(annotations, folder, "coco", tmp_path / "few_val", all_images=True)
    records = list(tfds.builder_from_directory(tmp_path / "few_val").as_data_source(split="val"))
    assert [len(record["people"]["keypoints"]) for record in records] == [1, 0, 0]


def test_examples_are_tensorflow_datasets_own():
    specs = tfds.features.FeaturesDict(
        {"a": tfds.features.Tensor(shape=(None, 2), dtype=np.float32), "b": np.int64, "c": tfds.features.Text()}
    ).get_serialized_info()
    values = {"a": np.array([[1.5, -2], [3e30, 0]], np.float32), "b": -(2**63), "c": b"x" * 300}
    parsed = example_parser.ExampleParserNp(specs).parse_example(encode_example(values))
    np.testing.assert_array_equal(parsed.pop("a"), values["a"])
    assert parsed == {"b": values["b"], "c": values["c"]}
    theirs = example_serializer.ExampleSerializer(specs).serialize_example(values)
    expected = {"a": values["a"].ravel().tolist(), "b": [values["b"]], "c": values["c"]}
    assert (
        decode_example(theirs, ("a", "b", "c")) == expected == decode_example(encode_example(values), ("a", "b", "c"))
    )
    for stop in range(len(theirs)):
        with pytest.raises(ValueError, match="example"):
            decode_example(theirs[:stop], ("a", "b", "c"))


def test_training_from_files_does_not_import_tensorflow_datasets():
    check = "import sys, data_pipelines.pipeline; sys.exit('tensorflow_datasets' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], cwd=REPOSITORY, check=True)


@pytest.mark.parametrize(
    ("folder", "names"),
    [
        ("coco_train", ("coco", "train")),
        ("coco_aic_val2017", ("coco_aic", "val2017")),
        ("COCO-train", ("coco", "train")),
        ("people", ("images", "people")),
        ("2017_val", ("images_2017", "val")),
        ("___", ("images", "train")),
    ],
)
def test_names(folder, names):
    assert dataset_name(pathlib.Path("x") / folder) == names


# Reading at the same time, elsewhere, and what is damaged


def test_threads_and_pickles_read_the_same(prepared):
    images = PreparedImages(prepared)
    alone = [images.open(number).pixels() for number in range(len(images))]
    copy = pickle.loads(pickle.dumps(images))
    assert len(pickle.dumps(images)) < 1000
    order = [number % 28 for number in range(0, 28 * 30, 5)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for number, pixels in zip(order, pool.map(lambda k: copy.open(k).pixels(), order), strict=True):
            np.testing.assert_array_equal(pixels, alone[number])


@pytest.fixture
def damaged(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / "coco_train")


@pytest.mark.parametrize("kept", [0, 1, 200, 0.3, 0.9, -70000, -1])
def test_shard_that_was_cut_off(damaged, kept):
    path = shard_paths(damaged)[3]
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    images = PreparedImages(damaged)
    with pytest.raises(InputError, match=rf"^\S+{path.name}: record 1 \(a.jpg\): the shard is damaged: [^\n]+$"):
        images.open(13, "a.jpg")
    images.open(11).pixels()  # of the shard before


def test_shard_that_is_missing(damaged):
    path = shard_paths(damaged)[6]
    path.unlink()
    with pytest.raises(InputError, match=rf"{path.name}: record 0: the shard cannot be opened \(No such file[^\n]+$"):
        PreparedImages(damaged).open(24)


def test_changed_bits_never_change_pixels(damaged):
    path = shard_paths(damaged)[2]
    whole = path.read_bytes()
    expected = [PreparedImages(damaged).open(number).image for number in range(8, 12)]
    messages = []
    for at in np.linspace(0, len(whole) - 1, 120).astype(int):
        data = bytearray(whole)
        data[at] ^= 1 << at % 8
        path.write_bytes(data)
        for number, image in zip(range(8, 12), expected, strict=True):
            try:
                assert PreparedImages(damaged).open(number).image == image
            except InputError as error:
                messages.append((f"{path}: record {number - 8}", str(error)))
    assert len(messages) > 50
    assert all(message.startswith(where) and "\n" not in message for where, message in messages)


def test_record_that_is_not_what_it_says(people, tmp_path):
    """What only the CRC-32 tells from the right image."""
    annotations, folder = people(2)
    output = tmp_path / "few_train"
    prepare(annotations, folder, "coco", output)
    pictures = [PreparedImages(output).open(number) for number in range(2)]
    image = bytearray(pictures[1].image)
    image[len(image) // 2] ^= 1
    writer = ArrayRecordWriter(str(shard_paths(output)[0]), "group_size:1,uncompressed")
    for number, data in enumerate((pictures[0].image, bytes(image))):
        fields = {"image": data, "file_name": b"a.jpg", "height": 120, "width": 160, "cells": True}
        writer.write(encode_example(fields | {"crc32": zlib.crc32(pictures[number].image)}))
    writer.close()
    PreparedImages(output).open(0).pixels()
    with pytest.raises(InputError, match=r"record 1 \(a.jpg\): .*CRC-32"):
        PreparedImages(output).open(1)


def test_record_of_another_file(prepared):
    with pytest.raises(InputError, match=r"record 1 \(\d+.jpg\): should be 7.jpg"):
        PreparedImages(prepared).open(1, "7.jpg")


def test_folder_that_is_not_prepared(damaged, tmp_path):
    with pytest.raises(InputError, match=r"absent: .*does not exist; run `python -m data_pipelines.prepare "):
        PreparedImages(tmp_path / "absent")
    (damaged / FINISHED).unlink()
    with pytest.raises(InputError, match=r"coco_train: .*is not finished; run `python -m data_pipelines.prepare "):
        PreparedImages(damaged)
    with pytest.raises(InputError, match="^gs://bucket/x: records are read from disks"):
        PreparedImages("gs://bucket/x")


# Running it


def start(*arguments):
    line = [sys.executable, "-m", "data_pipelines.prepare", *map(str, arguments)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    # Where tests run in the background SIGINT is ignored, and what they start would inherit that.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(line, cwd=REPOSITORY, **options)
    finally:
        signal.signal(signal.SIGINT, previous)


@pytest.mark.parametrize("moment", ["within a shard", "after two shards", "interrupted"])
def test_continues_where_it_was_stopped(coco, tmp_path, moment):
    annotations, folder = coco
    output = tmp_path / "coco_train"
    process = start("--annotations", annotations, "--images", folder, "--keypoints", "coco", "--output", output,
                    "--images-per-shard", 3, "--processes", 2)  # fmt: skip
    pattern, count = (".*.partial*", 1) if moment == "within a shard" else ("shards/*.json", 2)
    while process.poll() is None and len(list(output.glob(pattern))) < count:
        time.sleep(0.002)
    if moment == "interrupted":
        os.killpg(process.pid, signal.SIGINT)  # a terminal tells all processes
    else:
        process.kill()
    _, error = process.communicate(timeout=30)
    if moment == "interrupted":
        assert process.returncode == 130
        assert error == "stopped; the same command continues with the first shard that is not finished\n"
        assert not list(output.glob(".*.partial*"))
    else:
        assert process.returncode == -signal.SIGKILL
    assert not (output / FINISHED).exists()
    with pytest.raises(InputError, match="is not finished"):
        PreparedImages(output)

    done = [output / read_json(path)["file"] for path in (output / "shards").glob("*.json")]
    assert len(done) >= (0 if moment == "within a shard" else 2)
    written = [path.stat().st_mtime_ns for path in done]
    prepare(annotations, folder, "coco", output, images_per_shard=3)
    assert [path.stat().st_mtime_ns for path in done] == written
    prepare(annotations, folder, "coco", tmp_path / "once/coco_train", images_per_shard=3)
    assert contents(output) == contents(tmp_path / "once/coco_train")


def test_runs_again_only_what_changed(people, tmp_path):
    annotations, folder = people(8)
    output = tmp_path / "few_train"

    def run(**options):
        prepare(annotations, folder, "coco", output, images_per_shard=2, **options)
        return [path.stat().st_mtime_ns for path in shard_paths(output)]

    first = run()
    assert run() == first
    cv2.imwrite(str(folder / "0_3.jpg"), np.full((120, 160, 3), 9, np.uint8))
    assert [a == b for a, b in zip(run(), first, strict=True)] == [True, False, True, True]
    np.testing.assert_array_equal(PreparedImages(output).open(3).pixels(), 9)

    second, shard = run(), shard_paths(output)[2]
    data = shard.read_bytes()
    shard.write_bytes(data[:3000] + b"?" + data[3001:])
    assert [a == b for a, b in zip(run(), second, strict=True)] == [True, True, False, True]
    assert shard.read_bytes() == data
    assert not set(run(original=True)) & set(second)
    content = read_json(annotations)
    annotations.write_text(json.dumps(content | {"annotations": content["annotations"][:7]}))
    prepare(annotations, folder, "coco", output, images_per_shard=4)
    assert len(read_index(output / INDEX, PreparedImages(output))) == 7
    assert [path.name[-14:] for path in shard_paths(output)] == ["00000-of-00002", "00001-of-00002"]
    assert len(list((output / "shards").iterdir())) == 2


def test_processes_write_the_same_bytes(people, tmp_path):
    annotations, folder = people(5)
    for processes in (1, 2):
        prepare(annotations, folder, "coco", tmp_path / f"{processes}/few", processes=processes, images_per_shard=2)
    assert contents(tmp_path / "1/few") == contents(tmp_path / "2/few")


def test_worker_that_dies(people, tmp_path):
    annotations, folder = people(400)
    process = start("--annotations", annotations, "--images", folder, "--keypoints", "coco", "--processes", 2,
                    "--output", tmp_path / "few_train", "--images-per-shard", 200)  # fmt: skip
    while process.poll() is None and not (partial := list((tmp_path / "few_train").glob(".*.partial*"))):
        time.sleep(0.002)
    os.kill(int(re.search(r"\.(\d+)-\d+\.partial", partial[0].name)[1]), signal.SIGKILL)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 1
    assert error.startswith("error: a worker process was killed")


def test_one_command_at_a_time(people, tmp_path):
    annotations, folder = people(1)
    with command._locked(tmp_path / "few"), pytest.raises(InputError, match="few: another command is preparing"):
        prepare(annotations, folder, "coco", tmp_path / "few")


def test_images_that_cannot_be_used(people, tmp_path):
    annotations, folder = people(10)
    (folder / "0_2.jpg").write_bytes((folder / "0_2.jpg").read_bytes()[:-400])
    (folder / "0_5.jpg").unlink()
    cv2.imwrite(str(folder / "0_6.jpg"), np.zeros((120, 161, 3), np.uint8))
    (folder / "0_9.jpg").write_bytes(b"no image")
    with pytest.raises(
        InputError, match=r"^\S+: 4 of 10 images cannot be used, .*0_2.jpg: the JPEG is truncated [^\n]+$"
    ):
        prepare(annotations, folder, "coco", tmp_path / "few_train", max_unreadable=0.3)
    report = prepare(annotations, folder, "coco", tmp_path / "few_train", max_unreadable=0.4, images_per_shard=3)
    assert (report["images"], report["people"]) == (6, 6)
    assert (report["unreadable_images"], report["people_on_unreadable_images"]) == (4, 4)
    assert [report["unreadable"][f"0_{number}.jpg"].split(": ", 1)[1] for number in (5, 6, 9)] == [
        "no such image",
        "the image is 161 x 120, the annotation file says 160 x 120",
        "not an image that can be decoded (8 bytes); JPEG, PNG, WebP, BMP, TIFF, PNM, GIF and AVIF can be",
    ]
    assert "truncated" in report["unreadable"]["0_2.jpg"]
    kept = read_index(tmp_path / "few_train" / INDEX, PreparedImages(tmp_path / "few_train"))
    assert kept.instance_id.tolist() == [100, 101, 103, 104, 107, 108]
    for row in range(len(kept)):
        assert kept.files[kept.file_index[row]].decode() == f"0_{kept.instance_id[row] - 100}.jpg"
        assert (
            np.abs(
                kept.open(row).pixels().astype(int) - read_image(folder / f"0_{kept.instance_id[row] - 100}.jpg")
            ).mean()
            < 1
        )


def test_run_that_fails_leaves_no_finished_folder(people, tmp_path):
    annotations, folder = people(3)
    prepare(annotations, folder, "coco", tmp_path / "few_train")
    (folder / "0_1.jpg").unlink()
    with pytest.raises(InputError, match="1 of 3 images cannot be used"):
        prepare(annotations, folder, "coco", tmp_path / "few_train")
    with pytest.raises(InputError, match="is not finished"):
        PreparedImages(tmp_path / "few_train")


def test_image_that_cells_would_change(people, tmp_path):
    annotations, folder = people(2)
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    data = cv2.imencode(".jpg", noise, [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420])[1]
    (folder / "0_1.jpg").write_bytes(data.tobytes())
    report = prepare(annotations, folder, "coco", tmp_path / "few_train")
    assert (report["images"], report["cells"]) == (2, 1)
    picture = PreparedImages(tmp_path / "few_train").open(1)
    assert picture.image == data.tobytes()
    np.testing.assert_array_equal(picture.region(3, 3, 5, 5)[0], read_image(folder / "0_1.jpg"))


def test_the_same_images_elsewhere_are_found(people, tmp_path):
    annotations, folder = people(6, "train")
    prepare(annotations, folder, "coco", tmp_path / "few_train", images_per_shard=4)
    other, other_folder = people(5, "val", seed=1)
    shutil.copy(folder / "0_1.jpg", other_folder / "1_3.jpg")  # the content, of another name
    content = other.read_text().replace("1_4.jpg", "0_0.jpg")  # the name, of other content
    other.write_text(content)
    shutil.copy(other_folder / "1_4.jpg", other_folder / "0_0.jpg")
    report = prepare(other, other_folder, "coco", tmp_path / "few_val", against=[tmp_path / "few_train"])
    assert report["also_in"] == {
        str(tmp_path / "few_train"): {"by_name": 1, "by_content": 1, "first": ["0_0.jpg", "1_3.jpg"]}
    }
    alone = prepare(other, other_folder, "coco", tmp_path / "few_val", against=[])
    assert alone["also_in"] == {}
    with pytest.raises(InputError, match="absent: the prepared folder does not exist"):
        prepare(other, other_folder, "coco", tmp_path / "few_val", against=[tmp_path / "absent"])


def test_folder_that_cannot_be_written(people, tmp_path):
    annotations, folder = people(1)
    with pytest.raises(InputError, match="people: holds other files"):
        prepare(annotations, folder, "coco", folder)
    with pytest.raises(InputError, match="--processes=0"):
        prepare(annotations, folder, "coco", tmp_path / "few", processes=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file/few: cannot be written"):
        prepare(annotations, folder, "coco", tmp_path / "file/few")


def test_command(people, tmp_path, capsys):
    annotations, folder = people(3)
    line = ["--annotations", annotations, "--images", folder, "--keypoints", "coco", "--processes", "1"]
    assert command.main([*map(str, line), "--output", str(tmp_path / "few_train")]) == 0
    assert "3 images, 3 people in 1 shards" in capsys.readouterr().out
    line[1] = tmp_path / "absent.json"
    assert command.main([*map(str, line), "--output", str(tmp_path / "few_val")]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'absent.json'}: no such file\n"


def test_upload(prepared, tmp_path, monkeypatch):
    target = tmp_path / "bucket/coco_train"
    target.mkdir(parents=True)
    (target / FINISHED).write_text("of an earlier one")
    copied = []
    copy = epath.Path(target).__class__.copy

    def watched(self, destination, overwrite):
        assert not (target / FINISHED).exists()
        copied.append(os.path.relpath(destination, target))
        return copy(self, destination, overwrite)

    monkeypatch.setattr(epath.Path(target).__class__, "copy", watched)
    upload(prepared, epath.Path(target))
    assert copied[-1] == FINISHED
    expected = contents(prepared)
    expected.pop(".lock")
    assert contents(target) == expected
    assert PreparedImages(target).open(27).size == PreparedImages(prepared).open(27).size


def test_an_image_that_ai_challengers_file_lists_twice_shifts_no_ids(tmp_path):
    """Ids are positions in the file, in the records as in the index."""
    people = {"human_annotations": {"human1": [10, 10, 60, 100]}}
    people["keypoint_annotations"] = {"human1": [v for k in range(14) for v in (20 + 2 * k, 20 + 4 * k, 1)]}
    (tmp_path / "aic.json").write_text(json.dumps([{"image_id": name, **people} for name in "aab"]))
    for name in "ab":
        cv2.imwrite(str(tmp_path / f"{name}.jpg"), np.zeros((120, 80, 3), np.uint8))
    report = prepare(tmp_path / "aic.json", tmp_path, "aic", tmp_path / "aic_train")
    assert (report["images"], report["people"]) == (2, 3)
    (shard,) = (tmp_path / "aic_train").glob("*.array_record*")
    records = [decode_example(record, ("image_id",)) for record in ArrayRecordReader(str(shard)).read_all()]
    assert [int(record["image_id"][0]) for record in records] == [0, 2]
