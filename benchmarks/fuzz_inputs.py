"""Mutations of valid inputs for benchmarks/fuzz.py; each is drawn by a `random.Random`."""

from __future__ import annotations

import copy
import json
import random
import struct
import zlib
from typing import Any

import cv2
import numpy as np
from ml_collections import ConfigDict

Rng = random.Random

_DEEP = "DEEPLY NESTED"  # stands for what json.dumps itself could not write

_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 255, 2**31, -(2**31) - 1, 2**63, -(2**63) - 1, 10**30, 10**400),
    *(0.5, -0.5, 1e-320, 1e308, -1e308, float("nan"), float("inf"), float("-inf")),
    *(
        "",
        " ",
        "x",
        "1",
        "nan",
        "coco",
        "\0",
        "a\0b",
        "\ud800",
        "\u202e",
        "é" * 300,
        "x" * 100_000,
        "%s{0}",
        "line\nline",
    ),
    *("../../../../etc/passwd", "/etc/passwd", "a/../../b.jpg", "..", ".", "~/x", "gs://bucket/x", "C:\\x", "x" * 300),
    *(
        [],
        {},
        [[]],
        [None],
        [{}],
        {"": None},
        [1, "a"],
        [[1, 2], [3]],
        [float("nan")] * 51,
        [1e308] * 51,
        [0] * 100_000,
    ),
    *({"id": 1}, {"a.b": 1}, {"update": 1, "keys": 2}, {"__class__": "x"}, _DEEP),
)


def mutated_bytes(rng: Rng, data: bytes) -> bytes:
    """Bytes cut, flipped, removed, inserted, replaced, doubled, in another encoding, or none."""
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        b = min(b, a + rng.choice([1, 4, 64, 4096, len(data)]))
        match rng.randrange(11):
            case 0 | 1:
                data = data[:a]
            case 2 | 3 | 4:
                flipped = bytearray(data)
                for _ in range(rng.choice([1, 8, 64]) if data else 0):
                    # The header decides more than the rest.
                    end = len(data) if rng.random() < 0.6 else min(64, len(data))
                    flipped[rng.randrange(end)] ^= 1 << rng.randrange(8)
                data = bytes(flipped)
            case 5:
                data = data[:a] + data[b:]
            case 6:
                data = data[:a] + rng.randbytes(b - a) + data[b:]
            case 7:
                data = (
                    data[:a]
                    + rng.choice([b"\0", b"\xff", b"[", b'"', b"{", b"-", b"9", b"\r\n"]) * rng.choice([1, 9, 999])
                    + data[a:]
                )
            case 8:
                data = data[:a] + bytes(b - a) + data[b:]
            case 9:
                data = rng.choice([data * 2, b"\xef\xbb\xbf" + data, data.decode("latin-1").encode("utf-16")])
            case 10:
                data = rng.choice(
                    [b"", b"\0", rng.randbytes(200), b"[" * 200_000, b"null", b"0", b'"', b"{}", b"[]", b"[1]", b"[{}]"]
                )
    return data


def mutated_json(rng: Rng, data: bytes) -> bytes:
    """JSON with a few values replaced, gone, doubled, moved or renamed."""
    content = json.loads(data)
    for _ in range(rng.choice([1, 1, 2, 4])):
        parent, key = _place(rng, content)
        if parent is None:
            continue
        match rng.randrange(8):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, list):
                parent.insert(rng.randrange(len(parent) + 1), copy.deepcopy(parent[key]))
            case 2 if isinstance(parent, dict):
                parent[str(rng.choice(_VALUES))[:400]] = parent.pop(key)
            case 3:
                other, place = _place(rng, content)
                if other is not None:
                    parent[key] = copy.deepcopy(other[place])
            case _:
                parent[key] = copy.deepcopy(rng.choice(_VALUES))
    depth = rng.choice([50, 900, 100_000])
    opened, closed = rng.choice([("[", "]"), ('{"a":', "}")])
    text = json.dumps(content).replace(f'"{_DEEP}"', opened * depth + "0" + closed * depth)
    if rng.random() < 0.05:
        text = text.replace(rng.choice("[{,:"), rng.choice(["", "[", ",,"]), 1)
    return text.encode(rng.choice(["utf-8"] * 9 + ["utf-16"]))


def _place(rng: Rng, content: Any) -> tuple[Any, Any]:
    """A random container and key of it, near the root or far."""
    parent, key = None, None
    while isinstance(content, (dict, list)) and content and (parent is None or rng.random() < 0.8):
        parent, key = content, rng.choice(list(content) if isinstance(content, dict) else range(len(content)))
        content = content[key]
    return parent, key


def encoded(rng: Rng, picture: np.ndarray) -> bytes:
    """A picture as a file of some format."""
    shape = rng.choice([picture, picture[:, :, 0], picture[:1], picture[:, :1], picture[:7, :5]])
    done, data = cv2.imencode(rng.choice([".jpg", ".png", ".webp", ".bmp", ".tiff", ".pnm"]), shape)
    assert done
    return data.tobytes()


