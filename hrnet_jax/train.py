"""Config and work directory -> checkpoints and metrics.

    python -m hrnet_jax.train --config configs/quickstart.py --workdir runs/quickstart

The same command continues a run that was stopped, to the same bits. Ctrl-C or SIGTERM finishes the step, saves and
exits with status 75; a second one exits at once. Every `--config.KEY=VALUE` overrides a key of the config file. Each of
several processes of a run (Cloud TPU slices, GPU hosts) is started with `--distributed`.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from data_pipelines import storage
from data_pipelines.errors import InputError
from data_pipelines.pipeline import TrainData, iterate
from eval import coco
from hrnet_jax import cli, compilation, draw, metrics
from hrnet_jax import config as config_lib
from hrnet_jax.checkpoint import Checkpoints
from hrnet_jax.codecs import Codec, create_codec
from hrnet_jax.convert import initial_backbone
from hrnet_jax.evaluate import Evaluator, write
from hrnet_jax.folder import is_folder
from hrnet_jax.inference import normalise
from hrnet_jax.mesh import create_mesh, is_main_host, replicated, shard_batch, split_evenly
from hrnet_jax.models import Network, create_model, state_dict, unstack
from hrnet_jax.models.state import Arrays
from hrnet_jax.progress import Profiler, StepLog
from hrnet_jax.signals import StopRequest

logger = logging.getLogger(__name__)


class TrainState(NamedTuple):
    """All that a step changes; parameters and statistics by name, canonical or as `Network.stack` makes them."""

    step: Array
    params: Arrays
    stats: Arrays
    opt_state: optax.OptState
    ema: dict[str, Arrays]  # moving averages of `params` and `stats`; empty without config.ema
    skipped: Array  # steps whose loss or gradients were not finite


def train(config: ConfigDict, workdir: str | os.PathLike) -> dict[str, Any]:
    """Trains, or continues, the experiment of a config; can be called repeatedly in one process.

    Args:
      config: as made by a file under `configs/`.
      workdir: gets config.json, checkpoints/, best/, metrics.jsonl, tensorboard/, curves.png and, after every
        evaluation, metrics.json, keypoints.json and predictions.png. All hosts must see the same folder. One in a
        bucket (gs://...) gets metrics/STEP.jsonl in place of metrics.jsonl.

    Returns:
      The content of metrics.json: the last evaluation.

    Raises:
      InputError: something in the config, the data or the work directory is wrong.
      Interrupted: a signal stopped the run; its state is saved.
      Aborted: too many steps were skipped for losses or gradients that are not finite.
    """
    folder = epath.Path(workdir)
    config_lib.check(config)
    mesh = create_mesh(config.devices)
    config_lib.check_devices(config, mesh.size)
    claim(folder, config)
    config = config_lib.with_cache(config, workdir)
    compilation.use_cache(config.cache_dir)

    # Data and the numbers that follow from its size.
    data = TrainData.load(config.data, config.seed)
    steps_per_epoch = -(-len(data) // config.batch_size)
    total_steps = config.epochs * steps_per_epoch
    sources = [source.name for source in data.sources]
    logger.info("%s; %d steps an epoch", ", ".join(f"{s.name}: {len(s)} people" for s in data.sources), steps_per_epoch)

    # Model, codec, optimizer, evaluator.
    codec = create_codec(config.codec)
    network = Network.of(create_model(config.model, config.seed))
    schedule = learning_rate(config.optimizer, steps_per_epoch)
    optimizer = optax.adam(schedule)
    train_step = make_train_step(
        network, codec, optimizer, len(sources), parts=config.accumulate, devices=mesh.size, ema_decay=config.ema
    )
    evaluator = Evaluator(config, mesh)

    with contextlib.ExitStack() as stack:
        # The state: from the newest checkpoint, else fresh.
        checkpoints = stack.enter_context(Checkpoints(folder / "checkpoints", config.checkpoint.keep))
        best = stack.enter_context(Checkpoints(folder / "best", keep=1))
        params, stats = state_dict(create_model(config.model, config.seed))
        state = jax.device_put(start(params, stats, optimizer, config.ema), replicated(mesh))
        progress = {"best_AP": -1.0, "evaluated": 0, "samples": 0, "unreadable": 0}
        if restored := checkpoints.restore(to_items(jax.tree.map(_abstract, state))):
            items, meta = restored
            state, progress = from_items(items), meta["progress"]
            logger.info("continuing at step %d of %d", meta["step"], total_steps)
        elif config.init:
            params, stats = initial_backbone(config.init, params, stats)
            state = jax.device_put(start(params, stats, optimizer, config.ema), replicated(mesh))
            logger.info("the backbone starts from %s", config.init)
        start_step = int(state.step)
        state = jax.jit(network.stack, donate_argnums=0)(state)
        by_canonical_name = jax.jit(unstack)

        writer = stack.enter_context(metrics.MetricWriter(workdir, start_step, active=is_main_host()))
        hosts = {"host": jax.process_index(), "hosts": jax.process_count()}
        batches = iterate(
            data.batches(config.batch_size, start_step=start_step, **hosts),
            threads=config.data.loader.threads,
            workers=config.data.loader.workers,
        )
        stack.callback(batches.close)
        log = StepLog(config, sources, start_step, total_steps, steps_per_epoch, schedule, progress)
        profiler = stack.enter_context(Profiler(workdir, config.profile))

        def save(step: int, to: Checkpoints = checkpoints) -> None:
            if log.pending:  # what the log covers and what a checkpoint holds end at the same step
                writer.write(step, log.flush())
            meta = {"progress": dict(progress), "config": config_lib.to_json(config)}
            to.save(step, to_items(by_canonical_name(state)), meta)

        def evaluate(step: int) -> None:
            result = evaluator(*averaged(state), lambda: stop.requested)
            if result is None:
                return
            numbers, predictions = result
            progress["evaluated"] = step
            logger.info("step %d\n%s", step, coco.format_table(numbers, evaluator.conditions()))
            writer.write(step, {f"eval/{name}": numbers[name] for name in coco.METRICS})
            if is_main_host():
                write(workdir, {**numbers, "step": step}, predictions, evaluator)
                draw.curves(workdir)
            if numbers["AP"] > progress["best_AP"]:
                progress["best_AP"] = numbers["AP"]
                save(step, to=best)

        def end_of_epoch(step: int) -> None:
            epoch = step // steps_per_epoch
            last = step == total_steps
            if (last or epoch % config.eval.every_epochs == 0) and progress["evaluated"] < step:
                evaluate(step)
            if last or stop.requested or epoch % config.checkpoint.every_epochs == 0:
                save(step)

        with StopRequest() as stop:
            # A run that was stopped during an evaluation takes it up again.
            if start_step and start_step % steps_per_epoch == 0:
                end_of_epoch(start_step)
            for step in range(start_step + 1, total_steps + 1):
                if stop.agreed(step):
                    break
                with log.waiting():
                    batch = next(batches)
                on_device = {name: batch[name] for name in ("image", "keypoints", "visible", "source")}
                with profiler.step(step):
                    state, measured = train_step(state, shard_batch(on_device, mesh))
                log.add(step, measured, batch)
                if step % config.log_every == 0 or step == total_steps:
                    writer.write(step, log.flush())
                if step % steps_per_epoch == 0:
                    with log.paused():
                        end_of_epoch(step)
            step = int(state.step)
            if stop.requested:
                save(step)
                checkpoints.wait()
                raise cli.Interrupted(f"stopped at step {step} of {total_steps} and saved; the same command continues")
    if is_main_host():
        draw.curves(workdir)
    return cli.read_metrics(folder / "metrics.json")


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
        def loss_of(params: Arrays, part: dict[str, Array]) -> tuple[Array, tuple[Arrays, Float[Array, "part"]]]:
            targets, weights = codec.encode(part["keypoints"], part["visible"])
            heatmaps, stats = network(params, state.stats, normalise(part["image"]), train=True)
            losses = codec.loss(heatmaps, targets, weights)
            return losses.mean(), (stats, losses)

        def gradients_of(part: dict[str, Array]) -> tuple[tuple[Arrays, Arrays], Float[Array, "part"]]:
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


def claim(workdir: epath.Path, config: ConfigDict) -> None:
    """Makes a work directory this experiment's. Raises InputError when it is another's, or cannot be written.

    A start that failed before its first checkpoint leaves the directory to any experiment; a converted or exported
    folder is kept as it is.
    """
    storage.check_bucket(workdir)
    path, checkpoints = workdir / "config.json", workdir / "checkpoints"
    holds_weights = is_folder(workdir) or (checkpoints.is_dir() and any(checkpoints.iterdir()))
    if path.exists() and holds_weights and (different := config_lib.differences(config, config_lib.from_json(path))):
        raise InputError(f"{workdir} holds another experiment; take another --workdir, or undo: {'; '.join(different)}")
    try:
        if is_main_host():
            with storage.bucket_errors(workdir):
                workdir.mkdir(parents=True, exist_ok=True)
                path.write_text(config_lib.to_json(config) + "\n")
    except OSError as error:
        raise InputError(f"{workdir}: {error.strerror}") from None


def to_items(state: TrainState) -> dict[str, Any]:
    """The state as a checkpoint's items; evaluation reads `params` and `stats`, or `ema`."""
    optimizer = {"step": state.step, "skipped": state.skipped, "state": state.opt_state}
    items = {"params": state.params, "stats": state.stats, "optimizer": optimizer}
    return {**items, "ema": state.ema} if state.ema else items


def from_items(items: dict[str, Any]) -> TrainState:
    """`to_items`' inverse."""
    optimizer, ema = items["optimizer"], items.get("ema", {})
    return TrainState(optimizer["step"], items["params"], items["stats"], optimizer["state"], ema, optimizer["skipped"])


def _abstract(array: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)


def main() -> None:
    """The command line."""
    options: cli.Options = {
        "config": (None, "config file, FILE or FILE:ARG"),
        "workdir": (None, "folder of the run; a run found there is continued"),
        "distributed": cli.DISTRIBUTED,
    }
    cli.run(
        __doc__, options, lambda values, config: _train(config, values), lambda v: config_lib.load_config(v["config"])
    )


def _train(config: ConfigDict, values: Any) -> None:
    numbers = train(config, values["workdir"])
    if is_main_host():
        print(f"AP {numbers['AP']:.3f} ({numbers['boxes']} boxes); results in {values['workdir']}")


if __name__ == "__main__":
    main()
