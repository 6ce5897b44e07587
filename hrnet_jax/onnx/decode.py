"""The codecs' decoders as ONNX nodes: `hrnet_jax.codecs` again, for heatmaps [batch, maps, height, width].

Positions and scores are [batch, keypoints, 1] here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from data_pipelines.errors import InputError
from hrnet_jax.codecs import Codec, Dark, Msra, Udp, UdpCombined
from hrnet_jax.codecs.base import STRIDE
from hrnet_jax.codecs.heatmaps import blur_matrix
from hrnet_jax.codecs.msra import DARK_FLOOR, DARK_OFFSETS, dark_derivatives
from hrnet_jax.codecs.udp import LABEL, LABEL_BLUR_KERNEL, UDP_OFFSETS, UDP_RANGE, X, Y, udp_derivatives
from hrnet_jax.onnx.graph import Graph, Value


class Peak(NamedTuple):
    """Each map's maximum: its cell (x, y), int64, and its value, float32."""

    x: Value
    y: Value
    score: Value


def flip_back(graph: Graph, codec: Codec, heatmaps: Value, flip_indices: np.ndarray) -> Value:
    """See `Codec.flip_back`.

    It only moves values and changes signs, in the same way in every row. How is read from a row of different numbers.
    """
    width, channels = codec.heatmap_size[1], codec.channels(len(flip_indices))
    numbers = jnp.arange(1, 1 + width * channels, dtype=jnp.float32).reshape(1, 1, width, channels)
    moved = np.asarray(codec.flip_back(numbers, flip_indices))[0, 0]
    column, channel = np.divmod(abs(moved).astype(np.int64) - 1, channels)
    flipped = graph.add("Gather", graph.add("Gather", heatmaps, column[:, 0], axis=3), channel[0], axis=1)
    sign = np.sign(moved[0])
    return flipped if (sign > 0).all() else flipped * sign[:, None, None]


def decode(graph: Graph, codec: Codec, heatmaps: Value) -> tuple[Value, Value]:
    """Adds the codec's `decode`.

    Args:
      graph: gets the nodes.
      codec: one of this project's.
      heatmaps: float32 [batch, maps, height, width], of the codec's size.

    Returns:
      keypoints [batch, keypoints, 2], (x, y) in crop pixels; scores [batch, keypoints].

    Raises:
      InputError: for a codec that is not in `DECODERS`.
    """
    if type(codec) not in DECODERS:
        raise InputError(f"codec {type(codec).__name__}: ONNX has no decoder for it (hrnet_jax/onnx/decode.py)")
    x, y, score = DECODERS[type(codec)](graph, codec, heatmaps)
    stride = codec.stride if isinstance(codec, Udp | UdpCombined) else float(STRIDE)
    cell = graph.add("Where", score > 0, graph.add("Concat", x, y, axis=2), -1.0)
    return cell * stride, graph.add("Squeeze", score, np.array([2]))


def _msra(graph: Graph, codec: Msra, heatmaps: Value) -> tuple[Value, Value, Value]:
    height, width = codec.heatmap_size
    peak = _peaks(graph, heatmaps, width)
    x, y, score = peak
    left, right, above, below = _around(graph, codec, heatmaps, peak, [(-1, 0), (1, 0), (0, -1), (0, 1)])
    one = np.int64(1)
    zero = np.int64(0)
    inside_x = (x > one) & (x < np.int64(width - 1)) & (y > zero)
    inside_y = (y > one) & (y < np.int64(height - 1)) & (x > zero)
    move_x = graph.add("Where", inside_x, graph.add("Sign", right - left), 0.0)
    move_y = graph.add("Where", inside_y, graph.add("Sign", below - above), 0.0)
    return x.astype(np.float32) + 0.25 * move_x, y.astype(np.float32) + 0.25 * move_y, score


def _dark(graph: Graph, codec: Dark, heatmaps: Value) -> tuple[Value, Value, Value]:
    height, width = codec.heatmap_size
    peak = _peaks(graph, heatmaps, width)
    values = _log_around(graph, codec, heatmaps, peak, DARK_OFFSETS, DARK_FLOOR)
    step_x, step_y = _newton_step(graph, *dark_derivatives(values))
    one = np.int64(1)
    x, y, score = peak
    inside = (x > one) & (x < np.int64(width - 2)) & (y > one) & (y < np.int64(height - 2))
    step_x, step_y = (graph.add("Where", inside, step, 0.0) for step in (step_x, step_y))
    return x.astype(np.float32) + step_x, y.astype(np.float32) + step_y, score


