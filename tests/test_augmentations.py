"""Changes of a crop's pixels: colours against the reference's, holes by their definition, and the stream they join."""

import dataclasses
import json

import cv2
import numpy as np
import pytest

from data_pipelines.pipeline import TrainData
from data_pipelines.pixels import Distortion, augment_pixels, coarse_dropout, distort, grid_mask
from data_pipelines.transforms import Augmentation
from tests.helpers import crops, load_arrays, pipeline_config, with_data

WHITE = np.full((256, 192, 3), 255, np.uint8)


@pytest.fixture(scope="module")
def photometric(shared):
    """The reference's crop (RGB), and for each of its cases: flags, distortion, what came out (RGB)."""
    golden = load_arrays(shared / "reference/golden/photometric.npz")
    cases = json.loads((shared / "reference/golden/photometric.json").read_text())
    crop, *out = (np.ascontiguousarray(image[..., ::-1]) for image in (golden["image_bgr"], *golden["out_bgr"]))
    return crop, [(case, distortion_of(case), image) for case, image in zip(cases, out, strict=True)]


def distortion_of(case):
    """The distortion that a case of the reference asks for; its channels are BGR, ours RGB."""
    blue, green, red = (2 - channel for channel in case["swap_channel_order"])
    return Distortion(
        brightness=case["brightness_beta"] if case["brightness_flag"] else 0.0,
        contrast=case["contrast_alpha"] if case["contrast_flag"] else 1.0,
        contrast_first=case["contrast_mode"] == 0,
        saturation=case["saturation_alpha"] if case["hsv_mode"] in (1, 3) else 1.0,
        hue=case["hue_delta"] if case["hsv_mode"] in (2, 3) else 0,
        channels=(red, green, blue) if case["swap_flag"] else (0, 1, 2),
    )


# Colours


def test_distortions_are_the_references(photometric):
    """Exactly, once its two bugs are put into what is asked for, and where no hue falls below 0."""
    crop, cases = photometric
    wrapped = 0
    for case, distortion, expected in cases:
        if case["contrast_flag"] and case["contrast_mode"] == 0:  # it leaves this contrast out
            distortion = dataclasses.replace(distortion, contrast=1.0)
        before = distort(crop, Distortion(brightness=distortion.brightness))
        if distortion.contrast != 1:  # and does this one twice
            before = distort(before, Distortion(contrast=distortion.contrast))
        ours = distort(before, dataclasses.replace(distortion, brightness=0.0))

        hue = cv2.cvtColor(before, cv2.COLOR_RGB2HSV)[..., 0].astype(int) + distortion.hue
        wrapped += (hue < 0).sum()
        # OpenCV takes a hue from 180 on for the one below, to a rounding.
        np.testing.assert_array_equal(ours[(hue >= 0) & (hue < 180)], expected[(hue >= 0) & (hue < 180)])
        assert np.abs(ours.astype(int) - expected)[hue >= 180].max(initial=0) <= 1
    assert wrapped > 100


def test_contrast_is_applied_once(photometric):
    crop, cases = photometric
    plain = [c for c in cases if c[0]["contrast_flag"] and not c[0]["hsv_mode"]]
    mixed = [c for c in cases if c[0]["contrast_flag"] and c[0]["hsv_mode"]]
    assert plain
    assert {case["contrast_mode"] for case, _, _ in mixed} == {0, 1}
    for _, d, wrong in plain:
        levels = np.clip(crop.astype(np.float32) + np.float32(d.brightness), 0, 255).astype(np.uint8)
        levels = np.clip(levels * np.float32(d.contrast), 0, 255).astype(np.uint8)
        np.testing.assert_array_equal(distort(crop, d), levels[..., d.channels])
        assert (distort(crop, d) != wrong).any()
    for _, d, _ in mixed:
        colours = Distortion(saturation=d.saturation, hue=d.hue)
        order = (
            (Distortion(contrast=d.contrast), colours)
            if d.contrast_first
            else (colours, Distortion(contrast=d.contrast))
        )
        expected = distort(crop, Distortion(brightness=d.brightness))
        for step in order:
            expected = distort(expected, step)
        np.testing.assert_array_equal(distort(crop, d), expected[..., d.channels])


