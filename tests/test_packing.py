"""Columns packed into a TPU's lanes: the same convolutions, the same network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hrnet_jax.models import Network, create_model, state_dict
from hrnet_jax.models.packing import columns_in_lanes, conv_general_dilated, repack

LAYOUT = ("NHWC", "HWIO", "NHWC")


def test_lanes_are_filled_as_far_as_columns_go():
    assert [columns_in_lanes(features, 48) for features in (3, 32, 48, 64, 128, 256)] == [16, 4, 2, 2, 1, 1]
    assert [columns_in_lanes(32, width) for width in (24, 18, 9)] == [4, 2, 1]


@pytest.mark.parametrize(
    ("features", "out", "kernel", "stride", "width"),
    [
        (3, 64, 3, 2, 64),  # the stem, from unpacked columns
        (32, 32, 3, 1, 16),
        (32, 64, 3, 2, 16),
        (32, 32, 3, 2, 16),
        (32, 128, 3, 2, 16),  # one output column needs less than a packed input
        (64, 256, 1, 1, 16),
        (256, 32, 3, 1, 16),
        (64, 32, 1, 1, 12),
        (128, 32, 1, 1, 6),
        (32, 32, 3, 2, 6),  # a width that packs by two only, then by none
        (4, 4, 5, 1, 8),
    ],
)
def test_convolutions_and_their_gradients(features, out, kernel, stride, width):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, 6, width, features))
    weights = jax.random.normal(keys[1], (kernel, kernel, features, out)) / kernel / features**0.5
    strides, padding = (stride, stride), ((kernel // 2, kernel // 2),) * 2

    def plain(x, weights):
        return jax.lax.conv_general_dilated(x, weights, strides, padding, dimension_numbers=LAYOUT)

    def packed(x, weights):
        columns = 1 if features == 3 else columns_in_lanes(features, width)
        return repack(conv_general_dilated(repack(x, features, columns), weights, strides, padding), out, columns=1)

    expected = plain(x, weights)
    lanes = conv_general_dilated(x, weights, strides, padding).shape[3]
    assert lanes == out * columns_in_lanes(out, expected.shape[2])
    slope = jax.random.normal(keys[2], expected.shape)
    np.testing.assert_allclose(packed(x, weights), expected, atol=1e-5)
    ours, theirs = (jax.vjp(f, x, weights)[1](slope) for f in (packed, plain))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.fixture(scope="module")
def both():
    """A network without and with packed maps, its arrays, and images that give branches odd and even widths."""
    networks = []
    for pack in (False, True):
        model = create_model({"model": {"variant": "tiny", "group_size": 2, "pack": pack}, "keypoints": "coco"}, seed=1)
        networks.append(Network.of(model))
    return networks, *state_dict(model), jax.random.normal(jax.random.key(1), (4, 64, 96, 3))


def test_the_network_infers_the_same(both):
    networks, params, stats, images = both
    theirs, ours = (
        jax.jit(network, static_argnames="train")(params, stats, images, train=False)[0] for network in networks
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


def test_the_network_trains_the_same(both):
    networks, params, stats, images = both
    results = []
    for network in networks:

        def loss(params, network=network):
            heatmaps, moved = network(params, stats, images, train=True)
            return jnp.square(heatmaps * 1e3).mean(), (heatmaps, moved)

        results.append(jax.jit(jax.grad(loss, has_aux=True))(params))
    (gradients, (heatmaps, moved)), (our_gradients, (our_heatmaps, our_moved)) = results
    np.testing.assert_allclose(our_heatmaps, heatmaps, atol=1e-4 * np.abs(heatmaps).max())
    for name, array in moved.items():
        np.testing.assert_allclose(our_moved[name], array, rtol=1e-4, atol=1e-5, err_msg=name)
    for name, array in gradients.items():
        distance = np.linalg.norm(our_gradients[name] - array) / (np.linalg.norm(array) + 1e-6)
        assert distance < 2e-3, name
