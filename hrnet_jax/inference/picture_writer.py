"""Writes the pictures of a prediction: drawn/NAME.png for each image, or the frames of drawn.mp4."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import cv2
from etils import epath

from data_pipelines import draw, storage
from data_pipelines.errors import InputError
from data_pipelines.images import Pixels


class Pictures:
    """A context that writes pictures: drawn/NAME.png, or the frames of drawn.mp4.

    Attributes:
      problem: the first write error; empty if there was none.
    """

    def __init__(self, output: epath.Path, frames_a_second: float):
        self.problem = ""
        self._output, self._frames_a_second = output, frames_a_second
        self._video = contextlib.ExitStack()
        self._append: Callable[[Pixels], None] | None = None

    def add(self, name: str, picture: Pixels) -> None:
        """Writes the picture of an image, or the next frame."""
        with self._problem_kept():
            if not self._frames_a_second:
                # Not synced: after a power cut, the command can be repeated.
                draw.write_png(self._output / "drawn" / f"{name}.png", picture, sync=False)
                return
            if not self._append:
                video = _video_writer(self._output / "drawn.mp4", self._frames_a_second, picture.shape[1::-1])
                self._append = self._video.enter_context(video)
            self._append(picture)

    def __enter__(self) -> Pictures:
        return self

    def __exit__(self, *error: Any) -> None:
        with self._problem_kept():
            self._video.__exit__(*error)

    @contextlib.contextmanager
    def _problem_kept(self) -> Iterator[None]:
        try:
            yield
        except InputError as error:
            self.problem = self.problem or str(error)


@contextlib.contextmanager
def _video_writer(
    path: epath.Path, frames_a_second: float, size: tuple[int, ...]
) -> Iterator[Callable[[Pixels], None]]:
    """Writes a video of frames of (width, height); the file appears when complete."""
    with storage.whole(path) as partial, _named_in_ascii(partial) as name:
        writer, written = cv2.VideoWriter(), 0
        if not writer.open(name, cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), _writable(frames_a_second), size):
            raise InputError(f"{path}: cannot be written")

        def append(picture: Pixels) -> None:
            nonlocal written
            if picture.shape[1::-1] != size:  # some videos change their resolution; OpenCV would drop the frame
                picture = cv2.resize(picture, size)
            writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
            written += 1

        try:
            yield append
        finally:
            writer.release()
        video = cv2.VideoCapture(name, cv2.CAP_FFMPEG)
        whole = video.isOpened() and video.get(cv2.CAP_PROP_FRAME_COUNT) == written
        video.release()
        if not whole:  # OpenCV does not say why
            raise InputError(f"{path}: cannot be written completely (is the disk full?)")


def _writable(frames_a_second: float) -> float:
    """The nearest rate that MPEG-4 stores as a fraction of 16-bit integers; OpenCV's denominators are powers of ten."""
    base = next(base for base in (1000, 100, 10, 1) if frames_a_second * base < 2**16 - 1)
    return max(round(frames_a_second * base) / base, 0.002)  # OpenCV rounds less to zero


@contextlib.contextmanager
def _named_in_ascii(path: pathlib.Path) -> Iterator[str]:
    """An ASCII path to a file with an ASCII name; OpenCV crashes on folders that are not UTF-8."""
    folder = os.open(path.parent, os.O_PATH)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
