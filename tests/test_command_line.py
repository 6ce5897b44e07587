"""The options of all commands: what a command line means, and what is told about one that means nothing."""

import pytest

from data_pipelines import command_line
from data_pipelines.command_line import parse, parse_known, progress, status
from data_pipelines.errors import InputError

OPTIONS = {"folder": (None, "text"), "draw": (True, "pictures"), "count": (3, "images"), "share_of": (0.5, "part")}
DEFAULTS = {"folder": "DIR", "draw": True, "count": 3, "share_of": 0.5}


@pytest.mark.parametrize(
    ("arguments", "changes", "rest"),
    [
        (["--folder=DIR"], {}, []),
        (["--folder", "DIR", "--count", "4"], {"count": 4}, []),
        (["--folder=DIR", "--nodraw", "--share-of=1"], {"draw": False, "share_of": 1.0}, []),
        (["--folder=DIR", "--no-draw", "--draw"], {}, []),
        (["--folder=a=b c"], {"folder": "a=b c"}, []),
        (["--folder="], {"folder": ""}, []),
        (["--folder=DIR", "--config.a.b=-1", "--config.c", "-2"], {}, ["--config.a.b=-1", "--config.c", "-2"]),
        (["--folder=DIR", "--fold=x", "--cou=1"], {}, ["--fold=x", "--cou=1"]),  # names are not abbreviated
        # The first argument may be the folder; the value of an unknown flag is none.
        (["DIR"], {}, []),
        (["--count", "4", "DIR"], {"count": 4}, []),
        (["--draw", "DIR", "OTHER"], {}, ["OTHER"]),
        (["--config.a", "x", "DIR"], {}, ["--config.a", "x"]),
        (["--config.a=x", "DIR"], {}, ["--config.a=x"]),
        (["--folder", "DIR", "OTHER"], {}, ["OTHER"]),
    ],
)
def test_values_and_what_is_left(arguments, changes, rest):
    assert parse_known(arguments, "", OPTIONS, "folder") == ({**DEFAULTS, **changes}, rest)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "^missing --folder; --help tells more$"),
        (["--folder"], "^--folder: expected one argument"),
        (["--folder=DIR", "--count=2.5"], "^--count: invalid int value: '2.5'"),
        (["--folder=DIR", "--count=-1"], "^--count=-1: must be 0 or more$"),
        (["--folder=DIR", "--share_of=nan"], "^--share_of=nan: must be 0 or more$"),
        (["--folder=DIR", "--draw=maybe"], "^--draw: ignored explicit argument 'maybe'"),
        (["--folder=DIR", "--frame=1", "x"], "^unknown arguments: --frame=1 x; --help tells more$"),
        (["DIR"], "^missing --folder"),  # without `first`
    ],
)
def test_impossible_ones_get_one_line(arguments, message):
    with pytest.raises(InputError, match=message) as error:
        parse(arguments, "", OPTIONS)
    assert "\n" not in str(error.value)


def test_errors_become_exit_codes(capsys):
    def refuse():
        raise InputError("x.json: wrong")

    def interrupt():
        raise KeyboardInterrupt

    def fill_the_disk():
        raise PermissionError(13, "Permission denied", "/a/b")

    def fail():
        raise FileNotFoundError(2, "No such file or directory", "/a/b")

    assert [status(lambda: None), status(lambda: 75), status(refuse), status(fill_the_disk)] == [0, 75, 1, 1]
    assert status(interrupt, "run it again") == 130
    assert capsys.readouterr().err.splitlines() == [
        *("error: x.json: wrong", "error: /a/b: Permission denied", "run it again")
    ]
    with pytest.raises(FileNotFoundError):  # a mistake of ours keeps its traceback
        status(fail)


@pytest.mark.parametrize("shown", [True, False])
def test_progress_says_how_far_and_how_long(capsys, monkeypatch, shown):
    monkeypatch.setattr(command_line, "_SILENCE", -1)  # otherwise a line follows ten seconds after the last
    with progress(4, " people", shown=shown) as advance:
        advance(1)
        advance(3)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (2 if shown else 0)
    if shown:
        assert "25%" in lines[0]
        assert "1/4 [" in lines[0]
        assert "100%" in lines[1]
        assert "people/s" in lines[1]


def test_the_last_line_of_progress_says_that_all_is_done(capsys, monkeypatch):
    times = iter([0, 11, 12, 13, 14, 15])  # at the start, after each count and at each line
    monkeypatch.setattr(command_line.time, "monotonic", lambda: next(times))
    with progress(4, " people") as advance:
        advance(1)
        advance(3)
    lines = capsys.readouterr().err.splitlines()
    assert ["1/4" in lines[0], "4/4" in lines[1], len(lines)] == [True, True, 2]