def mutated_image(rng: Rng, data: bytes) -> bytes:
    """An image file with damage, or one that claims another size."""
    if data.startswith(b"\x89PNG") and rng.random() < 0.4:
        sizes = [rng.choice([0, 1, 7, 100, 7000, 65_535, 2**31 - 1, 2**32 - 1]) for _ in range(2)]
        head = b"IHDR" + struct.pack(">II", *sizes) + data[24:29]
        return data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:]
    if data.startswith(b"BM") and rng.random() < 0.4:
        return (
            data[:18]
            + struct.pack("<ii", rng.choice([-1, 7, 60_000, 2**31 - 1]), rng.choice([-9, 3, 2**30]))
            + data[26:]
        )
    if data.startswith(b"P6") and rng.random() < 0.4:
        return b"P6\n%d %d\n%d\n" % tuple(rng.choice([0, 1, 300, 50_000, 10**12]) for _ in range(3)) + data[15:]
    return mutated_bytes(rng, data)


def strange_array(rng: Rng) -> Any:
    """What may stand where an image should."""
    shapes: list[tuple[int, ...]] = [
        (),
        (0,),
        (5,),
        (4, 4),
        (4, 4, 3),
        (4, 4, 4),
        (0, 4, 3),
        (1, 1, 3),
        (2, 4, 4, 3),
        (4, 4, 1),
    ]
    dtypes = [np.uint8, np.float32, np.float64, np.int64, bool, complex, object]
    arrays = [
        np.zeros(rng.choice(shapes), rng.choice(dtypes)),
        np.full((5, 6, 3), np.nan),
        np.zeros((3, 9_000, 3), np.uint8),
    ]
    return rng.choice([*arrays, None, 5, b"bytes", "", "a\0b", [], [[]], [None], [[1, 2], [3]], {}, {"a": 1}, object()])


def strange_boxes(rng: Rng) -> Any:
    """What may stand where a table of boxes should."""
    numbers = [
        0.0,
        1.0,
        -1.0,
        5,
        30,
        59.5,
        79,
        80,
        1e-9,
        1e-300,
        1e5,
        1e6,
        1e7,
        1e38,
        1e39,
        1e308,
        float("nan"),
        float("inf"),
        -1e38,
    ]
    table: list[Any] = [[rng.choice(numbers) for _ in range(4)] for _ in range(rng.choice([1, 1, 2, 5]))]
    if rng.random() < 0.4:
        table[0][:2] = [rng.uniform(-90, 90), rng.uniform(-90, 90)]
        table[0][2:] = [10 ** rng.uniform(-8, 7), 10 ** rng.uniform(-8, 7)]
    match rng.randrange(8):
        case 0:
            row = rng.randrange(len(table))
            table[row] = rng.choice(
                [
                    [],
                    [1, 2, 3],
                    [1, 2, 3, 4, 5],
                    None,
                    "1234",
                    {},
                    [None] * 4,
                    ["1"] * 4,
                    [[1]] * 4,
                    [1j] * 4,
                    [10**400] * 4,
                ]
            )
        case 1:
            return rng.choice(
                [
                    0,
                    1.5,
                    "x",
                    "",
                    b"",
                    {},
                    {"a": 1},
                    object(),
                    [[[1, 2, 3, 4]]],
                    [1, 2, 3, 4],
                    np.zeros((2, 5)),
                    np.zeros((0, 4)),
                    (),
                ]
            )
        case 2:
            with np.errstate(over="ignore"):
                return np.array(table).astype(rng.choice(["float16", "float32", "float64", "U8"]))
    return table


def strange_flags(rng: Rng, config: ConfigDict) -> list[str]:
    """Flags that override a config's keys with anything."""
    keys = [key for key, _ in _leaves("config", config)]
    arguments = []
    for _ in range(rng.choice([1, 1, 2, 3])):
        key = rng.choice(keys)
        match rng.randrange(8):
            case 0:
                key = rng.choice(
                    [
                        key + ".x",
                        key[:-1],
                        key.rpartition(".")[0],
                        "config",
                        "config.",
                        "confg",
                        "",
                        "config..x",
                        "draw",
                        "nodraw",
                        "help",
                    ]
                )
            case 1:
                key = mutated_bytes(rng, key.encode()).decode("latin-1")[:500]
        value = rng.choice(_VALUES)
        text = value if isinstance(value, str) else repr(value)[:1000]
        texts = [
            text,
            text,
            "(1, 2)",
            "(96, 96)",
            "32,32",
            "(99999968, 96)",
            "(",
            "[1",
            "1e9",
            "0x10",
            "__import__('os')",
            "None",
            "true",
        ]
        argument = f"--{key}={rng.choice(texts)}"
        arguments.append(
            rng.choice([argument] * 8 + [argument.partition("=")[0], argument.lstrip("-")]).replace("\0", "0")
        )
    return arguments


def _leaves(name: str, value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, ConfigDict):
        return [(name, value)]
    return [leaf for key, part in value.items() for leaf in _leaves(f"{name}.{key}", part)]
