"""Config and work directory -> checkpoints and metrics.

    python -m hrnet_jax.train --config configs/quickstart.py --workdir runs/quickstart

The same command continues a run that was stopped. Ctrl-C finishes the step, saves and exits with status 75; a second
one exits at once. Every `--config.KEY=VALUE` overrides a key of the config file.
"""

from __future__ import annotations

import contextlib
import logging
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from data_pipelines.errors import InputError
from data_pipelines.pipeline import TrainData, iterate
from data_pipelines.types import Batch
from eval import coco
from hrnet_jax import cli, draw, metrics
from hrnet_jax import config as config_lib
from hrnet_jax.checkpoint import Checkpoints
from hrnet_jax.codecs import Codec, create_codec
from hrnet_jax.convert import initial_backbone
from hrnet_jax.evaluate import Evaluator, normalise, write
from hrnet_jax.mesh import create_mesh, replicated, shard_batch
from hrnet_jax.models import Network, create_model, state_dict
from hrnet_jax.models.state import Arrays
from hrnet_jax.signals import StopRequest

logger = logging.getLogger(__name__)


class TrainState(NamedTuple):
    """All that a step changes; parameters and statistics by canonical name."""

    step: Array
    params: Arrays
    stats: Arrays
    opt_state: optax.OptState


def train(config: ConfigDict, workdir: str | pathlib.Path) -> dict[str, Any]:
    """Trains, or continues, the experiment of a config; can be called repeatedly in one process.

    Args:
      config: as made by a file under `configs/`.
      workdir: gets config.json, checkpoints/, best/, metrics.jsonl, tensorboard/, curves.png and, after every
        evaluation, metrics.json, keypoints.json and predictions.png.

    Returns:
      The content of metrics.json: the last evaluation.

    Raises:
      InputError: something in the config, the data or the work directory is wrong.
      Interrupted: a signal stopped the run; its state is saved.
    """
    workdir = pathlib.Path(workdir)
    config_lib.check(config)
    mesh = create_mesh()
    config_lib.check_devices(config, mesh.size)
    claim(workdir, config)
    config = config_lib.with_cache(config, workdir)

    # Data and the numbers that follow from its size.
    data = TrainData.load(config.data, config.seed)
    steps_per_epoch = -(-len(data) // config.batch_size)
    total_steps = config.epochs * steps_per_epoch
    sources = [source.name for source in data.sources]
    logger.info("%s; %d steps an epoch", ", ".join(f"{s.name}: {len(s)} people" for s in data.sources), steps_per_epoch)

    # Model, codec, optimizer, evaluator.
    codec = create_codec(config.codec)
    model = create_model(config.model, config.seed)
    network = Network.of(model)
    schedule = learning_rate(config.optimizer, steps_per_epoch)
    optimizer = optax.adam(schedule)
    evaluator = Evaluator(config, network, mesh)

    # The state: from the newest checkpoint, else fresh.
    params, stats = state_dict(model)
    state = TrainState(jnp.int32(0), params, stats, optimizer.init(params))
    state = jax.device_put(state, replicated(mesh))
    checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint.keep)
    best = Checkpoints(workdir / "best", keep=1)
    progress = {"best_AP": -1.0, "evaluated": 0}  # the last step that was evaluated
    if restored := checkpoints.restore(to_items(jax.tree.map(_abstract, state))):
        items, meta = restored
        state = from_items(items)
        progress = meta["progress"]
        logger.info("continuing at step %d of %d", meta["step"], total_steps)
    elif config.init:
        params, stats = initial_backbone(config.init, params, stats)
        state = jax.device_put(state._replace(params=params, stats=stats), replicated(mesh))
        logger.info("the backbone starts from %s", config.init)
    start_step = int(state.step)

    writer = metrics.MetricWriter(workdir, start_step)
    train_step = make_train_step(network, codec, optimizer, len(sources))
    batches = iterate(
        data.batches(config.batch_size, start_step=start_step, host=jax.process_index(), hosts=jax.process_count()),
        threads=config.data.loader.threads,
        workers=config.data.loader.workers,
    )
    log = StepLog(config, sources, start_step, total_steps, steps_per_epoch)

    def save(step: int, to: Checkpoints = checkpoints) -> None:
        to.save(step, to_items(state), {"progress": dict(progress), "config": config_lib.to_json(config)})

    def evaluate(step: int) -> None:
        result = evaluator(state.params, state.stats, lambda: stop.requested)
        if result is None:
            return
        numbers, predictions = result
        progress["evaluated"] = step
        logger.info("step %d\n%s", step, coco.format_table(numbers, evaluator.conditions()))
        writer.write(step, {f"eval/{name}": numbers[name] for name in coco.METRICS})
        write(workdir, {**numbers, "step": step}, predictions, evaluator)
        draw.curves(workdir / "curves.png", workdir)
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

    try:
        with StopRequest() as stop:
            # A run that was stopped during an evaluation takes it up again.
            if start_step and start_step % steps_per_epoch == 0:
                end_of_epoch(start_step)
            for step in range(start_step + 1, total_steps + 1):
                if stop.requested:
                    break
                with log.waiting():
                    batch = next(batches)
                on_device = {name: batch[name] for name in ("image", "keypoints", "visible", "source")}
                state, measured = train_step(state, shard_batch(on_device, mesh))
                log.add(step, measured, batch)
                if step % config.log_every == 0 or step == total_steps:
                    writer.write(step, log.flush(float(schedule(step - 1))))
                if step % steps_per_epoch == 0:
                    with log.paused():
                        end_of_epoch(step)
            step = int(state.step)
            if stop.requested:
                save(step)
                raise cli.Interrupted(f"stopped at step {step} of {total_steps} and saved; the same command continues")
    finally:
        writer.close()
        checkpoints.close()
        best.close()
        batches.close()
    draw.curves(workdir / "curves.png", workdir)
    return cli.read_metrics(workdir / "metrics.json")


