"""The weights of a training mix, apart from the pipeline, whose imports take a second."""

from __future__ import annotations

import math
from collections.abc import Sequence

from data_pipelines.errors import InputError
from data_pipelines.types import Config


def mix_weights(config: Config, sources: Sequence[str]) -> tuple[tuple[float, ...], int]:
    """The sources' weights, in order, and the samples per epoch; empty and 0 if all weights in `config.mix` are 0."""
    mix = dict(config["mix"])
    if not any(mix.values()):
        if config["epoch_size"]:
            raise InputError(
                f"config.data.epoch_size={config['epoch_size']}: is only for a weighted mix; set config.data.mix too"
            )
        return (), 0
    if sorted(mix) != sorted(sources):
        raise InputError(f"config.data.mix names {sorted(mix)}, config.data.train {sorted(sources)}; name the same")
    weights = tuple(float(mix[name]) for name in sources)
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise InputError(f"config.data.mix={mix}: weights must be above 0")
    if config["epoch_size"] < 1:
        raise InputError("config.data.epoch_size must say how many samples of the mix are an epoch, at least 1")
    return weights, int(config["epoch_size"])
