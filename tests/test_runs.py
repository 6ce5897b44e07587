"""A run is watched, started twice, continued with other data, and damaged; what its folder says stays true."""

import collections
import json
import logging
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines import storage
from data_pipelines.errors import InputError
from data_pipelines.json_files import read_json, write_json
from data_pipelines.pipeline import TrainData
from hrnet_jax import convert
from hrnet_jax import train as training_command
from hrnet_jax.codecs import create_codec
from hrnet_jax.config import from_json
from hrnet_jax.inference import evaluator
from hrnet_jax.train import train
from hrnet_jax.training import lease, metrics, record
from hrnet_jax.training.identity import continued
from hrnet_jax.training.lease import Lease
from hrnet_jax.weights import checkpoint, initial
from hrnet_jax.weights.checkpoint import Checkpoints, best_step
from tests.helpers import REPOSITORY, local_config, run, training


@pytest.fixture
def workdir(trained, tmp_path):
    """A copy of a finished run."""
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def contents(folder):
    """All files below a folder, with what is in them and when they changed."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def save(folder, *steps, keep=2, **values):
    """Saves tiny checkpoints, whose only array is their step."""
    with Checkpoints(folder, keep, **values) as checkpoints:
        for step in steps:
            checkpoints.save(step, {"params": {"a": jnp.full(3, float(step))}}, {})
    return checkpoint.steps(folder)


def restored(folder):
    with Checkpoints(folder, 2) as checkpoints:
        items, meta = checkpoints.restore({"params": {"a": on_device(jnp.zeros(3))}})
    assert items["params"]["a"].tolist() == [meta["step"]] * 3
    return meta["step"]


def make_best(workdir, step):
    measured = read_json(workdir / "checkpoints/12/metrics.json")
    write_json(workdir / f"checkpoints/{step}/metrics.json", {**measured, "AP": 0.9})


def on_device(array):
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)


# Reading.


def test_readers_change_nothing(workdir, tmp_path):
    """Also not what the training is writing, as `evaluate`, `predict`, `export`, `convert` and `config.init` read."""
    unfinished = workdir / "checkpoints/18.orbax-checkpoint-tmp"
    unfinished.mkdir()
    (unfinished / "array").write_bytes(b"half of it")
    before = contents(workdir)
    checkpoint.load(workdir)
    checkpoint.load(f"{workdir}@latest")
    initial.initial_model(str(workdir)).digest()
    convert.to_torch(workdir, "mmpose", tmp_path / "x.safetensors")
    assert checkpoint.steps(workdir / "checkpoints") == [6, 12]
    assert contents(workdir) == before


def test_readers_work_where_they_may_not_write(workdir):
    modes = [(path, path.stat().st_mode) for path in [workdir, *workdir.rglob("*")]]
    code = "import sys, tests.helpers; from hrnet_jax.weights.checkpoint import load; print(load(sys.argv[1]).origin)"
    try:
        for path, _ in modes:
            path.chmod(0o555 if path.is_dir() else 0o444)
        command = [sys.executable, "-c", code, str(workdir)]
        if os.getuid() == 0:  # whom modes do not bind, unless it gives up this right
            command = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override", *command]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    finally:
        for path, mode in modes:
            path.chmod(mode)
    assert done.stdout == f"{workdir}, step 12\n", done.stderr


def test_a_checkpoint_can_be_chosen(workdir):
    make_best(workdir, 6)
    assert checkpoint.load(workdir).origin == f"{workdir}, step 6"
    assert checkpoint.load(f"{workdir}@best").origin == f"{workdir}, step 6"
    assert checkpoint.load(f"{workdir}@latest").origin == f"{workdir}, step 12"
    assert checkpoint.load(f"{workdir}@12").origin == f"{workdir}, step 12"
    with pytest.raises(InputError, match=r"checkpoints: no checkpoint of step 7; there are 6, 12"):
        checkpoint.load(f"{workdir}@7")
    named = workdir.rename(workdir.with_name("run@6"))
    assert checkpoint.load(named).origin == f"{named}, step 6"  # its own best


def test_a_damaged_best_gives_way(workdir, caplog):
    make_best(workdir, 6)
    (workdir / "checkpoints/6/digests.json").write_text("{}")
    assert checkpoint.load(workdir).origin == f"{workdir}, step 12"
    assert "checkpoints/6 is damaged" in caplog.text
    with pytest.raises(InputError, match=r"checkpoints/6 is damaged"):
        checkpoint.load(f"{workdir}@6")


def test_a_checkpoint_that_is_deleted_while_it_is_read_gives_way(tmp_path, monkeypatch):
    """As the training does when a newer one is whole."""
    save(tmp_path, 1, 2)
    damage = checkpoint.damage

    def slow(path):
        if path.name == "2" and not (tmp_path / "3").exists():
            shutil.copytree(tmp_path / "1", tmp_path / "3")
            shutil.rmtree(tmp_path / "2")
        return damage(path)

    monkeypatch.setattr(checkpoint, "damage", slow)
    assert checkpoint._first_whole(checkpoint.epath.Path(tmp_path), "latest", "AP") == (3, [])


# Which checkpoint is the best, and which are kept.


def test_the_last_of_the_best_is_the_best():
    conditions = {"boxes": "annotated", "flip_test": True}
    numbers = [(1, 0.0, 3.0), (2, 0.5, 2.0), (3, 0.5, 4.0)]
    measured = {step: {"AP": ap, "loss": loss, **conditions} for step, ap, loss in numbers}
    assert best_step(measured, "AP") == 3
    assert best_step(measured, "loss") == 2
    assert best_step({**measured, 4: {}}, "AP") == 3
    assert best_step({1: {}, 2: {}}, "AP") is None
    # Numbers that were measured under other conditions than the last are not compared.
    assert best_step({**measured, 4: {"AP": 0.1, **conditions, "flip_test": False}}, "AP") == 4


def test_the_newest_and_the_best_are_kept(tmp_path):
    with Checkpoints(tmp_path, 1) as checkpoints:
        for step, ap in [(1, 0.2), (2, 0.5), (3, 0.5), (4, 0.1), (5, 0.3)]:
            checkpoints.save(step, {"params": {"a": jnp.full(3, float(step))}}, {})
            checkpoints.add_metrics(step, {"AP": ap})
            assert checkpoints.is_evaluated(step)
    assert checkpoint.steps(tmp_path) == [3, 5]
    assert save(tmp_path, 6, keep=1) == [3, 6]
    assert restored(tmp_path) == 6


def test_a_run_keeps_its_best_by_another_metric(trained):
    measured = read_json(trained / "checkpoints/12/metrics.json")
    assert measured["loss"] == [r["loss"] for r in metrics.read(trained) if "loss" in r][-1]
    assert measured["AP"] == read_json(trained / "metrics.json")["AP"]


def test_an_unknown_metric_is_refused(shared, tmp_path):
    config = local_config(shared)
    config.best = "mAP"
    with pytest.raises(InputError, match=r"config.best='mAP': must be one of AP, .*loss"):
        train(config, tmp_path)


def test_a_name_that_could_not_be_read_again_is_refused(shared, tmp_path):
    with pytest.raises(InputError, match=r"lr=\[1e-3\].* cannot be read from a path with '\['"):
        train(local_config(shared), tmp_path / "lr=[1e-3]")
    assert list(tmp_path.iterdir()) == []


# Two trainings in one folder.


def test_a_second_training_is_refused_and_the_first_goes_on(shared, tmp_path):
    with (
        Lease(tmp_path),
        pytest.raises(
            InputError,
            match=rf"^{tmp_path}: process {os.getpid()} on \S+ \(since 20\S+\) trains in this work directory",
        ),
    ):
        train(local_config(shared), tmp_path)
    assert os.listdir(tmp_path) == []


def held_by_another_process(folder):
    """A process that holds a folder's lease until its input ends."""
    code = (
        "import sys\nfrom hrnet_jax.training.lease import Lease\n"
        "with Lease(sys.argv[1]):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"held\n"
    return process


def test_a_killed_process_on_this_machine_holds_nothing(tmp_path):
    with held_by_another_process(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (tmp_path / "lease.json").exists()
    with Lease(tmp_path) as ours:
        ours.check()
    assert not (tmp_path / "lease.json").exists()


def test_a_holder_elsewhere_is_told_by_its_renewals(tmp_path, monkeypatch):
    """On another machine: refused when it renews, taken over when it does not."""
    monkeypatch.setattr(lease, "RENEWAL", 0.1)
    monkeypatch.setattr(lease, "EXPIRY", 1.0)
    monkeypatch.setattr(lease, "_SETTLING", 0.05)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(lease, "_machine", lambda: "another")
        theirs = Lease(tmp_path)
        theirs.__enter__()
    with pytest.raises(InputError, match="trains in this work directory"):
        Lease(tmp_path).__enter__()
    theirs._ended.set()  # as if its machine died
    theirs._thread.join()
    with Lease(tmp_path) as ours:
        ours.check()
        theirs._ended.clear()
        theirs._renew()  # it wakes up: it was only slow
        with pytest.raises(InputError, match="took over this work directory"):
            theirs.check()
        ours.check()


def test_who_was_taken_for_dead_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "RENEWAL", 0.05)
    with Lease(tmp_path) as ours:
        other = {**json.loads((tmp_path / "lease.json").read_text()), "token": "other", "host": "elsewhere"}
        deadline = time.monotonic() + 20
        while not ours._lost and time.monotonic() < deadline:
            write_json(tmp_path / "lease.json", other)
            time.sleep(0.05)
        with pytest.raises(InputError, match=r"on elsewhere .* took over this work directory"):
            ours.check()
    assert json.loads((tmp_path / "lease.json").read_text())["token"] == "other"


def test_a_directory_that_was_moved_is_not_made_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "RENEWAL", 0.05)
    with Lease(tmp_path / "run") as ours, record.RunRecord(tmp_path / "run"):
        (tmp_path / "run").rename(tmp_path / "moved")
        deadline = time.monotonic() + 20
        while not ours._lost and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(InputError, match=r"lease\.json is gone; the work directory was moved or removed"):
            ours.check()
    assert os.listdir(tmp_path) == ["moved"]


