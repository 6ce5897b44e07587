"""The codecs against MMPose's numbers (golden files), against OpenCV's blur, and against themselves."""

import functools
import json

import cv2
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from data_pipelines.errors import InputError
from data_pipelines.keypoints import COCO
from data_pipelines.transforms import View, warp_image, warp_matrix, warp_points
from hrnet_jax.codecs import CODECS, Dark, create_codec
from hrnet_jax.codecs.heatmaps import gaussian_blur, pck_accuracy, pck_counts
from hrnet_jax.inference.steps import to_image
from tests.helpers import load_arrays

GOLDEN = "reference/golden"
NAMES = {"msra": "msra", "dark": "dark", "udp": "udp", "udpcomb": "udp_combined"}
ENCODED = [f"{codec}_{size}" for size in ("256x192", "384x288") for codec in ("msra", "dark", "udp")] + [
    "udpcomb_256x192"
]
DECODED = [*ENCODED, "dark_384x288_k11", "udp_384x288_k11"]

few = hypothesis.settings(max_examples=15, deadline=None, derandomize=True)


# Golden numbers


@pytest.mark.parametrize("key", ENCODED)
def test_encode_matches_reference(shared, key):
    golden = load_arrays(shared / GOLDEN / f"codecs_{key}.npz")
    targets, weights = encode(golden_codec(shared, key), golden["keypoints"], golden["keypoints_visible"])
    maps = channels_first(targets)
    # The offset maps of far-away keypoints reach the hundreds: there one part in 10^7 is all float32 has.
    np.testing.assert_allclose(maps[golden["stored"]], golden["heatmaps"], rtol=2e-7, atol=1e-5)
    np.testing.assert_array_equal(weights, golden["weights"])
    # All instances, by their maps' statistics; one cell at the edge of a Gaussian's window weighs 0.01.
    per_map = 1e-6 * maps.shape[2] * maps.shape[3]
    maps = maps.astype(np.float64)
    np.testing.assert_array_equal(maps.reshape(*maps.shape[:2], -1).argmax(-1), golden["heatmap_argmax"])
    np.testing.assert_allclose(maps.max((2, 3)), golden["heatmap_max"], rtol=2e-7, atol=1e-5)
    np.testing.assert_allclose(maps.sum((2, 3)), golden["heatmap_sum"], rtol=1e-6, atol=per_map)
    np.testing.assert_allclose((maps**2).sum((2, 3)), golden["heatmap_sumsq"], rtol=1e-6, atol=per_map)


def test_encode_matches_reference_train_step(shared):
    golden = load_arrays(shared / GOLDEN / "train_step_w32.npz")
    targets, weights = encode(codec_of("msra"), golden["keypoints"], golden["keypoints_visible"])
    np.testing.assert_allclose(channels_first(targets), golden["target_heatmaps"], atol=1e-6)
    np.testing.assert_array_equal(weights, golden["target_weights"])


@pytest.mark.parametrize("key", DECODED)
def test_decode_matches_reference(shared, key):
    codec = golden_codec(shared, key)
    golden = load_arrays(shared / GOLDEN / f"codecs_{key}.npz")
    inputs = load_arrays(shared / GOLDEN / f"codecs_{key.removesuffix('_k11')}.npz")
    own, _ = encode(codec, inputs["keypoints"], inputs["keypoints_visible"])
    stored, random = channels_last(inputs["heatmaps"]), channels_last(inputs["random_heatmaps"])
    keypoints, scores = (np.asarray(a) for a in decode(codec, jnp.concatenate([own, stored, random])))
    assert np.isfinite(keypoints).all()

    def expected(kind):
        decoded, drawn = golden[f"decoded_{kind}"], golden[f"random_{kind}"]
        return np.concatenate([decoded, decoded[inputs["stored"]], drawn])

    np.testing.assert_allclose(scores, expected("scores"), rtol=1e-6, atol=1e-5)
    # Where the score is not above 0 MMPose's UDP decoders return NaN or another map's numbers.
    compare = (expected("scores") > 0) | (codec.warp == "msra")
    if codec.warp == "udp":  # MMPose's are stretched, for a transform to the image that divides by W
        keypoints = keypoints * (codec.input_size[::-1] / (np.array(codec.input_size[::-1]) - 1.0))
    # Where a map is flat, decoding magnifies rounding, which hangs on the processor: 5.7e-3 px in one of 366 was seen.
    off = np.abs(keypoints[compare] - expected("keypoints")[compare])
    assert (off <= 1e-3).mean() > 0.995
    assert off.max() <= 1e-2


