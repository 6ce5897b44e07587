"""The optimizer, its learning rate, and a table of what a training does in each epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array
from ml_collections import ConfigDict

from data_pipelines.stages import at, settings_by_epoch
from data_pipelines.types import Config
from hrnet_jax.models.functional import Layout

_LAST = np.iinfo(np.int32).max  # the largest step


def create_optimizer(
    config: ConfigDict, schedule: Callable[[Any], Array], layout: Layout
) -> optax.GradientTransformation:
    """Adam of a vector, or AdamW if `config.optimizer.weight_decay` is above 0; only convolution kernels decay."""
    weight_decay = config.optimizer.weight_decay
    if not weight_decay:
        return optax.adam(schedule)

    def add_decay(updates: Array, params: Array) -> Array:
        return updates + jnp.where(jnp.arange(params.size) < layout.kernels, weight_decay * params, 0.0)

    return optax.chain(optax.scale_by_adam(), optax.stateless(add_decay), optax.scale_by_learning_rate(schedule))


def learning_rate(config: ConfigDict, steps_per_epoch: int) -> Callable[[Any], Array]:
    """The learning rate of a 0-based step.

    A linear warm-up; then a decay at each milestone (schedule "steps"), or half a cosine to 0 (schedule "cosine").
    A stage with optimizer settings starts anew: its warm-up and milestones count from its start, and the cosine of
    the stage before it ends there.
    """
    stages = settings_by_epoch(config, "optimizer")
    starts = [min(epoch * steps_per_epoch, _LAST) for epoch, _ in stages]
    ends = [*starts[1:], min(config.epochs * steps_per_epoch, _LAST)]
    rates = [
        _rate(settings, start, end, steps_per_epoch)
        for (_, settings), start, end in zip(stages, starts, ends, strict=True)
    ]

    def rate(step: Any) -> Array:
        found = rates[0](step)
        for start, later in zip(starts[1:], rates[1:], strict=True):
            found = jnp.where(step >= start, later(step), found)
        return found

    return rate


def _rate(settings: Config, start: int, end: int, steps_per_epoch: int) -> Callable[[Any], Array]:
    """The learning rate of a stage that lasts from step `start` to step `end`."""
    milestones = np.array([min(start + epoch * steps_per_epoch, _LAST) for epoch in settings["milestones"]], np.int32)

    def rate(step: Any) -> Array:
        since = step - start if start else step
        through = jnp.minimum(since / max(settings["warmup_steps"] - 1, 1), 1.0)
        warmup = settings["warmup_factor"] + (1 - settings["warmup_factor"]) * through
        if settings["schedule"] == "cosine":
            share = jnp.clip(since / max(end - start, 1), 0.0, 1.0)
            return settings["learning_rate"] * warmup * 0.5 * (1 + jnp.cos(jnp.pi * share))
        return settings["learning_rate"] * warmup * settings["decay"] ** jnp.sum(step >= milestones)

    return rate


def table(config: ConfigDict, steps_per_epoch: int) -> list[tuple[str, ...]]:
    """What a training does, by epoch: (epochs, learning rate of the first and last step, changed augmentation).

    Epochs are counted from 1; consecutive ones with the same values are one row.
    """
    rate = learning_rate(config, steps_per_epoch)
    edges = np.arange(config.epochs) * steps_per_epoch
    rates = np.asarray(jax.jit(jax.vmap(rate))(np.stack([edges, edges + steps_per_epoch - 1], axis=1).ravel()))
    stages = settings_by_epoch(config, "augment")
    rows: list[tuple[int, int, tuple[str, ...]]] = []
    for epoch, (first, last) in enumerate(rates.reshape(-1, 2)):
        settings = at(stages, epoch)
        changes = [f"{key} {value:g}" for key, value in settings.items() if value != stages[0][1][key]]
        values = (f"{first:.2e}", f"{last:.2e}", ", ".join(changes) or "as in data.augment")
        if rows and rows[-1][2] == values:
            rows[-1] = (rows[-1][0], epoch + 1, values)
        else:
            rows.append((epoch + 1, epoch + 1, values))
    return [(f"{first}-{last}" if last > first else f"{first}", *values) for first, last, values in rows]
