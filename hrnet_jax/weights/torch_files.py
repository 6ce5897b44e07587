"""PyTorch checkpoint files -> NumPy arrays without PyTorch, and back.

A `.pth` file is a pickle, and unpickling runs whatever the file says. Here it runs nothing: every global that the
pickle names becomes a `Symbol` that only remembers what it was called with. Tensors are then rebuilt from the few
symbols that describe them; a state dict that needs any other is refused. What stands beside the state dict
(`meta` with its NumPy and mmengine objects) is never looked at.
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
from data_pipelines.errors import InputError

Tensors = dict[str, np.ndarray]

# The first pickle of a file in the format before PyTorch 1.6.
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
MIN_TORCH = (2, 10)  # as the extra `torch` in setup.cfg, which says why

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
    """Reads a state dict: a `.safetensors` file, or what `torch.save` wrote, of today or from before PyTorch 1.6.

    Args:
      path: the file.
      entry: of a pickled file's content. Nothing is found where it is missing, except that a file without the entry
        `state_dict` is one as a whole.

    Returns:
      The arrays by the file's own names, in its order and PyTorch's layouts.

    Raises:
      InputError: the file is missing, truncated or of another format, holds no state dict, or needs code to load.
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
        return read_safetensors(path) if entry == _STATE_DICT else {}
    if not start:
        raise InputError(f"{path}: is empty")
    # A stray byte can break a pickle in any way; whatever it is, the file is to blame.
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
        raise InputError(f"{path}: a pickle that torch.save did not write; it is not loaded, since that runs its code")
    raise InputError(
        f"{path}: of unknown format; a .safetensors file or one that torch.save wrote is needed (a tar archive of "
        "PyTorch 0.1 must be saved again)"
    )


def read_safetensors(path: str | os.PathLike) -> Tensors:
    """Reads a `.safetensors` file. Raises InputError when it is missing, damaged or truncated."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not a whole .safetensors file ({_line(error)})") from None


def check_writable(path: str | os.PathLike) -> None:
    """Raises InputError unless `write` can make such a file: of a known suffix and with what it takes installed."""
    storage.check_output(path)
    suffix = pathlib.PurePath(path).suffix
    if suffix not in (".safetensors", ".pth", ".pt"):
        raise InputError(f"{os.fspath(path)}: the name must end in .pth, .pt or .safetensors")
    if suffix != ".safetensors":
        _torch(path)


def write(path: str | os.PathLike, tensors: Mapping[str, np.ndarray], nested: bool = False) -> None:
    """Writes a state dict, as `storage.whole` does.

    Args:
      path: ends in `.safetensors`, or in `.pth` or `.pt`, which takes PyTorch.
      tensors: arrays by name, in PyTorch's layouts.
      nested: puts a pickled state dict beside a `meta`, as MMPose does.

    Raises:
      InputError: for another suffix, a place that cannot be written, or when PyTorch is missing or older than 2.10.
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
        raise InputError(
            f"{path}: writing it takes PyTorch: pip install hrnet-jax[torch]; or take .safetensors"
        ) from None
    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if version < MIN_TORCH:
        raise InputError(
            f"{path}: PyTorch {torch.__version__} is installed, writing takes 2.10 or newer: "
            "pip install -U hrnet-jax[torch]"
        )
    return torch


class Symbol:
    """A global of a pickle, and as its instances the calls of it: inert, remembering the arguments.

    The unpickler makes one subclass a global and file. It can be called, built, extended and filled; nothing happens.
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
        """Does nothing, as for a list's items."""

    def extend(self, values: Any) -> None:
        """Does nothing, as for a list's items."""

    def add(self, value: Any) -> None:
        """Does nothing, as for a set's items."""


class OrderedDict(dict):
    """What `collections.OrderedDict` becomes; the attributes that a pickle sets (`_metadata`) are dropped."""

    def __setstate__(self, state: Any) -> None: ...


class Storage(NamedTuple):
    """A reference to the file's raw numbers: the kind of storage, its key, and how many there are."""

    kind: str
    key: str
    size: int


class _Unpickler(pickle.Unpickler):
    """Turns globals into symbols; nothing from outside of this module can be reached."""

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
            raise InputError(f"{self._path}: holds views of storages; save it again with a newer PyTorch")
        self.storages[str(key)] = storage = Storage(kind.name, str(key), int(count))
        return storage


def _read_zip(path: pathlib.Path, entry: str) -> Tensors:
    with zipfile.ZipFile(path) as file:
        pickles = [name for name in file.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise InputError(f"{path}: a zip archive, but none that torch.save wrote (it has no data.pkl)")
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in file.namelist() and file.read(f"{folder}byteorder") != b"little":
            raise InputError(f"{path}: written on a big-endian machine; save it again on another")
        content = _Unpickler(path, io.BytesIO(file.read(pickles[0]))).load()
        return _rebuild(path, content, entry, lambda storage: file.read(f"{folder}data/{storage.key}"))


def _read_legacy(path: pathlib.Path, entry: str) -> Tensors:
    """Magic number, protocol, system, content and keys as pickles, then every storage: its count and its numbers."""
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
        raise InputError(f"{path}: {content.name} would have to run to load it; a file that needs code is refused")
    if not isinstance(content, dict) or not content or not all(isinstance(name, str) for name in content):
        raise InputError(f"{path}: holds no state dict (names -> tensors)")

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
            raise InputError(f"{path}: {name!r} is no tensor but {type(value).__name__}")
        if value.name not in _REBUILD or not isinstance(value.args[0], Storage):
            code = value.name if value.name not in _REBUILD else getattr(value.args[0], "name", "something else")
            raise InputError(f"{path}: {name!r} needs {code} to load; a file that needs code is refused")
        storage, offset, shape, strides = value.args[:4]
        tensors[name] = _view(storage_of(storage), offset, shape, strides)
    return tensors


def _view(numbers: np.ndarray, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
    """The strided tensor in a storage. Raises ValueError when it is not within."""
    ends = [(size - 1) * stride for size, stride in zip(shape, strides, strict=True)]
    if min((offset, *shape, *strides)) < 0 or math.prod(shape) > numbers.size:
        raise ValueError(f"a tensor {shape} with strides {strides} does not fit a storage of {numbers.size}")
    if math.prod(shape) and offset + sum(ends) >= numbers.size:
        raise ValueError(f"a tensor {shape} at {offset} ends beyond its storage of {numbers.size}")
    bytes_ = [stride * numbers.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(numbers[offset:], shape, bytes_, writeable=False)


def _dtype(path: pathlib.Path, storage: Storage) -> np.dtype:
    if storage.kind not in _DTYPES:
        raise InputError(f"{path}: holds a {storage.kind}, which is not a kind of numbers that weights have")
    return _DTYPES[storage.kind]


def _line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:200]}" if text else type(error).__name__