@pytest.mark.parametrize(
    ("name", "codec", "flip"),
    [
        *((name, *codec) for name in ("coco", "combine", "aic") for codec in (("msra", "shift"), ("udp", "noshift"))),
        ("udpcomb", "udp_combined", "noshift"),
    ],
)
def test_flip_back_matches_reference(shared, name, codec, flip):
    golden = load_arrays(shared / GOLDEN / "flip_test.npz")
    codec = codec_of(codec)
    mirrored = channels_last(golden[f"{name}_heatmaps_of_flipped_image"])
    back = codec.flip_back(mirrored, golden[f"{name}_flip_indices"])
    merged = 0.5 * (channels_last(golden[f"{name}_heatmaps"]) + back)
    np.testing.assert_array_equal(channels_first(merged), golden[f"{name}_merged_{flip}"])
    if f"{name}_flipped_back_{flip}" in golden:
        np.testing.assert_array_equal(channels_first(back), golden[f"{name}_flipped_back_{flip}"])


@pytest.mark.parametrize("flip", ["shift", "noshift"])
def test_decode_of_network_maps_matches_reference(shared, flip):
    golden = load_arrays(shared / GOLDEN / "predict_w32.npz")
    codec = codec_of("msra")
    keypoints, scores = decode(codec, channels_last(golden[f"heatmaps_{flip}"]))
    in_image = to_image(np.asarray(keypoints), golden["input_center"], golden["input_scale"], codec)
    np.testing.assert_allclose(in_image, golden[f"keypoints_{flip}"], atol=1e-3)
    np.testing.assert_array_equal(scores, golden[f"scores_{flip}"])


@pytest.mark.parametrize("case", ["mse_weighted", "combined_weighted", "combined_plain"])
def test_loss_and_gradient_match_reference(shared, case):
    golden = load_arrays(shared / GOLDEN / "losses.npz")
    expected = json.loads((shared / GOLDEN / "losses.json").read_text())
    combined = case.startswith("combined")
    codec = create_codec({"name": "udp_combined" if combined else "msra", "input_size": (64, 48)})
    prediction = channels_last(golden["out3" if combined else "out"])
    targets = channels_last(golden["tgt3" if combined else "tgt"])
    weights = jnp.ones_like(golden["wt"]) if case == "combined_plain" else jnp.asarray(golden["wt"])

    def loss(prediction):
        per_sample = codec.loss(prediction, targets, weights)
        assert per_sample.shape == (3,)
        return per_sample.mean()

    value, gradient = jax.value_and_grad(loss)(prediction)
    np.testing.assert_allclose(value, expected[case], rtol=1e-6)
    reference = golden[f"grad_{case}"]
    np.testing.assert_allclose(channels_first(gradient), reference, rtol=1e-5, atol=1e-6 * np.abs(reference).max())


def test_pck_matches_reference(shared):
    golden = load_arrays(shared / GOLDEN / "losses.npz")
    expected = json.loads((shared / GOLDEN / "losses.json").read_text())["pck"]
    for case, output in (("random", golden["out"]), ("near", golden["tgt"] + 0.3 * golden["out"])):
        counts = pck_counts(channels_last(output), channels_last(golden["tgt"]), jnp.asarray(golden["wt"]))
        correct, samples = np.asarray(counts)
        each = np.where(samples > 0, correct / np.maximum(samples, 1), -1)
        np.testing.assert_allclose(each, expected[case][0], rtol=1e-6)
        np.testing.assert_allclose(pck_accuracy(counts), expected[case][1], rtol=1e-6)


# Properties

HEIGHT, WIDTH, COUNT = 64, 48, 4  # a small input, maps of 16x12, for what holds at any size
points = st.lists(st.tuples(st.floats(0, 1, width=32), st.floats(0, 1, width=32)), min_size=COUNT, max_size=COUNT)


@pytest.mark.parametrize(
    ("name", "margin", "bound"),
    [("msra", 0, 2.0 + 1e-4), ("dark", 28, 0.005), ("udp", 28, 0.001), ("udp_combined", 0, 1e-3)],
)
@few
@hypothesis.given(points=points)
def test_decode_inverts_encode(name, margin, bound, points):
    codec = codec_of(name)
    keypoints = spread(points, codec, margin)
    targets, weights = encode(codec, keypoints, np.ones((1, COUNT)))
    decoded, scores = decode(codec, targets)
    np.testing.assert_array_equal(weights, 1)
    assert (scores > (0.25 if name == "udp_combined" else 0.9)).all()
    assert np.abs(decoded - keypoints).max() <= bound


