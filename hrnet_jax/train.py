"""Config and work directory -> checkpoints and metrics.

    python -m hrnet_jax.train --config configs/quickstart.py --workdir runs/quickstart

The same command continues a run that was stopped, to the same bits. Ctrl-C or SIGTERM finishes the step, saves and
exits with status 75; a second one exits at once. Every `--config.KEY=VALUE` overrides a key of the config file. Each of
several processes of a run (Cloud TPU slices, GPU hosts) is started with `--distributed`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Iterator
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
from hrnet_jax import cli, draw
from hrnet_jax import config as config_lib
from hrnet_jax.codecs import Codec, create_codec
from hrnet_jax.convert import initial_model, with_backbone
from hrnet_jax.evaluate import Evaluator, write
from hrnet_jax.inference.steps import normalise
from hrnet_jax.mesh import create_mesh, from_main_host, is_main_host, replicated, shard_batch, split_evenly
from hrnet_jax.models import Network, abstract_model, create_model, state_dict, unstack
from hrnet_jax.models.names import Arrays
from hrnet_jax.training import compilation, metrics
from hrnet_jax.training.lease import Lease
from hrnet_jax.training.record import RunRecord, describe_devices
from hrnet_jax.training.step_log import Profiler, StepLog
from hrnet_jax.training.stopping import StopRequest
from hrnet_jax.weights.checkpoint import Checkpoints, check_name, steps
from hrnet_jax.weights.folder import Model, is_folder

logger = logging.getLogger(__name__)

_AT_RANDOM = "at random; the published AP take one that was trained on ImageNet: --config.init=FOLDER"

_by_canonical_name = jax.jit(unstack)


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
      workdir: gets config.json, checkpoints/, metrics.jsonl, tensorboard/, curves.png, starts.json, logs/ and, after
        every evaluation, metrics.json, keypoints.json and predictions.png. All hosts must see the same folder. One in
        a bucket (gs://...) gets metrics/STEP.jsonl in place of metrics.jsonl.

    Returns:
      The content of metrics.json: the last evaluation.

    Raises:
      InputError: something in the config, the data or the work directory is wrong, or another process trains in it.
      Interrupted: a signal stopped the run; its state is saved.
      Aborted: too many steps were skipped for losses or gradients that are not finite.
    """
    folder = epath.Path(workdir)
    config_lib.check(config)
    mesh = create_mesh(config.devices)
    config_lib.check_devices(config, mesh.size)
    with contextlib.ExitStack() as stack:
        lease = stack.enter_context(hold(folder))
        record = stack.enter_context(RunRecord(folder, active=is_main_host()))
        from_main_host(lambda: check_experiment(folder, config))
        config = config_lib.with_cache(config, workdir)
        compilation.use_cache(config.cache_dir)
        logger.info("%s, jax %s, compute in %s", describe_devices(), jax.__version__, config.model.dtype)

        # Data and the numbers that follow from its size.
        data = TrainData.load(config.data, config.seed)
        steps_per_epoch = -(-len(data) // config.batch_size)
        total_steps = config.epochs * steps_per_epoch
        sources = [source.name for source in data.sources]
        people = ", ".join(f"{source.name}: {len(source)} people" for source in data.sources)
        logger.info("%s; %d steps per epoch", people, steps_per_epoch)

        # Model, codec, optimizer, evaluator.
        codec = create_codec(config.codec)
        network = Network.of(abstract_model(config.model))
        schedule = learning_rate(config.optimizer, steps_per_epoch)
        optimizer = optax.adam(schedule)
        train_step = make_train_step(
            network, codec, optimizer, len(sources), parts=config.accumulate, devices=mesh.size, ema_decay=config.ema
        )
        evaluator = Evaluator(config, mesh)

        # The state: from the newest checkpoint, else fresh.
        checkpoints = stack.enter_context(Checkpoints(folder / "checkpoints", config.checkpoint.keep, config.best))
        fresh = functools.partial(start, optimizer=optimizer, ema_decay=config.ema)
        abstract = jax.eval_shape(fresh, *state_dict(abstract_model(config.model)))
        if restored := checkpoints.restore(to_items(on_mesh(abstract, mesh))):
            items, meta = restored
            state, progress = from_items(items), meta["progress"]
            history = continued(config, data, meta)
            logger.info("continuing at step %d of %d", meta["step"], total_steps)
        else:
            params, stats = state_dict(create_model(config.model, config.seed))
            init = initial_model(config.init) if config.init else None
            if init:
                params, stats = with_backbone(init, params, stats)
            state = jax.device_put(fresh(params, stats), replicated(mesh))
            progress = {"samples": 0, "unreadable": 0, "loss": None}
            history = [trained_on(data, config.init, init)]
            logger.info("the backbone starts %s", f"from {init.origin}" if init else _AT_RANDOM)
        start_step = int(state.step)
        state = jax.jit(network.stack, donate_argnums=0)(state)
        from_main_host(lambda: storage.write(folder / "config.json", config_lib.to_json(config) + "\n"))
        record.facts |= {"first_step": start_step, "data": history[-1]}
        record.write()

        is_evaluated = checkpoints.is_evaluated(start_step)
        writer = stack.enter_context(metrics.MetricWriter(workdir, start_step, is_evaluated, is_main_host()))
        hosts = {"host": jax.process_index(), "hosts": jax.process_count()}
        batches = iterate(
            data.batches(config.batch_size, start_step=start_step, **hosts),
            threads=config.data.loader.threads,
            workers=config.data.loader.workers,
        )
        stack.callback(batches.close)
        log = StepLog(config, sources, start_step, total_steps, steps_per_epoch, schedule, progress)
        profiler = stack.enter_context(Profiler(workdir, config.profile))
        run = Run(config, folder, checkpoints, evaluator, writer, log, {"progress": progress, "data": history})

        with StopRequest() as stop:
            # A run that was stopped or killed during an evaluation takes it up again.
            if start_step and start_step % steps_per_epoch == 0:
                run.end_of_epoch(state, start_step, stop)
            for step in range(start_step + 1, total_steps + 1):
                if stop.agreed(step):
                    break
                lease.check()
                with log.waiting():
                    batch = next(batches)
                on_device = {name: batch[name] for name in ("image", "keypoints", "visible", "source")}
                with profiler.step(step):
                    state, measured = train_step(state, shard_batch(on_device, mesh))
                log.add(step, measured, batch)
                if step % config.log_every == 0 or step == total_steps:
                    run.tell(step)
                if step % steps_per_epoch == 0:
                    with log.paused():
                        run.end_of_epoch(state, step, stop)
            if stop.requested:
                step = int(state.step)
                run.save(state, step)
                checkpoints.wait()
                raise cli.Interrupted(f"stopped at step {step} of {total_steps} and saved; the same command continues")
    if is_main_host():
        draw.curves(workdir)
    return cli.read_metrics(folder / "metrics.json")


@dataclasses.dataclass
class Run:
    """What happens beside the steps of a run: logging, saving, evaluating.

    `meta` is what a checkpoint carries beside arrays: progress, and what it was trained on.
    """

    config: ConfigDict
    workdir: epath.Path
    checkpoints: Checkpoints
    evaluator: Evaluator
    writer: metrics.MetricWriter
    log: StepLog
    meta: dict[str, Any]

    def tell(self, step: int) -> None:
        """Logs what the steps since the last call measured."""
        scalars = self.log.flush()
        self.meta["progress"]["loss"] = scalars["loss"]
        self.writer.write(step, scalars)

    def save(self, state: TrainState, step: int) -> None:
        """Writes a checkpoint in the background. The log, which it completes, ends at the same step."""
        if self.log.pending:
            self.tell(step)
        meta = {**self.meta, "progress": dict(self.meta["progress"]), "config": config_lib.to_json(self.config)}
        self.checkpoints.save(step, to_items(_by_canonical_name(state)), meta)

    def evaluate(self, state: TrainState, step: int, stop: StopRequest) -> None:
        """Evaluates a saved state and writes the result, unless the run is stopped in between."""
        result = self.evaluator(*averaged(state), lambda: stop.requested)
        if result is None:
            return
        numbers, predictions = result
        conditions = self.evaluator.conditions()
        logger.info("step %d\n%s", step, coco.format_table(numbers, conditions))
        measured = {name: numbers[name] for name in coco.METRICS}
        self.writer.write(step, {metrics.EVALUATION + name: value for name, value in measured.items()})
        if is_main_host():
            write(self.workdir, {**numbers, "step": step}, predictions, self.evaluator)
            draw.curves(self.workdir)
        self.checkpoints.add_metrics(step, {**measured, "loss": self.meta["progress"]["loss"], **conditions})

    def end_of_epoch(self, state: TrainState, step: int, stop: StopRequest) -> None:
        """Saves and evaluates when it is time to; first saves, so that a kill costs the evaluation only."""
        steps_per_epoch, total_steps = self.log.steps_per_epoch, self.log.total_steps
        epoch, last = step // steps_per_epoch, step == total_steps
        is_due = last or epoch % self.config.eval.every_epochs == 0
        if is_due or stop.requested or epoch % self.config.checkpoint.every_epochs == 0:
            self.save(state, step)
        if is_due and not self.checkpoints.is_evaluated(step):
            self.evaluate(state, step, stop)


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


@contextlib.contextmanager
def hold(workdir: epath.Path) -> Iterator[Lease]:
    """A context in which a run has a work directory for itself; the main host's lease is that of all hosts."""
    with contextlib.ExitStack() as stack:
        lease = Lease(workdir)

        def take() -> None:
            storage.check_bucket(workdir)
            check_name(workdir)
            stack.enter_context(lease)

        from_main_host(take)
        yield lease


def check_experiment(workdir: epath.Path, config: ConfigDict) -> None:
    """Raises InputError when a work directory holds another experiment, or is a converted or exported folder.

    A start that failed before its first checkpoint leaves the directory to any experiment.
    """
    if is_folder(workdir):
        raise InputError(f"{workdir}: is a converted or exported folder; take another --workdir")
    path = workdir / "config.json"
    is_begun = path.exists() and steps(workdir / "checkpoints")
    if is_begun and (different := config_lib.differences(config, config_lib.from_json(path))):
        raise InputError(f"{workdir} holds another experiment; take another --workdir, or undo: {'; '.join(different)}")


def trained_on(data: TrainData, path: str, init: Model | None, step: int = 0) -> dict[str, Any]:
    """What a run is trained on from a step on, as its checkpoints tell it: people, and where the backbone came from."""
    sources = {source.name: {"people": len(source), "digest": source.digest()} for source in data.sources}
    return {"from_step": step, "sources": sources, "init": {"path": path, "digest": init.digest()} if init else None}


def continued(config: ConfigDict, data: TrainData, meta: dict[str, Any]) -> list[dict[str, Any]]:
    """What a continued run was and is trained on.

    Raises InputError when that is not the same, unless `config.accept_changed_data`, which the list then tells.
    """
    history = meta["data"]
    before, init = history[-1], history[-1]["init"]
    now = trained_on(data, "", None, meta["step"])
    different = [
        f"{name}: {_people(now['sources'].get(name))}, not {_people(before['sources'].get(name))}"
        for name in sorted({*now["sources"], *before["sources"]})
        if now["sources"].get(name) != before["sources"].get(name)
    ]
    now["init"] = init
    if config.init != (init or {"path": ""})["path"]:
        other = initial_model(config.init) if config.init else None
        if init is None or other is None or other.digest() != init["digest"]:
            different.append(f"config.init: {config.init!r}, not {init['path'] if init else ''!r}")
    if not different:
        return history
    if not config.accept_changed_data:
        raise InputError(
            f"the run was trained on other data; undo, or accept it with --config.accept_changed_data: "
            f"{'; '.join(different)}"
        )
    logger.warning("from step %d on trained on other data: %s", meta["step"], "; ".join(different))
    return [*history, now]


def _people(source: dict[str, Any] | None) -> str:
    return f"{source['people']} people (digest {source['digest'][:8]})" if source else "none"


def to_items(state: TrainState) -> dict[str, Any]:
    """The state as a checkpoint's items; evaluation reads `params` and `stats`, or `ema`."""
    optimizer = {"step": state.step, "skipped": state.skipped, "state": state.opt_state}
    items = {"params": state.params, "stats": state.stats, "optimizer": optimizer}
    return {**items, "ema": state.ema} if state.ema else items


def from_items(items: dict[str, Any]) -> TrainState:
    """`to_items`' inverse."""
    optimizer, ema = items["optimizer"], items.get("ema", {})
    return TrainState(optimizer["step"], items["params"], items["stats"], optimizer["state"], ema, optimizer["skipped"])


def on_mesh(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """Shapes and types as `Checkpoints.restore` takes them, for arrays that every device holds whole."""
    sharding = replicated(mesh)
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree)


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
