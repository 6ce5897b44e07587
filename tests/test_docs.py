"""What the README and the pages say can be done: their Python runs, and their command lines are understood."""

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import textwrap

import pytest

from hrnet_jax import cli, launch
from hrnet_jax.config import load_config
from tests.helpers import REPOSITORY, run

# own-data.md's blocks are steps of one procedure, which has a test of its own.
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
RUN = {page.name: page for page in PAGES if page.name != "own-data.md"}

_BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`]+)`")
_COMMAND = re.compile(r"python3? -m ((?:hrnet_jax|data_pipelines|eval|benchmarks)\.\w+)")
_PLACEHOLDER = re.compile(r"\b(?:NAME|KEY)\b|\.\.\.")


def blocks(page, *languages):
    """The page's blocks in one of the languages ("" for none said), without their indentation."""
    return [textwrap.dedent(text) for _, language, text in _BLOCK.findall(page.read_text()) if language in languages]


def commands(page):
    """(module, arguments) of every command line of this project: in blocks, and `inline`."""
    text = page.read_text()
    snippets = blocks(page, "sh", "")
    snippets += [" ".join(snippet.split()) for snippet in _INLINE.findall(_BLOCK.sub("", text))]
    for snippet in snippets:
        for line in snippet.replace("\\\n", " ").splitlines():
            for match in _COMMAND.finditer(line):
                rest = line[match.end() :]
                for quote in "'\"":
                    if line[: match.start()].count(quote) % 2:  # the command is an argument of another
                        rest = rest.partition(quote)[0]
                lexer = shlex.shlex(rest, posix=True, punctuation_chars=True)
                lexer.commenters, lexer.whitespace_split = "#", True
                arguments = []
                for token in lexer:
                    if set(token) <= set("&|;<>()") or (token.isdigit() and rest.count(f"{token}>")):
                        break
                    arguments.append(token)
                yield match.group(1), arguments


ALL = [(page, command, arguments) for page, path in RUN.items() for command, arguments in commands(path)]


@pytest.fixture(scope="module")
def helps():
    """What --help says, by command; one process for all, for most of the time is that of imports."""
    code = """
import contextlib, io, json, runpy, sys
texts = {}
for name in sys.argv[1:]:
    out, sys.argv = io.StringIO(), [name, "--help"]
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        runpy.run_module(name, run_name="__main__")
    texts[name] = out.getvalue()
print(json.dumps(texts))
"""
    names = sorted({command for _, command, _ in ALL})
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *names],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def flags_of(text):
    """The flags that a help text lists, argparse's or absl's."""
    found = re.findall(r"(?<![\w-])--(\[no-?\])?([A-Za-z][\w-]*)", text)
    return {name for _, name in found} | {no.strip("[]") + name for no, name in found if no}


def check_config(arguments):
    """Loads what --config names and applies the overrides to it."""
    spec = "configs/coco_aic_merge.py"  # of commands that take a checkpoint's
    for i, argument in enumerate(arguments):
        if argument.partition("=")[0] == "--config":
            spec = argument.partition("=")[2] or arguments[i + 1]
    if spec.startswith("data/"):  # written by an import, with the variants of all recipes
        spec = f"configs/coco.py:{spec.partition(':')[2]}"
    config = load_config(f"{REPOSITORY}/{_PLACEHOLDER.sub('coco', spec)}")
    overrides = [argument for argument in arguments if argument.startswith("--config.")]
    cli.parse(overrides, "", {}, lambda values: config)


def test_there_are_commands_to_check():
    assert len({command for _, command, _ in ALL}) > 8
    assert {page for page, _, _ in ALL} >= {"README.md", "cloud.md", "data.md", "export.md", "predict.md"}


@pytest.mark.parametrize(("page", "command", "arguments"), ALL, ids=[f"{p}-{c}" for p, c, _ in ALL])
def test_command_lines_are_understood(helps, page, command, arguments):
    if command == "hrnet_jax.launch" and arguments:
        arguments = launch.parse(arguments).arguments
        command = "hrnet_jax.train"
    known = flags_of(helps[command])
    assert known, f"{command} --help lists no flags"
    for argument in arguments:
        name = argument.partition("=")[0]
        if name.startswith("--") and not name.startswith("--config."):
            assert name[2:] in known | {"help"}, f"{page}: {command} has no {name}"
    check_config(arguments)