@pytest.mark.parametrize(("name", "bound"), [("msra", 1.1), ("dark", 0.01), ("udp", 0.01), ("udp_combined", 0.01)])
def test_keypoints_are_where_they_appear_in_the_crop_and_in_the_image(name, bound):
    """A dot in an image: its place in the crop is the warped keypoint, and decoding leads back to both.

    MSRA rounds to cells and decodes the peak without an offset: its neighbours are equal.
    """
    codec = codec_of(name)
    dots = np.array([[[75.3, 70.8], [132.6, 95.2], [101.9, 151.4], [82.2, 170.7]]], np.float32)
    columns, rows = np.meshgrid(np.arange(200), np.arange(240))
    view = View(np.array([103.4, 121.7], np.float32), np.array([105, 140], np.float32))
    matrix = warp_matrix(view, codec.input_size, codec.warp)
    keypoints = warp_points(dots[0], matrix)
    for dot, keypoint in zip(dots[0], keypoints, strict=True):
        spot = 255 * np.exp(-((columns - dot[0]) ** 2 + (rows - dot[1]) ** 2) / (2 * 2.5**2))
        crop = warp_image(np.repeat(np.rint(spot).astype(np.uint8)[..., None], 3, axis=2), matrix, codec.input_size)
        light = crop[..., 0].astype(np.float64)
        ys, xs = np.indices(codec.input_size)
        centroid = np.array([(light * xs).sum(), (light * ys).sum()]) / light.sum()
        np.testing.assert_allclose(keypoint, centroid, atol=0.1)
    decoded = np.asarray(decode(codec, encode(codec, keypoints[None], np.ones((1, 4)))[0])[0])
    assert np.abs(decoded - keypoints).max() <= 2 * bound
    in_image = to_image(decoded, view.center[None], view.scale[None], codec)
    assert np.abs(in_image - dots).max() <= bound


class Unshifted(Dark):
    shift = False


@pytest.mark.parametrize(("name", "offset"), [("dark", {True: 1.0, False: -3.0}), ("udp", {False: 0.0})])
@few
@hypothesis.given(points=points)
def test_decode_of_mirrored_maps(name, offset, points):
    """Maps of the mirrored crop flipped back: exact with UDP, with DARK 3 pixels left of the truth or 1 right of it."""
    codec = codec_of(name)
    keypoints = spread(points, codec, margin=32)
    flip_indices = np.array([1, 0, 2, 3])
    mirrored = (keypoints * [-1, 1] + [codec.input_size[1] - 1, 0])[:, flip_indices]
    expected, _ = decode(codec, encode(codec, keypoints, np.ones((1, COUNT)))[0])
    maps, _ = encode(codec, mirrored, np.ones((1, COUNT)))
    for shift, dx in offset.items():
        back = (codec if shift == codec.shift else Unshifted(codec.input_size)).flip_back(maps, flip_indices)
        np.testing.assert_allclose(decode(codec, back)[0], np.asarray(expected) + [dx, 0], atol=0.01)
    assert codec.shift == min(offset, key=lambda shift: abs(offset[shift]))


@pytest.mark.parametrize("name", ["udp", "udp_combined"])
def test_flip_back_is_an_involution_without_shift(name):
    codec = codec_of(name)
    maps = random_maps(codec, len(COCO))
    once = codec.flip_back(maps, COCO.flip_indices)
    assert not np.array_equal(once, maps)
    np.testing.assert_array_equal(codec.flip_back(once, COCO.flip_indices), maps)


@pytest.mark.parametrize("name", ["udp", "udp_combined"])
def test_targets_of_mirrored_keypoints_flip_back_to_the_targets(name):
    codec = codec_of(name)
    keypoints = np.array([[[50.3, 60.2], [121.9, 77.7], [30.4, 201.1], [99.0, 150.0]]], np.float32)
    flip_indices = np.array([1, 0, 2, 3])
    mirrored = (keypoints * [-1, 1] + [191, 0])[:, flip_indices]
    targets, _ = encode(codec, keypoints, np.ones((1, COUNT)))
    maps, _ = encode(codec, mirrored, np.ones((1, COUNT)))
    np.testing.assert_allclose(codec.flip_back(maps, flip_indices), targets, atol=2e-5)


