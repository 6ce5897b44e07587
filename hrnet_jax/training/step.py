"""The training step: maps state and batch to new state and measurements, compiled once per mesh."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from hrnet_jax.codecs import Codec
from hrnet_jax.codecs.heatmaps import pck_accuracy, pck_counts
from hrnet_jax.inference.steps import normalise
from hrnet_jax.mesh import split_evenly
from hrnet_jax.models import FunctionalModel, unstack
from hrnet_jax.models.functional import Layout
from hrnet_jax.models.names import Arrays

Vector = Float[Array, " _"]  # of parameters or of statistics


class TrainState(NamedTuple):
    """The state that a step updates; its vectors have the layouts of `FunctionalModel`."""

    step: Array
    params: Vector
    stats: Vector
    opt_state: optax.OptState
    ema: dict[str, Vector]  # moving averages of `params` and `stats`; empty without config.ema
    skipped: Array  # steps whose loss or gradients were not finite


def new_state(
    network: FunctionalModel,
    params: Arrays,
    stats: Arrays,
    optimizer: optax.GradientTransformation,
    ema_decay: float,
) -> TrainState:
    """The state before the first step, from arrays by canonical name."""
    arrays = {"params": params, "stats": stats}
    vectors = {name: layout.vector(arrays[name]) for name, layout in network.layouts.items()}
    opt_state, ema = optimizer.init(vectors["params"]), jax.tree.map(jnp.copy, vectors) if ema_decay else {}
    return TrainState(jnp.int32(0), **vectors, opt_state=opt_state, ema=ema, skipped=jnp.int32(0))


def make_train_step(
    network: FunctionalModel,
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
      optimizer: an optax optimizer.
      sources: number of sample sources, for their losses.
      parts: number of parts into which a batch is split for gradient accumulation.
      devices: number of devices in the mesh; each part is split over all of them.
      ema_decay: decay of the moving averages, at most (1 + step) / (10 + step); 0: no averages.

    Returns:
      f(state, batch) -> state, measured. The state is donated. The batch has `image` uint8 [B,H,W,3], `keypoints`
      [B,K,2], `visible` [B,K] and `source` [B]; measured has `loss`, `acc_pose` (MMPose's: the share of predicted peaks
      near the target's), `gradient_norm`, `loss_sum` and `samples` (sum of losses and number of samples per source,
      [sources] each), `finite` and the state's `skipped`. If the loss or a gradient is not finite, only the step and
      `skipped` change.
    """

    def train_step(state: TrainState, batch: dict[str, Array]) -> tuple[TrainState, dict[str, Array]]:
        params, stats = network.param_layout.arrays(state.params), network.stat_layout.arrays(state.stats)

        def loss_of(params: Arrays, part: dict[str, Array]) -> tuple[Array, tuple[Arrays, tuple[Array, Array]]]:
            targets, weights = codec.encode(part["keypoints"], part["visible"])
            heatmaps, new_stats = network(params, stats, normalise(part["image"]), train=True)
            losses = codec.loss(heatmaps, targets, weights)
            first = slice(None, None, codec.maps_per_keypoint)
            return losses.mean(), (new_stats, (losses, pck_counts(heatmaps[..., first], targets[..., first], weights)))

        def gradients_of(
            part: dict[str, Array],
        ) -> tuple[tuple[Vector, Vector], tuple[Float[Array, " part"], Float[Array, "2 keypoints"]]]:
            gradients, (new_stats, measured) = jax.grad(loss_of, has_aux=True)(params, part)
            return (network.param_layout.vector(gradients), network.stat_layout.vector(new_stats)), measured

        if parts == 1:
            (gradients, new_stats), (losses, counts) = gradients_of(batch)
            source = batch["source"]
        else:
            # All parts start from the same statistics, so that the mean over parts is that of the complete batch.
            def add(total: tuple[Vector, Vector], part: dict[str, Array]) -> tuple[tuple[Vector, Vector], Any]:
                result, measured = gradients_of(part)
                return jax.tree.map(jnp.add, total, result), measured

            split = split_evenly(batch, parts, devices)
            zeros = jax.tree.map(jnp.zeros_like, (state.params, state.stats))
            total, (losses, counts) = jax.lax.scan(add, zeros, split)
            gradients, new_stats = jax.tree.map(lambda x: x / parts, total)
            losses, counts, source = losses.ravel(), counts.sum(0), split["source"].ravel()

        loss, gradient_norm = losses.mean(), jnp.linalg.norm(gradients)
        finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        vectors, ema = {"params": optax.apply_updates(state.params, updates), "stats": new_stats}, {}
        if ema_decay:
            keep = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
            ema = jax.tree.map(lambda old, new: keep * old + (1 - keep) * new, state.ema, vectors)
        new = TrainState(state.step, **vectors, opt_state=opt_state, ema=ema, skipped=state.skipped)
        new = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state)
        new = new._replace(step=state.step + 1, skipped=state.skipped + ~finite)
        member = jax.nn.one_hot(source, sources)
        measured = {
            "loss": loss,
            "acc_pose": pck_accuracy(counts),
            "gradient_norm": gradient_norm,
            "loss_sum": losses @ member,
            "samples": member.sum(0),
            "finite": finite,
            "skipped": new.skipped,
        }
        return new, measured

    return jax.jit(train_step, donate_argnums=0)


