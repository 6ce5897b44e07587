"""Launching on a cloud: the commands, and the loop through preemptions, against a stand-in for gcloud."""

import concurrent.futures
import json
import os
import shlex
import shutil
import subprocess
import sys
import time

import pytest

from hrnet_jax import launch
from tests import gcs_server
from tests.helpers import LOCAL, REPOSITORY

PYTHON = "mkdir -p .venv/bin && ln -s {} .venv/bin/python"
TRAINING = ["--", "--config", "configs/coco.py", "--workdir", "gs://bucket/run"]


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """A folder with the stand-in's state; it is first on PATH."""
    folder, programs = tmp_path / "cloud", tmp_path / "bin"
    folder.mkdir()
    programs.mkdir()
    gcloud = programs / "gcloud"
    gcloud.write_text(f'#!/bin/sh\nexec {sys.executable} -S {REPOSITORY}/tests/fake_gcloud.py "$@"\n')
    gcloud.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_CLOUD", str(folder))
    return folder


@pytest.fixture
def source(tmp_path):
    """A repository with the configs alone: the package comes from where the tests run."""
    folder = tmp_path / "source"
    shutil.copytree(REPOSITORY / "configs", folder / "configs", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "uncommitted").write_text("")
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "configs"], ["commit", "-q", "-m", "configs"]):
        subprocess.run([*git, *command], check=True)
    return folder


@pytest.fixture
def trainer(tmp_path):
    """A program in place of the training; it does, once per start, what the lines of `script` say."""
    program, script = tmp_path / "trainer", tmp_path / "script"
    program.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$@" > ~/arguments\n'
        f"line=$(flock {script}.lock sh -c 'head -n 1 {script}; sed -i 1d {script}')\n"
        'echo "doing: $line"\neval "$line"\n'
    )
    program.chmod(0o755)
    return program, script


def call(command, source, program, *more, type="v5litepod-8"):
    flags = ["--name", "pose", "--zone", "us-x1-a", "--type", type, "--source", str(source), "--poll", "0.05"]
    return launch.main([command, *flags, "--setup", PYTHON.format(program), *more])


def verbs(cloud):
    """Of all calls, those that change what there is."""
    calls = [json.loads(line) for line in (cloud / "calls").read_text().splitlines()]
    return [call[3] for call in calls if call[3] in ("create", "delete", "scp")]


def test_a_run_from_creation_to_deletion(cloud, source, trainer, capfd):
    program, script = trainer
    script.write_text("exit 0\n")
    assert call("run", source, program, "--delete", *TRAINING, "--config.data.root=/my data/$x'y") == 0
    assert verbs(cloud) == ["create", "scp", "delete"]
    assert not (cloud / "hosts").exists()
    output = capfd.readouterr().out
    assert "pose: WAITING_FOR_RESOURCES" in output
    assert "doing: exit 0" in output
    assert "pose is deleted" in output


def test_arguments_reach_the_training_as_they_were_given(cloud, source, trainer):
    program, script = trainer
    script.write_text("exit 0\n")
    awkward = "--config.data.root=/my data/$HOME `id` 'x' \"y\" ; exit 3"
    assert call("run", source, program, *TRAINING, awkward) == 0
    given = (cloud / "hosts/0/arguments").read_text().splitlines()
    assert given == ["-m", "hrnet_jax.train", *TRAINING[1:], awkward, "--distributed"]
    assert not (cloud / "hosts/0/hrnet_jax/uncommitted").exists()


def test_code_75_continues_on_the_same_machine(cloud, source, trainer, capfd):
    program, script = trainer
    script.write_text("exit 75\nexit 0\n")
    assert call("run", source, program, *TRAINING) == 0
    assert verbs(cloud) == ["create", "scp"]
    assert "interrupted (75); going on" in capfd.readouterr().out


@pytest.mark.parametrize("code", [1, 2, 137])
def test_other_codes_stop_with_the_end_of_the_log(cloud, source, trainer, capfd, code):
    program, script = trainer
    script.write_text(f"echo 'error: so it is'; exit {code}\nexit 0\n")
    assert call("run", source, program, *TRAINING) == code
    assert script.read_text() == "exit 0\n"
    assert "error: so it is" in capfd.readouterr().out


def test_last_words_of_a_machine_that_is_taken_away_do_not_count(cloud, source, trainer, capfd):
    """Hosts that lose each other may end with any code before they are gone."""
    program, script = trainer
    script.write_text("printf SUSPENDED > $FAKE_CLOUD/state_once; exit 1\nexit 0\n")
    assert call("run", source, program, *TRAINING) == 0
    assert "interrupted (1); going on" in capfd.readouterr().out


