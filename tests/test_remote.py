"""Work directories in a bucket: TensorStore's and Orbax's own code for gs://, against a server in this process."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from data_pipelines import storage
from data_pipelines.errors import InputError
from hrnet_jax.training import metrics
from hrnet_jax.weights import checkpoint
from tests import gcs_server
from tests.helpers import REPOSITORY, STAGED, STAGES, run, training

WORKDIR = "gs://bucket/runs/a"


def arguments(shared, workdir, **more):
    return training(shared, workdir, {**STAGES, **more}, STAGED)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """A server, and the environment that leads to it."""
    with gcs_server.serve() as server:
        cache = tmp_path_factory.mktemp("home_cache")
        yield server, {**server.environment(), "XDG_CACHE_HOME": str(cache)}


def killed_after_step(step, server, environment, command):
    """SIGKILL once the checkpoint of a step is whole."""
    log = subprocess.Popen(
        [sys.executable, "-m", *command], cwd=REPOSITORY, env={**os.environ, **environment}, stdout=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 240
        while f"{step}/commit_success.txt" not in server.below("runs/a/checkpoints/"):
            assert log.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        log.send_signal(signal.SIGKILL)
        log.wait()


def losses(records):
    return [(record["step"], record["loss"]) for record in records if "loss" in record]


def steps_of_aps(records):
    return [record["step"] for record in records if "eval/AP" in record]


def downloaded(server, folder):
    """A copy of the work directory on a disk."""
    for name, data in server.below("runs/a/").items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def in_bucket(shared, bucket):
    """The run of `undisturbed` in a bucket: killed, its newest checkpoint damaged, and continued; what it printed."""
    server, environment = bucket
    command = arguments(shared, WORKDIR)
    # The programs of a second and more, as for users, and in the work directory.
    own_cache = {"JAX_COMPILATION_CACHE_DIR": "", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1"}
    environment = {**environment, **own_cache}
    killed_after_step(12, server, environment, command)
    newest = max(int(name.split("/")[0]) for name in server.below("runs/a/checkpoints/") if name[0].isdigit())
    whole = f"runs/a/checkpoints/{newest}/commit_success.txt" in server.objects
    if whole:  # else what Orbax left unfinished is damage enough
        name = next(n for n in server.objects if n.startswith(f"runs/a/checkpoints/{newest}/params/") and "/d/" in n)
        generation, data = server.objects[name]
        server.objects[name] = (generation, data[:-1] + bytes([data[-1] ^ 1]))
    output = run(*command, **environment).stdout
    return output, newest, whole


def test_a_run_in_a_bucket_is_killed_and_ends_as_one_on_a_disk(in_bucket, undisturbed, bucket, tmp_path):
    output, newest, whole = in_bucket
    if whole:
        assert f"{WORKDIR}/checkpoints/{newest} is damaged" in output
    assert f"continuing at step {newest - 6} of 24" in output
    assert re.search(rf"programs compiled, [1-9]\d* found in {WORKDIR}/cache/compiled", output)
    copy = downloaded(bucket[0], tmp_path)
    ours, theirs = checkpoint.load(copy), checkpoint.load(undisturbed)
    assert ours.params.keys() == theirs.params.keys()
    for name, array in theirs.params.items():
        np.testing.assert_array_equal(ours.params[name], array)
    for name in ("keypoints.json", "predictions.png"):
        assert (copy / name).read_bytes() == (undisturbed / name).read_bytes()
    assert (copy / "curves.png").exists()
    assert list((copy / "tensorboard").iterdir())
    assert sorted(path.name for path in (copy / "checkpoints").iterdir()) == ["18", "24"]


def test_metrics_in_a_bucket_have_no_gaps_and_no_doubles(in_bucket, undisturbed, bucket):
    objects = bucket[0].below("runs/a/metrics/")
    records = [json.loads(line) for name in sorted(objects) for line in objects[name].splitlines()]
    expected = list(metrics.read(undisturbed))
    assert losses(records) == losses(expected)
    assert steps_of_aps(records) == steps_of_aps(expected) != []


def test_evaluation_reads_from_and_writes_to_a_bucket(in_bucket, bucket):
    server, environment = bucket
    output = run(
        "tests.micro", "hrnet_jax.evaluate", "--checkpoint", WORKDIR, "--output", f"{WORKDIR}/val", **environment
    ).stdout
    assert f"{WORKDIR}, step 24" in output
    results = server.below("runs/a/val/")
    assert set(results) == {"keypoints.json", "metrics.json", "predictions.png"}
    assert json.loads(results["metrics.json"])["images"] > 0


@pytest.mark.parametrize(
    ("workdir", "message"),
    [
        ("gs://absent/run", "error: gs://absent/run: cannot be reached (no such bucket, or no right to see it)"),
        (f"{WORKDIR}/", "holds another experiment"),
    ],
)
def test_a_bucket_that_cannot_be_used_gets_one_line(shared, in_bucket, bucket, workdir, message):
    command = arguments(shared, workdir, batch_size=8)
    finished = run(*command, check=False, **bucket[1])
    assert finished.returncode == 1
    assert message in finished.stderr
    assert finished.stderr.count("\n") == 1


def test_a_bucket_without_the_extra_gets_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # as where it is not installed
    with pytest.raises(InputError, match=r"^gs://bucket/run: cannot be reached \(.*\[gcs\]'\) and credentials$"):
        storage.check_bucket("gs://bucket/run")


def test_what_others_write_to_a_bucket_is_seen(bucket):
    """TensorStore in the same process, for one: gcsfs would remember its first listing."""
    program = (
        "import os, urllib.request\n"
        "from etils import epath\n"
        "from data_pipelines import storage\n"
        "folder = epath.Path('gs://bucket/shared')\n"
        "storage.check_bucket(folder)\n"
        "(folder / 'a').write_text('a')\n"
        "print(*(path.name for path in folder.iterdir()))\n"
        "url = os.environ['STORAGE_EMULATOR_HOST'] + '/upload/storage/v1/b/bucket/o?name=shared/b'\n"
        "urllib.request.urlopen(urllib.request.Request(url, b'b', method='POST')).close()\n"
        "print(*(path.name for path in folder.iterdir()))\n"
    )
    environment = {**os.environ, **bucket[1]}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    assert done.stdout == "a\na b\n", done.stderr


def test_errors_with_disks_stay_what_they_are():
    with pytest.raises(ZeroDivisionError), storage.bucket_errors("runs/a"):
        raise ZeroDivisionError
    with pytest.raises(InputError, match="^runs/a: mine$"), storage.bucket_errors("gs://bucket/run"):
        raise InputError("runs/a: mine")


def test_a_mirror_of_a_folder_on_a_disk_is_the_folder(tmp_path):
    with storage.Mirror(tmp_path / "out") as mirror:
        assert mirror.path == tmp_path / "out"
        mirror.path.mkdir()
        (mirror.path / "a").write_text("a")
        mirror.sync()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "a"]


def test_a_half_written_line_of_metrics_is_dropped(tmp_path):
    with metrics.MetricWriter(tmp_path) as writer:
        for step in (1, 2, 3):
            writer.write(step, {"loss": float(step)})
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 4, "lo')
    with contextlib.closing(path.open()) as file:
        assert len(file.readlines()) == 4
    with metrics.MetricWriter(tmp_path, start_step=2) as writer:
        writer.write(3, {"loss": 30.0})
    assert [record["loss"] for record in metrics.read(tmp_path)] == [1, 2, 30]


def test_a_converted_folder_in_a_bucket_is_a_model(bucket, tmp_path):
    program = (
        "import sys\n"
        "import numpy as np\n"
        "from hrnet_jax.config import load_config\n"
        "from hrnet_jax.models import create_model, state_dict\n"
        "from hrnet_jax.weights import checkpoint\n"
        "from hrnet_jax.weights.folder import save_folder\n"
        "config = load_config('configs/coco.py:runlocal')\n"
        "params, stats = state_dict(create_model(config))\n"
        "arrays = {name: np.asarray(array) for name, array in {**params, **stats}.items()}\n"
        "for folder in sys.argv[1:]:\n"
        "    save_folder(folder, config, arrays)\n"
        "    trained = checkpoint.load(folder)\n"
        "    print(trained.origin, trained.digest(), checkpoint.stored_config(folder).model.variant)\n"
    )
    folders = ["gs://bucket/models/a", str(tmp_path / "a")]
    command = [sys.executable, "-c", program, *folders]
    done = subprocess.run(
        command, cwd=REPOSITORY, env={**os.environ, **bucket[1]}, capture_output=True, text=True, check=False
    )
    (first, second) = (line.split() for line in done.stdout.splitlines() or [done.stderr])
    assert [first[0], second[0]] == folders
    assert first[1:] == second[1:]
    assert set(bucket[0].below("models/a/")) == {"config.json", "model.safetensors"}
