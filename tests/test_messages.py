"""What reaches the terminal: one line, in which names cannot do anything."""

import logging
import os
import re
import subprocess
import sys

import pytest

from data_pipelines.errors import InputError, LogFormatter, extra, printable, utf8
from hrnet_jax.config import load_config
from hrnet_jax.models import create_model
from hrnet_jax.train import train
from hrnet_jax.weights import checkpoint
from tests.helpers import REPOSITORY

EVIL = os.fsdecode(b"a\n\x1b[31m\xe9.json")


def test_what_is_not_to_be_printed_is_escaped():
    assert printable("caf\u00e9 \u65e5\u672c.jpg") == "caf\u00e9 \u65e5\u672c.jpg"
    assert printable(EVIL) == r"a\n\x1b[31m\xe9.json"
    assert printable("a\u202eb\ud800", keep="\n") == r"a\u202eb\ud800"
    assert utf8(EVIL) == "a\n\x1b[31m\\xe9.json"


@pytest.mark.parametrize(("level", "kept"), [(logging.INFO, "\n"), (logging.WARNING, "\\n")])
def test_the_log_is_printable_and_only_warnings_have_one_line(level, kept):
    record = logging.LogRecord("eval", level, "", 0, "%s\n%s", ("table", "\x1b[1m"), None)
    assert LogFormatter().format(record) == f"table{kept}\\x1b[1m"


@pytest.mark.parametrize(
    "command",
    [
        ("eval.coco", "--annotations", EVIL, "--results", EVIL),
        ("data_pipelines.prepare", "--annotations", EVIL, "--images", ".", "--keypoints", "coco", "--output", "x"),
        ("hrnet_jax.predict", "--checkpoint", EVIL, "--images", EVIL, "--output", "x"),
    ],
)
def test_commands_print_one_harmless_line(command, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
    )
    assert done.returncode == 1, done.stderr
    error = done.stderr.decode()
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert r"a\n\x1b[31m\xe9.json" in error


def test_optional_parts_are_installed_from_the_clone():
    """Nothing is published, so a name of a package would find nothing, or a stranger's."""
    for line in (REPOSITORY / "setup.cfg").read_text().partition("[options.extras_require]")[2].splitlines():
        if line.startswith("["):
            break
        if line.endswith("="):
            assert f"-e '.[{line[:-2]}]'" in extra(line[:-2])
    for path in (*REPOSITORY.glob("*/*.md"), *REPOSITORY.glob("hrnet_jax/**/*.py"), REPOSITORY / "README.md"):
        assert not re.search(r"install [^`\n]*hrnet[-_]jax\[", path.read_text()), path


@pytest.mark.parametrize("config", ["w32", {"variant": "w32"}, {"model": {"variant": "w32"}}, None])
def test_a_model_of_no_config_says_what_to_pass(config):
    example = re.escape("such as {'model': {'variant': 'w32'}, 'keypoints': 'coco'}")
    with pytest.raises(InputError, match=rf"^create_model\(.*\): takes a config, .* {example}$"):
        create_model(config)


@pytest.mark.parametrize(
    ("path", "meant"),
    [("best", "@best"), ("latest", "@latest"), ("12", "@12"), ("checkpoints", "@best"), ("checkpoints/12", "@12")],
)
def test_a_checkpoint_by_its_folder_says_its_name(tmp_path, path, meant):
    (tmp_path / "run/checkpoints/12").mkdir(parents=True)
    with pytest.raises(InputError, match=rf"run/{path}: is not a model; .* is named {tmp_path}/run{meant}$"):
        checkpoint.load(tmp_path / "run" / path)


def test_a_missing_init_is_found_before_the_data_is_read(tmp_path):
    config = load_config(str(REPOSITORY / "configs/coco.py:runlocal"))
    config.data.root, config.init = str(tmp_path / "none"), str(tmp_path / "gone")
    with pytest.raises(InputError, match=r"^config\.init: .*gone: no such"):
        train(config, tmp_path / "run")
