"""Writes docs/recipes.md.

python docs/recipes.py

The published files and results come from hrnet_jax/weights/published.json, what was verified here and the networks'
sizes (`python -m benchmarks.size`) from docs/recipes.json.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

from ml_collections import ConfigDict

from hrnet_jax.config import load_config
from hrnet_jax.weights.published import Weights, record

VERIFIED = pathlib.Path(__file__).with_suffix(".json")

_HEAD = """\
<!-- Written by docs/recipes.py from hrnet_jax/weights/published.json and docs/recipes.json; change those. -->
# Recipes

The 20 HRNet configs of MMPose 1.3.2 and their published results: on COCO val2017 with the boxes of a person detector of
AP 56.4 and with the flip test; for AIC on its validation set with annotated boxes. A config has one row per published
checkpoint, the newest first. **None was trained to completion or evaluated here**; the last column says what was
[verified](#verified).

This command trains any of them: `--config` is in the first table, `--config.init` in the column "trained from" of the
[second](#published-models-by-name). `DATA` contains `coco/` and `aic/` ([data.md](data.md)). The further variant `bf16`
computes in bfloat16. Commands run in the project's environment: `source .venv/bin/activate` after `make install`.

```sh
python -m hrnet_jax.train --config configs/coco.py:w48,384x288,udp --workdir DIR --config.data.root=DATA \\
    --config.init=hrnet_w48-imagenet
```
"""
_SIZES = """\
Parameters (millions) and GFLOPs (billions of multiply-adds for one image and one view) are counted by
`python -m benchmarks.size`. AIC's network has 14 heatmaps, combine's 19, the others 17 (`udp_combined`: 51), which
changes neither by more than 0.1.
"""
_OWN = """\
## A recipe for a higher AP

`configs/coco_aic_udp_ema.py` combines published gains: UDP, COCO with AIC's joints at 3:1, a second stage that hides
parts of the crops, weaker augmentation at the end, and moving averages of the weights. It aims at AP 0.770 with W32
256x192 and was not trained. The file's docstring names each source and its gain.

```sh
python -m hrnet_jax.train --config configs/coco_aic_udp_ema.py --workdir DIR --config.data.root=DATA \\
    --config.init=hrnet_w32-imagenet
python -m hrnet_jax.schedule --config configs/coco_aic_udp_ema.py
```

The second command prints the learning rate and the augmentation of every epoch of any config, without data.
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


def render(weights: list[Weights], ours: dict[str, Any]) -> str:
    """The page for a record of published files, and for what was verified and counted here."""
    rows = [
        "| MMPose config | `--config` | Parameters | GFLOPs | Checkpoint | AP | AP50 | AP75 | AR | AR50 | Verified |",
        "| :-- | :-- | --: | --: | :-- | --: | --: | --: | --: | --: | :-- |",
    ]
    files = ["| name | file | SHA-256 | `--config` | AP | trained from |", "| :-- | :-- | :-- | :-- | --: | :-- |"]
    for entry in weights:
        link = f"[{entry.file}]({entry.urls[0] if entry.urls else entry.page})"
        digest = f"`{entry.sha256}`" if entry.sha256 else ""
        ap = f"{entry.results['AP']:.3f}" if entry.results else ""
        files.append(f"| {' | '.join((entry.model, link, digest, f'`{entry.config}`', ap, entry.init))} |")
        if entry.model not in ours["recipes"]:
            continue
        numbers = (f"{entry.results[key]:.3f}" for key in ("AP", "AP50", "AP75", "AR", "AR50"))
        sizes = (f"{number:.1f}" for number in ours["sizes"][network(load_config(entry.config_spec))])
        verified = ", ".join(ours["recipes"][entry.model])
        rows.append(f"| {' | '.join((entry.model, f'`{entry.config}`', *sizes, _date(entry), *numbers, verified))} |")
    notes = [f"- **{claim}**: {text}" for claim, text in ours["verified"].items()]
    parts = [_HEAD, *rows, "", _SIZES, _OWN, _NAMES, *files, "", _REPRODUCE, "## Verified", "", *notes, ""]
    return "\n".join(parts)


def network(config: ConfigDict) -> str:
    """Variant and input size of a config, as docs/recipes.json names them."""
    height, width = config.codec.input_size
    return f"{config.model.variant} {height}x{width}"


def _date(entry: Weights) -> str:
    """The date in the name of one of MMPose's files."""
    day = pathlib.PurePosixPath(entry.file).stem.rpartition("_")[2]
    return f"{day[:4]}-{day[4:6]}-{day[6:]}"


def main() -> None:
    """Writes the page."""
    VERIFIED.with_suffix(".md").write_text(render(record(), json.loads(VERIFIED.read_text())))


if __name__ == "__main__":
    main()
