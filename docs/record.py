"""Runs benchmarks whose tables the pages show, and writes what they printed into the pages.

python docs/record.py NAME ...     # runs these records' commands anew, then writes the pages
python docs/record.py              # writes the pages
python docs/record.py --list       # names and commands

docs/records.json has command, output and conditions of each record; a page has `<!-- record: NAME -->` before and
`<!-- end -->` after the place of its text. In commands, DATA is the folder of real images (`$HRNET_JAX_SHARED/data`),
DIR a new temporary folder. Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shlex
import subprocess
import sys
import tempfile
from typing import Any

from data_pipelines.processes import cores

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
RECORDS = REPOSITORY / "docs/records.json"
PAGES = [*sorted((REPOSITORY / "docs").glob("*.md")), REPOSITORY / "benchmarks/RESULTS.md"]


def measure(command: str) -> dict[str, Any]:
    """Runs a record's command and returns the record."""
    data = pathlib.Path(os.environ.get("HRNET_JAX_SHARED", REPOSITORY / "../shared")).resolve() / "data"
    with tempfile.TemporaryDirectory() as folder:
        places = {"python": sys.executable, "DATA": str(data), "DIR": folder}
        words = [places.get(word, word) for word in shlex.split(command)]
        printed = subprocess.run(words, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True).stdout
    versions = {name: importlib.metadata.version(name) for name in ("jax", "numpy", "opencv-python-headless", "grain")}
    return {
        "command": command,
        "date": datetime.date.today().isoformat(),
        "conditions": {"cores": cores(), "python": platform.python_version(), **versions},
        "printed": printed.strip().splitlines(),
    }


def shown(record: dict[str, Any]) -> str:
    """A record's text with its conditions, as in a page."""
    conditions = ", ".join(f"{name} {value}" for name, value in record["conditions"].items())
    return "\n".join([*record["printed"], "", f"`{record['command']}`, {record['date']}: {conditions}."])


def page(text: str, records: dict[str, dict[str, Any]]) -> str:
    """A page with its records' texts made anew."""

    def text_of(match: re.Match[str]) -> str:
        return f"{match[1]}\n\n{shown(records[match[2]])}\n\n<!-- end -->"

    return re.sub(r"(<!-- record: (\w+) -->).*?<!-- end -->", text_of, text, flags=re.DOTALL)


def main() -> None:
    """See the top of this file."""
    records = json.loads(RECORDS.read_text())
    if "--list" in sys.argv:
        print("\n".join(f"{name}: {record['command']}" for name, record in records.items()))
        return
    for name in sys.argv[1:]:
        print(f"{name}: {records[name]['command']}", file=sys.stderr)
        records[name] = measure(records[name]["command"])
        RECORDS.write_text(json.dumps(records, indent=1) + "\n")
    for path in PAGES:
        path.write_text(page(path.read_text(), records))


if __name__ == "__main__":
    main()
