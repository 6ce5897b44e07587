"""Configs: every key is checked, what contradicts gets one line, and config files that are none are told."""

import fnmatch
import json
import math
import os

import jax
import pytest

from configs import common
from data_pipelines.errors import InputError
from data_pipelines.keypoints import KeypointSet
from hrnet_jax import cli
from hrnet_jax import config as config_lib
from hrnet_jax.config import check, check_devices, check_keys, differences, load_config, to_json
from hrnet_jax.schema import KEYS
from hrnet_jax.weights import checkpoint
from tests.helpers import REPOSITORY

NUMBERS = [name for name, key in KEYS.items() if key.kind in (int, float) and not name.startswith("stages.")]


def recipe(variants="runlocal", name="coco_aic_merge"):
    config = load_config(f"{REPOSITORY}/configs/{name}.py:{variants}")
    config.unlock()
    return config


def leaves(section, path=""):
    """The keys of a config as it is stored."""
    for name, value in section.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}"


def with_value(pattern, value):
    """A recipe with a value of any type under a key of the table."""
    codecs = {"codec.blur_kernel": "dark,runlocal", "codec.radius_factor": "udp_combined,runlocal"}
    config = recipe(codecs.get(pattern, "runlocal"))
    *sections, name = pattern.replace("*", "coco").split(".")
    section = config
    for part in sections:
        section = section[part]
    del section[name]  # and its type, to which values are cast
    section[name] = value
    return config


def refused(message, function, *arguments, **named):
    with pytest.raises(InputError, match=message) as error:
        function(*arguments, **named)
    assert "\n" not in str(error.value)


# The table


def test_the_table_has_the_keys_of_the_recipes_and_no_others():
    variants = ("runlocal", "dark", "udp", "udp_combined", "w48,384x288")
    keys = {key for name in variants for key in leaves(json.loads(to_json(recipe(name))))}
    for key in keys:
        assert any(fnmatch.fnmatch(key, pattern) for pattern in KEYS), key
    for pattern in KEYS:
        assert fnmatch.filter(keys, pattern) or pattern.startswith("stages."), pattern  # tests/test_schedule.py


@pytest.mark.parametrize("pattern", NUMBERS)
def test_numbers_outside_of_their_range_are_refused(pattern):
    key = KEYS[pattern]
    assert None not in ((key.low, key.above)[key.low is None], (key.high, key.below)[key.high is None])
    step = (key.multiple or 1) if key.kind is int else 1e-6
    outside = [key.above if key.low is None else key.low - step, key.below if key.high is None else key.high + step]
    outside += [True, "1", None] if key.optional is False else [True, "1"]
    outside += [math.nan, math.inf, -math.inf] if key.kind is float else [1.5]
    for value in outside:
        wrong = value if key.length is None else (value,) * max(key.length, 1)
        refused(rf"^config\.{pattern.replace('*', 'coco')}=.*: must be ", check, with_value(pattern, wrong))
    for value in (key.low, key.high):
        if value is not None:
            assert key.problem(value if key.length is None else (value,) * max(key.length, 1)) is None


def test_a_continued_run_may_change_these():
    assert {pattern for pattern, key in KEYS.items() if key.free} == {
        *("epochs", "cache_dir", "devices", "accumulate", "max_skipped", "profile", "init", "log_every"),
        *("best", "accept_changed_data"),
        *("model.scan", "data.root", "data.max_unreadable"),
        *("data.loader.threads", "data.loader.workers"),
        *(f"data.train.*.{name}" for name in ("annotations", "images", "prepared")),
        *(f"data.eval.{name}" for name in ("annotations", "images", "prepared", "keypoints", "boxes")),
        *(f"eval.{name}" for name in ("every_epochs", "batch_size", "flip_test", "nms", "nms_threshold")),
        *("eval.score_mode", "eval.keypoint_threshold", "eval.use_area"),
        *("checkpoint.every_epochs", "checkpoint.keep"),
    }
    ours, theirs = recipe(), recipe()
    del ours.data.eval.keypoints
    ours.data.train.coco.images, ours.eval.nms, ours.data.eval.keypoints = "elsewhere", "none", {"name": "dog"}
    assert differences(ours, theirs) == []
    ours.data.train.coco.keypoints = "coco_aic"
    assert differences(ours, theirs) == ["data.train.coco.keypoints: 'coco_aic', not 'coco'"]


