"""tf.train.Example, the record of TensorFlow Datasets, by their own definition of it, without TensorFlow."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

_importing = threading.Lock()

Value = bytes | int | bool | np.ndarray


def encode_example(features: Mapping[str, Value]) -> bytes:
    """Serialises features: bytes, integers, and arrays of float32 or of integers, which lose their shape."""
    example = _message()()
    for key, value in features.items():
        feature = example.features.feature[key]
        if isinstance(value, bytes):
            feature.bytes_list.value.append(value)
            continue
        array = np.ravel(value)
        numbers = feature.float_list if array.dtype.kind == "f" else feature.int64_list
        numbers.SetInParent()  # tells the kind of an empty list
        numbers.value.extend((array if array.dtype.kind == "f" else array.astype(int)).tolist())
    return example.SerializeToString(deterministic=True)


def decode_example(record: bytes, keys: Collection[str]) -> dict[str, Any]:
    """Reads some features of an example: bytes, or a list of numbers. Raises ValueError when it is not well formed."""
    message = _message()
    from google.protobuf.message import DecodeError

    try:
        features = message.FromString(record).features.feature
    except DecodeError:
        raise ValueError("not an example") from None
    if missing := sorted(key for key in keys if key not in features):
        raise ValueError(f"an example without {', '.join(missing)}")
    return {key: _values(features[key]) for key in keys}


def _values(feature: Any) -> bytes | list[int] | list[float]:
    kind = feature.WhichOneof("kind")
    values: Any = getattr(feature, kind).value if kind else []
    if kind != "bytes_list":
        return list(values)
    if len(values) != 1:
        raise ValueError("not an example of ours")
    return values[0]


def _message() -> Any:
    # The import takes a second and 50 MB, which training from image files should not pay. Two of the loader's threads
    # that begin it together may wait for each other for ever, because its lazy imports hold a lock of their own.
    with _importing:
        from tensorflow_datasets.proto import tf_example_generated_pb2
    return tf_example_generated_pb2.Example
