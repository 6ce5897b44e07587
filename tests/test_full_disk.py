"""Outputs that cannot be written: told in one line, with nothing half written and nothing lost."""

import builtins
import contextlib
import errno
import io
import itertools
import json
import os
import resource
import shutil
import sys

import cv2
import numpy as np
import pytest

from data_pipelines import prepare, storage
from data_pipelines.annotations import cached_instances, load_instances
from data_pipelines.errors import InputError
from data_pipelines.keypoints import COCO
from data_pipelines.synthetic import __main__ as synthetic
from data_pipelines.synthetic import write_dataset
from eval import coco
from eval.records import Predictions
from hrnet_jax import aot, convert, evaluate, export, predict, report
from hrnet_jax.config import load_config
from hrnet_jax.inference.predictor import load
from hrnet_jax.inference.sources import Source
from hrnet_jax.mesh import create_mesh
from hrnet_jax.models import abstract_model, initial_arrays, state_dict
from hrnet_jax.weights import checkpoint
from hrnet_jax.weights.folder import save_folder
from tests.helpers import REPOSITORY, logging_as_before

ANNOTATIONS = "coco/annotations/person_keypoints_val2017.json"
IMAGES = "coco/val2017"
HALF = b"half of it"


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    root = tmp_path_factory.mktemp("people")
    write_dataset(root, coco_train=0, coco_val=3, aic_train=0, processes=1, image_size=(96, 96))
    return root


@pytest.fixture(scope="module")
def model(people, tmp_path_factory):
    """A converted folder of an untrained network."""
    config = load_config(f"{REPOSITORY}/configs/coco.py:runlocal")
    config.data.root = str(people)
    config.data.eval.boxes = ""
    params, stats = state_dict(abstract_model(config))
    path = tmp_path_factory.mktemp("models") / "tiny"
    save_folder(path, config, initial_arrays({**params, **stats}, seed=0))
    return path


# A disk that is full at the n-th write.


@contextlib.contextmanager
def failing(number, monkeypatch):
    """The write of this number, from 0 on, fails: of a part of a file, or of its name. Gives a list of what did."""
    count, failed = itertools.count(), []

    def check(path):
        if next(count) == number:
            reason = (errno.ENOSPC, errno.EIO)[number % 2]
            failed.append(path)
            raise OSError(reason, os.strerror(reason), str(path))

    def opened(open_):
        def replacement(file, mode="r", *args, **kwargs):
            if isinstance(file, (str, os.PathLike)) and set(mode) & set("wxa") and storage.PARTIAL in os.fspath(file):
                try:
                    check(file)
                except OSError:
                    with open_(file, "wb") as half:
                        half.write(HALF)
                    raise
            return open_(file, mode, *args, **kwargs)

        return replacement

    publish = storage._publish

    def published(partial, target):
        check(partial)
        publish(partial, target)

    with monkeypatch.context() as patch:
        patch.setattr(io, "open", opened(io.open))
        patch.setattr(builtins, "open", opened(builtins.open))
        patch.setattr(storage, "_publish", published)
        yield failed


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def each_failure(action, folder, monkeypatch, *, start=lambda: None, kept=lambda path: True):
    """Runs an action with its first write failing, its second, and so on; yields the error of each.

    Checks that each is one line that names no unfinished file, that nothing unfinished is left, and that all that was
    in the folder before, and is `kept`, is there and whole. `start` brings the folder into its state before each run.
    """
    for number in itertools.count():
        start()
        before = files(folder) if folder.exists() else {}
        error = None
        with failing(number, monkeypatch) as failed:
            try:
                action()
            except InputError as raised:
                error = raised
        after = files(folder) if folder.exists() else {}
        assert not [path for path in folder.parent.rglob("*") if storage.PARTIAL in path.name]
        if not failed:
            assert number > 1
            return
        assert {path for path in before if kept(path)} <= after.keys()
        assert not [path for path, content in after.items() if content.startswith(HALF)]
        if error:
            assert "\n" not in str(error)
            assert storage.PARTIAL not in str(error)
            assert any(reason in str(error) for reason in ("No space left on device", "Input/output error"))
        yield error


def test_of_training_the_cache_of_annotations(people, tmp_path, monkeypatch, caplog):
    paths = people / ANNOTATIONS, people / IMAGES
    expected, found = load_instances(*paths, COCO), []
    for error in each_failure(
        lambda: found.append(cached_instances(tmp_path / "cache", *paths, COCO)), tmp_path / "cache", monkeypatch
    ):
        assert error is None
        assert "are not cached: " in caplog.records[-1].message
        assert storage.PARTIAL not in caplog.records[-1].message
        caplog.clear()
        np.testing.assert_array_equal(found[-1].bbox, expected.bbox)
        assert found[-1].index is None
    assert found[-1].index