@pytest.mark.parametrize("name", ["dark", "udp_combined"])
def test_jit_changes_nothing(name):
    codec = small_codec(name)
    maps = random_maps(codec, COUNT)
    for jitted, plain in zip(decode(codec, maps), codec.decode(maps), strict=True):
        np.testing.assert_allclose(jitted, plain, rtol=1e-5, atol=1e-4)
    keypoints = jnp.asarray(np.random.default_rng(0).uniform(-20, 80, (2, COUNT, 2)), jnp.float32)
    visible = jnp.asarray([[1, 1, 0, 1], [0, 1, 1, 1]], jnp.float32)
    for jitted, plain in zip(encode(codec, keypoints, visible), codec.encode(keypoints, visible), strict=True):
        np.testing.assert_allclose(jitted, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CODECS)
def test_maps_without_a_positive_value_decode_to_the_cell_before_the_first(name):
    codec = small_codec(name)
    shape = (1, *codec.heatmap_size, codec.channels(COUNT))
    stride = np.array([(s - 1) / (s // 4 - 1) for s in (WIDTH, HEIGHT)]) if codec.warp == "udp" else np.full(2, 4.0)
    for value in (0.0, -1.0):
        keypoints, scores = decode(codec, jnp.full(shape, value))
        np.testing.assert_allclose(keypoints, np.broadcast_to(-stride, keypoints.shape), rtol=1e-6)
        np.testing.assert_allclose(scores, value, rtol=1e-6)


@pytest.mark.parametrize("name", CODECS)
def test_empty_maps_and_their_weights(name):
    """Invisible keypoints keep their visibility as weight, near or far; far-away visible ones lose theirs."""
    codec = small_codec(name)
    keypoints = np.array([[[20.0, 20], [20, 20], [-500, 20], [-500, 20]]])
    targets, weights = encode(codec, keypoints, np.array([[1.0, 0.4, 0.4, 1.0]]))
    np.testing.assert_allclose(weights, [[1.0, 0.4, 0.4, 1.0 if name == "udp_combined" else 0.0]])
    filled = np.any(np.asarray(targets) != 0, axis=(0, 1, 2)).reshape(COUNT, -1)
    np.testing.assert_array_equal(filled[0], True)
    np.testing.assert_array_equal(filled[1:3], False)
    assert not filled[3, 0]


@pytest.mark.parametrize("name", CODECS)
def test_loss_is_float32_whatever_the_prediction_is(name):
    codec = small_codec(name)
    prediction = random_maps(codec, COUNT).astype(jnp.bfloat16)
    targets, weights = encode(codec, np.full((2, COUNT, 2), 20.0), np.ones((2, COUNT)))
    loss = codec.loss(prediction, targets, weights)
    assert loss.dtype == jnp.float32
    np.testing.assert_array_equal(loss, codec.loss(prediction.astype(jnp.float32), targets, weights))
    np.testing.assert_allclose(codec.loss(prediction, targets, 0 * weights), 0)
    np.testing.assert_array_equal(codec.loss(targets, targets, weights), 0)


def test_pck_counts_only_weighted_keypoints():
    codec = small_codec("udp_combined")
    keypoints = np.array([[[10.0, 10.0], [20.0, 40.0], [30.0, 30.0]]])
    targets, _ = encode(codec, keypoints, np.ones((1, 3)))
    moved, _ = encode(codec, keypoints + np.array([[[0, 0], [12, 0], [12, 0]]]), np.ones((1, 3)))
    counts = pck_counts(moved[..., ::3], targets[..., ::3], jnp.array([[1.0, 1.0, 0.0]]))
    np.testing.assert_array_equal(counts, [[1, 0, 0], [1, 1, 0]])
    assert pck_accuracy(counts) == 0.5
    assert pck_accuracy(jnp.zeros((2, 3))) == 0


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("kernel", [11, 17, 23])
@pytest.mark.parametrize("size", [(96, 72), (16, 12), (5, 3)])
def test_blur_matches_opencv(size, kernel, mirror):
    maps = np.random.default_rng(kernel).standard_normal((2, *size, 3)).astype(np.float32)
    border = cv2.BORDER_REFLECT_101 if mirror else cv2.BORDER_CONSTANT
    expected = np.stack([cv2.GaussianBlur(image, (kernel, kernel), 0, borderType=border) for image in maps])
    np.testing.assert_allclose(gaussian_blur(jnp.asarray(maps), kernel, mirror=mirror), expected, atol=1e-6)


# Construction


def test_codec_facts():
    facts = {
        name: (codec.channels(17), codec.heatmap_size, codec.shift, codec.warp)
        for name, codec in ((name, codec_of(name)) for name in CODECS)
    }
    assert facts == {
        "msra": (17, (64, 48), True, "msra"),
        "dark": (17, (64, 48), True, "msra"),
        "udp": (17, (64, 48), False, "udp"),
        "udp_combined": (51, (64, 48), False, "udp"),
    }
    wide = create_codec({"name": "udp_combined", "input_size": (64, 128), "radius_factor": 0.125})
    assert wide.radius == 4.0  # of the longer side, as in MMPose


def test_create_codec_takes_config_dicts_and_compares_by_value():
    config = ml_collections.ConfigDict({"name": "dark", "input_size": (384, 288), "sigma": 3, "blur_kernel": 17})
    codec = create_codec(config)
    assert codec == create_codec({"name": "dark", "input_size": [384, 288], "sigma": 3.0, "blur_kernel": 17})
    assert hash(codec) == hash(create_codec(config))
    assert codec != codec_of("dark")
    assert create_codec({"name": "udp", "input_size": (256, 192), "sigma": None}) == codec_of("udp")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "mrsa", "input_size": (256, 192)}, "'mrsa'; there are msra, dark, udp, udp_combined"),
        ({"input_size": (256, 192)}, "unknown name None"),
        ({"name": "msra", "input_size": (256, 192), "blur_kernel": 11}, "no setting blur_kernel; its settings are"),
        ({"name": "udp_combined", "input_size": (256, 192), "sigma": 2}, "input_size, radius_factor"),
        ({"name": "msra"}, "input_size"),
        ({"name": "msra", "input_size": 256}, "must be \\(height, width\\)"),
        ({"name": "msra", "input_size": (256, 190)}, "multiples of 4"),
        ({"name": "msra", "input_size": (256, 192), "sigma": 0}, "sigma is 0"),
        ({"name": "msra", "input_size": (256, 192), "sigma": "2"}, "sigma is '2'"),
        ({"name": "dark", "input_size": (256, 192), "blur_kernel": 10}, "odd"),
    ],
)
def test_create_codec_explains_mistakes(config, message):
    with pytest.raises(InputError, match=message) as error:
        create_codec(config)
    assert "\n" not in str(error.value)