def test_a_process_number_that_another_process_got_holds_nothing(tmp_path):
    with Lease(tmp_path):
        holder = json.loads((tmp_path / "lease.json").read_text())
    write_json(tmp_path / "lease.json", {**holder, "started": "1"})
    with Lease(tmp_path):
        pass


# Other data.


def with_changed_people(shared, tmp_path, change):
    """A config whose COCO file was changed."""
    config = local_config(shared)
    annotations = pathlib.Path(config.data.root) / config.data.train.coco.annotations
    content = json.loads(annotations.read_text())
    change(content)
    config.data.train.coco.images = str(pathlib.Path(config.data.root) / config.data.train.coco.images)
    config.data.train.coco.annotations = str(tmp_path / "other.json")
    (tmp_path / "other.json").write_text(json.dumps(content))
    return config


def test_other_people_are_refused_and_if_accepted_recorded(shared, workdir, tmp_path):
    def move_a_keypoint(content):
        person = next(a for a in content["annotations"] if a["num_keypoints"] and not a["iscrowd"])
        place = 3 * next(k for k in range(17) if person["keypoints"][3 * k + 2])
        person["keypoints"][place] += 1

    config = with_changed_people(shared, tmp_path, move_a_keypoint)
    config.epochs = 3
    before = contents(workdir)
    message = r"config.init changed; [^:]*: coco: 86 people \(digest \w+\), not 86 people \(digest \w+\)$"
    with pytest.raises(InputError, match=message):
        train(config, workdir)
    after = contents(workdir)
    changed = {name for name in before if before[name][0] != after[name][0]}
    assert changed == {"starts.json"}
    config.accept_changed_data = True
    train(config, workdir)
    history = read_json(workdir / "checkpoints/18/meta/metadata")["data"]
    assert [entry["from_step"] for entry in history] == [0, 12]
    assert history[0]["sources"]["aic"] == history[1]["sources"]["aic"]
    assert history[0]["sources"]["coco"] != history[1]["sources"]["coco"]
    assert from_json(workdir / "config.json").accept_changed_data
    assert record.read_starts(workdir)[-1]["data"] == history[1]


