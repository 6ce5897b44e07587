"""What codecs do to heatmaps `[batch, height, width, keypoints]`: render, find peaks, look around them, blur."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


def render_gaussians(
    centre: Float[Array, "batch keypoints 2"],
    size: tuple[int, int],
    sigma: float,
    *,
    window: Float[Array, "batch keypoints 2"] | None = None,
) -> Float[Array, "batch height width keypoints"]:
    """Renders exp(-d^2 / 2 sigma^2), d the distance in cells to each centre, as outer products of rows and columns.

    Args:
      centre: (x, y) in cells.
      size: (height, width) in cells.
      sigma: in cells.
      window: if given, the square of 3 sigma to every side of this cell keeps its values and the rest is 0.
    """

    def along(axis: int, length: int) -> Float[Array, "batch length keypoints"]:
        cells = jnp.arange(length, dtype=jnp.float32)[:, None]
        line = jnp.exp(-jnp.square(cells - centre[:, None, :, axis]) / (2 * sigma**2))
        if window is not None:
            line = jnp.where(jnp.abs(cells - window[:, None, :, axis]) <= 3 * sigma, line, 0)
        return line

    return along(1, size[0])[:, :, None] * along(0, size[1])[:, None, :]


def leaves_mark(
    centre: Float[Array, "batch keypoints 2"], size: tuple[int, int], sigma: float
) -> Bool[Array, "batch keypoints"]:
    """Whether the 3-sigma patch around a centre counts as touching the map.

    MMPose's patch runs from centre - 3 sigma to centre + 3 sigma + 1, and is out if its end is *below* 0: a patch that
    ends at 0 is empty and stays in.
    """
    extent = jnp.array([size[1], size[0]], jnp.float32)
    return jnp.all((centre - 3 * sigma < extent) & (centre + 3 * sigma + 1 >= 0), axis=-1)


def mask_targets(
    heatmaps: Float[Array, "batch height width keypoints"],
    visible: Float[Array, "batch keypoints"],
    marked: Bool[Array, "batch keypoints"],
) -> tuple[Float[Array, "batch height width keypoints"], Float[Array, "batch keypoints"]]:
    """Empties maps of invisible and unmarked keypoints; only visible ones can lose their weight by leaving no mark."""
    labelled = visible >= 0.5
    heatmaps = jnp.where((labelled & marked)[:, None, None], heatmaps, 0)
    return heatmaps, jnp.where(labelled & ~marked, 0, visible)


def peaks(
    heatmaps: Float[Array, "batch height width keypoints"],
) -> tuple[Int[Array, "batch keypoints"], Int[Array, "batch keypoints"], Float[Array, "batch keypoints"]]:
    """The (x, y, value) of each map's maximum, the first in reading order where several are equal."""
    batch, height, width, keypoints = heatmaps.shape
    flat = heatmaps.reshape(batch, height * width, keypoints)
    index = jnp.argmax(flat, axis=1)
    return index % width, index // width, jnp.max(flat, axis=1)


def around(
    heatmaps: Float[Array, "batch height width keypoints"],
    x: Int[Array, "batch keypoints"],
    y: Int[Array, "batch keypoints"],
    offsets: Sequence[tuple[int, int]],
) -> list[Float[Array, "batch keypoints"]]:
    """The values at cell (x + dx, y + dy) for each of the offsets (dx, dy); beyond a border, the border's own."""
    batch, height, width, keypoints = heatmaps.shape
    index = [jnp.clip(y + dy, 0, height - 1) * width + jnp.clip(x + dx, 0, width - 1) for dx, dy in offsets]
    values = jnp.take_along_axis(
        heatmaps.reshape(batch, height * width, keypoints), jnp.stack(index, axis=1), axis=1, mode="clip"
    )
    return [values[:, i] for i in range(len(offsets))]


def gaussian_blur(
    heatmaps: Float[Array, "batch height width keypoints"], kernel: int, *, mirror: bool = False
) -> Float[Array, "batch height width keypoints"]:
    """Blurs each map like `cv2.GaussianBlur(map, (kernel, kernel), 0)`, beyond the borders zeros or a mirror image.

    The mirror does not repeat the edge (OpenCV's BORDER_REFLECT_101). Two products with banded matrices: maps are so
    small that this costs an accelerator less than a depthwise convolution.
    """
    _, height, width, _ = heatmaps.shape
    rows, columns = _blur_matrix(height, kernel, mirror), _blur_matrix(width, kernel, mirror)
    highest = jax.lax.Precision.HIGHEST
    blurred = jnp.einsum("ij,bjwk->biwk", rows, heatmaps, precision=highest)
    return jnp.einsum("ij,bhjk->bhik", columns, blurred, precision=highest)