# Values


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("accumulate=0", r"config\.accumulate=0: must be an integer from 1 "),
        ("seed=-1", r"config\.seed=-1"),
        ("profile=5", r"config\.profile=\(5,\): must be a tuple of 2"),
        ("profile=(5,3)", r"config\.profile=\(5, 3\): must be a first and a last step"),
        ("profile=(0,3)", r"config\.profile=\(0, 3\)"),
        ("devices=-1", r"config\.devices=-1"),
        ("ema=1", r"config\.ema=1.0: must be a number from 0 below 1"),
        ("model.group_size=-1", r"config\.model\.group_size=-1"),
        ("model.dtype=float16", r"config\.model\.dtype='float16': must be one of float32, bfloat16"),
        ("codec.name=dark2", r"config\.codec\.name='dark2': must be one of msra, dark"),
        ("codec.input_size=(64.0,64.0)", r"config\.codec\.input_size=\(64.0, 64.0\): must be a tuple of 2, each a mul"),
        ("codec.input_size=64", r"config\.codec\.input_size=\(64,\)"),
        ("data.format=records", r"config\.data\.format='records': must be one of files, tfds"),
        ("keypoints=dog", r"config\.keypoints='dog': unknown keypoint set"),
        ("data.train.coco.keypoints=dog", r"config\.data\.train\.coco\.keypoints='dog': unknown keypoint set"),
        ("data.mix.coco=-1", r"config\.data\.mix\.coco=-1.0"),
        ("data.mix.coco=1", r"config\.data\.mix=.*: weights must be above 0"),
        ("data.augment.rotation=nan", r"config\.data\.augment\.rotation=nan"),
        ("data.augment.scale=2", r"config\.data\.augment\.scale=2.0"),
        ("data.augment.half_body=7", r"config\.data\.augment\.half_body=7.0: must be a number from 0 to 1"),
        ("optimizer.milestones=(999999999999,)", r"config\.optimizer\.milestones=\(999999999999,\): must be a tuple, "),
        ("optimizer.warmup_factor=nan", r"config\.optimizer\.warmup_factor=nan"),
        ("eval.nms=nms", r"config\.eval\.nms='nms': must be one of oks_nms, soft_oks_nms, none"),
        ("eval.score_mode=best", r"config\.eval\.score_mode='best': must be one of bbox_keypoint"),
    ],
)
def test_flags_with_impossible_values_get_one_line(flag, message):
    """After flags have cast them."""
    _, config = cli.parse([f"--config.{flag}"], "", {}, lambda values: recipe())
    refused(f"^{message}", check, config)


def test_what_depends_on_other_keys():
    config = recipe("dark,runlocal")
    config.codec.blur_kernel = 10
    refused("blur_kernel is 10; it must be an odd number", check, config)
    config = recipe()
    config.data.mix.update({"coco": 1.0, "aic": 1.0})
    refused("config.data.epoch_size must say how many samples", check, config)
    config.data.epoch_size = 32
    check(config)
    config.data.format = "tfds"
    check(config)
    del config.data.train.aic.prepared
    refused("config.data.format='tfds': set config.data.train.aic.prepared", check, config)
    check(config, training=False)


# Keys


def test_unknown_keys_are_named():
    config = recipe()
    config.learning_rate = 1e-3
    config.data.train.coco.boxes = ""
    refused("^config: unknown key .*learning_rate.*; remove it, configs/common.py shows", check, config)
    refused("unknown key .*data.train.coco.boxes", check, config)


def test_stored_configs_lack_only_what_training_alone_needs(tmp_path):
    """So a key that is added for training leaves stored models as they are; an unknown key is named."""
    config, file = recipe(), tmp_path / "config.json"
    for pattern, key in KEYS.items():
        if key.training and "*" not in pattern:
            *sections, name = pattern.split(".")
            section = config
            for part in sections:
                section = section[part]
            del section[name]
    del config.optimizer, config.data.train, config.data.mix
    file.write_text(to_json(config))
    stored = checkpoint.stored_config(tmp_path)
    check(stored, training=False)
    check_devices(stored, 2, training=False)
    refused(
        "^config: lacks seed, epochs, .*optimizer, eval.every_epochs, .*; set them in the config file", check, stored
    )
    config.eval.nsm = "none"
    file.write_text(to_json(config))
    refused(f"^{file}: unknown key eval.nsm; remove it", checkpoint.stored_config, tmp_path)
    del config.eval.nsm, config.eval.nms
    file.write_text(to_json(config))
    refused(f"^{file}: lacks eval.nms; add them to this file", checkpoint.stored_config, tmp_path)


def test_a_section_that_is_none_is_told():
    config = recipe()
    with config.ignore_type():
        config.eval = "x"
        config.data.train.coco = 5
    refused("config.data.train.coco=5: must be a section; config.eval='x': must be a section", check, config)
    config = recipe()
    with config.ignore_type():
        config.optimizer = None
    refused("^FILE: optimizer=None: must be a section$", check_keys, config, "FILE", "", training=True)


# Devices


