"""Image files of all kinds: pixels, or one line that names the file."""

import io
import os
import struct
import zlib

import cv2
import numpy as np
import PIL.features
import PIL.Image
import PIL.PngImagePlugin
import pytest

from data_pipelines.checks import check_name
from data_pipelines.errors import InputError
from data_pipelines.images import decode_image, read_image


def encoded(mode="RGB", kind="PNG", size=(40, 30), exif=None, **options):
    """An image file: a ramp to the right, brighter in its upper half."""
    ramp = np.linspace(10, 120, size[0])[None] + np.where(np.arange(size[1]) < size[1] / 2, 100, 0)[:, None]
    image = PIL.Image.fromarray(ramp.astype(np.uint8))
    image = PIL.Image.fromarray(ramp.astype(np.uint16) * 256) if mode == "I;16" else image.convert("RGB").convert(mode)
    file = io.BytesIO()
    image.save(file, kind, **({"exif": exif} if exif else {}), **options)
    return file.getvalue()


def segment(content, marker=0xE1):
    """A JPEG's segment; APP1 by default."""
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


def chunk(kind, content):
    """A PNG's chunk."""
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


def turned(orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        *(("RGB", kind) for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM", "GIF", "AVIF")),
        *((mode, "PNG") for mode in ("I;16", "L", "LA", "RGBA", "P", "1")),
        *((mode, "TIFF") for mode in ("I;16", "L", "LA", "RGBA", "P", "1", "CMYK")),
        *((mode, "JPEG") for mode in ("L", "CMYK")),
        *((mode, "BMP") for mode in ("L", "P", "1", "RGBA")),
        *((mode, "PPM") for mode in ("L", "1")),
    ],
)
def test_kinds_of_images_become_eight_bit_colour(mode, kind):
    if kind == "AVIF" and not PIL.features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    image = decode_image(encoded(mode, kind), "x")
    assert image.shape == (30, 40, 3)
    assert image.dtype == np.uint8
    if mode not in ("P", "1"):
        assert abs(int(image[2, 2, 1]) - 110) < 30
        assert image[2].mean() > image[-2].mean() + 50  # nor upside down


def test_channels_are_blue_green_red():
    red = PIL.Image.new("RGB", (40, 30), (200, 100, 20))
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM", "GIF"):
        file = io.BytesIO()
        red.save(file, kind)
        np.testing.assert_allclose(decode_image(file.getvalue(), kind)[15, 20], (20, 100, 200), atol=3)


def test_animations_show_their_first_image():
    frames = [PIL.Image.new("RGB", (20, 10), colour) for colour in ("red", "blue")]
    for kind in ("PNG", "WEBP", "TIFF", "GIF"):
        file = io.BytesIO()
        frames[0].save(file, kind, save_all=True, append_images=frames[1:])
        image = decode_image(file.getvalue(), "x")
        assert image[5, 5, 2] > 200 > 50 > image[5, 5, 0], kind


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "MPO"])
def test_exif_orientation_turns_the_image(kind, orientation):
    options = {"WEBP": {"lossless": True}, "MPO": {"save_all": True, "append_images": [PIL.Image.new("RGB", (8, 8))]}}
    plain = decode_image(encoded(kind=kind, **options.get(kind, {})), "x")
    data = encoded(kind=kind, exif=turned(orientation), **options.get(kind, {}))
    turns = {2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.swapaxes(0, 1)}
    turns |= {6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: np.rot90}
    expected = turns.get(orientation, lambda a: a)(plain)
    np.testing.assert_array_equal(decode_image(data, "x"), expected)


def test_orientation_is_found_behind_other_metadata_and_damage_to_it_does_not_count():
    """Editors write XMP before EXIF, where OpenCV 4.11 does not look."""
    data, plain = encoded(kind="JPEG", exif=turned(6)), decode_image(encoded(kind="JPEG"), "x")
    image = decode_image(data[:2] + segment(b"http://ns.adobe.com/xap/1.0/\0<x/>") + data[2:], "x")
    np.testing.assert_array_equal(image, np.rot90(plain, -1))
    for content in (b"", b"MM", b"II*\0\xff\xff\xff\xff", bytes(range(40))):
        data = encoded(kind="JPEG")
        image = decode_image(data[:2] + segment(b"Exif\0\0" + content) + data[2:], "x")
        np.testing.assert_array_equal(image, plain)
        data = encoded()
        decode_image(data[:33] + chunk(b"eXIf", content) + data[33:], "x")


