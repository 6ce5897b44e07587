"""JPEGs of cells: regions of them equal the whole, and they hardly differ from the originals."""

import io
import pathlib

import cv2
import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.errors import InputError
from data_pipelines.images import decode_image
from data_pipelines.jpeg import Cells, encode_cells


def texture(height, width, seed=0):
    """BGR noise, coarse and fine: every block and every chroma sample matters."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (-(-height // 4), -(-width // 4), 3), dtype=np.uint8)
    fine = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
    return cv2.add(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR), fine)


def encoded(pixels, mode="RGB", form="JPEG", **options):
    file = io.BytesIO()
    PIL.Image.fromarray(pixels[..., ::-1]).convert(mode).save(file, form, **options)
    return file.getvalue()


def cells_of(data, name="image.jpg"):
    return encode_cells(data, decode_image(data, name))


def assert_region_is_part(jpeg, rectangle):
    cells, whole = Cells(jpeg, "image.jpg"), decode_image(jpeg, "image.jpg")
    height, width = cells.size
    assert whole.shape == (height, width, 3)
    region, (x, y) = cells.region(*rectangle)
    assert region.size
    assert 0 <= x <= x + region.shape[1] <= width
    assert 0 <= y <= y + region.shape[0] <= height
    x0, y0, x1, y1 = rectangle
    x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    if x0 < x1 and y0 < y1:
        np.testing.assert_array_equal(region[y0 - y : y1 - y, x0 - x : x1 - x], whole[y0:y1, x0:x1])
        assert region.shape[1] <= x1 - x0 + 2 * (128 + 4)
        assert region.shape[0] <= y1 - y0 + 2 * (16 + 4)


# Widths around whole numbers of cells and MCUs, where the edges of regions and of the image meet.
sides = st.one_of(st.integers(1, 40), st.integers(1, 300))
ends = st.integers(-60, 360)


@settings(max_examples=300, deadline=None)
@given(
    size=st.tuples(sides, sides),
    sampling=st.sampled_from([0, 1, 2]),
    rectangle=st.tuples(ends, ends, ends, ends),
    seed=st.integers(0, 3),
)
def test_region_equals_the_whole_images(size, sampling, rectangle, seed):
    jpeg = cells_of(encoded(texture(*size, seed), quality=85, subsampling=sampling))
    x0, y0, x1, y1 = rectangle
    assert_region_is_part(jpeg, (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)))


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 4000), (4000, 1), (479, 641), (23 * 16, 37 * 16), (17, 16 * 127), (35, 643), (36, 644)]
)
@pytest.mark.parametrize("sampling", [0, 1, 2])
def test_every_narrow_column_and_row(size, sampling):
    """Narrow rectangles at each place of the last cells: libjpeg upsamples narrow images in another way."""
    jpeg = cells_of(encoded(texture(*size), quality=80, subsampling=sampling))
    height, width = size
    for x in range(max(width - 20, 0), width):
        assert_region_is_part(jpeg, (x, 0, x + 1, height))
    for y in range(max(height - 20, 0), height):
        assert_region_is_part(jpeg, (0, y, width, y + 1))


@pytest.mark.parametrize(
    "rectangle", [(-50, -50, -10, -10), (500, 500, 600, 600), (-(10**9), 10, -(10**8), 11), (9, 9, 9, 9)]
)
def test_rectangle_without_pixels_gives_some(rectangle):
    jpeg = cells_of(encoded(texture(100, 200)))
    region, (x, y) = Cells(jpeg, "").region(*rectangle)
    inner = (slice(4, -4), slice(4, -4))  # away from edges where upsampling missed neighbours
    whole = decode_image(jpeg, "")[y : y + region.shape[0], x : x + region.shape[1]]
    np.testing.assert_array_equal(region[inner], whole[inner])
    assert region.size
    assert region.shape[0] <= 32
    assert region.shape[1] <= 128


def test_real_images_hardly_change(shared):
    before = after = 0
    for path in real_images(shared):
        data = path.read_bytes()
        pixels = decode_image(data, path)
        jpeg = encode_cells(data, pixels)
        change = np.abs(decode_image(jpeg, path).astype(int) - pixels)
        assert change.mean() < 0.15, path
        before, after = before + len(data), after + len(jpeg)
        height, width = pixels.shape[:2]
        assert_region_is_part(jpeg, (width // 3, height // 5, width // 4 * 3, height // 3 * 2))
    assert after < 1.01 * before


def real_images(shared: pathlib.Path):
    paths = sorted(path for name in ("aic", "coco", "coco_val4") for path in (shared / "data" / name).rglob("*.jpg"))
    assert len(paths) > 50
    return paths[::3]


def smooth(height, width):
    y, x = np.mgrid[:height, :width]
    return np.stack([x, 255 - x, 2 * y], -1).astype(np.uint8)


def orientation(value):
    exif = PIL.Image.Exif()
    exif[0x0112] = value
    return exif


@pytest.mark.parametrize(
    ("data", "limit"),
    [
        pytest.param(encoded(smooth(100, 130), progressive=True, subsampling=2), 0.1, id="progressive"),
        pytest.param(encoded(texture(90, 130), mode="L"), 0.2, id="grey"),
        pytest.param(encoded(smooth(100, 130), qtables=[[3] * 64, [9] * 64, [20] * 64]), 0.1, id="three tables"),
        pytest.param(encoded(smooth(100, 130), exif=orientation(6)), 1, id="turned"),
        pytest.param(encoded(smooth(100, 130), exif=orientation(3)), 1, id="upside down"),
        pytest.param(encoded(smooth(100, 130), keep_rgb=True, quality=95), 1, id="RGB within"),
        pytest.param(encoded(smooth(100, 130), mode="CMYK"), 1, id="CMYK"),
        pytest.param(encoded(smooth(100, 130), form="PNG"), 1, id="PNG"),
        pytest.param(encoded(smooth(100, 130), mode="RGBA", form="PNG"), 1, id="RGBA"),
        pytest.param(encoded(texture(700, 600), qtables=[[1] * 64] * 2, subsampling=0), 0.2, id="three bytes a pixel"),
    ],
)
def test_unusual_files(data, limit):
    pixels = decode_image(data, "image")
    jpeg = encode_cells(data, pixels)
    decoded = decode_image(jpeg, "image")
    assert np.abs(decoded.astype(int) - pixels).mean() < limit
    assert PIL.Image.open(io.BytesIO(jpeg)).mode == "RGB"
    assert_region_is_part(jpeg, (40, 30, 60, 70))


JPEG = cells_of(encoded(texture(96, 200), subsampling=2))  # 13 MCUs a row: cells of one
SCAN = JPEG.index(b"\xff\xda")
RESTART = JPEG.index(b"\xff\xd3", SCAN)
LAST_RESTART = JPEG.rindex(bytes([0xFF, 0xD0 + (6 * 13 - 2) % 8]))
FRAME = JPEG.index(b"\xff\xc0") + 5  # its height


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        JPEG[:1],
        *(JPEG[:stop] for stop in range(2, SCAN + 14, 7)),
        JPEG[:-1],
        JPEG[: len(JPEG) // 2],
        JPEG[:RESTART] + JPEG[RESTART + 2 :],
        JPEG[:RESTART] + b"\xff\xd4" + JPEG[RESTART + 2 :],
        JPEG[:RESTART] + b"\xff\xd3" + JPEG[RESTART:],
        JPEG[:LAST_RESTART] + JPEG[LAST_RESTART + 2 :],
        JPEG[:FRAME] + b"\0\0" + JPEG[FRAME + 2 :],
        JPEG[2:],
        encoded(texture(64, 64)),
        encoded(texture(64, 64), restart_marker_blocks=3),
        encoded(texture(64, 64), progressive=True, restart_marker_blocks=4),
        encoded(texture(64, 64), form="PNG"),
    ],
)
def test_damage_is_named(damaged):
    with pytest.raises(InputError, match=r"^shard 3: record 5: [^\n]+$"):
        Cells(damaged, "shard 3: record 5")
