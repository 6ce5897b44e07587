"""Trains the model of a config in a work directory.

    python -m hrnet_jax.train --config configs/quickstart.py --workdir runs/quickstart

The same command continues a run that was stopped, to the same bits. Ctrl-C or SIGTERM finishes the step, saves and
exits with status 75; a second one exits at once. Every `--config.KEY=VALUE` overrides a key of the config file. Each of
several processes of a run (Cloud TPU slices, GPU hosts) is started with `--distributed`.
"""

from __future__ import annotations

from hrnet_jax import cli

OPTIONS: cli.Options = {
    "config": (None, "config file, FILE or FILE:ARG"),
    "workdir": (None, "folder of the run; a run found there is continued"),
    "distributed": cli.DISTRIBUTED,
}
cli.help_first(__name__, __doc__, OPTIONS)  # the imports below take seconds

import contextlib
import dataclasses
import functools
import logging
import os
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from data_pipelines import storage
from data_pipelines.json_files import read_json_if_intact
from data_pipelines.keypoints import keypoint_set
from data_pipelines.pipeline import TrainData, iterate
from data_pipelines.processes import cores, division, shared_memory
from eval import coco
from eval.distances import format_distances
from hrnet_jax import config as config_lib
from hrnet_jax.codecs import create_codec
from hrnet_jax.inference.evaluator import Evaluator, write
from hrnet_jax.mesh import create_mesh, from_main_host, is_main_host, log_devices, on_mesh, replicated, shard_batch
from hrnet_jax.models import FunctionalModel, abstract_model, initial_arrays, state_dict
from hrnet_jax.models.names import Arrays
from hrnet_jax.outcomes import Interrupted
from hrnet_jax.training import compilation, metrics
from hrnet_jax.training.curves import draw_curves
from hrnet_jax.training.identity import check_experiment, continued, described, trained_on
from hrnet_jax.training.lease import hold
from hrnet_jax.training.optimizer import create_optimizer, learning_rate
from hrnet_jax.training.record import RunRecord
from hrnet_jax.training.step import (
    TrainState,
    abstract_items,
    from_items,
    make_train_step,
    new_state,
    to_items,
    weights_to_evaluate,
)
from hrnet_jax.training.step_log import Profiler, StepLog
from hrnet_jax.training.stopping import StopRequest
from hrnet_jax.weights import checkpoint
from hrnet_jax.weights.initial import initial_model, initialised

logger = logging.getLogger(__name__)

_ON_CPU = ": many minutes for HRNet-W32 on a CPU, and seconds per step; the variant `small` is for CPUs"
_AT_RANDOM = "at random; the published AP take a backbone trained on ImageNet: --config.init=hrnet_w32-imagenet"


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
        log_devices(config.model.dtype)

        # The model, and what it starts from: a wrong config.init is found before the data is read.
        model = abstract_model(config)
        network = FunctionalModel.of(model)
        shapes = state_dict(model)
        initial = None if checkpoint.steps(folder / checkpoint.FOLDER) else _initial(config, *shapes)

        # Data and the numbers that follow from its size.
        codec = create_codec(config.codec)
        data = TrainData.load(config, codec)
        steps_per_epoch = data.steps_per_epoch(config.batch_size)
        total_steps = config.epochs * steps_per_epoch
        sources = [source.name for source in data.sources]
        people = ", ".join(f"{source.name}: {len(source)} people" for source in data.sources)
        logger.info("%s; %d steps per epoch", people, steps_per_epoch)
        late = [epoch for epoch in config.optimizer.milestones if epoch >= config.epochs]
        if late and config.optimizer.schedule == "steps":
            logger.warning("config.optimizer.milestones: %s are not reached in %d epochs", late, config.epochs)

        # Optimizer, evaluator.
        schedule = learning_rate(config, steps_per_epoch)
        optimizer = create_optimizer(config, schedule, network.param_layout)
        train_step = make_train_step(
            network, codec, optimizer, len(sources), parts=config.accumulate, devices=mesh.size, ema_decay=config.ema
        )
        evaluator = Evaluator(config, mesh)

        # The state: from the newest checkpoint, else fresh.
        kept = checkpoint.Checkpoints(folder / checkpoint.FOLDER, config.checkpoint.keep, config.best)
        checkpoints = stack.enter_context(kept)
        fresh = functools.partial(new_state, network, optimizer=optimizer, ema_decay=config.ema)
        abstract = abstract_items(network, optimizer, config.ema)
        if restored := checkpoints.restore(on_mesh(abstract, replicated(mesh))):
            items, meta = restored
            state, progress = from_items(network, items), meta["progress"]
            history = continued(config, data, meta)
            logger.info("continuing at step %d of %d", meta["step"], total_steps)
        else:
            params, stats, init = initial or _initial(config, *shapes)
            state = jax.device_put(jax.jit(fresh)(params, stats), replicated(mesh))
            del params, stats, initial
            progress = {"samples": 0, "unreadable": 0, "loss": None}
            history = [trained_on(data, init)]
        start_step = int(state.step)
        from_main_host(lambda: storage.write(folder / "config.json", config_lib.to_json(config) + "\n"))
        record.facts |= {"first_step": start_step, "steps_per_epoch": steps_per_epoch, "data": history[-1]}
        record.write()

        is_evaluated = checkpoints.is_evaluated(start_step)
        writer = stack.enter_context(metrics.MetricWriter(workdir, start_step, is_evaluated, is_main_host()))
        hosts = {"host": jax.process_index(), "hosts": jax.process_count()}
        batch_bytes = data.sample_bytes * config.batch_size // jax.process_count()
        loader = config.data.loader
        threads, workers = division(loader.threads, loader.workers, batch_bytes, cores(), shared_memory())
        stream = data.batches(config.batch_size, start_step=start_step, **hosts)
        batches = iterate(stream, threads=threads, workers=workers)
        stack.callback(batches.close)
        log = StepLog(config, sources, start_step, total_steps, steps_per_epoch, schedule, progress)
        profiler = stack.enter_context(Profiler(workdir, config.profile))
        run = Run(config, folder, network, checkpoints, evaluator, writer, log, {"progress": progress, "data": history})

        if start_step < total_steps:
            logger.info("compiling the training step%s", _ON_CPU if _is_slow(config) else "")
        with StopRequest() as stop:
            # A run that was stopped or killed during an evaluation repeats it.
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
                raise Interrupted(f"stopped at step {step} of {total_steps} and saved; the same command continues")
    return read_json_if_intact(folder / "metrics.json", dict) or {}