def test_the_same_people_elsewhere_are_the_same(shared, workdir, tmp_path):
    config = with_changed_people(shared, tmp_path, lambda content: content.pop("info", None))
    config.epochs = 3
    assert train(config, workdir)["step"] == 18


def test_another_init_is_refused(shared, trained, tmp_path):
    """Its content counts, not its path; a path that has gone is believed."""
    shutil.copytree(trained, tmp_path / "a")
    shutil.copytree(trained, tmp_path / "b")
    config = local_config(shared)
    config.init, config.epochs = str(tmp_path / "a"), 1
    train(config, tmp_path / "run")
    history = read_json(tmp_path / "run/checkpoints/6/meta/metadata")["data"]
    assert history[0]["init"] == {"path": config.init, "digest": checkpoint.load(trained).digest()}
    config.epochs = 2
    config.init = str(tmp_path / "a") + "@6"
    with pytest.raises(InputError, match=r"config.init: '.*a@6', not '.*a'"):
        train(config, tmp_path / "run")
    config.init = ""
    with pytest.raises(InputError, match=r"config.init: '', not '.*a'"):
        train(config, tmp_path / "run")
    config.init = str(tmp_path / "b")
    train(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "a")
    config.init, config.epochs = str(tmp_path / "a"), 3
    assert train(config, tmp_path / "run")["step"] == 18


