"""Writes docs/recipes.md from docs/recipes.json, which lists all recipes and published results.

python docs/recipes.py
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

RECORD = pathlib.Path(__file__).with_suffix(".json")

_HEAD = """\
<!-- Written by docs/recipes.py from docs/recipes.json; change those. -->
# Recipes

All 20 HRNet configs of MMPose 1.3.2 and their published results: on COCO val2017 with the boxes of a person detector of
AP 56.4 and with the flip test; for AIC on its validation set with annotated boxes. A config has one row per published
checkpoint, identified by date.

**No recipe was trained to completion here, and no published checkpoint was run.** The last column lists what was
verified; the terms are explained [below](#verified).
"""
_COMMANDS = """\
## Commands

`DATA` contains `coco/` and `aic/` in their usual layouts. Training starts from a converted folder. MMPose's configs
name the ImageNet backbones below `https://download.openmmlab.com/mmpose/pretrain_models/`:

```
wget https://download.openmmlab.com/mmpose/pretrain_models/hrnet_w32-36af842e.pth
python -m hrnet_jax.convert --input hrnet_w32-36af842e.pth --config configs/coco.py:w32 --output hrnet_w32-36af842e
```

and W48's with `configs/coco.py:w48`. As in MMPose, the three recipes with other augmentations start from the backbone
of the plain W32 recipe: its published checkpoint (linked in MMPose's model zoo), converted in the same way. (Neither
file was downloaded here.)
"""


def render(record: dict[str, Any]) -> str:
    """The page for a record."""
    rows = [
        "| MMPose config | `--config` | Checkpoint | AP | AP50 | AP75 | AR | AR50 | Reproduced | Verified |",
        "| :-- | :-- | :-- | --: | --: | --: | --: | --: | :-- | :-- |",
    ]
    commands = []
    for recipe in record["recipes"]:
        for published in recipe["published"]:
            numbers = (f"{published[name]:.3f}" for name in ("AP", "AP50", "AP75", "AR", "AR50"))
            verified = ", ".join(recipe["verified"])
            name = pathlib.PurePosixPath(recipe["reference"]).stem
            cells = (name, f"`{recipe['config']}`", published["checkpoint"], *numbers, recipe["reproduced"], verified)
            rows.append(f"| {' | '.join(cells)} |")
        commands.append(
            f"python -m hrnet_jax.train --config {recipe['config']} --workdir DIR --config.data.root=DATA "
            f"--config.init={recipe['init']}"
        )
    notes = [f"- **{name}**: {text}" for name, text in record["verified"].items()]
    parts = [_HEAD, *rows, "", _COMMANDS, "```", *commands, "```", "", "## Verified", "", *notes, ""]
    return "\n".join(parts)


def main() -> None:
    """Writes the page beside the record."""
    RECORD.with_suffix(".md").write_text(render(json.loads(RECORD.read_text())))


if __name__ == "__main__":
    main()
