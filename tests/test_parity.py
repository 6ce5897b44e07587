"""The network, its training and its predictions against MMPose 1.3.2's numbers, at full float32 precision.

Weights and inputs follow golden/README.md: drawn by name and seed, so that no weights need to be stored.
"""

import functools
import json
import math
import zlib

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import common
from data_pipelines.images import read_image
from data_pipelines.keypoints import COCO
from hrnet_jax.codecs import create_codec
from hrnet_jax.convert import load_torch_state_dict
from hrnet_jax.inference.steps import MEAN, STD, make_eval_step, normalise, to_image
from hrnet_jax.models import FunctionalModel, abstract_model, state_dict, unstack
from hrnet_jax.models.fold import fold
from hrnet_jax.training.optimizer import learning_rate
from hrnet_jax.training.step import make_train_step, new_state
from tests.helpers import load_arrays
from tests.parity_table import record

W32 = {"model": {"variant": "w32"}, "keypoints": "coco"}
MODELS = {"w32": W32, "w48": {**W32, "model": {"variant": "w48"}}, "w32_19kpt": {**W32, "keypoints": "coco_aic"}}
MSRA = {"name": "msra", "input_size": (256, 192), "sigma": 2.0}


@pytest.fixture(autouse=True)
def _full_precision():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def golden(shared):
    return shared / "reference/golden"


def golden_weights(config):
    """Parameters and statistics with the golden values of their names."""
    model = abstract_model(config)
    params, stats = state_dict(model)
    shapes = {name: array.shape for name, array in {**params, **stats}.items()}
    load_torch_state_dict(model, {name: golden_array(name, shape) for name, shape in shapes.items()})
    return state_dict(model)


def golden_array(name, shape):
    """One array in PyTorch's layout, from our shape."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    parts = name.split(".")
    if len(shape) == 4:
        height, width, inputs, outputs = shape
        array = rng.standard_normal((outputs, inputs, height, width)) * np.sqrt(2 / (inputs * height * width))
    elif name == "head.final_layer.bias":
        array = rng.standard_normal(shape) * 0.05
    elif name.endswith(("bias", "running_mean")):
        array = rng.standard_normal(shape) * 0.1
    else:
        array = 0.5 + rng.random(shape)
        last_of_block = ("layer1" in parts and "bn3" in parts) or ("branches" in parts and "bn2" in parts)
        if parts[-1] == "weight" and (last_of_block or "fuse_layers" in parts):
            array = array * 0.25
    return array.astype(np.float32)


def golden_input(seed, batch):
    """Noise [batch, 256, 192, 3] as the network takes it, and as the compiled steps do: before normalisation."""
    noise = np.random.Generator(np.random.PCG64(seed)).standard_normal((batch, 3, 256, 192)).astype(np.float32)
    noise = noise.transpose(0, 2, 3, 1)
    return jnp.asarray(noise), jnp.asarray(noise * np.array(STD) + MEAN, jnp.float32)


def difference(ours, theirs):
    """The relative L2 distance."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


def nchw(heatmaps):
    return np.asarray(heatmaps).transpose(0, 3, 1, 2)


@functools.cache
def forward(name, train=False, **changes):
    """The compiled network: (params, stats, images) -> heatmaps, statistics.

    With loops, a third to compile; tests/test_scan.py compares them with the network without.
    """
    network = FunctionalModel.of(abstract_model(MODELS[name], scan=True, **changes))
    return jax.jit(lambda params, stats, images: network(params, stats, images, train=train))


@pytest.fixture(scope="module")
def w32():
    """The golden weights of W32."""
    return golden_weights(W32)


@pytest.mark.parametrize("name", list(MODELS))
def test_forward(golden, w32, name):
    facts = json.loads((golden / f"forward_{name}.json").read_text())
    expected = load_arrays(golden / f"forward_{name}.npz")
    noise, _ = golden_input(facts["input_seed"], facts["batch"])
    np.testing.assert_array_equal(nchw(noise).ravel()[:8], expected["input_first8"])
    params, stats = w32 if name == "w32" else golden_weights(MODELS[name])
    assert sum(array.size for array in params.values()) == facts["n_params"]
    heatmaps, _ = forward(name)(params, stats, noise)
    record(f"forward, {name}: heatmaps", difference(nchw(heatmaps), expected["heatmaps"]), 1e-5)
    if "heatmaps_train" not in expected:
        return
    heatmaps, stats = forward(name, train=True)(params, stats, noise)
    record(f"forward, {name}: heatmaps in training mode", difference(nchw(heatmaps), expected["heatmaps_train"]), 1e-4)
    names = [key for key in expected if "running" in key]
    assert len(names) == 6
    for key in names:
        record(f"forward, {name}: running statistics", difference(stats[key], expected[key]), 1e-5)


