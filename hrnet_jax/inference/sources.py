"""Images to predict on: an image file, a folder of images, or the frames of a video."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import cv2

from data_pipelines.errors import InputError, utf8
from data_pipelines.images import Pixels, read_rgb

PHOTOS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"),
    *(".gif", ".avif", ".heic", ".heif"),  # HEIC is refused with a remedy instead of being skipped
)
VIDEOS = (
    *(".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"),
    *(".3gp", ".3g2", ".mts", ".m2ts", ".ts", ".wmv", ".flv", ".ogv"),
)

_FRAMES_A_SECOND = 25.0  # of a video without a frame rate


class Shot(NamedTuple):
    """An image to predict on.

    Attributes:
      record: the first fields of its record.
      key: its key in box files.
      where: its name in messages.
      read: returns its pixels, RGB; raises InputError if it is unusable.
    """

    record: dict[str, Any]
    key: str
    where: str
    read: Callable[[], Pixels]


@dataclasses.dataclass(frozen=True)
class Source:
    """Images to predict on.

    Attributes:
      path: a folder, or a video.
      names: image files, relative to the folder; empty for a video.
      total: number of images.
      frames_a_second: mean frame rate of a video; 0 for a folder.
    """

    path: pathlib.Path
    names: tuple[str, ...]
    total: int
    frames_a_second: float = 0.0

    @property
    def is_video(self) -> bool:
        """Whether the images are a video's frames."""
        return self.frames_a_second > 0

    @classmethod
    def find(cls, path: str | os.PathLike, without: pathlib.Path, max_megapixels: float) -> Source:
        """Finds the images in an image file, a folder (without the subfolder `without`) or a video.

        Raises InputError if there are none, or a video cannot be read or its frames are too large.
        """
        if "://" in os.fspath(path):
            raise InputError(f"{path}: streams are not read; record it to a file, and predict on the file")
        path = pathlib.Path(path)
        if path.is_dir():
            names = sorted(_photos_below(path, without))
            if not names:
                raise InputError(f"{path}: holds no image ({' '.join(PHOTOS)}); a video is named by its own path")
            return cls(path, tuple(names), len(names))
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
        if path.suffix.lower() not in VIDEOS:
            return cls(path.parent, (path.name,), 1)
        with _opened(path) as video:
            width, height = video.get(cv2.CAP_PROP_FRAME_WIDTH), video.get(cv2.CAP_PROP_FRAME_HEIGHT)
            if width * height > max_megapixels * 1e6:
                raise InputError(f"{path}: frames of {width:g}x{height:g}, above max_megapixels={max_megapixels:g}")
            if not video.grab():
                raise InputError(f"{path}: not a video that can be read: none of its frames can be decoded")
        total, rate = _length(path)
        return cls(path, (), total, rate)

    def shots(self, max_megapixels: float, unusable: Callable[[str], None]) -> Iterator[Shot]:
        """Yields the images in order; `unusable` is called with a message if a video ends early."""
        for name in self.names:
            where = self.path / name
            yield Shot({"file": utf8(name)}, utf8(name), str(where), functools.partial(read_rgb, where, max_megapixels))
        if self.is_video:
            yield from self._frames(unusable)

    def _frames(self, unusable: Callable[[str], None]) -> Iterator[Shot]:
        with _opened(self.path) as video:
            total, rate = video.get(cv2.CAP_PROP_FRAME_COUNT), video.get(cv2.CAP_PROP_FPS)
            seconds = 0.0
            for number in itertools.count():
                there, frame = video.read()
                if not there:
                    break
                seconds = video.get(cv2.CAP_PROP_POS_MSEC) / 1000
                read = functools.partial(cv2.cvtColor, frame, cv2.COLOR_BGR2RGB)
                record = {"file": utf8(self.path.name), "frame": number}
                yield Shot(record, str(number), f"{self.path}: frame {number}", read)
        # The stated number is an estimate where the rate varies; the times are missing from some formats.
        if number < 0.95 * total - 1 and rate > 0 and seconds < 0.95 * (total / rate) - 1:
            unusable(f"{self.path}: ends after {number} of {total:g} frames; the rest is missing or damaged")


def _length(path: pathlib.Path) -> tuple[int, float]:
    """Number of a video's frames, and how many are shown per second on average.

    Frames are counted without decoding: what the container states is wrong in recordings of a variable rate.
    """
    times = []
    with _opened(path, cv2.CAP_PROP_FORMAT, -1) as video:
        stated = video.get(cv2.CAP_PROP_FPS)
        while video.grab():
            times.append(video.get(cv2.CAP_PROP_POS_MSEC) / 1000)
    seconds = max(times, default=0.0) - min(times, default=0.0)
    rate = stated
    if seconds > 0 and abs(stated * seconds / (len(times) - 1) - 1) > 0.02:  # times are rounded
        rate = (len(times) - 1) / seconds
    return len(times), rate if 0 < rate < 1e4 else _FRAMES_A_SECOND


def _photos_below(folder: pathlib.Path, without: pathlib.Path) -> Iterator[str]:
    """The paths of the image files below a folder, relative to it."""
    without = without.resolve()
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if pathlib.Path(parent, name).resolve() != without]
        for name in files:
            if name.lower().endswith(PHOTOS) and not name.startswith("."):
                yield pathlib.Path(parent, name).relative_to(folder).as_posix()


@contextlib.contextmanager
def _opened(path: pathlib.Path, *options: int) -> Iterator[cv2.VideoCapture]:
    """A video, opened with OpenCV's options (property, value, ...); its frames are upright."""
    with contextlib.ExitStack() as stack:
        video = None
        if path.is_file():
            # OpenCV crashes on paths that are not UTF-8.
            file = stack.enter_context(open(path, "rb"))
            video = cv2.VideoCapture(f"/proc/self/fd/{file.fileno()}", cv2.CAP_FFMPEG, options)
            stack.callback(video.release)
            video.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)  # phones held upright store a rotation; the default varies
        if video is None or not video.isOpened():
            raise InputError(f"{path}: not a video that can be read")
        yield video
