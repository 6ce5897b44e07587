"""Learning rates, optimizers and stages, by closed forms, by optax, and on both sides of a stage's start."""

import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import coco_aic_udp_ema, common
from data_pipelines.errors import InputError
from data_pipelines.pipeline import TrainData
from data_pipelines.stages import settings_by_epoch
from hrnet_jax import schedule
from hrnet_jax.config import check
from hrnet_jax.models import FunctionalModel, abstract_model
from hrnet_jax.training.optimizer import create_optimizer, learning_rate, table
from tests.helpers import REPOSITORY, crops, logging_as_before, pipeline_config, with_data

STEPS = 7  # per epoch


def recipe(**changes):
    config = common.recipe(keypoints="coco", train=common.train_sources("coco"), evaluate=common.COCO_VAL)
    config.update_from_flattened_dict({"epochs": 10, "optimizer.warmup_steps": 5, "optimizer.milestones": (4, 6)})
    config.update_from_flattened_dict(changes)
    return config


def rates(config):
    return np.asarray(jax.vmap(learning_rate(config, STEPS))(np.arange(config.epochs * STEPS)))


def test_cosine_is_optax_after_the_warm_up():
    config = recipe(**{"optimizer.schedule": "cosine"})
    expected = optax.cosine_decay_schedule(config.optimizer.learning_rate, 10 * STEPS)(np.arange(10 * STEPS))
    np.testing.assert_allclose(rates(config)[4:], expected[4:], rtol=1e-5, atol=1e-10)
    assert rates(config)[0] == pytest.approx(config.optimizer.learning_rate * 0.001)


def test_a_stage_starts_the_schedule_anew_and_ends_the_one_before():
    """The second stage changes only the augmentation, and leaves the rate alone."""
    config = recipe(**{"optimizer.schedule": "cosine"})
    config.stages = {
        "last": {"start": 6, "optimizer": {"schedule": "steps", "learning_rate": 1e-4, "milestones": (2,)}},
        "mild": {"start": 8, "augment": {"scale": 0.1}},
    }
    check(config)
    found = rates(config)
    np.testing.assert_array_equal(found[: 6 * STEPS], rates(recipe(**{"optimizer.schedule": "cosine", "epochs": 6})))
    alone = recipe(**{"optimizer.learning_rate": 1e-4, "optimizer.milestones": (2,), "epochs": 4})
    np.testing.assert_array_equal(found[6 * STEPS :], rates(alone))
    assert found[8 * STEPS] == pytest.approx(1e-5)


def test_only_kernels_decay():
    config = recipe(**{"optimizer.weight_decay": 0.1})
    layout = FunctionalModel.of(abstract_model({"model": {"variant": "micro"}, "keypoints": "coco"})).param_layout
    optimizer = create_optimizer(config, lambda step: 0.5, layout)
    params = jnp.ones(sum(math.prod(shape) for _, shape in layout.shapes))
    updates, _ = optimizer.update(jnp.zeros_like(params), optimizer.init(params), params)
    for name, update in layout.arrays(updates).items():
        np.testing.assert_allclose(update, -0.05 if update.ndim == 4 else 0.0, err_msg=name)


def test_a_stage_has_its_own_augmentation_from_its_first_sample(shared):
    """Three steps of 32 are an epoch of 95 people, so that a stage that starts with epoch 2 starts at sample 192."""
    config = {**pipeline_config(shared / "data"), "batch_size": 32}
    mild = {"scale": 0.0, "coarse_dropout": 1.0}
    staged = TrainData.load({**config, "stages": {"mild": {"start": 2, "augment": mild}}}, crops())
    augment = {**config["data"]["augment"], **mild}
    plain, changed = (TrainData.load(each, crops()) for each in (config, with_data(config, augment=augment)))
    for index, expected, other in ((191, plain, changed), (192, changed, plain)):
        sample, same, different = (
            data.order().map_with_index(data.sample)[index] for data in (staged, expected, other)
        )
        jax.tree.map(np.testing.assert_array_equal, sample, same)
        assert (sample["image"] != different["image"]).any()


def test_the_recipe_above_the_published_ones():
    config = coco_aic_udp_ema.get_config()
    check(config)
    rows = {epochs: values for epochs, *values in table(config, steps_per_epoch=391)}
    assert rows["3-170"] == ["5.00e-04", "5.00e-04", "as in data.augment"]
    assert rows["201-210"][0] == "5.00e-06"
    assert rows["213"][0] == "2.50e-04"
    assert rows["281"] == ["1.25e-04", rows["281"][1], "coarse_dropout 0.5, photometric 0.5"]
    assert rows["350"][2] == "coarse_dropout 0.5, photometric 0.5, rotation 60, scale 0.25, shift_probability 0"
    assert float(rows["350"][1]) < 1e-8
    assert coco_aic_udp_ema.get_config("w48,384x288").codec.name == "udp"


def test_stages_that_start_at_the_same_epoch_are_refused():
    config = recipe()
    config.stages = {"a": {"start": 3, "augment": {"flip": 0.0}}, "b": {"start": 3}}
    with pytest.raises(InputError, match=r"config\.stages\.b\.start=3: config\.stages\.a starts there already"):
        settings_by_epoch(config, "augment")
    with pytest.raises(InputError, match=r"config\.stages\.b\.start"):
        check(config)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"start": 0}, r"config\.stages\.a\.start=0: must be an integer from 1"),
        ({"augment": {}}, r"lacks stages\.a\.start"),
        ({"start": 1, "augment": {"tilt": 1}}, r"unknown key stages\.a\.augment\.tilt"),
        ({"start": 1, "optimizer": {"weight_decay": 0.1}}, r"unknown key stages\.a\.optimizer\.weight_decay"),
        ({"start": 1, "optimizer": {"schedule": "line"}}, r"stages\.a\.optimizer\.schedule='line': must be one of"),
    ],
)
def test_a_stage_that_cannot_be_meant_is_told(stage, message):
    config = recipe()
    config.stages = {"a": stage}
    with pytest.raises(InputError, match=message):
        check(config)


def test_the_command_prints_the_table(capsys, monkeypatch):
    arguments = ("--config", str(REPOSITORY / "configs/coco.py"), "--config.epochs=200", "--steps_per_epoch=600")
    monkeypatch.setattr(sys, "argv", ["hrnet_jax.schedule", *arguments])
    with logging_as_before():
        schedule.main()
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[:3] for line in printed[1:]] == [
        ["1", "5.00e-07", "5.00e-04"],
        ["2-170", "5.00e-04", "5.00e-04"],
        ["171-200", "5.00e-05", "5.00e-05"],
    ]
