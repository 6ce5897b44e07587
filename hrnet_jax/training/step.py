"""The training step: state and batch in, state and measurements out, compiled once for a mesh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from hrnet_jax.codecs import Codec
from hrnet_jax.inference.steps import normalise
from hrnet_jax.mesh import split_evenly
from hrnet_jax.models import Network, unstack
from hrnet_jax.models.names import Arrays

# A state whose arrays have canonical names, as checkpoints hold them.
by_canonical_name = jax.jit(unstack)


class TrainState(NamedTuple):
    """All that a step changes; parameters and statistics by name, canonical or as `Network.stack` makes them."""

    step: Array
    params: Arrays
    stats: Arrays
    opt_state: optax.OptState
    ema: dict[str, Arrays]  # moving averages of `params` and `stats`; empty without config.ema
    skipped: Array  # steps whose loss or gradients were not finite


def start(params: Arrays, stats: Arrays, optimizer: optax.GradientTransformation, ema_decay: float) -> TrainState:
    """The state before the first step."""
    ema = jax.tree.map(jnp.copy, {"params": params, "stats": stats}) if ema_decay else {}
    return TrainState(jnp.int32(0), params, stats, optimizer.init(params), ema, jnp.int32(0))


def averaged(state: TrainState) -> tuple[Arrays, Arrays]:
    """The parameters and statistics to evaluate: the moving averages when there are any."""
    return (state.ema["params"], state.ema["stats"]) if state.ema else (state.params, state.stats)


def make_train_step(
    network: Network,
    codec: Codec,
    optimizer: optax.GradientTransformation,
    sources: int,
    *,
    parts: int = 1,
    devices: int = 1,
    ema_decay: float = 0.0,
) -> Callable[[TrainState, dict[str, Array]], tuple[TrainState, dict[str, Array]]]:
    """Compiles one step: uint8 crops and keypoints in, updated state out.

    Args:
      network: the model.
      codec: encodes targets and measures the loss.
      optimizer: as optax makes them.
      sources: how many sources of samples there are, for their losses.
      parts: in how many parts, one after the other, the gradients of a batch are computed.
      devices: of the mesh; each has its share of every part.
      ema_decay: of the moving averages; smaller in the first steps: at most (1 + step) / (10 + step). 0: none are kept.

    Returns:
      f(state, batch) -> state, measured. The state is donated. The batch has `image` uint8 [B,H,W,3], `keypoints`
      [B,K,2], `visible` [B,K] and `source` [B]; measured has `loss`, `gradient_norm`, the sum of losses and the
      number of samples a source, [sources] each, `finite` and the state's `skipped`. Where the loss or a gradient is
      not finite, all but the step and `skipped` stays as it was.
    """

    def train_step(state: TrainState, batch: dict[str, Array]) -> tuple[TrainState, dict[str, Array]]:
        def loss_of(params: Arrays, part: dict[str, Array]) -> tuple[Array, tuple[Arrays, Float[Array, " part"]]]:
            targets, weights = codec.encode(part["keypoints"], part["visible"])
            heatmaps, stats = network(params, state.stats, normalise(part["image"]), train=True)
            losses = codec.loss(heatmaps, targets, weights)
            return losses.mean(), (stats, losses)

        def gradients_of(part: dict[str, Array]) -> tuple[tuple[Arrays, Arrays], Float[Array, " part"]]:
            gradients, (stats, losses) = jax.grad(loss_of, has_aux=True)(state.params, part)
            return (gradients, stats), losses

        if parts == 1:
            (gradients, stats), losses = gradients_of(batch)
            source = batch["source"]
        else:
            # Statistics of all parts start from the same ones, so that their mean is that of the whole batch.
            def add(total: tuple[Arrays, Arrays], part: dict[str, Array]) -> tuple[tuple[Arrays, Arrays], Array]:
                result, losses = gradients_of(part)
                return jax.tree.map(jnp.add, total, result), losses

            split = split_evenly(batch, parts, devices)
            zeros = jax.tree.map(jnp.zeros_like, (state.params, state.stats))
            total, losses = jax.lax.scan(add, zeros, split)
            gradients, stats = jax.tree.map(lambda x: x / parts, total)
            losses, source = losses.ravel(), split["source"].ravel()

        loss, gradient_norm = losses.mean(), optax.tree.norm(gradients)
        finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params, ema = optax.apply_updates(state.params, updates), {}
        if ema_decay:
            keep = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
            ema = jax.tree.map(
                lambda old, new: keep * old + (1 - keep) * new, state.ema, {"params": params, "stats": stats}
            )
        new = TrainState(state.step, params, stats, opt_state, ema, state.skipped)
        new = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state)
        new = new._replace(step=state.step + 1, skipped=state.skipped + ~finite)
        member = jax.nn.one_hot(source, sources)
        measured = {
            "loss": loss,
            "gradient_norm": gradient_norm,
            "loss_sum": losses @ member,
            "samples": member.sum(0),
            "finite": finite,
            "skipped": new.skipped,
        }
        return new, measured

    return jax.jit(train_step, donate_argnums=0)


def learning_rate(config: ConfigDict, steps_per_epoch: int) -> Callable[[Any], Array]:
    """The rate of a 0-based step: linear warm-up from a factor, times a decay at each milestone (epochs)."""
    last = np.iinfo(np.int32).max  # of all steps that can be counted
    milestones = np.array([min(epoch * steps_per_epoch, last) for epoch in config.milestones], np.int32)

    def rate(step: Any) -> Array:
        through = jnp.minimum(step / max(config.warmup_steps - 1, 1), 1.0)
        warmup = config.warmup_factor + (1 - config.warmup_factor) * through
        return config.learning_rate * warmup * config.decay ** jnp.sum(step >= milestones)

    return rate


def to_items(state: TrainState) -> dict[str, Any]:
    """The state as a checkpoint's items; evaluation reads `params` and `stats`, or `ema`."""
    optimizer = {"step": state.step, "skipped": state.skipped, "state": state.opt_state}
    items = {"params": state.params, "stats": state.stats, "optimizer": optimizer}
    return {**items, "ema": state.ema} if state.ema else items


def from_items(items: dict[str, Any]) -> TrainState:
    """`to_items`' inverse."""
    optimizer, ema = items["optimizer"], items.get("ema", {})
    return TrainState(optimizer["step"], items["params"], items["stats"], optimizer["state"], ema, optimizer["skipped"])