def make_train_step(
    network: Network, codec: Codec, optimizer: optax.GradientTransformation, sources: int
) -> Callable[[TrainState, dict[str, Array]], tuple[TrainState, dict[str, Array]]]:
    """Compiles one step: uint8 crops and keypoints in, updated state out.

    Returns:
      f(state, batch) -> state, measured. The state is donated. The batch has `image` uint8 [B,H,W,3], `keypoints`
      [B,K,2], `visible` [B,K] and `source` [B]; measured has `loss`, `gradient_norm`, and the sum of losses and the
      number of samples a source, [sources] each.
    """

    def train_step(state: TrainState, batch: dict[str, Array]) -> tuple[TrainState, dict[str, Array]]:
        images = normalise(batch["image"])
        targets, weights = codec.encode(batch["keypoints"], batch["visible"])

        def loss_of(params: Arrays) -> tuple[Array, tuple[Float[Array, "batch"], Arrays]]:
            heatmaps, stats = network(params, state.stats, images, train=True)
            losses = codec.loss(heatmaps, targets, weights)
            return losses.mean(), (losses, stats)

        (loss, (losses, stats)), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        member = jax.nn.one_hot(batch["source"], sources)
        measured = {
            "loss": loss,
            "gradient_norm": optax.tree.norm(gradients),
            "loss_sum": losses @ member,
            "samples": member.sum(0),
        }
        return TrainState(state.step + 1, params, stats, opt_state), measured

    return jax.jit(train_step, donate_argnums=0)


def learning_rate(config: ConfigDict, steps_per_epoch: int) -> Callable[[Any], Array]:
    """The rate of a 0-based step: linear warm-up from a factor, times a decay at each milestone (epochs)."""
    milestones = np.array([epoch * steps_per_epoch for epoch in config.milestones], np.int32)

    def rate(step: Any) -> Array:
        through = jnp.minimum(step / max(config.warmup_steps - 1, 1), 1.0)
        warmup = config.warmup_factor + (1 - config.warmup_factor) * through
        return config.learning_rate * warmup * config.decay ** jnp.sum(step >= milestones)

    return rate


