"""`make reproduce`, rehearsed on stand-ins: random weights in MMPose's format, the four real images, a local server."""

import hashlib
import json
import sys

import numpy as np
import pytest

from benchmarks import reproduce
from data_pipelines.json_files import read_json
from hrnet_jax.config import load_config
from hrnet_jax.models import create_model, state_dict
from hrnet_jax.weights import torch_models
from tests.helpers import logging_as_before
from tests.torch_writer import save_torch
from tests.weights_server import serve

CONFIG = """
from configs import coco

def get_config(arg=None):
    config = coco.get_config("runlocal,udp")
    config.model.variant = "micro"
    return config
"""
BOXES = "COCO_val2017_detections_AP_H_56_person.json"
OTHER = "td-hm_hrnet-w32_8xb64-210e_coco-256x192"  # published, and not at hand


@pytest.fixture
def server():
    with serve() as server:
        yield server


@pytest.fixture
def place(shared, server, tmp_path, monkeypatch):
    """Data with the boxes of AP 56.4, an empty cache, and three published stand-ins; `publish` changes their AP."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/coco").symlink_to(shared / "data/coco_val4")
    (tmp_path / "micro.py").write_text(CONFIG)
    monkeypatch.setenv("HRNET_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HRNET_JAX_MODELS", str(tmp_path / "models.json"))
    (tmp_path / "weights").mkdir()
    params, stats = state_dict(create_model(load_config(f"{tmp_path}/micro.py")))
    for seed, name in enumerate(("first", "second", "third")):
        write_weights(tmp_path / "weights" / f"{name}.pth", {**params, **stats}, seed)
    publish(tmp_path, server, {"first": 0.0, "second": 0.0, "third": 0.0})
    return tmp_path


def write_weights(path, arrays, seed):
    rng = np.random.default_rng(seed)
    shapes = {name: torch_models.torch_shape(array).shape for name, array in arrays.items()}
    save_torch(
        path, {name: np.abs(rng.normal(0, 0.1, s)).astype(np.float32) for name, s in shapes.items()}, nested=True
    )


def publish(place, server, results):
    models = []
    for name, ap in results.items():
        content = (place / "weights" / f"{name}.pth").read_bytes()
        file = {"file": f"{name}.pth", "sha256": hashlib.sha256(content).hexdigest()[:8], "published": {"AP": ap}}
        file["urls"] = [f"{server.address}/{mirror}/{name}.pth" for mirror in "ab"]
        models.append({"name": name, "config": "micro.py", "conditions": "stand-in", "files": [file]})
    (place / "models.json").write_text(json.dumps({"models": models}))


def run(place, capsys, monkeypatch, *arguments):
    """The exit code, what was printed and the rows of the record."""
    command = ["reproduce", f"--data={place}/data", f"--output={place}/out", "--batch-size=32", *arguments]
    monkeypatch.setattr(sys, "argv", command)
    with logging_as_before():
        status = reproduce.main()
    record = place / "out/reproduced.json"
    return status, capsys.readouterr(), {row["file"]: row for row in read_json(record)} if record.exists() else {}


def written(place):
    """When each model was evaluated."""
    return {path.parent.name: path.stat().st_mtime_ns for path in (place / "out").glob("*/metrics.json")}


def test_the_table_the_exit_codes_and_a_second_run(place, server, capsys, monkeypatch):
    status, text, rows = run(place, capsys, monkeypatch)
    assert status == 1
    assert rows == {}
    assert text.err.startswith("error: none of ")
    assert "--download" in text.err

    # Two files at hand; the names of neither tell anything, their hashes do.
    (place / "hand").mkdir()
    for name, other in (("first", "a"), ("second", "b")):
        (place / "hand" / f"{other}.pth").write_bytes((place / "weights" / f"{name}.pth").read_bytes())
    save_torch(place / "hand/unknown.pth", {"a": np.ones(3, np.float32)})
    weights = f"--weights={place}/hand"
    status, text, rows = run(place, capsys, monkeypatch, weights)
    assert status == 0
    assert list(rows) == ["first.pth", "second.pth"]
    for row in rows.values():
        assert (row["metrics"]["images"], row["metrics"]["instances"], row["metrics"]["boxes"]) == (4, 118, BOXES)
        assert row["metrics"]["flip_test"] is True
        assert row["difference"] == row["metrics"]["AP"] - 0.0
    first, second = (read_json(place / f"out/{name}/keypoints.json") for name in ("first", "second"))
    assert first != second
    assert "unknown.pth: not a published file; skipped" in text.out
    assert "files are not at hand (third.pth, ...)" in text.out
    table = (place / "out/reproduced.md").read_text()
    assert table in text.out
    assert "| first.pth | 0.0000 | 0.000 | +0.0000 | yes | 4 | 118 |" in table

    # Nothing is done twice; another published AP, or another tolerance, is only compared.
    before = written(place)
    assert len(before) == 2
    publish(place, server, {"first": 0.0, "second": 0.25, "third": 0.0})
    status, text, rows = run(place, capsys, monkeypatch, weights)
    assert status == 1
    assert "second.pth: AP 0.0000, published 0.250, difference -0.2500: MORE THAN 0.002" in text.out
    assert "| second.pth | 0.0000 | 0.250 | -0.2500 | **no** |" in (place / "out/reproduced.md").read_text()
    assert run(place, capsys, monkeypatch, weights, "--tolerance=0.3")[0] == 0
    assert run(place, capsys, monkeypatch, weights, "--models=first")[0] == 0
    assert written(place) == before

    # A changed file is evaluated again, and only it.
    save = (place / "weights/third.pth").read_bytes()
    (place / "weights/first.pth").write_bytes(save)
    (place / "hand/a.pth").write_bytes(save)
    publish(place, server, {"first": 0.0, "second": 0.0})
    status, text, rows = run(place, capsys, monkeypatch, weights)
    assert status == 0
    assert {name for name, time in written(place).items() if time != before[name]} == {"first"}
    assert rows["first.pth"]["sha256"] == hashlib.sha256(save).hexdigest()
    assert read_json(place / "out/first/keypoints.json") != first


def test_downloads_that_fail(place, server, capsys, monkeypatch):
    """One file is found behind a 404 and a broken connection, another nowhere; a third is damaged on disk."""
    (place / "hand").mkdir()
    (place / "hand/second.pth").write_bytes((place / "weights/second.pth").read_bytes()[:-1])
    content = (place / "weights/first.pth").read_bytes()
    server.files |= {"first.pth": content, "third.pth": b"<html>a page of the proxy</html>"}
    server.script = [404, ("cut", 1000)]
    arguments = ("--download", "--models=first,second,third", f"--weights={place}/hand")
    status, text, rows = run(place, capsys, monkeypatch, *arguments)
    assert status == 1
    assert list(rows) == ["first.pth"]
    assert (place / "cache/weights/first.pth").read_bytes() == content
    lines = text.err.splitlines()
    assert "second.pth: its SHA-256 starts with" in lines[0]
    assert [line.partition(" (SHA")[0] for line in lines[1:]] == [
        f"error: {name}.pth: not evaluated: {name}.pth" for name in ("second", "third")
    ]
    assert "sends a file whose SHA-256 starts with" in lines[2]


def test_names_that_nobody_published(place, capsys, monkeypatch):
    status, text, _ = run(place, capsys, monkeypatch, "--models=hrnet_w32-imagenet")
    assert status == 1
    assert "--models: hrnet_w32-imagenet: no published model or file with an AP has this name" in text.err
    status, text, _ = run(place, capsys, monkeypatch, f"--models={OTHER[:-1]}")
    assert (status, f"did you mean {OTHER}" in text.err) == (1, True)
    status, text, _ = run(place, capsys, monkeypatch, f"--models={OTHER}")
    assert (status, text.err.startswith("error: none of 1 published models")) == (1, True)
