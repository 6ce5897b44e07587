"""Equal blocks and modules as loops: the same network, the same names."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hrnet_jax.codecs import create_codec
from hrnet_jax.mesh import create_mesh, replicated
from hrnet_jax.models import VARIANTS, FunctionalModel, Variant, abstract_model, create_model, state_dict, unstack
from hrnet_jax.models.convolution import conv_general_dilated
from hrnet_jax.models.fold import abstract_weights, fold, make_fold
from hrnet_jax.train import train
from hrnet_jax.training import metrics
from hrnet_jax.training.step import from_items, make_train_step, new_state, to_items
from hrnet_jax.weights import checkpoint
from tests.helpers import local_config

# Two equal blocks per branch and two equal modules in stage 2; stage 1 has a first bottleneck and two equal ones.
REPEATS = Variant(width=4, stem=4, bottlenecks=3, modules=(2, 0, 0), blocks=2)


@pytest.fixture(scope="module", autouse=True)
def repeats():
    VARIANTS["repeats"] = REPEATS
    VARIANTS["loop"] = dataclasses.replace(VARIANTS["micro"], bottlenecks=3)
    yield
    del VARIANTS["repeats"], VARIANTS["loop"]


def model_config(scan, variant="repeats"):
    return {"model": {"variant": variant, "group_size": 4, "scan": scan}, "keypoints": "coco"}


def relative(ours, theirs):
    return np.linalg.norm(ours - theirs) / (np.linalg.norm(theirs) + 1e-12)


def start(network, optimizer, arrays):
    """The state before the first step. Compiled: one by one, its hundreds of operations take longer."""
    return jax.jit(lambda arrays: new_state(network, *arrays, optimizer, 0.9))(arrays)


@pytest.fixture(scope="module")
def steps():
    """The state after three steps, by canonical name, and what the steps measured, for both forms."""
    codec = create_codec({"name": "msra", "input_size": (64, 64), "sigma": 2.0})
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (8, 64, 64, 3), dtype=np.uint8),
        "keypoints": rng.uniform(8, 56, (8, 17, 2)).astype(np.float32),
        "visible": np.ones((8, 17), np.float32),
        "source": np.arange(8, dtype=np.int32) % 2,
    }
    results = {}
    for scan in (False, True):
        model = create_model(model_config(scan))
        network, optimizer = FunctionalModel.of(model), optax.adam(1e-4)
        assert any(":" in name for name, _ in network.param_layout.shapes) == scan
        state = start(network, optimizer, state_dict(model))
        step, measured = make_train_step(network, codec, optimizer, 2, ema_decay=0.9), []
        for _ in range(3):
            state, numbers = step(state, batch)
            measured.append(jax.device_get(numbers))
        results[scan] = jax.device_get(jax.jit(to_items, static_argnums=0)(network, state)), measured
    return results


def test_loops_train_like_modules_in_a_row(steps):
    (plain, numbers), (scan, scan_numbers) = steps[False], steps[True]
    for ours, theirs in zip(scan_numbers, numbers, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-4)
    assert scan["params"].keys() == plain["params"].keys()
    assert scan["ema"]["stats"].keys() == plain["ema"]["stats"].keys()
    for name, array in plain["stats"].items():
        assert scan["stats"][name].shape == array.shape
        assert relative(scan["stats"][name], array) < 1e-4, name
    for name, array in plain["params"].items():
        # Three steps of Adam move a parameter by up to 3e-4; of gradients near 0 the rounding decides.
        np.testing.assert_allclose(scan["params"][name], array, rtol=1e-4, atol=3e-5, err_msg=name)
    mu, expected = (state["optimizer"]["state"][0].mu for state in (scan, plain))
    for name, array in expected.items():
        assert relative(mu[name], array) < 1e-2, name


def test_stacking_and_back_is_exact():
    model = create_model(model_config(scan=True))
    network, (params, stats) = FunctionalModel.of(model), state_dict(model)
    stacked = jax.jit(lambda params: network.param_layout.arrays(network.param_layout.vector(params)))(params)
    name = "backbone.stage2.0:2.branches.1.0:2.conv1.weight"
    assert stacked[name].shape == (2, 2, 3, 3, 8, 8)
    np.testing.assert_array_equal(stacked[name][1, 0], params["backbone.stage2.1.branches.1.0.conv1.weight"])
    assert len(stacked) < 0.55 * len(params)
    assert network.param_layout.kernels == sum(array.size for array in params.values() if array.ndim == 4)
    both = network.stack({**params, **stats})
    jax.tree.map(np.testing.assert_array_equal, {name: both[name] for name in stacked}, stacked)
    jax.tree.map(np.testing.assert_array_equal, unstack(stacked), params)


def test_a_state_and_a_checkpoints_items_are_the_same():
    model = create_model(model_config(scan=True))
    network, optimizer = FunctionalModel.of(model), optax.adam(lambda step: 1e-4)
    state = start(network, optimizer, state_dict(model))
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype), state)
    items = jax.jit(to_items, static_argnums=0)(network, state)
    assert items["optimizer"]["state"][0].nu.keys() == items["params"].keys() == state_dict(model)[0].keys()
    jax.tree.map(np.testing.assert_array_equal, jax.jit(from_items, static_argnums=0)(network, items), state)


def test_names_of_w32_are_the_references():
    w32 = {"model": {"variant": "w32"}, "keypoints": "coco"}
    plain, scan = (state_dict(abstract_model(w32, scan=s)) for s in (False, True))
    for ours, theirs in zip(scan, plain, strict=True):
        assert {name: a.shape for name, a in ours.items()} == {name: a.shape for name, a in theirs.items()}


def test_a_stacked_model_predicts_from_canonical_names_too():
    images = jnp.asarray(np.random.default_rng(1).normal(size=(2, 64, 64, 3)), jnp.float32)
    outputs = []
    for scan in (False, True):
        model = create_model(model_config(scan), seed=3)
        network, arrays = FunctionalModel.of(model), state_dict(model)
        heatmaps, _ = jax.jit(lambda arrays: network(*arrays, images, train=False))(arrays)  # noqa: B023
        outputs.append(heatmaps)
        np.testing.assert_allclose(model(images), heatmaps, atol=1e-6)
    np.testing.assert_allclose(outputs[1], outputs[0], atol=1e-6)


@pytest.mark.parametrize(
    ("size", "kernel", "stride"),
    [
        *[((8, 6), 3, 1), ((9, 7), 3, 2), ((8, 6), 3, 2), ((8, 6), 1, 1), ((8, 6), 1, 2), ((7, 7), 5, 3)],
        *[((3, 2), 3, 1), ((2, 2), 3, 2), ((6, 4), 3, 2), ((5, 1), 3, 1), ((1, 1), 3, 1), ((1, 1), 1, 1)],  # small maps
    ],
)
def test_the_convolution_and_its_gradients(size, kernel, stride):
    x, w = (
        jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(2, *size, 4), (kernel, kernel, 4, 5)])
    )
    pad = kernel // 2

    def ours(x, w):
        y = conv_general_dilated(x, w, (stride, stride), ((pad, pad), (pad, pad)))
        return jnp.sin(y).sum(), y

    def theirs(x, w):
        layout = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, w, (stride, stride), ((pad, pad), (pad, pad)), dimension_numbers=layout)
        return jnp.sin(y).sum(), y

    found, expected = (jax.grad(function, (0, 1), has_aux=True)(x, w) for function in (ours, theirs))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-4), found, expected)


def test_a_run_with_loops_saves_canonical_names_and_continues(shared, tmp_path):
    config = local_config(shared, variant="loop")
    config.model.scan, config.ema = True, 0.9
    for config.epochs in (1, 2):
        train(config, tmp_path)
    records = list(metrics.read(tmp_path))
    steps = [record["step"] for record in records if "loss" in record]
    assert steps == sorted(set(steps))
    assert steps[-1] == 12
    names = state_dict(abstract_model(model_config(scan=False, variant="loop")))
    loaded = checkpoint.load(tmp_path)
    aps = {record["step"]: record["eval/AP"] for record in records if "eval/AP" in record}
    best = max(aps, key=lambda step: (aps[step], step))
    assert loaded.origin.startswith(f"{tmp_path}, step {best}, moving averages")
    assert loaded.params.keys() == names[0].keys()
    assert loaded.stats.keys() == names[1].keys()


@pytest.mark.parametrize("scan", [False, True])
def test_weights_in_the_compute_type_give_the_same_bits(scan):
    """As the step without them, which converts float32 weights to its compute type itself."""
    config, everywhere = model_config(scan), replicated(create_mesh(1))
    config["model"]["dtype"] = "bfloat16"
    network = FunctionalModel.of(abstract_model(config, folded=True))
    arrays = jax.device_put(state_dict(create_model(config)), everywhere)
    weights = make_fold(network, "bfloat16", everywhere)(*arrays)
    promised = abstract_weights(network, "bfloat16", everywhere)
    assert {name: (w.shape, w.dtype, w.sharding) for name, w in weights.items()} == {
        name: (w.shape, jnp.bfloat16, everywhere) for name, w in promised.items()
    }
    forward = jax.jit(lambda weights, images: network(weights, {}, images, train=False)[0])
    images = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    plain = jax.jit(lambda params, stats: network.stack(fold(params, stats)))(*arrays)
    assert plain["backbone.conv1.weight"].dtype == np.float32
    np.testing.assert_array_equal(forward(weights, images), forward(plain, images))
