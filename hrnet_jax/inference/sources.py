"""Images to predict on: an image file, a folder of images, or the frames of a video."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8

from data_pipelines.errors import InputError, utf8
from data_pipelines.images import read_rgb

PHOTOS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")

_FRAMES_A_SECOND = 25.0  # of a video without a frame rate

Pixels = UInt8[np.ndarray, "height width 3"]


class Shot(NamedTuple):
    """An image to predict on: first fields of its record, its key in box files, its name in messages, RGB pixels."""

    record: dict[str, Any]
    key: str
    where: str
    pixels: Pixels


@dataclasses.dataclass(frozen=True)
class Source:
    """Images to predict on.

    Attributes:
      path: a folder, or a video.
      names: image files, relative to the folder; empty for a video.
      total: number of images; 0 if a video does not state it.
      frames_a_second: frame rate of a video; 0 for a folder.
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
        path = pathlib.Path(path)
        if path.is_dir():
            names = sorted(_photos_below(path, without))
            if not names:
                raise InputError(f"{path}: holds no image ({' '.join(PHOTOS)})")
            return cls(path, tuple(names), len(names))
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
        if path.suffix.lower() not in VIDEOS:
            return cls(path.parent, (path.name,), 1)
        facts = cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FPS
        with _opened(path) as video:
            width, height, total, rate = (video.get(fact) for fact in facts)
        if width * height > max_megapixels * 1e6:
            raise InputError(f"{path}: frames of {width:g}x{height:g}, above max_megapixels={max_megapixels:g}")
        total = int(total) if 0 < total < 1e9 else 0  # estimated from the length; nonsense in damaged files
        return cls(path, (), total, rate if 0 < rate < 1e4 else _FRAMES_A_SECOND)

    def shots(self, max_megapixels: float, unusable: Callable[[str], None]) -> Iterator[Shot]:
        """Yields the images in order; `unusable` is called with a message for each unreadable image."""
        for name in self.names:
            where = self.path / name
            try:
                pixels = read_rgb(where, max_megapixels)
            except InputError as error:
                unusable(str(error))
            else:
                yield Shot({"file": utf8(name)}, utf8(name), str(where), pixels)
        if self.is_video:
            with _opened(self.path) as video:
                for number in itertools.count():
                    there, frame = video.read()
                    if not there:
                        return
                    pixels = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
                    record = {"file": utf8(self.path.name), "frame": number}
                    yield Shot(record, str(number), f"{self.path}: frame {number}", pixels)


def _photos_below(folder: pathlib.Path, without: pathlib.Path) -> Iterator[str]:
    """The paths of the image files below a folder, relative to it."""
    without = without.resolve()
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if pathlib.Path(parent, name).resolve() != without]
        for name in files:
            if name.lower().endswith(PHOTOS) and not name.startswith("."):
                yield pathlib.Path(parent, name).relative_to(folder).as_posix()


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[cv2.VideoCapture]:
    with contextlib.ExitStack() as stack:
        video = None
        if path.is_file():
            # OpenCV crashes on paths that are not UTF-8.
            file = stack.enter_context(open(path, "rb"))
            video = cv2.VideoCapture(f"/proc/self/fd/{file.fileno()}", cv2.CAP_FFMPEG)
            stack.callback(video.release)
        if video is None or not video.isOpened():
            raise InputError(f"{path}: not a video that can be read")
        yield video