def _udp(graph: Graph, codec: Udp, heatmaps: Value) -> tuple[Value, Value, Value]:
    peak = _peaks(graph, heatmaps, codec.heatmap_size[1])
    values = _log_around(graph, codec, heatmaps, peak, UDP_OFFSETS, *UDP_RANGE)
    step_x, step_y = _newton_step(graph, *udp_derivatives(values))
    return peak.x.astype(np.float32) + step_x, peak.y.astype(np.float32) + step_y, peak.score


def _udp_combined(graph: Graph, codec: UdpCombined, heatmaps: Value) -> tuple[Value, Value, Value]:
    labels, x_maps, y_maps = (
        graph.add("Slice", heatmaps, *(np.array([n]) for n in (kind, np.iinfo(np.int64).max, 1, 3)))
        for kind in (LABEL, X, Y)
    )
    labels = _blur(graph, codec, labels, LABEL_BLUR_KERNEL, mirror=True)
    peak = _peaks(graph, labels, codec.heatmap_size[1])
    (x_offset,) = _around(graph, codec, x_maps, peak, [(0, 0)])
    (y_offset,) = _around(graph, codec, y_maps, peak, [(0, 0)])
    x, y = (
        cell.astype(np.float32) + codec.radius * offset for cell, offset in ((peak.x, x_offset), (peak.y, y_offset))
    )
    return x, y, peak.score


# By codec: f(graph, codec, heatmaps) -> x and y in cells, wherever the peak is above 0; score.
DECODERS: dict[type[Codec], Callable[..., tuple[Value, Value, Value]]] = {
    Msra: _msra,
    Dark: _dark,
    Udp: _udp,
    UdpCombined: _udp_combined,
}


def _flat(graph: Graph, maps: Value) -> Value:
    """Maps as [batch, keypoints, height * width]."""
    return graph.add("Reshape", maps, np.array([0, 0, -1]))


def _peaks(graph: Graph, maps: Value, width: int) -> Peak:
    """See `codecs.heatmaps.peaks`."""
    flat = _flat(graph, maps)
    index = graph.add("ArgMax", flat, axis=2)
    y = index / np.int64(width)
    return Peak(index - y * np.int64(width), y, graph.add("ReduceMax", flat, axes=[2]))


def _around(graph: Graph, codec: Codec, maps: Value, peak: Peak, offsets: Sequence[tuple[int, int]]) -> list[Value]:
    """See `codecs.heatmaps.values_around`."""
    height, width = codec.heatmap_size
    dx, dy = np.array(offsets).T
    column, row = (
        graph.add("Clip", cell + move, np.int64(0), np.int64(length - 1))
        for cell, move, length in ((peak.x, dx, width), (peak.y, dy, height))
    )
    values = graph.add("GatherElements", _flat(graph, maps), row * np.int64(width) + column, axis=2)
    if len(offsets) == 1:
        return [values]
    return graph.split("Split", values, names=[f"{values.name}_{i}" for i in range(len(offsets))], axis=2)


def _blur(graph: Graph, codec: Codec, maps: Value, kernel: int, mirror: bool = False) -> Value:
    """See `codecs.heatmaps.gaussian_blur`."""
    rows, columns = (blur_matrix(length, kernel, mirror) for length in codec.heatmap_size)
    return graph.add("MatMul", graph.add("MatMul", rows, maps), columns.T)


def _log_around(
    graph: Graph,
    codec: Dark | Udp,
    heatmaps: Value,
    peak: Peak,
    offsets: Sequence[tuple[int, int]],
    floor: float,
    ceiling: float = float("inf"),
) -> list[Value]:
    """See `codecs.heatmaps.log_around`."""
    blurred = _blur(graph, codec, heatmaps, codec.blur_kernel)
    highest = graph.add("ReduceMax", _flat(graph, blurred), axes=[2])
    rescale = peak.score / graph.add("Where", graph.add("Equal", highest, 0.0), 1.0, highest)
    values = _around(graph, codec, blurred, peak, offsets)
    return [graph.add("Log", graph.add("Clip", value * rescale, floor, ceiling)) for value in values]


def _newton_step(graph: Graph, dx: Value, dy: Value, dxx: Value, dxy: Value, dyy: Value) -> tuple[Value, Value]:
    """See `codecs.heatmaps.newton_step`."""
    determinant = dxx * dyy - dxy * dxy
    singular = graph.add("Equal", determinant, 0.0)
    divisor = graph.add("Where", singular, 1.0, determinant)
    x, y = (graph.add("Where", singular, 0.0, along / divisor) for along in (dxy * dy - dyy * dx, dxy * dx - dxx * dy))
    return x, y