def test_evaluate(people, model, tmp_path, monkeypatch):
    evaluator = evaluate.Evaluator(checkpoint.stored_config(model), create_mesh())
    instances = evaluator.data.instances
    count = len(instances)
    predictions = Predictions(
        image_ids=instances.image_id,
        category_ids=np.ones(count, int),
        keypoints=instances.keypoints[..., :2],
        keypoint_scores=np.ones((count, 17)),
        scores=np.ones(count),
        boxes=instances.bbox,
        where=str,
        ids=np.arange(count),
        box_scores=np.ones(count),
        areas=np.ones(count),
    )
    output = tmp_path / "new" / "output"
    errors = list(
        each_failure(lambda: evaluate.write(output, {"AP": 0.5}, predictions, evaluator), output, monkeypatch)
    )
    assert None not in errors
    assert [str(error).partition(": ")[0] for error in errors] == [
        str(output / name) for name in ("metrics.json", "keypoints.json", "predictions.png") for _ in range(2)
    ]


def test_predict_keeps_its_records_when_a_picture_cannot_be_written(people, model, tmp_path, monkeypatch):
    predictor = load(model, batch_size=4)
    output = tmp_path / "output"
    source = Source.find(people / IMAGES, output, 50.0)
    look = predict.Look(0.1, COCO)

    def start():
        shutil.rmtree(output, ignore_errors=True)

    told = []
    for error in each_failure(
        lambda: predict.predict(predictor, source, output, None, look), output, monkeypatch, start=start
    ):
        told.append(str(error))
        there = (output / "predictions.json").exists()
        assert there == ("drawn" in told[-1]) == told[-1].endswith("predictions.json is complete")
        if there:
            assert len(json.loads((output / "predictions.json").read_text())["images"]) == 3
    assert [("drawn" in line) for line in told] == [False, *6 * [True], False]


@contextlib.contextmanager
def no_file_above(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_video_that_the_disk_did_not_take(model, tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / "clip.avi"), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"MJPG"), 12, (96, 64))
    for number in range(5):
        writer.write(np.random.default_rng(number).integers(0, 255, (64, 96, 3), np.uint8))
    writer.release()
    source, output = Source.find(tmp_path / "clip.avi", tmp_path, 50.0), tmp_path / "output"
    predictor = load(model, batch_size=4)
    predict.predict(predictor, source, output, None, predict.Look(0.1, COCO))
    before = (output / "drawn.mp4").read_bytes()
    (output / "predictions.json").unlink()
    with no_file_above(20_000), pytest.raises(InputError, match=r"drawn.mp4: cannot be written .*json is complete$"):
        predict.predict(predictor, source, output, None, predict.Look(0.1, COCO))
    assert len(before) > 20_000
    assert {path.name for path in output.iterdir()} == {"drawn.mp4", "predictions.json"}
    assert (output / "drawn.mp4").read_bytes() == before
    assert len(json.loads((output / "predictions.json").read_text())["images"]) == 5


def test_report(tmp_path, monkeypatch):
    (tmp_path / "metrics.json").write_text(json.dumps(dict.fromkeys(coco.METRICS, 0.5)))
    errors = list(each_failure(lambda: report.report(tmp_path), tmp_path, monkeypatch))
    assert [str(error).partition(": ")[0] for error in errors] == 2 * [str(tmp_path / "report.html")]


def test_export(model, tmp_path, monkeypatch):
    trained, output = checkpoint.load(model), tmp_path / "exported"
    # Compiled and compared once.
    programs, found = export.build(trained.config, "float32"), export.Deviation(0.0, 0.0, 0.0)
    monkeypatch.setattr(export, "build", lambda *unused: programs)
    monkeypatch.setattr(export, "deviations", lambda *unused: {export.PROGRAM: found})
    errors = list(each_failure(lambda: export.export(trained, output), output, monkeypatch))
    assert {str(error).partition(": ")[0] for error in errors} == {str(output)}
    assert len(errors) == len(list(output.iterdir())) + 1


def test_convert(model, tmp_path, monkeypatch):
    weights, config = tmp_path / "weights.safetensors", checkpoint.stored_config(model)
    errors = list(each_failure(lambda: convert.to_torch(model, "mmpose", weights), tmp_path, monkeypatch))
    assert len(errors) == 2
    errors = list(each_failure(lambda: convert.from_torch(weights, config, tmp_path / "b"), tmp_path, monkeypatch))
    assert len(errors) == 3
    assert None not in errors


