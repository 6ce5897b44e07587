"""Executes notebooks from top to bottom and stores their outputs; needs the extra `notebooks`.

PYTHONPATH=. python docs/notebooks.py             # all: 40 minutes on two cores, nearly all for `ablation`
PYTHONPATH=. python docs/notebooks.py data
"""

from __future__ import annotations

import base64
import io
import pathlib
import sys
from typing import Any

import nbclient
import nbformat
import PIL.Image

LARGE = 100_000  # characters of a picture's base64

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "notebooks"


def tidy(notebook: Any) -> None:
    """Drops progress bars, and keeps one form of every picture: JPEG where PNG is large, as that of drawn people."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            printed = "".join(o.text for o in cell.outputs if o.get("name") == "stdout")
            rest = [o for o in cell.outputs if o.output_type != "stream"]
            cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=printed)] * bool(printed) + rest
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        pictures = output.get("data", {})
        if len(pictures.get("image/png", "")) > LARGE:
            content = io.BytesIO()
            picture = PIL.Image.open(io.BytesIO(base64.b64decode(pictures.pop("image/png"))))
            picture.convert("RGB").save(content, "JPEG", quality=80)
            pictures["image/jpeg"] = base64.b64encode(content.getvalue()).decode()
        elif "image/png" in pictures:
            pictures.pop("image/jpeg", None)


def main() -> None:
    """Executes the named notebooks, or all."""
    for name in sys.argv[1:] or sorted(path.stem for path in FOLDER.glob("*.ipynb")):
        path = FOLDER / f"{name}.ipynb"
        notebook = nbformat.read(path, as_version=4)
        resources = {"metadata": {"path": FOLDER}}
        nbclient.NotebookClient(notebook, timeout=None, record_timing=False, resources=resources).execute()
        notebook.metadata["language_info"] = {"name": "python"}  # not the version that was used
        tidy(notebook)
        nbformat.write(notebook, path)
        print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
