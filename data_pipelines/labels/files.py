"""The files of a labelling tool's export: a file, a folder or a zip; their text, and the images that they name."""

from __future__ import annotations

import codecs
import contextlib
import json
import ntpath
import os
import pathlib
import re
import shutil
import tempfile
import urllib.parse
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from data_pipelines import storage
from data_pipelines.checks import check_regular
from data_pipelines.errors import InputError, brief, utf8
from data_pipelines.labels.types import Notes

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pnm")

_MOST_FILES = 1_000_000
_MOST_NEARBY = 20_000  # files that are looked through in the folders around a single label file
_MOST_TEXT = 4 * 2**30  # bytes

_SPLITS = {
    **{name: "train" for name in ("train", "training", "trainval")},
    **{name: "val" for name in ("val", "valid", "validation", "dev")},
    **{name: "test" for name in ("test", "testing")},
}


class Source:
    """The export that the user gave.

    Attributes:
      path: as given.
      root: the given folder, the folder of the given file, or the folder of an unpacked zip.
      files: the files to read labels from: the given one, or all below the folder.
      scratch: a temporary folder, removed when the import ends.
      notes: of all readers.
    """

    def __init__(self, path: pathlib.Path, root: pathlib.Path, files: list[pathlib.Path], scratch: pathlib.Path):
        self.path, self.root, self.files, self.scratch = path, root, files, scratch
        self.single = path.is_file() and path == (files[0] if files else None)
        self.notes = Notes()

    def name(self, file: pathlib.Path) -> str:
        """A file's name in messages: its path below the source."""
        return str(file if self.single else self.path / file.relative_to(self.root))

    def below(self, file: pathlib.Path) -> str:
        """A file's path below the root."""
        return utf8(file.relative_to(self.root).as_posix())

    def with_suffix(self, *suffixes: str) -> list[pathlib.Path]:
        """The files with one of these suffixes, in any case."""
        return [file for file in self.files if file.suffix.lower() in suffixes]


@contextlib.contextmanager
def opened(path: str | os.PathLike, leave_out: str | os.PathLike) -> Iterator[Source]:
    """Opens a file, a folder or a zip of labels; `leave_out` is a folder that does not belong to it.

    Raises InputError if there is none, or a zip is damaged.
    """
    path = pathlib.Path(path)
    check_regular(path)
    with tempfile.TemporaryDirectory(prefix="hrnet_jax_labels_") as folder:
        scratch = pathlib.Path(folder)
        try:
            if path.is_dir():
                yield Source(path, path, _below(path, pathlib.Path(leave_out), _MOST_FILES), scratch)
            elif not path.is_file():
                raise InputError(f"{path}: no such file or folder")
            elif path.suffix.lower() == ".zip":
                root = _unpacked(path, scratch / "zip")
                yield Source(path, root, _below(root, scratch / "none", _MOST_FILES), scratch)
            else:
                yield Source(path, path.parent, [path], scratch)
        except OSError as error:
            if error.filename is None:
                raise
            raise InputError(f"{error.filename}: {error.strerror}") from None


def split_of(*names: str) -> str:
    """The split named by the words in file names: train, val or test; the last one counts; "" if there is none."""
    parts = [part for name in names for part in re.split(r"[^a-z]+", name.lower())]
    return next((_SPLITS[part] for part in reversed(parts) if part in _SPLITS), "")


def read_text(source: Source, file: pathlib.Path) -> str:
    """A file's text: UTF-8, UTF-16 with a byte order mark, GB 18030 or Windows-1252."""
    check_regular(file)
    try:
        if file.stat().st_size > _MOST_TEXT:
            raise InputError(f"{source.name(file)}: too large for a file of labels ({file.stat().st_size} bytes)")
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"{source.name(file)}: {error.strerror}") from None
    for mark, encoding in (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if data.startswith(mark):
            try:
                return data.decode(encoding)
            except UnicodeDecodeError as error:
                raise InputError(f"{source.name(file)}: not text ({error.reason} at byte {error.start})") from None
    for encoding in ("utf-8", "gb18030", "cp1252"):
        with contextlib.suppress(UnicodeDecodeError):
            text = data.decode(encoding)
            if encoding == "gb18030" and not all(
                "\u3000" <= c <= "\u9fff" or c >= "\uff00" for c in text if c > "\x7f"
            ):
                continue  # European text decoded as GB 18030 gives other characters
            if encoding != "utf-8":
                source.notes.add(f"files are not UTF-8 and were read as {encoding}", source.name(file))
            return text
    raise InputError(f"{source.name(file)}: not text; save it as UTF-8")


def read_json(source: Source, file: pathlib.Path) -> Any:
    """Parses a JSON file. Raises InputError."""
    text = read_text(source, file)
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"{source.name(file)}: not JSON ({brief(str(error))}); export it again") from None
    except RecursionError:
        raise InputError(f"{source.name(file)}: not JSON that can be read (nested too deeply)") from None