def by_name(layout, vector):
    """A vector's arrays by canonical name. On the host: to compile `to_items` takes longer than the training."""
    ends = np.cumsum([math.prod(shape) for _, shape in layout.shapes])[:-1]
    parts = zip(layout.shapes, np.split(np.array(vector), ends), strict=True)
    return unstack({name: part.reshape(shape) for (name, shape), part in parts})


@pytest.fixture(scope="module")
def training(golden, w32):
    """Six steps of the real training step, with loops: all losses, and what golden numbers exist for."""
    expected = load_arrays(golden / "train_step_w32.npz")
    optimizer = optax.adam(5e-4)
    with jax.default_matmul_precision("highest"):
        network = FunctionalModel.of(abstract_model(W32, scan=True))
        step = make_train_step(network, create_codec(MSRA), optimizer, 1)
        state = jax.jit(lambda arrays: new_state(network, *arrays, optimizer, 0.0))(w32)
        batch = {
            "image": golden_input(0, 2)[1],
            "keypoints": expected["keypoints"],
            "visible": expected["keypoints_visible"],
            "source": np.zeros(2, np.int32),
        }
        found = {"losses": []}
        for number in range(1, 7):
            state, measured = step(state, batch)
            found["losses"].append(float(measured["loss"]))
            if number == 1:
                # After one step Adam's first moment is 0.1 times the gradient.
                gradients = by_name(network.param_layout, state.opt_state[0].mu)
                found["gradients"] = {name: moment / 0.1 for name, moment in gradients.items()}
                found["stats"] = by_name(network.stat_layout, state.stats)
            if number == 5:
                found["params"] = by_name(network.param_layout, state.params)
    return found


def test_training_losses(golden, training):
    expected = json.loads((golden / "train_step_w32.json").read_text())["f32"]["losses"]
    relative = np.abs(np.array(training["losses"]) / expected - 1)
    record("training: loss of step 0", relative[0], 1e-5)
    record("training: losses over five Adam steps", relative.max(), 3e-3)


def test_training_gradients(golden, training):
    expected = json.loads((golden / "train_step_w32.json").read_text())["f32"]["grad_norms_step0"]
    gradients = training["gradients"]
    assert gradients.keys() == expected.keys()
    deviations = np.array([abs(np.linalg.norm(gradients[name]) / norm - 1) for name, norm in expected.items()])
    record("training: gradient norms, median", np.median(deviations), 1e-4)
    record("training: gradient norms, worst", deviations.max(), 1e-2)


def test_training_moves_statistics_and_parameters(golden, training):
    expected = load_arrays(golden / "forward_w32.npz")
    for key in (key for key in expected if "running" in key):
        record("training: running statistics after a step", difference(training["stats"][key], expected[key]), 1e-5)
    norms = json.loads((golden / "train_step_w32.json").read_text())["f32"]["param_norms_after5"]
    for name, norm in norms.items():
        ours = np.linalg.norm(training["params"][name])
        record("training: norms of parameters after five steps", abs(ours / norm - 1), 1e-3)


def test_whole_prediction(golden, w32):
    expected = load_arrays(golden / "predict_w32.npz")
    codec = create_codec(MSRA)
    network = FunctionalModel.of(abstract_model(W32, folded=True, scan=True))
    step = make_eval_step(network, codec, COCO.flip_indices, flip_test=True)
    keypoints, scores = step(fold(*w32), {}, golden_input(3, 2)[1])
    in_image = to_image(np.asarray(keypoints), expected["input_center"], expected["input_scale"], codec)
    record("whole prediction: keypoints", np.abs(in_image - expected["keypoints_shift"]).max(), 1e-2, " px")
    record("whole prediction: scores", difference(scores, expected["scores_shift"]), 1e-5)


