"""Reads and writes tf.train.Example, the record format of TensorFlow Datasets, without TensorFlow or TFDS.

Every worker process reads records; importing TFDS there would cost a second and 50 MB. The message is

    message Example   { Features features = 1; }
    message Features  { map<string, Feature> feature = 1; }
    message Feature   { oneof kind { BytesList bytes_list = 1; FloatList float_list = 2; Int64List int64_list = 3; } }

where each list is a repeated field 1. Encoding is deterministic, which protobuf does not guarantee.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

Value = bytes | int | bool | np.ndarray

_BYTES, _FLOATS, _INTEGERS = 1, 2, 3
_INT64 = 2**64 - 1


def encode_example(features: Mapping[str, Value]) -> bytes:
    """Serialises features: bytes, integers, and arrays of float32 or integers, which are flattened."""
    entries = [_field(1, _field(1, key.encode()) + _field(2, _feature(features[key]))) for key in sorted(features)]
    return _field(1, b"".join(entries))


def decode_example(record: bytes, keys: Collection[str]) -> dict[str, Any]:
    """Reads some features of an example as bytes or lists of numbers. Raises ValueError if it is malformed."""
    wanted = {key.encode(): key for key in keys}
    features: dict[str, Any] = {}
    try:
        ((_, start, stop),) = _fields(record, 0, len(record))
        for _, entry, entry_end in _fields(record, start, stop):
            (_, a, b), (_, c, d) = _fields(record, entry, entry_end)
            if key := wanted.get(record[a:b]):
                ((kind, c, d),) = _fields(record, c, d)
                features[key] = _values(record, kind, c, d)
    except (IndexError, ValueError):
        raise ValueError("not an example") from None
    if missing := sorted(set(keys) - set(features)):
        raise ValueError(f"an example without {', '.join(missing)}")
    return features


def _feature(value: Value) -> bytes:
    if isinstance(value, bytes):
        return _field(_BYTES, _field(1, value))
    array = np.ravel(value)
    if array.dtype.kind == "f":
        return _field(_FLOATS, _field(1, array.astype("<f4").tobytes()))
    return _field(_INTEGERS, _field(1, b"".join(_varint(number & _INT64) for number in array.astype(int).tolist())))


def _values(record: bytes, kind: int, start: int, stop: int) -> bytes | list[int] | list[float]:
    values = [(a, b) for _, a, b in _fields(record, start, stop)]
    if kind == _BYTES:
        ((a, b),) = values
        return record[a:b]
    if kind == _FLOATS:
        return [x for a, b in values for x in np.frombuffer(record[a:b], "<f4").tolist()]
    return [x for a, b in values for x in _integers(record, a, b)]


def _integers(record: bytes, at: int, stop: int) -> Iterator[int]:
    while at < stop:
        value, at = _read_varint(record, at)
        yield value - (value >> 63 << 64)


def _field(number: int, payload: bytes) -> bytes:
    """A field of wire type 2, the only type in an example."""
    return b"".join([bytes([number << 3 | 2]), _varint(len(payload)), payload])


def _fields(record: bytes, at: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Yields the fields of a message at record[at:stop]: field number, start and end of the payload."""
    while at < stop:
        tag = record[at]
        length, start = _read_varint(record, at + 1)
        at = start + length
        if tag & 7 != 2 or at > stop:
            raise ValueError
        yield tag >> 3, start, at


def _varint(value: int) -> bytes:
    groups = bytearray()
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def _read_varint(record: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while (byte := record[at]) > 127:
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
    return value | byte << shift, at + 1