def read_yaml(source: Source, file: pathlib.Path) -> Any:
    """Parses a YAML file. Raises InputError, also for aliases, which could stand for any amount of data."""
    text = read_text(source, file)
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise InputError(f"{source.name(file)}: uses YAML aliases (*); write the values out")
        return yaml.safe_load(text)
    except InputError:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark else ""
        reason = error.problem or error.context or "not YAML"
        raise InputError(f"{source.name(file)}{where}: not YAML ({brief(reason)}); correct that line") from None
    except (yaml.YAMLError, ValueError, TypeError, LookupError, OverflowError, AttributeError) as error:
        raise InputError(f"{source.name(file)}: not YAML ({brief(str(error))})") from None
    except RecursionError:
        raise InputError(f"{source.name(file)}: not YAML that can be read (nested too deeply)") from None


def clean(name: str) -> str:
    """The relative path in a name as tools write it, with backslashes, a drive, a host, a root or a query."""
    name = name.replace("\\", "/")
    if "?d=" in name:  # Label Studio's local files
        name = urllib.parse.unquote(name.partition("?d=")[2])
    if match := re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", name):
        name = urllib.parse.unquote(
            urllib.parse.urlsplit(name).path if match[0].startswith("http") else name[match.end() :]
        )
    name = ntpath.splitdrive(name)[1]
    return "/".join(part for part in name.split("/") if part not in ("", ".", ".."))


class ImageFinder:
    """Finds the image files that labels name, at any depth below some folders.

    Attributes:
      given: the folder that the user gave, if any.
      where: the folder or the source, for messages.
    """

    def __init__(self, source: Source, folder: str | os.PathLike, leave_out: pathlib.Path):
        """Searches the folder; if it is "", the source and the folders near it."""
        if folder and not pathlib.Path(folder).is_dir():
            raise InputError(f"{folder}: no such folder; --images takes the folder of the images")
        self._source, self._leave_out = source, leave_out
        self.given = pathlib.Path(folder) if folder else None
        self._index: dict[str, list[pathlib.Path]] | None = None
        self.where = str(folder or source.path)

    def find(self, names: Sequence[str], beside: pathlib.Path | None, split: str = "") -> pathlib.Path | None:
        """The file of an image.

        Args:
          names: its names in the labels, the preferred one first.
          beside: the file of labels that names it.
          split: of several files with its name, the one below a folder of this split is chosen.

        Raises:
          InputError: several files fit equally well.
        """
        roots = [self.given] if self.given else [*([beside.parent] if beside else []), self._source.root]
        for name in names:
            plain = name.replace("\\", "/")
            for root in roots:
                for candidate in (plain, clean(name), f"images/{clean(name)}"):
                    path = root / candidate
                    if is_image(path):
                        return path
        for name in names:
            if found := self._by_suffix(clean(name), split):
                return found
        return None

    def _by_suffix(self, name: str, split: str) -> pathlib.Path | None:
        """The file with the longest common end of the path; if none has the name, matched without suffix."""
        wanted = [part.lower() for part in name.split("/")]
        stem = pathlib.PurePosixPath(wanted[-1]).stem
        index = self._indexed()
        bare = re.sub(r"^[0-9a-f]{8}-", "", wanted[-1])  # Label Studio puts a number before the names of uploads
        for key in (
            wanted[-1],
            urllib.parse.unquote(wanted[-1]),
            bare,
            f"*{stem}",
            f"*{pathlib.PurePosixPath(bare).stem}",
        ):
            if not (found := index.get(key, [])):
                continue
            shared = [common_folders(wanted, [part.lower() for part in path.parts]) for path in found]
            best = [path for path, count in zip(found, shared, strict=True) if count == max(shared)]
            of_split = [path for path in best if split and split_of(path.parent.as_posix()) == split]
            best = of_split or best
            if len(best) > 1 and len({path.stat().st_size for path in best}) > 1:
                raise InputError(
                    f"{self.where}: {brief(name)} may be {best[0]} or {best[1]}; give the folder of the images: "
                    "--images FOLDER"
                )
            return best[0]
        return None

    def _indexed(self) -> dict[str, list[pathlib.Path]]:
        if self._index is None:
            self._index = {}
            for path in self._candidates():
                if path.suffix.lower() in IMAGE_SUFFIXES:
                    for key in (path.name.lower(), f"*{path.stem.lower()}"):
                        self._index.setdefault(key, []).append(path)
        return self._index

    def _candidates(self) -> list[pathlib.Path]:
        if self.given:
            return _below(self.given, self._leave_out, _MOST_FILES)
        if not self._source.single:
            return self._source.files
        root = self._source.root
        near = root.resolve().parent if root.name.lower() in ("annotations", "annotation", "labels", "json") else root
        try:
            return _below(near, self._leave_out, _MOST_NEARBY)
        except InputError:  # too many files: the folder may hold more than the export
            return [path for path in sorted(root.iterdir()) if path.is_file()]