@pytest.mark.parametrize("page", RUN)
def test_what_is_named_exists(page):
    text = RUN[page].read_text()
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in target:
            assert (RUN[page].parent / target).exists(), target
    for path in re.findall(
        r"(?<![\w/.])(?:tests|configs|benchmarks|docs(?!/usage/)|hrnet_jax|data_pipelines|eval)/[\w/]+\.\w+", text
    ):
        assert _PLACEHOLDER.search(path) or (REPOSITORY / path).exists(), path
    targets = re.findall(r"^(\w+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"(?:`|^)make (\w+)", text, re.MULTILINE)) <= set(targets)
    for file, words in re.findall(r"pytest (tests/\w+\.py) -k (\w+)", text):
        assert words in (REPOSITORY / file).read_text()
    scripts = re.findall(r"^ +(hrnet-\w+) = ([\w.]+):main$", (REPOSITORY / "setup.cfg").read_text(), re.MULTILINE)
    assert set(re.findall(r"\bhrnet-(?:train|evaluate|launch|predict|convert|export|report|prepare)\b", text)) <= {
        name for name, _ in scripts
    }
    for inline in _INLINE.findall(_BLOCK.sub("", text)):
        if inline.startswith(('"--config.', "--config.")) and not _PLACEHOLDER.search(inline):
            arguments = shlex.split(inline)
            if all(re.match(r"--config\.[\w.]+=.+", argument) for argument in arguments):
                check_config(arguments)


@pytest.mark.parametrize("device", ["", "cuda13", "tpu"])
def test_the_makefile_installs_for_a_device(device):
    """The pinned versions, and beside them JAX's plugin of the same version."""
    done = subprocess.run(
        ["make", "--dry-run", "--always-make", "install", f"DEVICE={device}"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--requirement requirements.txt" in done.stdout
    assert (f"--constraint requirements.txt 'jax[{device}]'" in done.stdout) == bool(device)


def test_the_makefile_refuses_another_device():
    done = subprocess.run(["make", "install", "DEVICE=gpu"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode
    assert "DEVICE=gpu: must be" in done.stderr


# Most of the time is XLA's; these programs run for a moment only.
COMPILE_QUICKLY = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
SMALL = ("--coco_train=8", "--coco_val=2", "--aic_train=1", "--processes=1")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder as the pages find it after `make quickstart` and an export, but small."""
    place = tmp_path_factory.mktemp("place")
    (place / "configs").symlink_to(REPOSITORY / "configs")
    run("data_pipelines.synthetic", "--root", "runs/synthetic", *SMALL, cwd=place)
    run(
        *("hrnet_jax.train", "--config", "configs/coco.py:runlocal", "--workdir", "runs/quickstart"),
        *("--config.data.root=runs/synthetic", "--config.codec.input_size=(96,96)"),
        *("--config.batch_size=8", "--config.eval.batch_size=8"),
        cwd=place,
        **COMPILE_QUICKLY,
    )
    export = ["hrnet_jax.export", "--checkpoint", "runs/quickstart", "--output", "runs/quickstart_export"]
    run(*export, cwd=place, **COMPILE_QUICKLY)
    shutil.copy(next((place / "runs/synthetic/coco/val2017").iterdir()), place / "photo.jpg")
    return place


@pytest.mark.parametrize("page", [name for name, path in RUN.items() if blocks(path, "python")])
def test_python_runs(place, page):
    """The blocks of a page, one after the other, in one namespace."""
    code = "\n".join(blocks(RUN[page], "python"))
    done = subprocess.run(
        [sys.executable, "-"],
        input=code,
        cwd=place,
        env={**os.environ, **COMPILE_QUICKLY},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{page}\n{done.stderr}"


def test_the_tables_of_compiled_steps_are_those_of_their_records():
    """If this fails: python docs/aot.py."""
    script = runpy.run_path(str(REPOSITORY / "docs/aot.py"))
    text = script["PAGE"].read_text()
    assert script["page"](text) == text
    changed = text.replace("| 681 MB |", "| 618 MB |")
    assert changed != text == script["page"](changed)


def test_the_printed_tables_are_those_of_their_records():
    """If this fails: python docs/record.py."""
    script = runpy.run_path(str(REPOSITORY / "docs/record.py"))
    records = json.loads(script["RECORDS"].read_text())
    shown = []
    for path in script["PAGES"]:
        text = path.read_text()
        assert script["page"](text, records) == text, path.name
        shown += re.findall(r"<!-- record: (\w+) -->", text)
    assert sorted(shown) == sorted(records)
    row = records["prediction"]["printed"][2]
    assert row in (REPOSITORY / "benchmarks/RESULTS.md").read_text()


def test_figures_in_sentences_follow_from_the_compiled_steps():
    """Where a page repeats or derives figures of docs/aot.json. 210 epochs of merge are 210 x 528,165 crops."""
    steps = json.loads((REPOSITORY / "docs/aot.json").read_text())
    chip, gpu = steps["train, v5e:1x1, 128"], steps["train, h100, 256"]
    rate = chip["images"] / chip["estimated_seconds"]
    hours = {chips: 210 * 528_165 / (chips * rate) / 3600 for chips in (4, 16)}
    pages = {page.name: " ".join(page.read_text().split()) for page in PAGES}
    readme, compiled, results = pages["README.md"], pages["aot.md"], (REPOSITORY / "benchmarks/RESULTS.md").read_text()
    assert f"| v5e-4, batch 512 | {hours[4]:.1f} | projected: {rate:.0f} images/s per chip" in readme
    assert f"| v5e-16, batch 2,048 | {hours[16]:.1f} |" in readme
    assert f"256 x {rate:.0f} = {round(256 * rate, -3):,.0f}" in compiled
    assert f"up to 4 x {rate:.0f} images/s" in compiled
    assert f"-> {gpu['kernels']['count']:,} kernels" in results
