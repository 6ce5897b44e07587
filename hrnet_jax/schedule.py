"""Prints the learning rate and the augmentation of every epoch of a config, without data.

python -m hrnet_jax.schedule --config configs/coco_aic_udp_ema.py
"""

from __future__ import annotations

from hrnet_jax import cli

OPTIONS: cli.Options = {
    "config": (None, "config file, FILE or FILE:ARG"),
    "steps_per_epoch": (300, "samples per epoch divided by the batch size; the warm-up is a number of steps"),
}
cli.help_first(__name__, __doc__, OPTIONS)  # the imports below take seconds

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from hrnet_jax import config as config_lib
from hrnet_jax.training.optimizer import table


def main() -> None:
    """The command line."""
    cli.run(__doc__, OPTIONS, _print, lambda values: config_lib.load_config(values["config"]))


def _print(values: Mapping[str, Any], config: ConfigDict) -> None:
    config_lib.check(config)
    rows = [("epochs", "first rate", "last rate", "augmentation"), *table(config, values["steps_per_epoch"])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    main()