def _is_slow(config: ConfigDict) -> bool:
    return jax.default_backend() == "cpu" and config.model.variant in ("w32", "w48")


def _initial(config: ConfigDict, params: Arrays, stats: Arrays) -> tuple[Arrays, Arrays, dict[str, str] | None]:
    """Initial arrays for these shapes, random or from `config.init`, and `config.init` as stored in checkpoints."""
    params, stats = (initial_arrays(shapes, config.seed) for shapes in (params, stats))
    if not config.init:
        logger.info("the network starts %s", _AT_RANDOM)
        return params, stats, None
    model, joints = initial_model(config.init), keypoint_set(config.keypoints)
    params, stats, taken = initialised(model, joints, params, stats)
    parts = f"the backbone, and the head of {len(taken)} of {len(joints)} keypoints"
    logger.info("the network starts from %s: %s", model.origin, parts)
    return params, stats, described(config.init, model)


@dataclasses.dataclass
class Run:
    """What a run does between steps: logging, saving, evaluating.

    `meta` is stored in each checkpoint beside its arrays: progress and training data.
    """

    config: ConfigDict
    workdir: epath.Path
    network: FunctionalModel
    checkpoints: checkpoint.Checkpoints
    evaluator: Evaluator
    writer: metrics.MetricWriter
    log: StepLog
    meta: dict[str, Any]

    def tell(self, step: int) -> None:
        """Logs the measurements of the steps since the last call."""
        scalars = self.log.flush()
        self.meta["progress"]["loss"] = scalars["loss"]
        self.writer.write(step, scalars)

    def save(self, state: TrainState, step: int) -> None:
        """Writes a checkpoint in the background, and the log up to the same step."""
        if self.log.pending:
            self.tell(step)
        meta = {**self.meta, "progress": dict(self.meta["progress"]), "config": config_lib.to_json(self.config)}
        self.checkpoints.save(step, to_items(self.network, state), meta)

    def evaluate(self, state: TrainState, step: int, stop: StopRequest) -> None:
        """Evaluates a saved state and writes the result, unless the run is stopped in between."""
        params, stats = weights_to_evaluate(self.network, state)
        result = self.evaluator(params, stats, lambda: stop.requested)
        if result is None:
            return
        numbers, predictions = result
        conditions = self.evaluator.conditions()
        distances = format_distances(numbers["distances"], total_only=True)
        logger.info("step %d\n%s\n%s", step, coco.format_table(numbers, conditions), distances)
        measured = {name: numbers[name] for name in coco.METRICS}
        self.writer.write(step, {metrics.EVALUATION + name: value for name, value in measured.items()})
        if is_main_host():
            write(self.workdir, {**numbers, "step": step}, predictions, self.evaluator)
            draw_curves(self.workdir)
        self.checkpoints.add_metrics(step, {**measured, "loss": self.meta["progress"]["loss"], **conditions})

    def end_of_epoch(self, state: TrainState, step: int, stop: StopRequest) -> None:
        """Saves and evaluates if due. Saves first, so that a run killed in an evaluation loses only the evaluation."""
        steps_per_epoch, total_steps = self.log.steps_per_epoch, self.log.total_steps
        epoch, last = step // steps_per_epoch, step == total_steps
        is_due = last or epoch % self.config.eval.every_epochs == 0
        if is_due or stop.requested or epoch % self.config.checkpoint.every_epochs == 0:
            self.save(state, step)
        if is_due and not self.checkpoints.is_evaluated(step):
            self.evaluate(state, step, stop)


def main() -> None:
    """The command line."""
    cli.run(__doc__, OPTIONS, _train, lambda values: config_lib.load_config(values["config"]))


def _train(values: Mapping[str, Any], config: ConfigDict) -> None:
    numbers = train(config, values["workdir"])
    if is_main_host():
        print(f"AP {numbers['AP']:.3f} ({numbers['boxes']} boxes); results in {values['workdir']}")


if __name__ == "__main__":
    main()