@pytest.mark.parametrize(("colour", "hue", "expected"), [((255, 0, 0), -3, 177), ((255, 0, 20), 17, 15)])
def test_hues_go_round_at_180(colour, hue, expected):
    crop = np.full((4, 4, 3), colour, np.uint8)
    turned = cv2.cvtColor(distort(crop, Distortion(hue=hue)), cv2.COLOR_RGB2HSV)[0, 0]
    assert abs(int(turned[0]) - expected) <= 1
    assert turned[1:].tolist() == [255, 255]


def test_random_distortions_are_spread_like_the_references():
    rng = np.random.default_rng(0)
    draws = [Distortion.random(rng) for _ in range(4000)]
    neutral = Distortion()
    for name, lowest, highest, share in (
        ("brightness", -32, 32, 0.5),
        ("contrast", 0.5, 1.5, 0.5),
        ("saturation", 0.5, 1.5, 0.5),
        ("hue", -18, 17, 0.5 * 35 / 36),
    ):
        changed = np.array([getattr(d, name) for d in draws if getattr(d, name) != getattr(neutral, name)])
        assert len(changed) / len(draws) == pytest.approx(share, abs=0.03)
        assert lowest <= changed.min() < lowest + 0.05 * (highest - lowest)
        assert highest >= changed.max() > highest - 0.05 * (highest - lowest)
        assert changed.mean() == pytest.approx((lowest + highest) / 2, abs=0.03 * (highest - lowest))
    assert np.mean([d.contrast_first for d in draws]) == pytest.approx(0.5, abs=0.03)
    assert np.mean([d.channels == (0, 1, 2) for d in draws]) == pytest.approx(0.5 + 0.5 / 6, abs=0.03)
    assert len({d.channels for d in draws}) == 6
    both = np.mean([d.saturation != 1 and d.hue != 0 for d in draws])
    assert both == pytest.approx(0.25 * 35 / 36, abs=0.03)


# Holes


def test_coarse_dropout_cuts_one_to_eight_rectangles():
    """Holes that stand alone are rectangles of 10 to 40 pixels; both ends occur, and so do all borders."""
    crop = np.full((500, 400, 3), 255, np.uint8)
    counts, sides, edges = set(), set(), set()
    for seed in range(250):
        dropped = coarse_dropout(np.random.default_rng(seed), crop)
        assert set(np.unique(dropped)) <= {0, 255}
        assert (dropped == dropped[..., :1]).all()
        number, _, stats, _ = cv2.connectedComponentsWithStats((dropped[..., 0] == 0).astype(np.uint8), connectivity=4)
        counts.add(number - 1)
        for x, y, width, height, area in stats[1:].tolist():
            if width * height == area and max(width, height) <= 40:
                sides |= {width, height}
                edges |= {
                    x == 0 and "left",
                    y == 0 and "top",
                    x + width == 400 and "right",
                    y + height == 500 and "bottom",
                }
    assert counts == set(range(1, 9))
    assert (min(sides), max(sides)) == (10, 40)
    assert edges >= {"left", "top", "right", "bottom"}


def test_grid_mask_cuts_a_grid_of_squares():
    """The mask is that of Albumentations' GridDropout for some unit and offset; all units and offsets occur."""
    units, offsets = set(), set()
    for seed in range(400):
        black = (grid_mask(np.random.default_rng(seed), WHITE) == 0)[..., 0]
        y, x = (int(np.argmax(black.any(axis))) for axis in (1, 0))
        hole = int(np.argmin(black[y:, x]))
        candidates = [unit for unit in (2 * hole, 2 * hole + 1) if np.array_equal(black, grid(unit, y, x))]
        assert len(candidates) == 1
        units.add(candidates[0])
        offsets.add((y, x) if candidates[0] == 10 else None)
    assert units == set(range(10, 41))
    assert {0, 5} <= {y for y, _ in offsets - {None}} | {x for _, x in offsets - {None}} <= set(range(6))


