"""The commands as a user runs them: processes, exit codes, one line for what is wrong, and an installed wheel."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import cv2
import pytest

from configs.common import VARIANTS
from data_pipelines.synthetic import write_dataset
from tests.helpers import REPOSITORY, mistake, run

# With a flag of each that the help must explain.
COMMANDS = {
    **{"hrnet_jax.train": "--workdir", "hrnet_jax.evaluate": "--checkpoint", "hrnet_jax.predict": "--box_threshold"},
    **{"hrnet_jax.convert": "--ema", "hrnet_jax.export": "--dtype", "hrnet_jax.report": "--output"},
    **{
        "hrnet_jax.schedule": "--steps_per_epoch",
        "hrnet_jax.aot": "--topology",
        "hrnet_jax.launch": "--[no]dry_run",
        "hrnet_jax": "COMMAND --help",
    },
    **{"data_pipelines.synthetic": "--coco_train", "data_pipelines.prepare": "--against", "eval.coco": "use_area"},
}


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """A small synthetic data set."""
    root = tmp_path_factory.mktemp("people")
    write_dataset(root, coco_train=24, coco_val=8, aic_train=8, processes=1)
    return root


@pytest.fixture(scope="module")
def trained(people, tmp_path_factory):
    """A work directory made by the command line on the synthetic data, and what the command printed."""
    workdir = tmp_path_factory.mktemp("runs") / "quick"
    done = run(
        *("hrnet_jax.train", "--config", "configs/quickstart.py", "--workdir", workdir, f"--config.data.root={people}"),
        *("--config.epochs=1", "--config.batch_size=8", "--config.eval.batch_size=8", "--config.log_every=2"),
        *("--config.model.variant=tiny", "--config.codec.input_size=(96,96)"),
    )
    return workdir, done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_the_flags_and_does_not_wait_for_jax(command):
    module = f"{command}.__main__" if command in ("hrnet_jax", "data_pipelines.synthetic") else command
    code = (
        f"import runpy, sys\nsys.argv[1:] = ['--help']\n"
        f"try:\n    runpy.run_module({module!r}, run_name='__main__')\nexcept SystemExit:\n    pass\n"
        "print('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    *lines, waited = done.stdout.splitlines()
    assert COMMANDS[command] in "\n".join(lines)
    assert waited == "False" or not command.startswith("hrnet_jax")
    if command in ("hrnet_jax.train", "hrnet_jax.convert", "hrnet_jax.aot"):
        assert {line.split()[0] for line in lines if line.startswith("  ")} >= set(VARIANTS)


def test_the_quickstart_path_in_small(trained, people, tmp_path):
    workdir, printed = trained
    assert "samples/s data wait" in printed
    assert "ETA" in printed
    for name in ("curves.png", "predictions.png"):
        assert cv2.imread(str(workdir / name)).std() > 5, f"{name} is empty"
    images = json.loads((people / "coco/annotations/person_keypoints_val2017.json").read_text())["images"]
    results = json.loads((workdir / "keypoints.json").read_text())
    assert {result["image_id"] for result in results} <= {image["id"] for image in images}
    records = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    steps = [record["step"] for record in records if "loss" in record]
    metrics = json.loads((workdir / "metrics.json").read_text())
    assert steps == [*range(2, metrics["step"], 2), metrics["step"]]
    assert metrics["boxes"].startswith("COCO_val2017_detections")
    assert {"AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL"} <= set(metrics)

    output = tmp_path / "annotated"
    done = run(
        *("hrnet_jax.evaluate", "--checkpoint", workdir, "--output", output, "--config.data.eval.boxes="),
    )
    assert "annotated" in done.stdout
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["boxes"] == "annotated"
    assert metrics["codec_AP"] > 0.9
    annotations = people / "coco/annotations/person_keypoints_val2017.json"
    again = run("eval.coco", "--annotations", annotations, "--results", output / "keypoints.json")
    assert "AP50" in again.stdout


TRAIN = ("hrnet_jax.train", "--config", "configs/quickstart.py", "--workdir", "{tmp}/w", "--config.data.root={people}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*TRAIN, "--config.optimizer.learnin_rate=1"), "learnin_rate"),
        ((*TRAIN, "--config.batch_size=many"), "batch_size"),
        ((*TRAIN, "--batch-size=8"), "did you mean --config.batch_size or --config.eval.batch_size?"),
        ((*TRAIN, "--verbose"), "unknown flag --verbose; --help"),
        ((*TRAIN, "--config.data.root={tmp}/none"), "config.data.root={tmp}/none: no such folder"),
        (("hrnet_jax.train", "--config", "none.py", "--workdir", "{tmp}"), "none.py: no such config file"),
        (("hrnet_jax.train", "--config", "configs/coco.py:w64", "--workdir", "{tmp}"), "unknown variant w64"),
        (("hrnet_jax.train", "--config", "configs/coco.py"), "missing --workdir"),
        (("hrnet_jax.evaluate", "--checkpoint", "{tmp}/none", "--output", "{tmp}"), "none: no such folder"),
        (("hrnet_jax.evaluate", "--checkpoint", "{tmp}", "--output", "{tmp}"), "config.json: no such file"),
        (("eval.coco", "--annotations", "{tmp}/none.json", "--results", "{tmp}/r.json"), "r.json: no such file"),
    ],
)
def test_mistakes_get_one_line_and_status_1(people, tmp_path, arguments, message):
    message = message.format(tmp=tmp_path)
    assert message in mistake(*(argument.format(people=people, tmp=tmp_path) for argument in arguments))


def test_a_mistake_ends_the_process_as_it_ends_main(people, tmp_path):
    arguments = [argument.format(people=people, tmp=tmp_path) for argument in TRAIN]
    done = run(*arguments, "--config.batch_size=0", check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: config.batch_size=0")


def test_the_wheel_works_in_an_empty_environment_and_another_directory(people, tmp_path):
    uv = shutil.which("uv") or str(pathlib.Path(sys.executable).parent / "uv")
    subprocess.run([uv, "build", "--quiet", "--wheel", "--out-dir", tmp_path, REPOSITORY], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, tmp_path / "env"], check=True)
    python = tmp_path / "env" / "bin" / "python"
    requirements = REPOSITORY / "requirements.txt"
    subprocess.run([uv, "pip", "install", "--quiet", "--python", python, "-r", requirements, wheel], check=True)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def installed(*arguments):
        command = [str(argument) for argument in arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    where = installed(python, "-c", "import hrnet_jax, eval, data_pipelines; print(hrnet_jax.__file__)")
    assert str(tmp_path / "env") in where.stdout, where.stderr
    config = f"{REPOSITORY / 'configs/quickstart.py'}"
    done = installed(
        *(tmp_path / "env" / "bin" / "hrnet-train", "--config", config, "--workdir", "run"),
        *(f"--config.data.root={people}", "--config.epochs=1", "--config.batch_size=8", "--config.eval.batch_size=8"),
        *("--config.model.variant=tiny", "--config.codec.input_size=(96,96)"),
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "metrics.json").exists()
