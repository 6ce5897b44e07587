"""Shared fixtures, and strict settings: every test meets two devices, checked shapes and no implicit ranks."""

import logging
import os
import pathlib
import tempfile

import jax
import pytest

from hrnet_jax.config import load_config
from tests.helpers import REPOSITORY, local_config

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")

# The same small programs are compiled by many tests and by the processes that they start: once is enough. With
# several test processes, the one that starts them makes the folder.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _COMPILED = tempfile.TemporaryDirectory(prefix="hrnet_jax_tests_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _COMPILED.name
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])

# With several test processes, which take a file at a time, these go first: the slowest, the very slowest ahead.
SLOW_FILES = (
    *("train", "parity", "runs", "scan", "export", "hosts", "launch", "notebooks", "benchmarks", "remote", "overfit"),
    *("docs", "own_data", "commands"),
)

# OpenCV, TensorStore and pycocotools chatter; ours is captured by caplog all the same.
logging.getLogger("absl").setLevel(logging.WARNING)


def pytest_collection_modifyitems(items):
    place = {f"test_{name}": number for number, name in enumerate(SLOW_FILES)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder with the reference's golden numbers and real images (HRNET_JAX_SHARED, default ../shared)."""
    folder = pathlib.Path(os.environ.get("HRNET_JAX_SHARED", REPOSITORY.parent / "shared")).resolve()
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist; set HRNET_JAX_SHARED")
    return folder


@pytest.fixture(scope="session")
def overfit_config(shared):
    """A small HRNet on the twelve real people of coco_val4, evaluated on the same with annotated boxes."""
    config = load_config(str(REPOSITORY / "configs/coco.py:runlocal,udp"))
    people = {
        "annotations": "coco_val4/annotations/person_keypoints_val2017.json",
        "images": "coco_val4/val2017",
        "keypoints": "coco",
    }
    config.data.root = str(shared / "data")
    config.data.train.coco.update(people)
    config.data.eval.update({**people, "boxes": ""})
    config.model.variant = "small"
    config.codec.input_size = (128, 96)
    config.data.augment.update({"half_body": 0.0, "shift_probability": 0.0, "scale": 0.0, "rotation_probability": 0.0})
    config.batch_size = config.eval.batch_size = 12
    config.epochs = 240  # of one step
    config.optimizer.learning_rate = 2e-3
    config.optimizer.milestones = (190, 220)
    config.eval.every_epochs = config.checkpoint.every_epochs = 240
    config.log_every = 100
    return config


@pytest.fixture(scope="session")
def overfitted(overfit_config, tmp_path_factory):
    """The work directory of that training."""
    from hrnet_jax.train import train

    workdir = tmp_path_factory.mktemp("overfitted")
    train(overfit_config, workdir)
    return workdir


@pytest.fixture(scope="session")
def trained(shared, tmp_path_factory):
    """A finished run of two epochs of six steps on real people; copy it before changing it."""
    from hrnet_jax.train import train

    workdir = tmp_path_factory.mktemp("trained")
    train(local_config(shared), workdir)
    return workdir
