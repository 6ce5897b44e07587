"""Imports go one way: from commands to parts, and from parts to what they are made of."""

import ast
import pathlib

import pytest

from tests.helpers import REPOSITORY

# What each room may import of the others; `hrnet_jax` alone stands for the commands.
BELOW = {
    "data_pipelines": set(),
    "eval": {"data_pipelines"},
    "hrnet_jax.models": {"data_pipelines"},
    "hrnet_jax.codecs": {"data_pipelines"},
    "hrnet_jax.base": {"data_pipelines", "eval", "hrnet_jax.models", "hrnet_jax.codecs"},
    "hrnet_jax.tpu": {"data_pipelines", "hrnet_jax.base"},
}
BELOW["hrnet_jax.weights"] = {*BELOW["hrnet_jax.base"], "hrnet_jax.base"}
BELOW["hrnet_jax.inference"] = {*BELOW["hrnet_jax.weights"], "hrnet_jax.weights"}
BELOW["hrnet_jax.reporting"] = BELOW["hrnet_jax.inference"]
BELOW["hrnet_jax.training"] = {*BELOW["hrnet_jax.inference"], "hrnet_jax.inference"}
BELOW["hrnet_jax"] = set(BELOW)
BELOW["configs"] = {"data_pipelines"}

# Modules beside the commands that everything in `hrnet_jax` may use.
BASE = {"config", "draw", "mesh", "outcomes", "schema"}
COMMANDS = {"aot", "convert", "evaluate", "export", "launch", "predict", "report", "train"}

MODULES = {
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts): path
    for package in ("data_pipelines", "eval", "hrnet_jax", "configs")
    for path in (REPOSITORY / package).rglob("*.py")
}


def room(module: str) -> str:
    """The room that a module is in."""
    parts = module.split(".")
    if parts[0] != "hrnet_jax":
        return parts[0]
    if len(parts) > 2:
        return ".".join(parts[:2])
    return "hrnet_jax.base" if parts[-1] in BASE else "hrnet_jax"


def imported(path: pathlib.Path) -> set[str]:
    """The modules of ours that a file imports while it is imported itself."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return {name for name in found if name in MODULES or f"{name}.__init__" in MODULES}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_one_way(module):
    here = room(module)
    for name in imported(MODULES[module]):
        there = room(name if name in MODULES else f"{name}.__init__")
        assert there == here or there in BELOW[here], f"{module} imports {name}: {here} may not import {there}"


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_commands_do_not_import_each_other(command):
    others = {f"hrnet_jax.{name}" for name in COMMANDS - {command}}
    assert not imported(MODULES[f"hrnet_jax.{command}"]) & others


def test_no_module_imports_itself_by_way_of_others():
    arrows = {name: {n if n in MODULES else f"{n}.__init__" for n in imported(path)} for name, path in MODULES.items()}
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
    assert top == BASE | COMMANDS
    assert {room(module) for module in MODULES} == set(BELOW)


def test_importing_the_package_imports_nothing_else():
    assert not imported(REPOSITORY / "hrnet_jax/__init__.py")
