"""Imports go one way: from commands to parts, and from parts to what they are made of."""

import importlib.util

import pytest

from tests.helpers import REPOSITORY

_SPEC = importlib.util.spec_from_file_location("layout", REPOSITORY / "docs/layout.py")
layout = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(layout)

# What each room may import of the others; `hrnet_jax` alone stands for the commands.
BELOW = {
    "data_pipelines": set(),
    "eval": {"data_pipelines"},
    "hrnet_jax.codecs": {"data_pipelines"},
    "hrnet_jax.models": {"data_pipelines", "hrnet_jax.codecs"},
    "hrnet_jax.base": {"data_pipelines", "eval", "hrnet_jax.models", "hrnet_jax.codecs"},
    "hrnet_jax.tpu": {"data_pipelines", "hrnet_jax.base"},
}
BELOW["hrnet_jax.weights"] = {*BELOW["hrnet_jax.base"], "hrnet_jax.base"}
BELOW["hrnet_jax.inference"] = {*BELOW["hrnet_jax.weights"], "hrnet_jax.weights"}
BELOW["hrnet_jax.reporting"] = {*BELOW["hrnet_jax.inference"], "hrnet_jax.inference"}
BELOW["hrnet_jax.training"] = {*BELOW["hrnet_jax.inference"], "hrnet_jax.inference"}
BELOW["hrnet_jax"] = set(BELOW)
# No module of another room imports it while it is imported: it needs an extra.
BELOW["hrnet_jax.onnx"] = {*BELOW["hrnet_jax.inference"], "hrnet_jax.inference"}
BELOW["configs"] = {"data_pipelines"}


@pytest.mark.parametrize("module", sorted(layout.MODULES))
def test_imports_go_one_way(module):
    here = layout.room(module)
    for name in layout.imported(module):
        there = layout.room(name)
        assert there == here or there in BELOW[here], f"{module} imports {name}: {here} may not import {there}"


@pytest.mark.parametrize("command", sorted(layout.COMMANDS))
def test_commands_do_not_import_each_other(command):
    others = {f"hrnet_jax.{name}" for name in layout.COMMANDS - {command}}
    assert not layout.imported(f"hrnet_jax.{command}") & others


def test_no_module_imports_itself_by_way_of_others():
    arrows = {module: layout.imported(module) for module in layout.MODULES}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join((*above[above.index(name) :], name))
        if name not in done:
            for other in arrows[name]:
                visit(other, (*above, name))
            done.add(name)

    for name in arrows:
        visit(name, ())


def test_every_module_is_in_a_room():
    top = {path.stem for path in (REPOSITORY / "hrnet_jax").glob("*.py")} - {"__init__", "__main__", "cli"}
    assert top == layout.BASE | layout.COMMANDS
    assert set(layout.arrows()) == set(BELOW)


def test_importing_the_package_imports_nothing_else():
    assert not layout.imported("hrnet_jax.__init__")


def test_the_picture_is_of_these_imports():
    page = (REPOSITORY / "docs/design.md").read_text()
    drawn = page.partition(layout.START)[2].partition(layout.END)[0]
    arrows = [line for line in drawn.splitlines() if "-->" in line]
    assert arrows == [line for line in layout.picture().splitlines() if "-->" in line] != []
