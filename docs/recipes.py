"""Writes docs/recipes.md.

python docs/recipes.py

The published files and results come from hrnet_jax/weights/published.json, and what was verified here from
docs/recipes.json.
"""

from __future__ import annotations

import itertools
import json
import pathlib
from typing import Any

from hrnet_jax.weights.published import Weights, record

VERIFIED = pathlib.Path(__file__).with_suffix(".json")

_HEAD = """\
<!-- Written by docs/recipes.py from hrnet_jax/weights/published.json and docs/recipes.json; change those. -->
# Recipes

All 20 HRNet configs of MMPose 1.3.2 and their published results: on COCO val2017 with the boxes of a person detector of
AP 56.4 and with the flip test; for AIC on its validation set with annotated boxes. A config has one row per published
checkpoint, the newest first.

**No recipe was trained to completion here, and no published checkpoint was run.** The last column lists what was
verified; the terms are explained [below](#verified).
"""
_NAMES = """\
## Published models by name

Every command and `hrnet_jax.load` take the name of a published model in place of a path:

```
python -m hrnet_jax.evaluate --checkpoint td-hm_hrnet-w32_8xb64-210e_coco-256x192 --output DIR --config.data.root=DATA
python -m hrnet_jax.convert --input td-hm_hrnet-w32_8xb64-210e_coco-256x192 --output DIR
```

The file is downloaded once to `$HRNET_JAX_CACHE/weights/` (default: `~/.cache/hrnet_jax/weights/`) and used only if its
SHA-256 starts with the listed digits. An interrupted download is continued. Without a network, put the file there; the
error message names file, address and folder. A PyTorch file with one of these hashes or names needs no `--config`. A
model's name selects its newest file, a file's name that file. `HRNET_JAX_MODELS=FILE.json` adds your own models and
mirrors (`hrnet_jax/weights/published.py` shows the format). `hf://USER/REPOSITORY[@REVISION][/PATH]` names a folder on
the Hugging Face Hub (extra `hub`), and `gs://` one in a bucket (extra `gcs`).
"""
_REPRODUCE = """\
## Reproducing the published AP

`make reproduce DATA=DATA` evaluates every published model whose file is in the cache, with the published conditions,
and prints its AP beside the published one; `MORE='--download'` fetches the others, `MORE='--weights=FOLDER
--models=NAME,NAME'` takes files from a folder and chooses. The table is in `runs/reproduced/reproduced.md`; an
interrupted run continues. Exit status 0: all AP are within 0.002 (`--tolerance`) of the published ones. Rehearsed on
stand-ins (`tests/test_reproduce.py`); the published files were not at hand here.
"""
_COMMANDS = """\
## Commands

`DATA` contains `coco/` and `aic/` as in the README. Training starts from a published model, given by name. As in
MMPose, the three recipes with other augmentations start from the backbone of the plain W32 recipe. (No file was
downloaded here.)
"""


def render(weights: list[Weights], ours: dict[str, Any]) -> str:
    """The page for a record of published files, and for what was verified here."""
    rows = [
        "| MMPose config | `--config` | Checkpoint | AP | AP50 | AP75 | AR | AR50 | Reproduced | Verified |",
        "| :-- | :-- | :-- | --: | --: | --: | --: | --: | :-- | :-- |",
    ]
    files = ["| name | file | SHA-256 | `--config` | AP | trained from |", "| :-- | :-- | :-- | :-- | --: | :-- |"]
    commands = []
    for name, group in itertools.groupby(weights, key=lambda entry: entry.model):
        entries = list(group)
        for entry in entries:
            link = f"[{entry.file}]({entry.urls[0] if entry.urls else entry.page})"
            digest = f"`{entry.sha256}`" if entry.sha256 else ""
            ap = f"{entry.results['AP']:.3f}" if entry.results else ""
            files.append(f"| {' | '.join((name, link, digest, f'`{entry.config}`', ap, entry.init))} |")
        if name not in ours["recipes"]:
            continue
        ourselves = ours["recipes"][name]
        for entry in entries:
            numbers = (f"{entry.results[key]:.3f}" for key in ("AP", "AP50", "AP75", "AR", "AR50"))
            verified = ", ".join(ourselves["verified"])
            cells = (name, f"`{entry.config}`", _date(entry), *numbers, ourselves["reproduced"], verified)
            rows.append(f"| {' | '.join(cells)} |")
        commands.append(
            f"python -m hrnet_jax.train --config {entries[0].config} --workdir DIR --config.data.root=DATA "
            f"--config.init={entries[0].init}"
        )
    notes = [f"- **{name}**: {text}" for name, text in ours["verified"].items()]
    parts = [
        _HEAD,
        *rows,
        "",
        _NAMES,
        *files,
        "",
        _REPRODUCE,
        _COMMANDS,
        "```",
        *commands,
        "```",
        "",
        "## Verified",
        "",
        *notes,
        "",
    ]
    return "\n".join(parts)


def _date(entry: Weights) -> str:
    """The date in the name of one of MMPose's files."""
    day = pathlib.PurePosixPath(entry.file).stem.rpartition("_")[2]
    return f"{day[:4]}-{day[4:6]}-{day[6:]}"


def main() -> None:
    """Writes the page."""
    VERIFIED.with_suffix(".md").write_text(render(record(), json.loads(VERIFIED.read_text())))


if __name__ == "__main__":
    main()
