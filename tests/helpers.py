"""What several test files need."""

import os
import pathlib
import subprocess
import sys

from data_pipelines.transforms import Augmentation

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


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


def local_config(shared, name="coco_aic_merge", variants=""):
    """A recipe at laptop size on the real COCO and AIC images, evaluated with annotated boxes."""
    from hrnet_jax.config import load_config

    config = load_config(f"{REPOSITORY}/configs/{name}.py:runlocal{variants}")
    config.data.root = str(shared / "data")
    config.data.eval.boxes = ""
    return config


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