def test_a_preempted_machine_is_replaced(cloud, source, trainer):
    program, script = trainer
    script.write_text("echo working; sleep 60\nexit 0\n")
    (cloud / "preempt").write_text("working")
    assert call("run", source, program, *TRAINING) == 0
    assert verbs(cloud) == ["create", "scp", "delete", "create", "scp"]


def test_a_training_that_vanished_is_started_again(cloud, source, trainer):
    """As after a reboot: the machine is there, the process is not, and nothing says how it ended."""
    program, script = trainer
    script.write_text("kill -9 $PPID; exit 5\nexit 0\n")
    assert call("run", source, program, *TRAINING) == 0
    assert verbs(cloud) == ["create", "scp"]


def test_what_is_left_of_a_training_is_ended_before_the_next(cloud, source, trainer):
    """One of two hosts lost its process; the other's would wait for it."""
    program, script = trainer
    script.write_text("test $JAX_PROCESS_ID = 1 && sleep 60; kill -9 $PPID\n" * 2 + "exit 0\n" * 2)
    assert call("run", source, program, *TRAINING, type="v5litepod-16") == 0
    assert verbs(cloud) == ["create", "scp"]
    assert (cloud / "calls").read_text().count("setsid") == 2


@pytest.fixture
def following(cloud, source, trainer):
    """`run` in a thread, while the training works; it saves when it is asked to end."""
    program, script = trainer
    script.write_text("trap 'exit 75' TERM; echo working; while :; do sleep 0.05; done\nexit 0\n")
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        run = thread.submit(call, "run", source, program, *TRAINING)
        log = cloud / "hosts/0/hrnet_run/log"
        while not (log.exists() and "working" in log.read_text()):
            time.sleep(0.05)
        yield run


def test_a_training_that_is_stopped_is_not_started_again_until_asked(cloud, source, trainer, following, capfd):
    assert call("stop", source, trainer[0]) == 0
    assert following.result(60) == 75
    assert "the training ended; `run` continues it" in capfd.readouterr().out
    assert call("stop", source, trainer[0]) == 1
    assert "no training runs on pose" in capfd.readouterr().err
    assert call("run", source, trainer[0], *TRAINING) == 0
    assert verbs(cloud) == ["create", "scp"]


def test_a_machine_that_is_deleted_is_not_created_again(cloud, source, trainer, following, capfd):
    assert call("delete", source, trainer[0]) == 0
    assert following.result(60) == 1
    assert "pose was deleted" in capfd.readouterr().err
    assert verbs(cloud) == ["create", "scp", "delete"]


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["running", "running"], "running"),
        (["running", "0"], "running"),
        (["0", "0"], 0),
        (["1", "75"], 75),
        (["0", "2"], 2),
        (["running", "2"], 2),
        (["running", "lost"], "lost"),
        ([], "lost"),
    ],
)
def test_what_hosts_say_together(answers, expected):
    assert launch.outcome(answers) == expected


def test_watching_where_nothing_runs(cloud, source, trainer, capfd):
    assert call("create", source, trainer[0]) == 0
    assert call("watch", source, trainer[0]) == 1
    assert "no training runs on pose" in capfd.readouterr().err


def test_a_second_run_follows_the_one_that_runs(cloud, source, trainer, capfd):
    """This machine's process may die: the training does not notice, and is not started twice."""
    program, script = trainer
    script.write_text("while [ ! -e $FAKE_CLOUD/go ]; do sleep 0.1; done; exit 0\nexit 3\n")
    lines = [sys.executable, "-m", "hrnet_jax.launch", "run", "--name=pose", "--zone=us-x1-a", "--type=v5litepod-8"]
    lines += ["--source", str(source), "--poll=0.05", "--setup", PYTHON.format(program), *TRAINING]
    with subprocess.Popen(lines, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as first:
        for line in first.stdout:
            if line.startswith("doing"):
                break
        first.kill()
    assert call("create", source, program) == 1
    assert "a training runs on pose" in capfd.readouterr().err
    (cloud / "go").write_text("")
    assert call("watch", source, program) == 0
    assert call("run", source, program, *TRAINING) == 3  # the first is over: this one starts
    assert verbs(cloud) == ["create", "scp"]


def test_hosts_that_do_not_answer_are_no_reason_to_start_anew(cloud, source, trainer, capfd):
    program, script = trainer
    script.write_text("exit 0\n")
    assert call("create", source, program) == 0
    (cloud / "unreachable").write_text("")
    assert call("watch", source, program) == 1
    assert "ACTIVE but do not answer" in capfd.readouterr().err
    assert verbs(cloud) == ["create", "scp"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", *TRAINING], "missing --name, --zone"),
        (["start", "--name=a", "--zone=b"], "start: unknown; the commands are create, run"),
        (["watch", "--name=a", "--zone=b", "--poll=-1"], "--poll=-1.0: must be 0 or more"),
        (["run", "--name=a", "--zone=b", *TRAINING], "--type is missing"),
        (["create", "--name=a", "--zone=b", "--type=v6e-8", "--spot", "--reserved"], "one or the other"),
        (["run", "--name=a", "--zone=b", "--type=v5litepod-8"], "--config and --workdir missing after --"),
        (["create", "--name=a", "--zone=b", "--type=h100-8", "--dry_run"], "set --runtime_version"),
        (["create", "--name=a", "--zone=b", "--type=v5litepod-3"], "not created: ERROR: (gcloud) INVALID_ARGUMENT"),
        (["create", "--name=a", "--zone=b", "--type=v6e-8", "--frobnicate"], "unknown arguments: --frobnicate"),
        (["create", "--name=a", "--zone=b", "--type=v5litepod-8", "--poll=0", "--source=/absent"], "--source=/absent"),
    ],
)
def test_what_is_wrong_gets_one_line(cloud, capfd, arguments, message):
    assert launch.main(arguments) == 1
    error = capfd.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_request_that_failed_is_not_repeated(cloud, source, trainer, capfd):
    (cloud / "state_once").write_text("FAILED")
    assert call("create", source, trainer[0]) == 1
    assert "pose is FAILED; see: gcloud compute tpus queued-resources describe pose" in capfd.readouterr().err


