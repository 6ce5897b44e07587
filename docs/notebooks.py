"""Executes notebooks from top to bottom and stores their outputs; needs the extra `notebooks`.

PYTHONPATH=. python docs/notebooks.py             # all: half an hour on two cores, most of it for `ablation`
PYTHONPATH=. python docs/notebooks.py data
"""

from __future__ import annotations

import pathlib
import sys

import nbclient
import nbformat

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "notebooks"


def main() -> None:
    """Executes the named notebooks, or all."""
    for name in sys.argv[1:] or sorted(path.stem for path in FOLDER.glob("*.ipynb")):
        path = FOLDER / f"{name}.ipynb"
        notebook = nbformat.read(path, as_version=4)
        resources = {"metadata": {"path": FOLDER}}
        nbclient.NotebookClient(notebook, timeout=None, record_timing=False, resources=resources).execute()
        notebook.metadata["language_info"] = {"name": "python"}  # not the version that was used
        nbformat.write(notebook, path)
        print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
