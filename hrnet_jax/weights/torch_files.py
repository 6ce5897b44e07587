"""Converts PyTorch checkpoint files to NumPy arrays without PyTorch, and back.

A `.pth` file is a pickle, and unpickling can run arbitrary code. Here it runs none: every global named in the pickle
becomes a `Symbol`, which only stores its arguments. Tensors are rebuilt from the few symbols that describe them; a
state dict that needs any other is refused. Entries beside the state dict (`meta` with NumPy and mmengine objects) are
ignored.
"""

from __future__ import annotations

import io
import math
import os
import pathlib
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from data_pipelines import storage
from data_pipelines.checks import check_regular
from data_pipelines.errors import InputError, extra, first_line

Tensors = dict[str, np.ndarray]

# The first pickle in a file of the format before PyTorch 1.6.
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
# Of files that hold PyTorch weights.
WRITABLE = (".pth", ".pt", ".safetensors")
SUFFIXES = (*WRITABLE, ".bin", ".tar")
MIN_TORCH = (2, 10)  # as in the extra `torch` in setup.cfg, which gives the reason

_STATE_DICT = "state_dict"
_DTYPES = {
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.ShortStorage": np.dtype("<i2"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.BoolStorage": np.dtype("?"),
}
_REBUILD = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")
_PARAMETER = "torch._utils._rebuild_parameter"


def read(path: str | os.PathLike, entry: str = _STATE_DICT) -> Tensors:
    """Reads a state dict from a `.safetensors` file or a `torch.save` file, current or from before PyTorch 1.6.

    Args:
      path: the file.
      entry: the entry of a pickled file to read. If it is missing, the result is empty, except that a file without
        `state_dict` is itself read as a state dict.

    Returns:
      The arrays by their names in the file, in the file's order and PyTorch's layouts.

    Raises:
      InputError: the file is missing, truncated or of another format, has no state dict, or needs code to load.
    """
    path = pathlib.Path(path)
    check_regular(path)
    try:
        with open(path, "rb") as file:
            start = file.read(16)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    if path.suffix == ".safetensors":
        return _read_safetensors(path) if entry == _STATE_DICT else {}
    if not start:
        raise InputError(f"{path}: is empty")
    # A single wrong byte can raise any exception while unpickling; all of them mean a damaged file.
    try:
        if start.startswith(b"PK"):
            return _read_zip(path, entry)
        if start.startswith(b"\x80") and struct.pack("<Q", LEGACY_MAGIC & 0xFFFFFFFFFFFFFFFF) in start:
            return _read_legacy(path, entry)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path}: damaged or truncated ({_line(error)})") from None
    if start.startswith(b"\x80"):
        raise InputError(f"{path}: a pickle not written by torch.save; it is not loaded, because that runs its code")
    raise InputError(
        f"{path}: of unknown format; a .safetensors or torch.save file is needed (save a tar archive of PyTorch 0.1 "
        "again with a newer PyTorch)"
    )


def _read_safetensors(path: str | os.PathLike) -> Tensors:
    """Reads a `.safetensors` file that exists. Raises InputError if it is damaged or truncated."""
    try:
        return load_file(path)
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise InputError(f"{path}: damaged or truncated .safetensors file ({_line(error)})") from None


def check_writable(path: str | os.PathLike) -> None:
    """Raises InputError unless `write` can write this file: known suffix, and PyTorch installed if needed."""
    storage.check_output(path)
    suffix = pathlib.PurePath(path).suffix
    if suffix not in WRITABLE:
        raise InputError(f"{os.fspath(path)}: the name must end in .pth, .pt or .safetensors")
    if suffix != ".safetensors":
        _torch(path)


def write(path: str | os.PathLike, tensors: Mapping[str, np.ndarray], nested: bool = False) -> None:
    """Writes a state dict atomically (`storage.whole`).

    Args:
      path: ends in `.safetensors`, or in `.pth` or `.pt`, which need PyTorch.
      tensors: arrays by name, in PyTorch's layouts.
      nested: pickles a dict of `state_dict` and `meta`, as MMPose does.

    Raises:
      InputError: the suffix is unknown, the path cannot be written, or PyTorch is missing or older than 2.10.
    """
    check_writable(path)
    tensors = {name: np.array(array, order="C") for name, array in tensors.items()}
    with storage.whole(path) as partial:
        if partial.suffix == ".safetensors":
            partial.write_bytes(save(tensors, {"format": "pt"}))
        else:
            torch = _torch(partial)
            state = {name: torch.from_numpy(array) for name, array in tensors.items()}
            torch.save({"meta": {}, "state_dict": state} if nested else state, partial)


def _torch(path: str | os.PathLike) -> Any:
    try:
        import torch
    except ImportError:
        raise InputError(f"{path}: writing it needs PyTorch: {extra('torch')}; or choose a .safetensors file") from None
    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if version < MIN_TORCH:
        raise InputError(
            f"{path}: PyTorch {torch.__version__} is installed, but writing needs 2.10 or newer: {extra('torch')}"
        )
    return torch


class Symbol:
    """A global of a pickle; its instances are calls of it. It stores the arguments and runs nothing.

    The unpickler makes one subclass per global and file. Calling, building, extending and filling it has no effect.
    """

    name = ""
    args: tuple[Any, ...] = ()

    def __new__(cls, *args: Any, **unused: Any) -> Symbol:  # noqa: D102
        symbol = object.__new__(cls)
        symbol.args = args
        return symbol

    def __call__(self, *unused: Any) -> Symbol:  # noqa: D102
        return self

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, value: Any) -> None:
        """Does nothing; unpickling a list calls it."""

    def extend(self, values: Any) -> None:
        """Does nothing; unpickling a list calls it."""

    def add(self, value: Any) -> None:
        """Does nothing; unpickling a set calls it."""