def grid(unit, y, x):
    mask = np.zeros(WHITE.shape[:2], bool)
    for row in range(y, mask.shape[0], unit):
        for column in range(x, mask.shape[1], unit):
            mask[row : row + unit // 2, column : column + unit // 2] = True
    return mask


@pytest.mark.parametrize("cut", [coarse_dropout, grid_mask])
def test_crops_smaller_than_a_hole(cut):
    crop = np.full((32, 32, 3), 255, np.uint8)
    for seed in range(50):
        assert cut(np.random.default_rng(seed), crop).shape == crop.shape
    assert (crop == 255).all()


# In the stream


@pytest.fixture(scope="module")
def config(shared):
    return pipeline_config(shared / "data")


def samples(config, count=40, **augment):
    data = TrainData.load(with_data(config, augment={**config["data"]["augment"], **augment}), crops())
    order = data.order()
    return [data.sample(i, order[i]) for i in range(count)]


def test_only_the_pixels_change(config):
    """Whom a sample shows, and where, is the same with and without; holes leave the rest of the crop alone."""
    plain = samples(config)
    distorted = samples(config, photometric=1.0)
    dropped = {name: samples(config, **{name: 0.5}) for name in ("coarse_dropout", "grid_mask")}
    for others in (distorted, *dropped.values()):
        for a, b in zip(plain, others, strict=True):
            for key in a.keys() - {"image"}:
                np.testing.assert_array_equal(a[key], b[key], err_msg=key)
            assert b["image"].dtype == np.uint8
            assert b["image"].shape == a["image"].shape
    assert sum((a["image"] != b["image"]).any() for a, b in zip(plain, distorted, strict=True)) > 35
    for others in dropped.values():
        changed = [(a["image"] != b["image"]).any(-1) for a, b in zip(plain, others, strict=True)]
        assert 10 < sum(map(np.any, changed)) < 30
        for where, b in zip(changed, others, strict=True):
            assert (b["image"][where] == 0).all()


def test_samples_are_functions_of_seed_and_index(config):
    """Also of all three together, computed in any order."""
    everything = {"photometric": 1.0, "coarse_dropout": 0.5, "grid_mask": 0.5}
    data = TrainData.load(with_data(config, augment={**config["data"]["augment"], **everything}), crops())
    order = data.order()
    forwards = [data.sample(i, order[i])["image"] for i in range(10)]
    backwards = [data.sample(i, order[i])["image"] for i in reversed(range(10))][::-1]
    np.testing.assert_array_equal(forwards, backwards)
    assert not np.array_equal(data.sample(0, 5)["image"], data.sample(1, 5)["image"])


def test_nothing_is_drawn_where_nothing_is_asked_for():
    rng = np.random.default_rng(0)
    assert augment_pixels(rng, WHITE, Augmentation()) is WHITE
    assert rng.random() == np.random.default_rng(0).random()
    everything = Augmentation(photometric=1.0, coarse_dropout=1.0, grid_mask=1.0)
    assert (augment_pixels(rng, WHITE, everything) == 0).any()
    assert (WHITE == 255).all()


@pytest.mark.parametrize("name", ["photometric", "coarse_dropout", "grid_mask"])
def test_probabilities_are_shares_of_the_crops(name):
    rng = np.random.default_rng(0)
    crop = np.full((64, 64, 3), (200, 120, 60), np.uint8)
    for probability in (0.2, 1.0):
        augmentation = Augmentation(**{name: probability})
        share = np.mean([(augment_pixels(rng, crop, augmentation) != crop).any() for _ in range(500)])
        # One distortion in 27 draws no part at all.
        assert share == pytest.approx(probability * (0.96 if name == "photometric" else 1), abs=0.05)
