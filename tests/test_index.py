"""Annotations at scale: JSON in pieces, columns that are memory-mapped and shared, a cache that notices changes."""

import json
import os
import pickle
import re
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines import json_files
from data_pipelines.annotations import cached_instances, load_instances
from data_pipelines.coco_files import read_results
from data_pipelines.errors import InputError
from data_pipelines.images import ImageFiles
from data_pipelines.instances import read_index, write_index
from data_pipelines.json_files import read_json, stream_json
from data_pipelines.keypoints import COCO, COCO_AIC, KeypointMapping
from hrnet_jax.config import from_json
from hrnet_jax.inference.boxes import read_boxes
from hrnet_jax.weights.torch_files import read as read_tensors

COLUMNS = ("files", "file_index", "image_id", "instance_id", "bbox", "keypoints", "box_score")

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(
    content=st.lists(values, max_size=5) | st.dictionaries(st.text(min_size=1), values, max_size=5),
    indent=st.booleans(),
    ascii_only=st.booleans(),
    window=st.sampled_from([1, 2, 7, 2**20]),
)
def test_pieces_are_the_whole(tmp_path_factory, content, indent, ascii_only, window):
    path = tmp_path_factory.getbasetemp() / "pieces.json"
    text = json.dumps(content, indent=2 if indent else None, ensure_ascii=ascii_only)
    path.write_bytes(text.encode("utf-8", "replace"))
    content = json.loads(path.read_bytes())
    keys = set()
    with mock.patch.object(json_files, "_WINDOW", window):
        pieces = list(stream_json(path, keys))
    assert keys == ({key for key in content if isinstance(content[key], list)} if isinstance(content, dict) else set())
    if isinstance(content, list):
        assert pieces == [("", element) for element in content]
    else:
        expected = []
        for key, value in content.items():
            expected += [(key, element) for element in value] if isinstance(value, list) else [(key, value)]
        assert pieces == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        '{"a"',
        '{"a": }',
        '{"a": [1, 2}',
        '{"a": [1 2]}',
        "[1, 2",
        "[1, 2,]",
        '{"a": 1,}',
        "[1] 2",
        '{"a": 1 "b": 2}',
        "{1: 2}",
        "nul",
        "\xff",
        "[" * 200_000,
    ],
)
def test_what_is_not_json_is_one_line_with_the_file(tmp_path, text):
    path = tmp_path / "bad.json"
    path.write_text(text, encoding="latin-1")
    for window in (3, 2**20):
        with (
            mock.patch.object(json_files, "_WINDOW", window),
            pytest.raises(InputError, match=r"bad\.json: not JSON") as error,
        ):
            list(stream_json(path))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ['{"a": [1,\n2,\n 3, x]}', '[\n\n"a", {"b": 1 2}]', "[1]\n\n  2", '["a\nb"]'])
def test_errors_tell_the_place(tmp_path, text):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(json.JSONDecodeError) as whole:
        json.loads(text)
    place = re.escape(str(whole.value)[str(whole.value).index("line") :])
    for window in (1, 5, 2**20):
        with mock.patch.object(json_files, "_WINDOW", window), pytest.raises(InputError, match=place):
            list(stream_json(tmp_path / "bad.json"))


def test_what_follows_a_piece_is_not_read_for_it(tmp_path):
    path = tmp_path / "long.json"
    path.write_bytes(b'{"a": [1.5, ' + b" " * 2**22 + b"\xff")
    pieces = stream_json(path)
    assert next(pieces) == ("a", 1.5)
    with pytest.raises(InputError, match="long.json: not JSON"):
        next(pieces)


@pytest.fixture
def files(shared):
    return shared / "data/coco/annotations/person_keypoints_train2017.json", shared / "data/coco/train2017"


def assert_same(a, b):
    for column in COLUMNS:
        np.testing.assert_array_equal(getattr(a, column), getattr(b, column), err_msg=column)


def test_the_cached_columns_are_the_file_s(files, tmp_path):
    direct = load_instances(*files, COCO)
    filled, found = (cached_instances(tmp_path / "cache", *files, COCO) for _ in range(2))
    for instances in (filled, found):
        assert_same(instances, direct)
        assert isinstance(instances.keypoints, np.memmap)
        assert instances.path(5) == direct.path(5)
        assert instances.dropped == direct.dropped == {"crowds": 5, "without keypoints": 56}
    assert len(list((tmp_path / "cache/annotations").iterdir())) == 1


