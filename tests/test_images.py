"""Image files of all kinds: pixels, or one line that names the file."""

import io
import os

import cv2
import numpy as np
import PIL.Image
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


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        *(("RGB", kind) for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM")),
        *((mode, "PNG") for mode in ("I;16", "L", "LA", "RGBA", "P", "1")),
        *((mode, "JPEG") for mode in ("L", "CMYK")),
    ],
)
def test_kinds_of_images_become_eight_bit_colour(mode, kind):
    image = decode_image(encoded(mode, kind), "x")
    assert image.shape == (30, 40, 3)
    assert image.dtype == np.uint8
    if mode not in ("P", "1"):
        assert abs(int(image[2, 2, 1]) - 110) < 30
        assert image[2].mean() > image[-2].mean() + 50  # nor upside down


def test_animations_show_their_first_image():
    frames = [PIL.Image.new("RGB", (20, 10), colour) for colour in ("red", "blue")]
    for kind in ("PNG", "WEBP", "TIFF"):
        file = io.BytesIO()
        frames[0].save(file, kind, save_all=True, append_images=frames[1:])
        image = decode_image(file.getvalue(), "x")
        assert image[5, 5, 2] > 200 > 50 > image[5, 5, 0], kind


def test_exif_orientation_turns_the_image():
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    plain = decode_image(encoded(kind="JPEG"), "x")
    np.testing.assert_array_equal(decode_image(encoded(kind="JPEG", exif=exif), "x"), np.rot90(plain, -1))


DAMAGED = {
    "empty": b"",
    "text": b"<html>not found</html>",
    "gif": encoded(kind="GIF"),
    "truncated jpeg": encoded(kind="JPEG")[:-40],
    "truncated png": encoded()[:-30],
    "png with a flipped bit": bytes([*(data := encoded())[:60], data[60] ^ 1, *data[61:]]),
    "truncated webp": encoded(kind="WEBP")[:-20],
    "truncated tiff": encoded(kind="TIFF")[:-200],
    "a header alone": encoded(kind="BMP")[:54],
    "32-bit": encoded("F", "TIFF"),
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
