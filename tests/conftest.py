"""Shared fixtures, and strict settings: every test meets two devices, checked shapes and no implicit ranks."""

import collections
import fcntl
import functools
import gc
import inspect
import logging
import os
import pathlib

import jax
import pytest

from hrnet_jax.config import load_config
from tests.helpers import REPOSITORY, STAGED, STAGES, local_config

jax.config.update("jax_numpy_rank_promotion", "raise")

# Also for the processes that tests start, so that a program is compiled once: it is found again in the cache, for the
# same number of devices, and by the next run of the tests. `rm -r .pytest_cache` empties it.
SETTINGS = {"JAX_NUM_CPU_DEVICES": 2, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": 0}
SETTINGS["JAX_COMPILATION_CACHE_DIR"] = str(REPOSITORY / ".pytest_cache/compiled")
os.environ.update({name: str(value) for name, value in SETTINGS.items()})
for _name, _value in SETTINGS.items():
    jax.config.update(_name.lower(), _value)

# Tracing creates millions of objects, few of them in cycles: looking for these less often saves a tenth of the time.
gc.set_threshold(50_000, 20, 20)

# What starts a process (`iterate`: of the loader), trains, or builds a network. Tests that use one of these are slow.
SLOW = {"subprocess", "multiprocessing", "iterate", "train", "hrnet_jax.train"}
SLOW |= {"hrnet_jax.inference.predictor", "create_model", "abstract_model", "Evaluator", "create_mesh", "experiment"}

# OpenCV, TensorStore and pycocotools chatter; ours is captured by caplog all the same.
logging.getLogger("absl").setLevel(logging.WARNING)


def pytest_collection_modifyitems(items):
    """Marks slow tests, and sorts files with the most of them first.

    Test processes take one file at a time, and should end together.
    """
    for item in items:
        fixtures = [definition.func for each in item._fixtureinfo.name2fixturedefs.values() for definition in each]
        if any(SLOW & uses(function) for function in [item.function, *fixtures]):
            item.add_marker("slow")
    slow = collections.Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@functools.cache
def uses(function):
    """The globals and imported modules that a function of the tests uses, itself or in the functions that it calls."""
    todo, names = [function], set()
    while todo:
        function = inspect.unwrap(todo.pop())
        codes, found = [function.__code__], set()
        while codes:
            code = codes.pop()
            found.update(name for name in code.co_names if name in function.__globals__ or "." in name)
            codes += [constant for constant in code.co_consts if inspect.iscode(constant)]
        called = [function.__globals__.get(name) for name in found - names]
        todo += [other for other in called if inspect.isfunction(other) and other.__module__.startswith("tests.")]
        names |= found
    return names


def made_once(tmp_path_factory, name, make):
    """A folder that the first of the test processes to need it makes."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # of all test processes
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (done := base / f"{name}.done").exists():
            make(base / name)
            done.touch()
    return base / name


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

    return made_once(tmp_path_factory, "overfitted", lambda workdir: train(overfit_config, workdir))


@pytest.fixture(scope="session")
def trained(shared, tmp_path_factory):
    """A finished run of two epochs of six steps on real people; copy it before changing it."""
    from hrnet_jax.train import train

    return made_once(tmp_path_factory, "trained", lambda workdir: train(local_config(shared), workdir))


@pytest.fixture(scope="session")
def undisturbed(shared, tmp_path_factory):
    """A finished run of `STAGED`, for those that are interrupted to be compared with; only read it."""
    from hrnet_jax.train import train

    def make(workdir):
        config = local_config(shared, STAGED)
        config.update_from_flattened_dict(STAGES)
        train(config, workdir)

    return made_once(tmp_path_factory, "undisturbed", make)


@pytest.fixture(scope="session")
def people(tmp_path_factory):
    """A small synthetic data set."""
    from data_pipelines.synthetic import write_dataset

    sizes = {"coco_train": 1, "coco_val": 6, "aic_train": 2}
    return made_once(tmp_path_factory, "people", lambda root: write_dataset(root, **sizes, processes=1))


@pytest.fixture(scope="session")
def folder(people, tmp_path_factory):
    """A converted folder of an untrained network whose heatmaps have peaks of about 1."""
    from hrnet_jax.models import abstract_model, initial_arrays, state_dict
    from hrnet_jax.weights.folder import save_folder

    config = load_config(str(REPOSITORY / "configs/quickstart.py"))
    config.data.root = str(people)
    config.model.variant = "tiny"
    config.eval.batch_size = 4
    config.eval.nms = "none"

    def make(path):
        params, stats = state_dict(abstract_model(config))
        arrays = initial_arrays({**params, **stats}, seed=0)
        arrays["head.final_layer.weight"] = arrays["head.final_layer.weight"] * 300
        save_folder(path, config, arrays)

    return made_once(tmp_path_factory, "tiny", make)


@pytest.fixture(scope="session")
def predictor(folder):
    """Of that folder; do not change it but by monkeypatch."""
    from hrnet_jax.inference.predictor import load

    return load(folder, batch_size=4)