def test_flip_test_with_and_without_shift(golden, w32):
    expected = load_arrays(golden / "predict_w32.npz")
    codec = create_codec(MSRA)
    noise, _ = golden_input(3, 2)
    (heatmaps, _), (mirrored, _) = (forward("w32")(*w32, images) for images in (noise, noise[:, :, ::-1]))
    for name, flipping in (("shift", codec), ("noshift", create_codec({**MSRA, "name": "udp"}))):
        merged = (heatmaps + flipping.flip_back(mirrored, COCO.flip_indices)) * 0.5
        record("flip test: merged heatmaps", difference(nchw(merged), expected[f"heatmaps_{name}"]), 1e-5)
        keypoints, scores = codec.decode(merged)
        in_image = to_image(np.asarray(keypoints), expected["input_center"], expected["input_scale"], codec)
        record("flip test: keypoints", np.abs(in_image - expected[f"keypoints_{name}"]).max(), 1e-2, " px")
        record("flip test: scores", difference(scores, expected[f"scores_{name}"]), 1e-5)


def test_bfloat16(w32):
    """Heatmaps, keypoints with a clear peak, and statistics of bfloat16 compute against float32."""
    codec = create_codec(MSRA)
    config = {"dtype": "bfloat16"}
    assert {str(array.dtype) for array in state_dict(abstract_model(W32, **config))[0].values()} == {"float32"}
    within = []
    for seed in range(6):
        noise, _ = golden_input(seed, 2)  # a batch that other tests compile for
        (ours, stats), (reference, _) = (forward("w32", **each)(*w32, noise) for each in (config, {}))
        assert ours.dtype == np.float32
        assert {str(array.dtype) for array in stats.values()} == {"float32"}
        record("bfloat16: heatmaps", difference(ours, reference), 2e-2)
        error = np.sqrt(np.mean(np.square(ours - reference)))
        peaks = np.sort(np.asarray(reference).reshape(2, -1, len(COCO)), axis=1)
        clear = peaks[:, -1] - peaks[:, -2] > 3 * error
        distance = np.linalg.norm(np.asarray(codec.decode(ours)[0] - codec.decode(reference)[0]), axis=-1)
        within.append(distance[clear] <= 1)
    within = np.concatenate(within)
    assert len(within) > 50
    record("bfloat16: share of keypoints with a clear peak that move more than 1 px", 1 - within.mean(), 0.05)

    ours, reference = (forward("w32", train=True, **each)(*w32, noise)[1] for each in (config, {}))
    assert {str(array.dtype) for array in ours.values()} == {"float32"}
    means = [difference(ours[name], reference[name]) for name in ours]
    record("bfloat16: running statistics after a step", max(means), 2e-2)


def test_learning_rate(golden):
    facts = json.loads((golden / "lr_schedule.json").read_text())
    known = {int(step): rate for step, rate in facts["lr_at_iteration"].items()}
    config = common.recipe(keypoints="coco", train={}, evaluate={})
    assert config.optimizer.learning_rate == facts["base_lr"]
    # Linear or constant between the steps that the file lists.
    expected = np.interp(np.arange(max(known) + 1), list(known), list(known.values()))
    rates = np.asarray(jax.vmap(learning_rate(config, facts["iters_per_epoch"]))(np.arange(max(known) + 1)))
    record("learning rate over a schedule", np.abs(rates / expected - 1).max(), 1e-6)


def test_preprocessing(golden):
    for name, facts in json.loads((golden / "preprocess.json").read_text()).items():
        crop = read_image(golden / "crops" / name)
        ours = np.asarray(normalise(jnp.asarray(cv2.cvtColor(crop, cv2.COLOR_BGR2RGB)[None])))[0]
        assert ours.dtype == np.float32
        record("preprocessing", np.abs(ours[100, 50] - facts["at_y100_x50"]).max(), 1e-6)
        record("preprocessing", np.abs(ours.mean((0, 1), np.float64) - facts["channel_mean"]).max(), 1e-5)
        record("preprocessing", np.abs(ours.std((0, 1), np.float64) - facts["channel_std"]).max(), 1e-5)