def test_another_init_that_is_accepted_is_recorded_once(shared, trained, workdir):
    config = local_config(shared)
    data = TrainData.load(config, create_codec(config.codec))
    begun = {"step": 12, "data": read_json(workdir / "checkpoints/12/meta/metadata")["data"]}
    config.init, config.accept_changed_data = str(trained), True
    history = continued(config, data, begun)
    digest = checkpoint.load(trained).digest()
    assert [entry["from_step"] for entry in history] == [0, 12]
    assert [entry["init"] for entry in history] == [None, {"path": str(trained), "digest": digest}]
    assert continued(config, data, {"step": 18, "data": history}) == history


# What the folder says.


def test_damaged_lines_of_the_log_cost_no_others(trained, workdir, caplog):
    path = workdir / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = b'{"step": 4, "lo\n'
    path.write_bytes(b"".join(lines) + b'\xff\n{"loss": 1}\n[]\nnull\n{"step": "a"}\n{"step": 13, "loss"')
    expected = [record for number, record in enumerate(metrics.read(trained)) if number != 1]
    assert list(metrics.read(workdir)) == expected
    with metrics.MetricWriter(workdir, 12) as writer:
        writer.write(14, {"loss": 1.0})
    assert "7 damaged lines are dropped" in caplog.text
    assert list(metrics.read(workdir)) == [*expected, {"step": 14, "loss": 1.0}]


def test_an_evaluation_that_was_not_finished_leaves_no_line(tmp_path):
    with metrics.MetricWriter(tmp_path) as writer:
        writer.write(6, {"loss": 1.0})
        writer.write(6, {"eval/AP": 0.5})
    with metrics.MetricWriter(tmp_path, 6, is_evaluated=True):
        assert len(list(metrics.read(tmp_path))) == 2
    with metrics.MetricWriter(tmp_path, 6, is_evaluated=False):
        assert list(metrics.read(tmp_path)) == [{"step": 6, "loss": 1.0}]


def test_an_evaluation_that_was_killed_is_taken_up_again(shared, trained, workdir):
    (workdir / "checkpoints/12/metrics.json").unlink()
    (workdir / "metrics.json").unlink()
    assert {**train(local_config(shared), workdir), **seconds(trained)} == read_json(trained / "metrics.json")
    assert list(metrics.read(workdir)) == list(metrics.read(trained))
    assert read_json(workdir / "checkpoints/12/metrics.json") == read_json(trained / "checkpoints/12/metrics.json")


def seconds(trained):
    return {key: value for key, value in read_json(trained / "metrics.json").items() if key.startswith("seconds")}


def test_every_start_is_recorded(shared, trained, workdir):
    (start,) = record.read_starts(trained)
    assert start["outcome"] == "done"
    assert start["start"] < start["end"]
    assert start["versions"]["jax"] == jax.__version__
    assert start["devices"] == "2 x cpu"
    assert start["data"]["sources"]["coco"]["people"] == 86
    config = local_config(shared)
    config.data.root = "nowhere"
    with pytest.raises(InputError):
        train(config, workdir)
    first, second = record.read_starts(workdir)
    assert first == start
    assert second["process"] == os.getpid()
    assert second["outcome"].startswith("InputError: config.data.root=nowhere: ")
    assert len(list((workdir / "logs").iterdir())) == 2