class OrderedDict(dict):
    """Replaces `collections.OrderedDict`; attributes set by a pickle (`_metadata`) are dropped."""

    def __setstate__(self, state: Any) -> None: ...


class Storage(NamedTuple):
    """A reference to raw numbers in the file: the kind of storage, its key and the number of elements."""

    kind: str
    key: str
    size: int


class _Unpickler(pickle.Unpickler):
    """Turns globals into symbols; nothing outside this module can be reached."""

    def __init__(self, path: pathlib.Path, file: io.BufferedIOBase):
        super().__init__(file, encoding="utf-8", errors="replace")
        self._path = path
        self._symbols: dict[str, type] = {}
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full == "collections.OrderedDict":
            return OrderedDict
        if full not in self._symbols:
            self._symbols[full] = type("Symbol", (Symbol,), {"name": full})
        return self._symbols[full]

    def persistent_load(self, pid: Any) -> Storage:
        _, kind, key, _, count, *view = pid
        if any(view):
            raise InputError(f"{self._path}: has views of storages; save it again with a newer PyTorch")
        self.storages[str(key)] = storage = Storage(kind.name, str(key), int(count))
        return storage


def _read_zip(path: pathlib.Path, entry: str) -> Tensors:
    with zipfile.ZipFile(path) as file:
        pickles = [name for name in file.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise InputError(f"{path}: a zip archive, but not one that torch.save wrote (it has no data.pkl)")
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in file.namelist() and file.read(f"{folder}byteorder") != b"little":
            raise InputError(f"{path}: written on a big-endian machine; save it again on a little-endian one")
        content = _Unpickler(path, io.BytesIO(file.read(pickles[0]))).load()
        return _rebuild(path, content, entry, lambda storage: file.read(f"{folder}data/{storage.key}"))


def _read_legacy(path: pathlib.Path, entry: str) -> Tensors:
    """Reads magic number, protocol, system, content and keys as pickles, then each storage's count and numbers."""
    with open(path, "rb") as file:
        for _ in range(3):
            _Unpickler(path, file).load()
        unpickler = _Unpickler(path, file)
        content = unpickler.load()
        raw: dict[str, bytes] = {}
        for key in _Unpickler(path, file).load():
            (count,) = struct.unpack("<q", file.read(8))
            storage = unpickler.storages[key]
            if count != storage.size:
                raise ValueError(f"storage {key} has {count} numbers, not {storage.size}")
            raw[key] = file.read(count * _dtype(path, storage).itemsize)
    return _rebuild(path, content, entry, lambda storage: raw[storage.key])


def _rebuild(path: pathlib.Path, content: Any, entry: str, read_storage: Callable[[Storage], bytes]) -> Tensors:
    """Builds the arrays of a pickle's state dict."""
    inner = content.get(entry) if isinstance(content, dict) else None
    if inner is not None:
        content = inner
    elif entry != _STATE_DICT:
        return {}
    if isinstance(content, Symbol):
        raise InputError(f"{path}: loading it would run {content.name}; a file that needs code is refused")
    if not isinstance(content, dict) or not content or not all(isinstance(name, str) for name in content):
        raise InputError(f"{path}: holds no state dict (a dict of names and tensors)")

    arrays: dict[Storage, np.ndarray] = {}

    def storage_of(storage: Storage) -> np.ndarray:
        if storage not in arrays:
            dtype, data = _dtype(path, storage), read_storage(storage)
            if len(data) != storage.size * dtype.itemsize:
                raise ValueError(f"storage {storage.key} has {len(data)} bytes, not {storage.size * dtype.itemsize}")
            arrays[storage] = np.frombuffer(data, dtype)
        return arrays[storage]

    tensors = {}
    for name, value in content.items():
        if isinstance(value, Symbol) and value.name == _PARAMETER:
            value = value.args[0]
        if not isinstance(value, Symbol):
            raise InputError(f"{path}: {name!r} is not a tensor but {type(value).__name__}")
        if value.name not in _REBUILD or not isinstance(value.args[0], Storage):
            code = value.name if value.name not in _REBUILD else getattr(value.args[0], "name", "something else")
            raise InputError(f"{path}: loading {name!r} would run {code}; a file that needs code is refused")
        storage, offset, shape, strides = value.args[:4]
        tensors[name] = _view(storage_of(storage), offset, shape, strides)
    return tensors


def _view(numbers: np.ndarray, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
    """A strided view of a tensor in its storage. Raises ValueError if it is not within the storage."""
    ends = [(size - 1) * stride for size, stride in zip(shape, strides, strict=True)]
    if min((offset, *shape, *strides)) < 0 or math.prod(shape) > numbers.size:
        raise ValueError(f"a tensor {shape} with strides {strides} does not fit a storage of {numbers.size}")
    if math.prod(shape) and offset + sum(ends) >= numbers.size:
        raise ValueError(f"a tensor {shape} at {offset} ends beyond its storage of {numbers.size}")
    bytes_ = [stride * numbers.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(numbers[offset:], shape, bytes_, writeable=False)


def _dtype(path: pathlib.Path, storage: Storage) -> np.dtype:
    if storage.kind not in _DTYPES:
        raise InputError(f"{path}: holds a {storage.kind}, which is not a supported number type")
    return _DTYPES[storage.kind]


def _line(error: Exception) -> str:
    name = type(error).__name__
    return f"{name}: {first_line(error)}" if str(error).strip() else name
