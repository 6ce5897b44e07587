"""Several processes train and evaluate as one does; a run moves from one number of devices to another."""

import json
import os
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest

from hrnet_jax.train import train
from hrnet_jax.training import metrics
from hrnet_jax.training.lease import Lease
from tests.helpers import REPOSITORY, local_config, run, training


def arguments(shared, workdir, epochs=2):
    return training(shared, workdir, {"log_every": 1, "epochs": epochs})


def run_hosts(*command, hosts=2, status=0):
    """Runs a command as that many processes of one device each; returns their outputs, or errors if status is not 0."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = []
    for host in range(hosts):
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
        environment |= {
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": str(hosts),
            "JAX_PROCESS_ID": str(host),
        }
        line = [sys.executable, "-m", *map(str, command), "--distributed"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(line, cwd=REPOSITORY, env=environment, **pipes))
    try:
        outputs = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [status] * hosts, outputs
    return [error if status else out for out, error in outputs]


def losses(workdir):
    """By step."""
    return {record["step"]: record["loss"] for record in metrics.read(workdir) if "loss" in record}


@pytest.fixture(scope="module")
def one_process(shared, tmp_path_factory):
    """A run of three epochs on two devices of one process."""
    workdir = tmp_path_factory.mktemp("one")
    config = local_config(shared)
    config.log_every, config.epochs = 1, 3
    train(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def two_processes(shared, tmp_path_factory):
    """Two epochs of it on two processes of one device each."""
    workdir = tmp_path_factory.mktemp("two")
    outputs = run_hosts(*arguments(shared, workdir))
    assert "step 12/12" in outputs[0]
    assert "step" not in outputs[1]  # one host tells
    return workdir


def test_two_processes_train_like_two_devices(one_process, two_processes):
    ours, theirs = losses(two_processes), losses(one_process)
    assert list(ours) == list(range(1, 13))
    assert ours[1] == pytest.approx(theirs[1], rel=1e-6)
    for step, loss in ours.items():
        assert loss == pytest.approx(theirs[step], rel=1e-4), step


def test_eight_devices_train_like_two(shared, one_process, tmp_path):
    """Where each holds half a group of BatchNorm's samples."""
    output = run(*arguments(shared, tmp_path / "eight"), JAX_NUM_CPU_DEVICES="8").stdout
    assert "groups of 4 samples span devices with 2 samples" in output
    ours, theirs = losses(tmp_path / "eight"), losses(one_process)
    assert list(ours) == list(range(1, 13))
    assert ours[1] == pytest.approx(theirs[1], rel=1e-6)
    for step, loss in ours.items():
        assert loss == pytest.approx(theirs[step], rel=1e-4), step


def test_two_processes_evaluate_like_one(one_process, tmp_path):
    """The same people in the same order; where they are differs by rounding, at most."""
    run_hosts("tests.micro", "hrnet_jax.evaluate", "--checkpoint", f"{one_process}@latest", "--output", tmp_path)
    places = (tmp_path, one_process)
    ours, theirs = (json.loads((place / "keypoints.json").read_text()) for place in places)
    assert [result["image_id"] for result in ours] == [result["image_id"] for result in theirs]
    off = np.abs(np.subtract([r["keypoints"] for r in ours], [r["keypoints"] for r in theirs]))
    assert (off < 0.02).mean() > 0.99
    np.testing.assert_allclose([r["score"] for r in ours], [r["score"] for r in theirs], atol=1e-4)
    ours, theirs = (json.loads((place / "metrics.json").read_text()) for place in places)
    distances = [numbers.pop("distances")["keypoints"]["all"] for numbers in (ours, theirs)]
    assert distances[0] == pytest.approx(distances[1], abs=0.01)
    for key in theirs:
        assert key == "step" or key.startswith("seconds") or ours[key] == pytest.approx(theirs[key], abs=1e-3), key


def test_a_run_of_two_processes_continues_on_one_device(shared, one_process, two_processes, tmp_path):
    """With the same samples: its losses are those of the run that goes on as it was."""
    moved = tmp_path / "moved"
    shutil.copytree(two_processes, moved)
    output = run(*arguments(shared, moved, epochs=3), JAX_NUM_CPU_DEVICES="1").stdout
    assert "continuing at step 12 of 18" in output
    ours, theirs = losses(moved), losses(one_process)
    assert list(ours) == list(theirs) == list(range(1, 19))
    for step, loss in ours.items():
        assert loss == pytest.approx(theirs[step], rel=1e-4), step


def test_all_hosts_end_when_the_work_directory_is_held(shared, tmp_path):
    with Lease(tmp_path):
        errors = run_hosts(*arguments(shared, tmp_path), status=1)
    for error in errors:
        lines = [line for line in error.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        assert "trains in this work directory" in lines[0]
        assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_all_hosts_continue_from_the_checkpoint_of_the_main_one(shared, two_processes, tmp_path):
    """Its newest is damaged: both go back to the same one."""
    moved = tmp_path / "damaged"
    shutil.copytree(two_processes, moved)
    (moved / "checkpoints/12/digests.json").write_text("{}")
    outputs = run_hosts(*arguments(shared, moved))
    assert "continuing at step 6 of 12" in outputs[0]
    assert losses(moved) == losses(two_processes)


def test_a_process_that_nobody_told_of_others_says_so(shared, tmp_path):
    finished = run(*arguments(shared, tmp_path), "--distributed", check=False, JAX_PLATFORMS="cpu")
    assert finished.returncode == 1
    assert finished.stderr.startswith("error: --distributed: ")
    assert "JAX_COORDINATOR_ADDRESS" in finished.stderr
    assert "Traceback" not in finished.stderr