@pytest.mark.parametrize("behind", ["video", "jpeg", "half a jpeg", "zeros", "marker"])
def test_a_jpeg_may_have_something_behind_it(behind):
    """Phones write motion photos (a video), portraits (a depth map), Ultra HDR (a gain map) and burst pictures."""
    still = encoded(kind="JPEG", exif=turned(1))
    contents = {
        "video": np.random.default_rng(0).integers(0, 256, 300_000, np.uint8).tobytes(),
        "jpeg": still,
        "half a jpeg": still[: len(still) // 2],
        "zeros": b"\0" * 100,
        "marker": b"\xff",
    }
    np.testing.assert_array_equal(decode_image(still + contents[behind], "x"), decode_image(still, "x"))


def test_a_jpeg_is_truncated_wherever_it_is_cut():
    for data in (encoded(kind="JPEG", exif=turned(1)), encoded(kind="JPEG", progressive=True)):
        for stop in range(2, len(data) - 1, 3):
            with pytest.raises(InputError, match="truncated"):
                decode_image(data[:stop], "x")


def test_progressive_jpegs_and_thumbnails_are_walked_through():
    thumbnail = encoded(kind="JPEG", size=(16, 12))
    for options in ({"progressive": True}, {"restart_marker_blocks": 1}, {"keep_rgb": True}):
        data = encoded(kind="JPEG", quality=100, **options)
        data = data[:2] + segment(b"Exif\0\0" + thumbnail) + data[2:]
        assert decode_image(data + b"\0\0", "x").shape == (30, 40, 3)
        with pytest.raises(InputError, match="truncated"):
            decode_image(data[:-30], "x")


def test_large_metadata_of_a_png_is_not_read(capfd):
    """libpng and Pillow refuse more than some megabytes of text or colour profile."""
    text = PIL.PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * 2_000_000, zip=True)
    noise = np.random.default_rng(0).bytes(1_500_000)
    plain = encoded()
    for data in (
        encoded(pnginfo=text),
        encoded(icc_profile=noise),
        encoded(exif=b"Exif\0\0MM\0*" + noise),
        plain[:33] + chunk(b"tEXt", b"comment\0" + noise * 8) + plain[33:],
        plain[:33] + chunk(b"iTXt", b"damaged")[:-1] + b"?" + plain[33:],
        plain + noise,
    ):
        np.testing.assert_array_equal(decode_image(data, "x"), decode_image(plain, "x"))
    assert not "".join(capfd.readouterr())


def test_headers_that_pillow_does_not_read():
    """Bitmaps of all kinds, and TIFFs of 16 bits or above four gigabytes."""
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    _, plain = cv2.imencode(".bmp", pixels)
    rows = plain.tobytes()[54:]
    upside_down = rows[12:] + rows[:12]
    old = b"BM" + struct.pack("<IIIIHHHH", 26 + len(rows), 0, 26, 12, 3, 2, 1, 24) + rows
    flipped = b"BM" + struct.pack("<IIIIiiHHIIIIII", 54 + len(rows), 0, 54, 40, 3, -2, 1, 24, 0, 0, 0, 0, 0, 0)
    for data in (plain.tobytes(), old, flipped + upside_down):
        np.testing.assert_array_equal(decode_image(data, "x"), pixels)
    deep = np.full((30, 40, 4), 40_000, np.uint16)
    for channels in (1, 3, 4):
        data = cv2.imencode(".tiff", deep[..., :channels])[1].tobytes()
        np.testing.assert_array_equal(decode_image(data, "x"), np.full((30, 40, 3), 40_000 >> 8))
    np.testing.assert_array_equal(decode_image(encoded(kind="TIFF", big_tiff=True), "x"), decode_image(encoded(), "x"))