def test_too_many_interruptions_end_it(cloud, source, trainer, capfd):
    program, script = trainer
    script.write_text("exit 75\n" * 5)
    assert call("run", source, program, "--max_restarts", "2", *TRAINING) == 1
    assert script.read_text() == "exit 75\n" * 2
    assert "more than --max_restarts=2 times" in capfd.readouterr().err


def test_the_plan_is_the_commands_of_googles_pages(cloud, capsys):
    flags = ["--name=pose", "--zone=us-x1-a", "--project=mine", "--type=v6e-16", "--spot", "--dry_run"]
    assert launch.main(["run", *flags, *TRAINING]) == 0
    assert not (cloud / "calls").exists()
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    where = ["--zone=us-x1-a", "--project=mine"]
    assert lines[0] == [
        *("gcloud", "compute", "tpus", "queued-resources", "create", "pose", "--node-id=pose", *where),
        *("--accelerator-type=v6e-16", "--runtime-version=v2-alpha-tpuv6e", "--spot"),
    ]
    assert all(line[:4] == ["gcloud", "compute", "tpus", "tpu-vm"] for line in lines[3:])
    assert launch.main(["watch", "--name=pose", "--zone=us-x1-a", "--dry_run"]) == 0
    assert "tail -c +1" in capsys.readouterr().out
    assert launch.main(["delete", "--name=pose", "--zone=us-x1-a", "--project=mine", "--dry_run"]) == 0
    deletion = ["gcloud", "compute", "tpus", "queued-resources", "delete", "pose", *where, "--force", "--quiet"]
    assert shlex.split(capsys.readouterr().out) == deletion


def test_it_needs_none_of_the_packages_it_installs():
    program = (
        "import sys; sys.modules.update(dict.fromkeys(('jax', 'numpy', 'absl', 'etils'))); import hrnet_jax.launch"
    )
    subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, check=True)


def test_two_hosts_train_through_a_preemption(cloud, source, shared, tmp_path, monkeypatch):
    """The real training on two hosts, its work directory in a bucket: all that the hosts had is lost in between."""
    python = tmp_path / "python"
    # -m hrnet_jax.train becomes -m tests.micro hrnet_jax.train.
    python.write_text(
        f'#!/bin/sh\nshift\nPYTHONPATH="$PYTHONPATH:{REPOSITORY}" exec {sys.executable} -m tests.micro "$@"\n'
    )
    python.chmod(0o755)
    (cloud / "preempt").write_text("step 8/")
    with gcs_server.serve() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("JAX_PLATFORMS", "cpu")
        monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
        training = ["--", "--config", "configs/coco_aic_merge.py:runlocal", "--workdir", "gs://bucket/run"]
        overrides = {
            "data.root": shared / "data",
            "epochs": 5,
            "model.variant": "micro",
            **LOCAL,
            "log_every": 1,
        }
        training += [f"--config.{key}={value}" for key, value in overrides.items()]
        assert call("run", source, python, "--poll", "0.5", "--delete", *training, type="v5litepod-16") == 0
        objects = server.below("run/metrics/")
        assert "run/keypoints.json" in server.objects
    assert verbs(cloud) == ["create", "scp", "delete", "create", "scp", "delete"]
    assert "finishing" in (log := (cloud / "log_of_the_preempted").read_text()) or "stopped at step" in log
    records = [json.loads(line) for name in sorted(objects) for line in objects[name].splitlines()]
    assert [record["step"] for record in records if "loss" in record] == list(range(1, 31))
    assert (cloud / "calls").read_text().count("setsid") == 2