@pytest.mark.parametrize(
    ("devices", "group_size", "fitting"),
    [(1, 4, (1, 2, 4)), (2, 4, (1, 2)), (2, 2, (1, 2, 4)), (1, 0, (1,)), (1, 64, (1,)), (4, 8, (1,)), (16, 1, (1,))],
)
def test_parts_of_a_batch_hold_whole_groups_on_each_device(devices, group_size, fitting):
    config = recipe()  # a batch of 16
    config.model.group_size = group_size
    for parts in (1, 2, 3, 4, 5, 8, 16, 17):
        config.accumulate = parts
        if parts in fitting:
            check_devices(config, devices)
        else:
            message = rf"config.accumulate={parts}: .* it can be {', '.join(map(str, fitting))}$"
            refused(message, check_devices, config, devices)


def test_some_devices_of_several_hosts_are_refused(monkeypatch):
    config = recipe()
    check_devices(config, 1)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    refused("config.devices=1: all 2 devices of 2 processes must be used; set it to 0", check_devices, config, 1)
    check_devices(config, 2)


def test_an_evaluation_does_not_need_what_training_needs_of_devices():
    config = recipe()
    config.batch_size, config.accumulate = 15, 4
    refused("config.batch_size=15 is not a multiple of the 2 devices", check_devices, config, 2)
    check_devices(config, 2, training=False)
    refused("config.eval.batch_size=16 is not a multiple of the 3 devices", check_devices, config, 3, training=False)


# Config files


@pytest.mark.parametrize("name", ["coco", "aic", "coco_aic_merge", "coco_aic_combine", "quickstart"])
@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ("banana", "unknown variant banana"),
        ("w32,w48", "w32 and w48 contradict"),
        ("384x288,w48,256x192", "256x192 and 384x288 contradict"),
        ("udp,dark", "dark and udp contradict"),
    ],
)
def test_variants_that_are_unknown_or_contradict(name, variants, message):
    message = "unknown variant" if name == "quickstart" else message
    refused(message, load_config, f"{REPOSITORY}/configs/{name}.py:{variants}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("import nothing_of_that_name", r"config.py, line 1: ModuleNotFoundError: No module named"),
        ("def get_config(arg):\n    return 1 / 0", r"config.py, line 2: ZeroDivisionError: division by zero"),
        ("def get_config(arg)\n", r"config.py: SyntaxError: "),
        ("import sys\nsys.exit('no\\nmore')", r"config.py, line 2: SystemExit: no more"),
        ("x = 1", r"config.py: has no get_config"),
        ("def get_config(arg): return {'model': 1}", r"config.py: get_config returns \{'model': 1\}; it must"),
        ("def get_config(): pass", r"config.py: TypeError: get_config\(\) takes 0 positional arguments"),
        ("\0", r"config.py: "),
    ],
)
def test_config_files_that_raise_or_have_no_config(tmp_path, content, message):
    (tmp_path / "config.py").write_text(content)
    refused(message, load_config, str(tmp_path / "config.py"))


def test_paths_that_are_no_config_files(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    refused("nowhere.py: no such config file", load_config, "nowhere.py")
    for path in (tmp_path, tmp_path / "fifo"):
        refused(f"{path}: is not a file", load_config, str(path))
    assert config_lib.load_config(f"{REPOSITORY}/configs/coco.py:").model.variant == "w32"


@pytest.mark.parametrize("people", [1, 5, 93, 150, 500, 4500, 20_000, 149_813])
def test_the_recipe_for_few_people_makes_enough_steps(people):
    source = {"annotations": "a.json", "images": "images", "keypoints": "coco"}
    train, evaluate = {"mine": source}, {**source, "boxes": ""}
    fitted = common.recipe("small", keypoints="coco", train=train, evaluate=evaluate, people=people)
    published = common.recipe("udp", keypoints="coco", train=train, evaluate=evaluate)
    check(fitted)
    check_devices(fitted, 1)
    steps = fitted.epochs * math.ceil(people / fitted.batch_size)
    assert fitted.codec.name == "udp"
    assert fitted.codec.input_size == (128, 96)
    assert 16 <= fitted.batch_size <= min(512, max(16, people / 32))
    assert steps >= 1260
    assert fitted.epochs >= 210
    assert fitted.optimizer.warmup_steps <= steps / 25
    assert fitted.optimizer.milestones == (fitted.epochs * 170 // 210, fitted.epochs * 200 // 210)
    if people > 140_000:
        same = {"batch_size", "epochs", "optimizer.warmup_steps", "optimizer.milestones", "model.group_size"}
        assert not same & {line.split(":")[0] for line in differences(fitted, published)}


def test_flips_need_pairs_and_half_bodies_an_upper_body():
    fish = KeypointSet("fish", ("head", "tail"), (0.05, 0.05), (), (), ())
    source = {"annotations": "a.json", "images": "images", "keypoints": fish}
    config = common.recipe(keypoints=fish, train={"fish": source}, evaluate={**source, "boxes": ""})
    assert (config.data.augment.flip, config.eval.flip_test, config.data.augment.half_body) == (0.0, False, 0.0)
    coco = recipe("", "coco")
    assert (coco.data.augment.flip, coco.eval.flip_test, coco.data.augment.half_body) == (0.5, True, 0.3)