def test_the_log_holds_what_the_console_showed(shared, tmp_path):
    output = run(*training(shared, tmp_path / "run", {"epochs": 1})).stdout
    assert output.splitlines()[0] == f"2 x cpu, jax {jax.__version__}, compute in float32"
    assert "the network starts at random; the published AP take a backbone trained on ImageNet" in output
    (log,) = (tmp_path / "run/logs").iterdir()
    logged = [line[20:] if line[:2] == "20" else line for line in log.read_text().splitlines()]
    assert logged[:-1] == output.splitlines()[:-1]
    assert logged[-1] == "ended: done"


# Disks that refuse.


def made_once(make):
    """`make`, whose first result is also that of all later calls."""
    made = []

    def first(*args, **kwargs):
        made[:] = made or [make(*args, **kwargs)]
        return made[0]

    return first


def test_a_disk_that_refuses_any_write_loses_nothing(shared, workdir, monkeypatch):
    """Each write of each file of a continued run is refused in turn: one line, and what was whole stays whole."""
    config = local_config(shared)
    config.epochs, config.log_every, config.data.loader.threads = 3, 3, 1
    publish, written, refused = storage._publish, collections.Counter(), None

    def refuse(partial, target):
        # Threads write side by side, so a write is named by its file and not by its number in the run.
        if threading.current_thread().name != "lease":
            name = pathlib.Path(target).relative_to(workdir).as_posix()
            written[name] += 1
            if (name, written[name]) == refused:
                raise OSError(28, os.strerror(28))
        publish(partial, target)

    monkeypatch.setattr(storage, "_publish", refuse)
    for module, name in ((training_command, "make_train_step"), (evaluator, "make_eval_step")):
        monkeypatch.setattr(module, name, made_once(getattr(module, name)))  # traced once for all runs
    backup = workdir.with_name("backup")
    shutil.copytree(workdir, backup)

    def restore():
        shutil.rmtree(workdir)
        shutil.copytree(backup, workdir)
        written.clear()

    train(config, workdir)
    writes = [(name, number + 1) for name, count in written.items() for number in range(count)]
    expected = {"config.json", "starts.json", "metrics.jsonl", "digests.json", "metrics.json", "keypoints.json"}
    assert expected | {"predictions.png", "curves.png"} <= {pathlib.Path(name).name for name in written}
    for refused in writes:  # noqa: B007 (`refuse` reads it)
        restore()
        with pytest.raises(InputError, match="No space left on device") as error:
            train(config, workdir)
        assert "\n" not in str(error.value)
        assert checkpoint.damage(workdir / "checkpoints/12") is None
        assert {record["step"] for record in metrics.read(workdir)} >= {2, 4, 6, 8, 10, 12}
        assert from_json(workdir / "config.json").seed == 0
        assert isinstance(read_json(workdir / "metrics.json")["AP"], float)
        assert not list(workdir.rglob(f"*{storage.PARTIAL}*"))


def test_a_line_that_cannot_be_added_ends_the_run(shared, workdir, monkeypatch):
    config = local_config(shared)
    config.epochs = 3
    append = storage.append

    def refuse(target, line):
        if os.fspath(target).endswith("metrics.jsonl"):
            raise InputError(f"{target}: cannot be written (No space left on device)")
        append(target, line)

    monkeypatch.setattr(storage, "append", refuse)
    with pytest.raises(InputError, match=r"metrics\.jsonl: cannot be written"):
        train(config, workdir)
    assert checkpoint.damage(workdir / "checkpoints/12") is None


# Hosts.


def test_arrays_make_one_digest_wherever_they_lie(trained):
    model = checkpoint.load(trained)
    on_host = model._replace(params={name: np.asarray(array) for name, array in reversed(model.params.items())})
    assert on_host.digest() == model.digest()
    name = next(iter(model.params))
    changed = model._replace(params={**model.params, name: model.params[name] + 1})
    assert changed.digest() != model.digest()


def test_loggers_are_as_before_afterwards(shared, workdir):
    before = list(logging.getLogger().handlers)
    train(local_config(shared), workdir)
    assert logging.getLogger().handlers == before