def test_pickled_instances_carry_no_columns(files, tmp_path):
    instances = cached_instances(tmp_path, *files, COCO).mapped(KeypointMapping(COCO, COCO_AIC))
    data = pickle.dumps(instances)
    assert len(data) < 10_000 < len(pickle.dumps(load_instances(*files, COCO)))
    again = pickle.loads(data)
    assert isinstance(again.bbox, np.memmap)
    assert_same(again, instances)
    np.testing.assert_array_equal(again.points(3), instances.points(3))
    assert again.points(3).shape == (19, 3)


def test_a_changed_file_is_read_again(files, tmp_path):
    copy = tmp_path / "people.json"
    content = json.loads(files[0].read_text())
    copy.write_text(json.dumps(content))
    before = cached_instances(tmp_path / "cache", copy, files[1], COCO)
    kept = {int(i) for i in before.instance_id[:3]}
    content["annotations"] = [a for a in content["annotations"] if a["id"] in kept]
    copy.write_text(json.dumps(content))
    assert len(cached_instances(tmp_path / "cache", copy, files[1], COCO)) == 3


@pytest.mark.parametrize("damage", ["truncated", "missing", "version", "changed"])
def test_a_damaged_cache_is_made_anew(files, tmp_path, damage, caplog):
    cached_instances(tmp_path, *files, COCO)
    (folder,) = (tmp_path / "annotations").iterdir()
    if damage == "truncated":
        os.truncate(folder / "keypoints.npy", 1000)
    elif damage == "changed":
        with open(folder / "keypoints.npy", "r+b") as file:
            file.seek(-1000, os.SEEK_END)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1]))
    elif damage == "missing":
        (folder / "bbox.npy").unlink()
    else:
        (folder / "index.json").write_text('{"format_version": 0}')
    assert_same(cached_instances(tmp_path, *files, COCO), load_instances(*files, COCO))
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith(f"{folder}: damaged (")
    caplog.clear()
    cached_instances(tmp_path, *files, COCO)
    assert not caplog.records


def test_the_digest_is_of_the_people_alone(coco_people, tmp_path):
    annotations, images = coco_people(tmp_path / "a")
    digest = load_instances(annotations, images, COCO).digest()
    for _ in range(2):
        assert cached_instances(tmp_path / "cache", annotations, images, COCO).digest() == digest
    assert load_instances(*coco_people(tmp_path / "b"), COCO).digest() == digest
    for change in ({"id": 8}, {"bbox": [1, 2, 30, 41]}, {"keypoints": [5, 6, 2] * 16 + [5, 6, 1]}):
        assert load_instances(*coco_people(tmp_path / "c", **change), COCO).digest() != digest
    assert load_instances(*coco_people(tmp_path / "d", name="b.jpg"), COCO).digest() != digest


def test_an_index_of_other_content_is_refused(coco_people, tmp_path):
    people, others = (load_instances(*coco_people(tmp_path / str(n), id=n), COCO) for n in (1, 2))
    write_index(tmp_path / "index", people)
    write_index(tmp_path / "other", others)
    (tmp_path / "other/instance_id.npy").replace(tmp_path / "index/instance_id.npy")
    with pytest.raises(ValueError, match="not what was written"):
        read_index(tmp_path / "index", ImageFiles(str(tmp_path)))


@pytest.fixture
def coco_people():
    """Writes a COCO file of one person below a folder; returns its path and the image folder."""

    def write(root, name="a.jpg", **fields):
        (root / "images").mkdir(parents=True, exist_ok=True)
        (root / "images" / name).write_bytes(b"not read here")
        person = {"id": 3, "image_id": 7, "bbox": [1, 2, 30, 40], "keypoints": [5, 6, 2] * 17, **fields}
        content = {"images": [{"id": 7, "file_name": name}], "annotations": [person]}
        (root / "people.json").write_text(json.dumps(content))
        return root / "people.json", root / "images"

    return write


def test_a_byte_order_mark_is_no_part_of_a_file(coco_people, tmp_path):
    annotations, images = coco_people(tmp_path)
    annotations.write_bytes(b"\xef\xbb\xbf" + annotations.read_bytes())
    assert len(load_instances(annotations, images, COCO)) == 1
    assert next(stream_json(annotations)) == ("images", read_json(annotations)["images"][0])


def test_a_pipe_is_no_file(tmp_path):
    """Opening one would wait for ever."""
    for name, read in {
        "people.json": lambda path: list(stream_json(path)),
        "config.json": from_json,
        "metrics.json": read_json,
        "results.json": read_results,
        "boxes.npy": lambda path: read_boxes(str(path), COCO),
        "weights.pth": read_tensors,
    }.items():
        os.mkfifo(tmp_path / name)
        with pytest.raises(InputError, match=f"{name}: not a regular file"):
            read(tmp_path / name)
    with pytest.raises(InputError, match="/dev/zero: not a regular file"):
        read_json("/dev/zero")