UNREADABLE = {
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC image, which is not decoded here; convert it"),
    "a phone's video": (b"\0\0\0\x18ftypmp42\0\0\0\0isommp42", r"a video \(MP4 or MOV\)"),
    "AVIF": (b"\0\0\0\x18ftypavif\0\0\0\0mif1avif", "AVIF|not an image"),
    "JPEG XL": (b"\xff\x0a" + bytes(50), "a JPEG XL image, which is not decoded here"),
    "JPEG 2000": (encoded(kind="JPEG2000"), "a JPEG 2000 image"),
    "real numbers": (encoded("F", "TIFF"), "convert it to unsigned 8 or 16 bits"),
    "real colours": (cv2.imencode(".tiff", np.ones((4, 4, 3), np.float32))[1].tobytes(), "unsigned 8 or 16 bits"),
    "signed": (cv2.imencode(".tiff", np.ones((4, 4), np.int16))[1].tobytes(), "unsigned 8 or 16 bits"),
    "raw file": (encoded(kind="TIFF", tiffinfo={254: 1}), "begins with a thumbnail, as cameras' raw files do"),
    "png without a header": (encoded()[:8] + chunk(b"IEND", b""), "not an image"),
    "png with a wrong checksum": (encoded()[:29] + b"????" + encoded()[33:], "checksum of its chunk at byte 8"),
}


@pytest.mark.parametrize(("data", "message"), UNREADABLE.values(), ids=UNREADABLE)
def test_formats_that_are_not_decoded_are_named(data, message, capfd):
    with pytest.raises(InputError, match=f"x: .*({message})") as caught:
        decode_image(data, "x")
    assert "\n" not in str(caught.value)
    assert not "".join(capfd.readouterr())


DAMAGED = {
    "empty": b"",
    "text": b"<html>not found</html>",
    "truncated gif": encoded(kind="GIF")[:-50],
    "truncated jpeg": encoded(kind="JPEG")[:-40],
    "truncated png": encoded()[:-30],
    "png with a flipped bit": bytes([*(data := encoded())[:60], data[60] ^ 1, *data[61:]]),
    "truncated webp": encoded(kind="WEBP")[:-20],
    "truncated tiff": encoded(kind="TIFF")[:-200],
    "a header alone": encoded(kind="BMP")[:54],
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_what_is_no_image_gets_one_line(data, tmp_path, capfd):
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    with pytest.raises(InputError, match="photo.jpg: ") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)
    assert not "".join(capfd.readouterr())  # OpenCV, libpng, libtiff


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    path = tmp_path / "bomb.png"
    PIL.Image.new("1", (9000, 6000)).save(path)
    assert path.stat().st_size < 10_000
    assert read_image(path, max_megapixels=54.0).shape == (6000, 9000, 3)

    monkeypatch.setattr(cv2, "imdecode", lambda *unused: pytest.fail("it was decoded"))
    with pytest.raises(InputError, match=r"bomb.png: 9000x6000 are 54.0 megapixels, above max_megapixels=50"):
        read_image(path)
    PIL.Image.new("1", (33000, 10)).save(path)
    with pytest.raises(InputError, match="neither side can be above 32766"):
        read_image(path)
    with path.open("wb") as file:
        os.ftruncate(file.fileno(), 500_000_000)
    with pytest.raises(InputError, match="500000000 bytes are more"):
        read_image(path)


def test_files_without_an_end_and_names_that_are_none_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, message in (
        (tmp_path / "pipe", "not a regular file"),
        ("/dev/zero", "not a regular file"),
        (tmp_path, "not a regular file"),
        (tmp_path / "none.jpg", "no such image"),
        (f"{tmp_path}/a\0b.jpg", "not a file name"),
        (f"{tmp_path}/\ud800.jpg", "not a file name"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        with pytest.raises(InputError, match=message):
            read_image(path)


def test_names_stay_in_their_folder():
    for name in ("a.jpg", "train/a..b.jpg", "..."):
        assert check_name("f.json: image 1:", name) == name
    for name in ("/etc/passwd", "../a.jpg", "a/../../b.jpg", "a\0.jpg", ".."):
        with pytest.raises(InputError, match="f.json: image 1: .* leaves the image folder"):
            check_name("f.json: image 1:", name)
