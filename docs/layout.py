"""Writes the picture of rooms and imports into docs/design.md, from the imports themselves.

    python docs/layout.py

An arrow is drawn for each room that imports another; those that a longer way implies are left out.
"""

from __future__ import annotations

import ast
import pathlib
import runpy

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
START, END = "<!-- docs/layout.py -->\n", "<!-- end -->\n"

# Modules beside the commands that all of `hrnet_jax` may use.
BASE = {"config", "mesh", "outcomes", "schema"}
COMMANDS = {*runpy.run_path(str(REPOSITORY / "hrnet_jax/__main__.py"))["COMMANDS"]}

MODULES = {
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts): path
    for package in ("data_pipelines", "eval", "hrnet_jax", "configs")
    for path in sorted((REPOSITORY / package).rglob("*.py"))
}


def room(module: str) -> str:
    """The room of a module: its package, and of hrnet_jax's own modules `hrnet_jax` (commands) or `hrnet_jax.base`."""
    parts = module.split(".")
    if parts[0] != "hrnet_jax":
        return parts[0]
    if len(parts) > 2:
        return ".".join(parts[:2])
    return "hrnet_jax.base" if parts[-1] in BASE else "hrnet_jax"


def imported(module: str) -> set[str]:
    """The modules of this project that a module imports while it is imported itself."""
    found = set()
    for node in ast.parse(MODULES[module].read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    known = {name if name in MODULES else f"{name}.__init__" for name in found}
    return known & set(MODULES)


def arrows() -> dict[str, set[str]]:
    """By room, the rooms that it imports."""
    found: dict[str, set[str]] = {room(module): set() for module in MODULES}
    for module in MODULES:
        found[room(module)] |= {room(name) for name in imported(module)} - {room(module)}
    return found


def picture() -> str:
    """A Mermaid flow chart of the rooms, with their numbers of modules and lines."""
    direct = arrows()

    def reached(start: str) -> set[str]:
        return {there for name in direct[start] for there in (name, *reached(name))}

    lines = ["```mermaid", "flowchart TD"]
    for name in sorted(direct):
        paths = [path for module, path in MODULES.items() if room(module) == name]
        count = sum(len(path.read_text().splitlines()) for path in paths)
        title = {"hrnet_jax": "hrnet_jax: commands", "hrnet_jax.base": "hrnet_jax: " + ", ".join(sorted(BASE))}
        label = f"{title.get(name, name)}<br>{len(paths)} modules, {round(count, -2):,} lines"
        lines.append(f'    {_key(name)}["{label}"]')
    for name in sorted(direct):
        implied = {there for other in direct[name] for there in reached(other)}
        lines += [f"    {_key(name)} --> {_key(there)}" for there in sorted(direct[name] - implied)]
    return "\n".join([*lines, "```", ""])


def _key(name: str) -> str:
    return name.replace(".", "_")


def main() -> None:
    """Writes the page."""
    page = REPOSITORY / "docs/design.md"
    before, _, rest = page.read_text().partition(START)
    page.write_text(before + START + picture() + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
