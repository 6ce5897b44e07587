"""Annotations at scale: JSON in pieces, columns that are memory-mapped and shared, a cache that notices changes."""

import json
import os
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.annotations import cached_instances, load_instances
from data_pipelines.errors import InputError
from data_pipelines.json_files import stream_json
from data_pipelines.keypoints import COCO, COCO_AIC, KeypointMapping

COLUMNS = ("files", "file_index", "image_id", "instance_id", "bbox", "keypoints", "box_score")

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(
    content=st.lists(values, max_size=5) | st.dictionaries(st.text(min_size=1), values, max_size=5),
    indent=st.booleans(),
)
def test_pieces_are_the_whole(tmp_path_factory, content, indent):
    path = tmp_path_factory.getbasetemp() / "pieces.json"
    path.write_text(json.dumps(content, indent=2 if indent else None))
    pieces = list(stream_json(path))
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
    with pytest.raises(InputError, match=r"bad\.json: not JSON") as error:
        list(stream_json(path))
    assert "\n" not in str(error.value)


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


@pytest.mark.parametrize("damage", ["truncated", "missing", "version"])
def test_a_damaged_cache_is_made_anew(files, tmp_path, damage):
    cached_instances(tmp_path, *files, COCO)
    (folder,) = (tmp_path / "annotations").iterdir()
    if damage == "truncated":
        os.truncate(folder / "keypoints.npy", 1000)
    elif damage == "missing":
        (folder / "bbox.npy").unlink()
    else:
        (folder / "index.json").write_text('{"format_version": 0}')
    assert_same(cached_instances(tmp_path, *files, COCO), load_instances(*files, COCO))
