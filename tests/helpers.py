"""What several test files need."""

import contextlib
import importlib
import io
import json
import logging
import os
import pathlib
import subprocess
import sys
from unittest import mock

import cv2
import numpy as np

from data_pipelines.keypoints import COCO
from data_pipelines.transforms import Augmentation
from hrnet_jax.models import VARIANTS, Variant

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent

# Two branches until the end: a third of tiny's layers to trace and to compile. Commands know it by `-m tests.micro`.
VARIANTS["micro"] = Variant(width=4, stem=4, bottlenecks=1, modules=(1, 0, 0), blocks=1)

# A recipe of stages, one from the third epoch on and one in the fourth, the last one, each of six steps.
STAGED = "coco_aic_udp_ema"
STAGES = {"epochs": 4, "stages.cutout.start": 2, "stages.mild.start": 3, "data.epoch_size": 95}

# Settings of all trainings but those that are about them: their steps are one program, which is compiled once. The
# warm-up is slow, because Adam's first steps depend on the signs of gradients: at the full rate rounding decides.
LOCAL = {"log_every": 2, "data.eval.boxes": "", "model.group_size": 4, "optimizer.warmup_steps": 50}


def load_arrays(path):
    """The arrays of an .npz file, which is closed."""
    with np.load(path) as file:
        return dict(file)


def pipeline_config(root):
    """The keys that the pipeline reads, for COCO + AIC below a folder laid out like the real data."""
    import dataclasses

    from configs import common

    data = {
        "root": str(root),
        "format": "files",
        "mix": {"coco": 0.0, "aic": 0.0},
        "epoch_size": 0,
        "train": common.train_sources("coco", "aic"),
        "eval": {**common.COCO_VAL, "boxes": ""},
        "augment": dataclasses.asdict(Augmentation()),
        "max_unreadable": 0.01,
        "loader": {"threads": 2, "workers": 0},
    }
    return {"seed": 3, "batch_size": 8, "keypoints": "coco", "cache_dir": "", "eval": {"batch_size": 8}, "data": data}


def with_data(config, **changes):
    """A config with other values in its section `data`."""
    return {**config, "data": {**config["data"], **changes}}


def crops(height=64, width=64, codec="msra"):
    """A codec, by which the pipeline cuts crops of this size."""
    from hrnet_jax.codecs import create_codec

    return create_codec({"name": codec, "input_size": (height, width)})


def local_config(shared, name="coco_aic_merge", variant="micro"):
    """A recipe at laptop size on the real COCO and AIC images, evaluated with annotated boxes."""
    from hrnet_jax.config import load_config

    config = load_config(f"{REPOSITORY}/configs/{name}.py:runlocal")
    config.update_from_flattened_dict({"data.root": str(shared / "data"), "model.variant": variant, **LOCAL})
    return config


def training(shared, workdir, overrides, name="coco_aic_merge"):
    """What follows `python -m` to train as `local_config` says, with overrides of its keys."""
    overrides = {"data.root": shared / "data", "model.variant": "micro", **LOCAL, **overrides}
    return [
        *("tests.micro", "hrnet_jax.train", "--config", f"{REPOSITORY}/configs/{name}.py:runlocal"),
        *("--workdir", str(workdir), *(f"--config.{key}={value}" for key, value in overrides.items())),
    ]


def run(*arguments, check=True, cwd=REPOSITORY, timeout=300, **environment):
    """Runs `python -m ...` as a user would; returns the finished process with its text output."""
    process = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    if check and process.returncode != 0:
        raise AssertionError(f"{arguments} ended with {process.returncode}:\n{process.stdout}\n{process.stderr}")
    return process


def mistake(module, *arguments):
    """The one line of standard error that a command's `main` leaves, called in this process, when it ends with 1."""
    out, error = io.StringIO(), io.StringIO()
    main = importlib.import_module(module).main
    with (
        contextlib.chdir(REPOSITORY),
        mock.patch.object(sys, "argv", [module, *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(error),
        logging_as_before(),
    ):
        try:
            status = main()
        except SystemExit as stop:
            status = stop.code
    assert status == 1, (status, error.getvalue())
    (line,) = error.getvalue().splitlines()
    assert line.startswith("error: ")
    return line


@contextlib.contextmanager
def logging_as_before():
    """Commands set up the loggers of their process."""
    handlers = list(logging.root.handlers)
    levels = {
        logger: logger.level
        for logger in map(logging.getLogger, (None, "absl", "hrnet_jax", "data_pipelines", "eval", "__main__"))
    }
    try:
        yield
    finally:
        logging.root.handlers[:] = handlers
        for logger, level in levels.items():
            logger.setLevel(level)


def image(height=60, width=80, seed=0):
    noise = np.random.default_rng(seed).integers(0, 255, (height // 4, width // 4, 3), np.uint8)
    return cv2.resize(noise, (width, height))


def write(path, content):
    path.write_text(json.dumps(content))
    return str(path)


def records(output):
    """The images of a predictions.json."""
    content = json.loads((output / "predictions.json").read_text())
    assert content["keypoints"] == list(COCO.names)
    return content["images"]


def moving_square(path, codec="mp4v", rate=25.0, frames=8, size=(96, 64)):
    """A video; the square is in the upper left of the first frame, and moves to the right."""
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), rate, size)
    for n in range(frames):
        frame = np.full((size[1], size[0], 3), 30, np.uint8)
        frame[:20, 8 * n : 8 * n + 20] = 230
        writer.write(frame)
    writer.release()
    return path
