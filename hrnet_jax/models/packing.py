"""Packs neighbouring columns into the channel axis, for TPUs, whose memory layout pads channels to 128 lanes.

A map with 32 channels fills a quarter of the lanes but causes the memory traffic of 128. Packed, it holds four
neighbouring columns, [batch, h, w / 4, 4 * 32]: column 4j + s of channel c is at [..., j, s * 32 + c]. Convolutions
take and return packed maps; their kernels have the same weights but are larger and mostly zero. This trades more
arithmetic for less memory traffic. Results differ only by the order of summation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

LANES = 128


def columns_in_lanes(features: int, width: int) -> int:
    """The number of columns to pack for a map of this size: a power of two; 1: no packing."""
    columns = 1
    while 2 * columns * features <= LANES and width % (2 * columns) == 0:
        columns *= 2
    return columns


def repack(x: Float[Array, "batch h w lanes"], features: int, columns: int) -> Float[Array, "batch h w2 lanes2"]:
    """Changes the number of packed columns of maps with `features` channels."""
    b, h, w, lanes = x.shape
    return x.reshape(b, h, w * lanes // (columns * features), columns * features)


def conv_general_dilated(
    x: Float[Array, "batch h w lanes"],
    kernel: Float[Array, "k k features out"],
    strides: tuple[int, int],
    padding: Sequence[tuple[int, int]],
    **unused: Any,
) -> Float[Array, "batch h2 w2 lanes2"]:
    """`jax.lax.conv_general_dilated` of packed maps, for a square kernel, equal strides and equal padding."""
    size, _, features, out = kernel.shape
    stride, pad = strides[0], padding[0][0]
    before = x.shape[3] // features
    width = (x.shape[2] * before + 2 * pad - size) // stride + 1
    after = columns_in_lanes(out, width)
    # The stride must be a whole number of packed inputs, so pack no more columns than one packed output advances by.
    before = min(before, stride * after)
    x = repack(x, features, before)

    first, wide = packed_kernel(kernel, stride, pad, before, after)
    step = stride * after // before
    end = (width // after - 1) * step + wide.shape[1] - first - x.shape[2]
    return jax.lax.conv_general_dilated(
        x, wide, (stride, step), (padding[0], (first, end)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def packed_kernel(
    kernel: Float[Array, "k k features out"], stride: int, pad: int, before: int, after: int
) -> tuple[int, Float[Array, "k wide lanes lanes2"]]:
    """The kernel from `before` to `after` packed columns, and how many packed columns it extends to the left."""
    size = kernel.shape[1]
    # Tap d of output column q reads this input column, relative to where the packed output starts.
    column = stride * np.arange(after) + np.arange(size)[:, None] - pad
    first = -int(np.floor(column.min() / before))
    count = int(np.floor(column.max() / before)) + first + 1
    taps = np.zeros((size, count, before, after), np.float32)
    for tap, output in np.ndindex(column.shape):
        j, s = divmod(int(column[tap, output]), before)
        taps[tap, j + first, s, output] = 1
    wide = jnp.einsum("hdio,djsq->hjsiqo", kernel, taps.astype(kernel.dtype), precision=jax.lax.Precision.HIGHEST)
    k, _, features, out = kernel.shape
    return first, wide.reshape(k, count, before * features, after * out)