def test_maps_of_another_size_are_refused():
    codec = codec_of("msra")
    with pytest.raises(InputError, match=r"16x12.*256x192 requires 64x48"):
        codec.decode(jnp.zeros((1, 16, 12, 17)))
    with pytest.raises(InputError, match=r"\(64, 48, 17\).*\(64, 48, 14\)"):
        codec.loss(jnp.zeros((1, 64, 48, 17)), jnp.zeros((1, 64, 48, 14)), jnp.ones((1, 14)))


# Helpers


def golden_codec(shared, key):
    args = json.loads((shared / GOLDEN / "codecs.json").read_text())[key]["args"]
    name = NAMES[key.split("_")[0]]
    config = {"name": name, "input_size": args["input_size"][::-1], "sigma": args.get("sigma")}
    if name in ("dark", "udp"):
        config["blur_kernel"] = args.get("blur_kernel_size")
    if name == "udp_combined":
        config["radius_factor"] = args["radius_factor"]
    return create_codec(config)


def codec_of(name):
    return create_codec({"name": name, "input_size": (256, 192)})


def small_codec(name):
    return create_codec({"name": name, "input_size": (HEIGHT, WIDTH)})


def spread(points, codec, margin):
    """Places points of the unit square over the crop's pixels, a margin inside the outermost cells."""
    height, width = codec.input_size
    room = np.array([width, height]) - 4 - 2 * margin
    return np.asarray(points, np.float32)[None] * room.astype(np.float32) + margin


def random_maps(codec, keypoints):
    shape = (2, *codec.heatmap_size, codec.channels(keypoints))
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


def channels_last(maps):
    return jnp.asarray(np.moveaxis(maps, 1, -1))


def channels_first(maps):
    return np.moveaxis(np.asarray(maps), -1, 1)


def encode(codec, keypoints, visible):
    return _encode(codec, jnp.asarray(keypoints, jnp.float32), jnp.asarray(visible, jnp.float32))


@functools.partial(jax.jit, static_argnums=0)
def _encode(codec, keypoints, visible):
    return codec.encode(keypoints, visible)


@functools.partial(jax.jit, static_argnums=0)
def decode(codec, heatmaps):
    return codec.decode(heatmaps)