def log_around(
    heatmaps: Float[Array, "batch height width keypoints"],
    x: Int[Array, "batch keypoints"],
    y: Int[Array, "batch keypoints"],
    maximum: Float[Array, "batch keypoints"],
    offsets: Sequence[tuple[int, int]],
    kernel: int,
    *,
    floor: float,
    ceiling: float = np.inf,
) -> list[Float[Array, "batch keypoints"]]:
    """The logarithms `around` a cell of the maps blurred, rescaled to their old maximum and clipped.

    Rescaling, clipping and logarithm act on the values that are asked for, not on whole maps, which gives the same.
    """
    blurred = gaussian_blur(heatmaps, kernel)
    peak = jnp.max(blurred, axis=(1, 2))
    rescale = maximum / jnp.where(peak == 0, 1, peak)
    return [jnp.log(jnp.clip(value * rescale, floor, ceiling)) for value in around(blurred, x, y, offsets)]


def newton_step(
    dx: Float[Array, "batch keypoints"],
    dy: Float[Array, "batch keypoints"],
    dxx: Float[Array, "batch keypoints"],
    dxy: Float[Array, "batch keypoints"],
    dyy: Float[Array, "batch keypoints"],
) -> Float[Array, "batch keypoints 2"]:
    """The step from a cell to the extremum of the parabola with these derivatives; 0 where it has none."""
    determinant = dxx * dyy - dxy * dxy
    step = jnp.stack([dxy * dy - dyy * dx, dxy * dx - dxx * dy], axis=-1)
    singular = (determinant == 0)[..., None]
    return jnp.where(singular, 0, step / jnp.where(singular, 1, determinant[..., None]))


def pck_accuracy(
    prediction: Float[Array, "batch height width channels"],
    targets: Float[Array, "batch height width channels"],
    weights: Float[Array, "batch keypoints"],
    threshold: float = 0.05,
) -> tuple[Float[Array, " keypoints"], Float[Array, ""]]:
    """The share of keypoints whose peak lies within a fraction of the map's size of the target's peak.

    As MMPose logs it while training: per axis, x is measured against the map's *height* and y against its width. Only
    keypoints of weight above 0 count.

    Returns:
      The accuracy of each keypoint, -1 where none in the batch counts, and the mean of those that are not -1 (0 if
      there are none).
    """
    _, height, width, channels = targets.shape
    stride = channels // weights.shape[1]
    cells = []
    for heatmaps in (prediction[..., ::stride], targets[..., ::stride]):
        x, y, value = peaks(heatmaps)
        cells.append(jnp.where((value > 0)[..., None], jnp.stack([x, y], axis=-1), -1))
    distance = jnp.linalg.norm((cells[0] - cells[1]) / jnp.array([height, width], jnp.float32), axis=-1)
    counts = weights > 0
    total = counts.sum(axis=0)
    accuracy = jnp.where(total > 0, (counts & (distance < threshold)).sum(axis=0) / jnp.maximum(total, 1), -1)
    present = total > 0
    return accuracy, jnp.where(present, accuracy, 0).sum() / jnp.maximum(present.sum(), 1)


@functools.lru_cache(maxsize=64)
def _blur_matrix(length: int, kernel: int, mirror: bool) -> np.ndarray:
    """The float32 matrix that blurs a line of so many cells. (Kernels below 11 are not rounded as OpenCV does.)"""
    radius = kernel // 2
    sigma = 0.3 * (radius - 1) + 0.8  # OpenCV's choice for a kernel of this size
    taps = np.exp(-np.square(np.arange(-radius, radius + 1)) / (2 * sigma**2))
    taps = (taps / taps.sum()).astype(np.float32)
    matrix = np.zeros((length, length), np.float32)
    for out in range(length):
        for tap, weight in zip(range(out - radius, out + radius + 1), taps, strict=True):
            source = tap
            if mirror:
                source = abs(tap) % (2 * (length - 1))
                source = min(source, 2 * (length - 1) - source)
            if 0 <= source < length:
                matrix[out, source] += weight
    return matrix