class StepLog:
    """Collects what steps measured and tells how the run goes; the device is read only when it is told."""

    def __init__(self, config: ConfigDict, sources: list[str], step: int, total_steps: int, steps_per_epoch: int):
        self._config, self._sources = config, sources
        self._step, self._total, self._epoch = step, total_steps, steps_per_epoch
        self._measured: list[dict[str, Array]] = []
        self._compiled = False
        self._time = time.monotonic()
        self._waited = 0.0
        self._samples = self._unreadable = 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """A context whose time counts as waiting for data."""
        start = time.monotonic()
        yield
        self._waited += time.monotonic() - start

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A context whose time does not count."""
        jax.block_until_ready(self._measured)
        start = time.monotonic()
        yield
        self._time += time.monotonic() - start

    def add(self, step: int, measured: dict[str, Array], batch: Batch) -> None:
        """Takes a step's measurements. Raises InputError when too many samples could not be read."""
        self._step = step
        self._measured.append(measured)
        if not self._compiled:
            jax.block_until_ready(measured)
            logger.info("first step after %.0f s, compilation included", time.monotonic() - self._time)
            self._compiled, self._waited, self._time = True, 0.0, time.monotonic()
        elif len(self._measured) > 2:  # do not run further ahead of the device than a prefetched batch
            jax.block_until_ready(self._measured[-3]["loss"])
        self._samples += len(batch["valid"])
        if not batch["valid"].all():
            self._unreadable += int((~batch["valid"]).sum())
            share, limit = self._unreadable / self._samples, self._config.data.max_unreadable
            # A share means something once a thousand samples, or an epoch of them, were seen.
            if share > limit and self._samples >= min(1000, self._epoch * self._config.batch_size):
                raise InputError(
                    f"{self._unreadable} of {self._samples} samples could not be read and were replaced, more than "
                    f"config.data.max_unreadable={limit:g}; the warnings above name the files"
                )

    def flush(self, rate: float) -> dict[str, float]:
        """Returns, and logs as one line, the means since the last call."""
        measured = jax.device_get(self._measured)
        now = time.monotonic()
        seconds, steps = now - self._time, len(measured)
        sums, counts = (np.sum([m[key] for m in measured], axis=0) for key in ("loss_sum", "samples"))
        by_source = {n: float(s / c) for n, s, c in zip(self._sources, sums, counts, strict=True) if c}
        scalars = {
            "loss": float(np.mean([m["loss"] for m in measured])),
            **{f"loss/{name}": loss for name, loss in by_source.items()},
            "learning_rate": rate,
            "gradient_norm": float(np.mean([m["gradient_norm"] for m in measured])),
            "steps_per_second": steps / seconds,
            "samples_per_second": steps * self._config.batch_size / seconds,
            "data_wait": self._waited / seconds,
            "unreadable": self._unreadable,
        }
        logger.info(
            "step %d/%d epoch %.1f loss %.3e (%s) lr %.1e | %.2f steps/s %.0f samples/s data wait %.0f%%%s | ETA %s",
            *(self._step, self._total, self._step / self._epoch, scalars["loss"]),
            " ".join(f"{name} {loss:.3e}" for name, loss in by_source.items()),
            *(rate, scalars["steps_per_second"], scalars["samples_per_second"], 100 * scalars["data_wait"]),
            f" unreadable {self._unreadable}" if self._unreadable else "",
            _clock((self._total - self._step) * seconds / steps),
        )
        self._measured, self._waited, self._time = [], 0.0, now
        return scalars


def claim(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Makes a work directory this experiment's. Raises InputError when it is already another's."""
    path = workdir / "config.json"
    if path.exists() and (different := config_lib.differences(config, config_lib.from_json(path))):
        raise InputError(f"{workdir} holds another experiment; take another --workdir, or undo: {'; '.join(different)}")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        path.write_text(config_lib.to_json(config) + "\n")
    except OSError as error:
        raise InputError(f"{workdir}: {error.strerror}") from None


def to_items(state: TrainState) -> dict[str, Any]:
    """The state as a checkpoint's items; evaluation reads only `params` and `stats`."""
    return {"params": state.params, "stats": state.stats, "optimizer": {"step": state.step, "state": state.opt_state}}


def from_items(items: dict[str, Any]) -> TrainState:
    """`to_items`' inverse."""
    return TrainState(items["optimizer"]["step"], items["params"], items["stats"], items["optimizer"]["state"])


def _abstract(array: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


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
    print(f"AP {numbers['AP']:.3f} ({numbers['boxes']} boxes); results in {values['workdir']}")


if __name__ == "__main__":
    main()
