"""What reaches the terminal: one line, in which names cannot do anything."""

import logging
import os
import subprocess
import sys

import pytest

from data_pipelines.errors import LogFormatter, printable, utf8
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