# Compiled once per layout, and so for the parameters, their moments and averages alike.
@functools.partial(jax.jit, static_argnums=0)
def _named(layout: Layout, vector: Vector) -> Arrays:
    return unstack(layout.arrays(vector))


@functools.partial(jax.jit, static_argnums=0)
def _vector(layout: Layout, arrays: Arrays) -> Vector:
    return layout.vector(arrays)


def _arrays(network: FunctionalModel, vectors: dict[str, Vector]) -> dict[str, Arrays]:
    return {name: _named(network.layouts[name], vector) for name, vector in vectors.items()}


def _vectors(network: FunctionalModel, items: dict[str, Any]) -> dict[str, Vector]:
    return {name: _vector(layout, items[name]) for name, layout in network.layouts.items() if name in items}


def to_items(network: FunctionalModel, state: TrainState) -> dict[str, Any]:
    """The state as a checkpoint's items, by canonical name; evaluation reads `params` and `stats`, or `ema`."""
    # The optimizer has scalars and one value per parameter.
    opt_state = jax.tree.map(lambda a: _named(network.param_layout, a) if a.ndim else a, state.opt_state)
    optimizer = {"step": state.step, "skipped": state.skipped, "state": opt_state}
    items = {**_arrays(network, {"params": state.params, "stats": state.stats}), "optimizer": optimizer}
    return {**items, "ema": _arrays(network, state.ema)} if state.ema else items


def from_items(network: FunctionalModel, items: dict[str, Any]) -> TrainState:
    """The inverse of `to_items`."""
    optimizer = items["optimizer"]
    opt_state = jax.tree.map(
        lambda node: _vector(network.param_layout, node) if isinstance(node, dict) else node,
        optimizer["state"],
        is_leaf=lambda node: isinstance(node, dict),
    )
    return TrainState(
        optimizer["step"],
        **_vectors(network, items),
        opt_state=opt_state,
        ema=_vectors(network, items.get("ema", {})),
        skipped=optimizer["skipped"],
    )


def abstract_items(
    network: FunctionalModel, optimizer: optax.GradientTransformation, ema_decay: float
) -> dict[str, Any]:
    """The shapes of a checkpoint's items."""
    shapes = (
        {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in layout.shapes}
        for layout in network.layouts.values()
    )
    fresh = functools.partial(new_state, network, optimizer=optimizer, ema_decay=ema_decay)
    return jax.eval_shape(lambda *arrays: to_items(network, fresh(*arrays)), *shapes)


def weights_to_evaluate(network: FunctionalModel, state: TrainState) -> tuple[Arrays, Arrays]:
    """The parameters and statistics to evaluate, by canonical name: the moving averages if there are any."""
    items = _arrays(network, state.ema or {"params": state.params, "stats": state.stats})
    return items["params"], items["stats"]