def test_prepare(people, tmp_path, monkeypatch):
    output = tmp_path / "few_val"

    def run():
        prepare.prepare(people / ANNOTATIONS, people / IMAGES, "coco", output, images_per_shard=2)

    def start():
        shutil.rmtree(output, ignore_errors=True)

    for error in each_failure(run, output, monkeypatch, start=start):
        assert error
        assert not (output / "dataset_info.json").exists()
    whole = files(output)
    # Again: the folder is unfinished, its shards are kept, and the next run finishes it.
    for error in each_failure(run, output, monkeypatch, start=run, kept=lambda path: "array_record" in path.name):
        assert error
    assert files(output).keys() == whole.keys()


def test_prepare_when_a_shard_is_too_large(people, tmp_path):
    with (
        no_file_above(1000),
        pytest.raises(InputError, match=r"array_record-\S+: cannot be written \(File too large\)"),
    ):
        prepare.prepare(people / ANNOTATIONS, people / IMAGES, "coco", tmp_path / "few_val")
    assert {path.name for path in tmp_path.rglob("*")} == {"few_val", ".lock"}


def test_synthetic(tmp_path, monkeypatch):
    root = tmp_path / "new"
    for error in each_failure(
        lambda: write_dataset(root, coco_train=1, coco_val=1, aic_train=1, processes=1, image_size=(64, 64)),
        root,
        monkeypatch,
    ):
        assert error
        assert not (root / "synthetic.json").exists()


# Places where nothing can be written.


def status(command, arguments, monkeypatch, capsys):
    """Runs a command's `main`; returns its exit status and what it wrote to standard error."""
    if command in (prepare.main, synthetic.main, coco.main):
        return command(arguments), capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    with pytest.raises(SystemExit) as stop:
        command()
    return stop.value.code, capsys.readouterr().err


@pytest.fixture
def places(tmp_path):
    (tmp_path / "file").write_text("")
    places = {"below a file": tmp_path / "file/below/it", "too long": tmp_path / ("x" * 300) / "y", "empty": ""}
    return {**places, "not writable": "/proc/hrnet_jax/output", "a file": tmp_path / "file", "a folder": tmp_path}


@pytest.mark.parametrize("place", ["below a file", "too long", "empty", "not writable", "wrong"])
@pytest.mark.parametrize(
    ("command", "arguments", "kind"),
    [
        # None of the inputs exists: the output is looked at first.
        (evaluate.main, ["--checkpoint={config}", "--output={output}"], "folder"),
        (predict.main, ["--checkpoint={config}", "--images=none", "--output={output}"], "folder"),
        (export.main, ["--checkpoint={model}", "--output={output}"], "folder"),
        (convert.main, ["--input=none.pth", "--config={repository}/configs/coco.py", "--output={output}"], "folder"),
        (convert.main, ["--input={config}", "--to=mmpose", "--output={output}"], "file"),
        (report.main, ["--workdir={config}", "--output={output}"], "file"),
        (aot.main, ["--config={repository}/configs/coco.py", "--topology=v0:1x1", "--output={output}"], "file"),
        (coco.main, ["--annotations=none", "--results=none", "--output={output}"], "file"),
        (
            prepare.main,
            ["--annotations=none", "--images=none", "--keypoints=coco", "--output={output}"],
            "folder",
        ),
        (synthetic.main, ["--root={output}"], "folder"),
    ],
)
def test_outputs_are_looked_at_first(model, places, tmp_path, monkeypatch, capsys, command, arguments, kind, place):
    if place == "empty" and command in (report.main, aot.main, coco.main):
        pytest.skip("has a default")
    (tmp_path / "config").mkdir()
    shutil.copy(model / "config.json", tmp_path / "config")
    before = files(tmp_path)
    output = places[{"folder": "a file", "file": "a folder"}[kind] if place == "wrong" else place]
    names = {"config": tmp_path / "config", "model": model, "repository": REPOSITORY, "output": output}
    code, error = status(command, [argument.format(**names) for argument in arguments], monkeypatch, capsys)
    assert code == 1
    assert error.startswith(f"error: {output}: " if output else "error: --")
    assert error.count("\n") == 1
    assert files(tmp_path) == before


def test_what_can_be_written_is_left_as_it_is(tmp_path):
    (tmp_path / "file").write_text("content")
    for name, folder in (("file", False), ("new", False), ("new", True), ("a/b/c", True), ("", True)):
        storage.check_output(tmp_path / name, folder=folder)
    assert files(tmp_path).keys() == {(tmp_path / "file").relative_to(tmp_path)}


@pytest.fixture(autouse=True)
def _logging_stays():
    """Commands set up logging for their process."""
    with logging_as_before():
        yield
