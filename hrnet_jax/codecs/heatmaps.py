"""Operations on heatmaps `[batch, height, width, keypoints]`: rendering, peaks, neighbourhoods, blurring."""

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
      window: if given, values more than 3 sigma from this cell along either axis are set to 0.
    """

    def along(axis: int, length: int) -> Float[Array, "batch length keypoints"]:
        cells = jnp.arange(length, dtype=jnp.float32)[None, :, None]
        line = jnp.exp(-jnp.square(cells - centre[:, None, :, axis]) / (2 * sigma**2))
        if window is not None:
            line = jnp.where(jnp.abs(cells - window[:, None, :, axis]) <= 3 * sigma, line, 0)
        return line

    return along(1, size[0])[:, :, None] * along(0, size[1])[:, None, :]


def patch_touches_map(
    centre: Float[Array, "batch keypoints 2"], size: tuple[int, int], sigma: float
) -> Bool[Array, "batch keypoints"]:
    """Whether the 3-sigma patch around a centre touches the map.

    As in MMPose, the patch extends from centre - 3 sigma to centre + 3 sigma + 1 and is outside if its end is *below*
    0: a patch that ends at 0 is empty but counts as touching.
    """
    extent = jnp.array([[[size[1], size[0]]]], jnp.float32)
    return jnp.all((centre - 3 * sigma < extent) & (centre + 3 * sigma + 1 >= 0), axis=-1)


def mask_targets(
    heatmaps: Float[Array, "batch height width keypoints"],
    visible: Float[Array, "batch keypoints"],
    touches: Bool[Array, "batch keypoints"],
) -> tuple[Float[Array, "batch height width keypoints"], Float[Array, "batch keypoints"]]:
    """Empties maps of keypoints that are invisible or do not touch it; the weight of the latter, if visible, is 0."""
    labelled = visible >= 0.5
    heatmaps = jnp.where((labelled & touches)[:, None, None], heatmaps, 0)
    return heatmaps, jnp.where(labelled & ~touches, 0, visible)


def peaks(
    heatmaps: Float[Array, "batch height width keypoints"],
) -> tuple[Int[Array, "batch keypoints"], Int[Array, "batch keypoints"], Float[Array, "batch keypoints"]]:
    """The (x, y, value) of each map's maximum; of equal maxima, the first in row-major order."""
    batch, height, width, keypoints = heatmaps.shape
    flat = heatmaps.reshape(batch, height * width, keypoints)
    index = jnp.argmax(flat, axis=1)
    return index % width, index // width, jnp.max(flat, axis=1)


def values_around(
    heatmaps: Float[Array, "batch height width keypoints"],
    x: Int[Array, "batch keypoints"],
    y: Int[Array, "batch keypoints"],
    offsets: Sequence[tuple[int, int]],
) -> list[Float[Array, "batch keypoints"]]:
    """The values at cells (x + dx, y + dy) for each offset (dx, dy); outside the map, those at the border."""
    batch, height, width, keypoints = heatmaps.shape
    index = [jnp.clip(y + dy, 0, height - 1) * width + jnp.clip(x + dx, 0, width - 1) for dx, dy in offsets]
    values = jnp.take_along_axis(
        heatmaps.reshape(batch, height * width, keypoints), jnp.stack(index, axis=1), axis=1, mode="clip"
    )
    return [values[:, i] for i in range(len(offsets))]


def gaussian_blur(
    heatmaps: Float[Array, "batch height width keypoints"], kernel: int, *, mirror: bool = False
) -> Float[Array, "batch height width keypoints"]:
    """Blurs each map like `cv2.GaussianBlur(map, (kernel, kernel), 0)`, padded with zeros or by mirroring.

    Mirroring does not repeat the edge (OpenCV's BORDER_REFLECT_101). Implemented as two products with banded matrices,
    which for such small maps are faster on an accelerator than a depthwise convolution.
    """
    _, height, width, _ = heatmaps.shape
    rows, columns = blur_matrix(height, kernel, mirror), blur_matrix(width, kernel, mirror)
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
    """Logarithms of the maps around a cell, blurred, rescaled to their original maximum and clipped.

    See `values_around`. Rescaling, clipping and logarithm are applied only to the requested values, which gives the
    same result.
    """
    blurred = gaussian_blur(heatmaps, kernel)
    peak = jnp.max(blurred, axis=(1, 2))
    rescale = maximum / jnp.where(peak == 0, 1, peak)
    return [jnp.log(jnp.clip(value * rescale, floor, ceiling)) for value in values_around(blurred, x, y, offsets)]


def newton_step(
    dx: Float[Array, "batch keypoints"],
    dy: Float[Array, "batch keypoints"],
    dxx: Float[Array, "batch keypoints"],
    dxy: Float[Array, "batch keypoints"],
    dyy: Float[Array, "batch keypoints"],
) -> Float[Array, "batch keypoints 2"]:
    """The Newton step from a cell to the extremum of the parabola with these derivatives; 0 if it has none."""
    determinant = dxx * dyy - dxy * dxy
    step = jnp.stack([dxy * dy - dyy * dx, dxy * dx - dxx * dy], axis=-1)
    singular = (determinant == 0)[..., None]
    return jnp.where(singular, 0, step / jnp.where(singular, 1, determinant[..., None]))


def pck_counts(
    prediction: Float[Array, "batch height width keypoints"],
    targets: Float[Array, "batch height width keypoints"],
    weights: Float[Array, "batch keypoints"],
    threshold: float = 0.05,
) -> Float[Array, "2 keypoints"]:
    """Each keypoint's number of correct peaks and of samples; the weights of samples must be above 0.

    A peak is correct if its distance to the target's is less than `threshold` times the map's size. As in MMPose's
    `pose_pck_accuracy`, x is divided by the map's *height* and y by its width.
    """
    _, height, width, _ = targets.shape
    cells = []
    for heatmaps in (prediction, targets):
        x, y, value = peaks(jax.lax.stop_gradient(heatmaps))
        cells.append(jnp.where((value > 0)[..., None], jnp.stack([x, y], axis=-1), -1))
    distance = jnp.linalg.norm((cells[0] - cells[1]) / jnp.array([[[height, width]]], jnp.float32), axis=-1)
    counted = weights > 0
    return jnp.stack([counted & (distance < threshold), counted]).sum(axis=1, dtype=jnp.float32)


def pck_accuracy(counts: Float[Array, "2 keypoints"]) -> Float[Array, ""]:
    """MMPose's `acc_pose` from the counts of a batch: the mean share of correct peaks over keypoints with samples."""
    correct, samples = counts
    return (correct / jnp.maximum(samples, 1)).sum() / jnp.maximum((samples > 0).sum(), 1)


@functools.lru_cache(maxsize=64)
def blur_matrix(length: int, kernel: int, mirror: bool) -> np.ndarray:
    """The float32 matrix that blurs a line of cells, see `gaussian_blur`.

    (Kernels below 11 are not rounded as in OpenCV.)
    """
    radius = kernel // 2
    sigma = 0.3 * (radius - 1) + 0.8  # OpenCV's default for this kernel size
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
