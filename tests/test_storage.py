"""Files appear whole or not at all."""

import errno
import io
import os

import pytest

from data_pipelines import storage
from data_pipelines.errors import InputError


def test_a_file_is_replaced_at_once(tmp_path):
    target = tmp_path / "new folder" / "a.json"
    storage.write(target, "old")
    with storage.whole(target) as partial:
        partial.write_text("new")
        assert target.read_text() == "old"
        assert partial.suffix == ".json"
    assert target.read_text() == "new"
    assert os.listdir(target.parent) == ["a.json"]


def test_an_error_leaves_what_was_there(tmp_path):
    target = tmp_path / "a.txt"
    storage.write(target, "old")
    with pytest.raises(RuntimeError, match="mine"), storage.whole(target) as partial:  # noqa: PT012
        partial.write_text("half")
        raise RuntimeError("mine")
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_folder_appears_with_all_in_it(tmp_path):
    target = tmp_path / "folder"
    with storage.whole(target) as partial:
        (partial / "below").mkdir(parents=True)
        (partial / "below/a").write_text("a")
        assert not target.exists()
    assert (target / "below/a").read_text() == "a"
    with pytest.raises(InputError, match=r"folder: cannot be written \(Directory not empty\)"):  # noqa: SIM117
        with storage.whole(target) as partial:
            partial.mkdir()
    assert os.listdir(tmp_path) == ["folder"]


@pytest.mark.parametrize("name", ["file/below", "x" * 300, "x" * 300 + "/below"])
def test_impossible_places_are_one_line(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written") as error:
        storage.write(tmp_path / name, "content")
    assert str(error.value).startswith(str(tmp_path / name))


@pytest.mark.parametrize("name", ["x" * 250 + ".json", "人" * 80 + ".json", "a." + "人" * 80])
def test_long_names_can_be_written(tmp_path, name):
    target = tmp_path / name
    storage.write(target, "content")
    assert target.read_text() == "content"


@pytest.mark.parametrize("text", ["RuntimeError: write failed: No space left on device", "IoError(Input/output error)"])
def test_what_libraries_say_of_a_disk_is_told(tmp_path, text):
    with pytest.raises(InputError, match=r"a: cannot be written \((No space left on device|Input/output error)\)$"):  # noqa: SIM117
        with storage.whole(tmp_path / "a"):
            raise ValueError(text)


def test_other_errors_stay(tmp_path):
    with pytest.raises(ValueError, match="not the disk's"), storage.whole(tmp_path / "a"):
        raise ValueError("not the disk's")


def test_a_line_is_added_whole_or_not_at_all(tmp_path, monkeypatch):
    target = tmp_path / "lines"
    storage.append(target, "first")

    class Full(io.FileIO):
        def write(self, content):
            super().write(content[:3])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(storage, "open", lambda path, mode, buffering: Full(path, mode), raising=False)
        with pytest.raises(InputError, match=r"lines: cannot be written \(No space left on device\)"):
            storage.append(target, "second")
    storage.append(target, "third")
    assert target.read_text() == "first\nthird\n"