def is_image(path: pathlib.Path) -> bool:
    """Whether a path is an image file, by its suffix; False also for what cannot be a path."""
    try:
        return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
    except (OSError, ValueError):  # cannot be a file's name
        return False


def common_folders(path: Sequence[str], other: Sequence[str]) -> int:
    """The number of equal folders before the names of two files, given the parts of their paths."""
    count = 0
    for a, b in zip(reversed(path[:-1]), reversed(other[:-1]), strict=False):
        if a != b:
            break
        count += 1
    return count


def _below(folder: pathlib.Path, leave_out: pathlib.Path, most: int) -> list[pathlib.Path]:
    """All files below a folder in order, without hidden ones. Raises InputError if there are too many."""
    found: list[pathlib.Path] = []
    for parent, folders, files in os.walk(folder):
        here = pathlib.Path(parent)
        folders[:] = sorted(f for f in folders if f[0] != "." and f != "__MACOSX" and not _same(here / f, leave_out))
        found += [here / file for file in sorted(files) if file[0] != "."]
        if len(found) > most:
            raise InputError(f"{folder}: holds more than {most} files; give the folder of the export itself")
    return found


def _same(path: pathlib.Path, other: pathlib.Path) -> bool:
    with contextlib.suppress(OSError):
        return path.samefile(other)
    return False


def _unpacked(path: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    try:
        with zipfile.ZipFile(path) as archive:
            needed = sum(info.file_size for info in archive.infolist())
            target.mkdir()
            if needed > storage.free_bytes(target):
                raise InputError(
                    f"{path}: needs {needed} bytes unpacked, more than the temporary folder has; unpack it"
                )
            for info in archive.infolist():
                if stat_is_file(info):
                    archive.extract(info, target)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, RuntimeError, NotImplementedError, EOFError, ValueError) as error:
        raise InputError(
            f"{path}: not a zip that can be unpacked ({brief(str(error))}); unpack it, and give the folder"
        ) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be unpacked ({error.strerror}); unpack it, and give the folder") from None
    return target


def stat_is_file(info: zipfile.ZipInfo) -> bool:
    """Whether a zip's member is a file, and no folder or link."""
    kind = info.external_attr >> 28  # of Unix's mode; 0 where there is none
    return not info.is_dir() and kind in (0, 8)


def copied(path: pathlib.Path, target: pathlib.Path, link: bool) -> bool:
    """Copies a file, or links it if `link` and the disk allow that; returns whether it is a hard link."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if link:
        with contextlib.suppress(OSError):
            os.link(path.resolve(), target)
            return True
    shutil.copyfile(path, target)
    return False
