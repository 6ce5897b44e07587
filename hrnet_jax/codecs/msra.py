"""The MSRA codec (Xiao et al. 2018, the HRNet papers) and its unbiased variant DARK (Zhang et al. 2020).

Both use crops of the "msra" affine, where heatmap cell c is at input pixel 4 c. For an integer sigma the results are
those of MMPose 1.3.2's `MSRAHeatmap` (`unbiased` for DARK). For a fractional sigma MMPose cuts its patch off-centre;
here it stays centred.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from hrnet_jax.codecs.base import STRIDE, Codec
from hrnet_jax.codecs.heatmaps import (
    log_around,
    mask_targets,
    newton_step,
    patch_touches_map,
    peaks,
    render_gaussians,
    values_around,
)


@dataclasses.dataclass(frozen=True)
class Msra(Codec):
    """A Gaussian on the nearest cell, cut at 3 sigma; decoded to the peak's cell plus a quarter-cell offset.

    Attributes:
      sigma: of the target Gaussian, in cells; the published models use 2 at 256x192 and 3 at 384x288.
    """

    sigma: float = 2.0

    shift: ClassVar[bool] = True
    warp: ClassVar[str] = "msra"

    def encode(
        self, keypoints: Float[Array, "batch keypoints 2"], visible: Float[Array, "batch keypoints"]
    ) -> tuple[Float[Array, "batch height width channels"], Float[Array, "batch keypoints"]]:
        """See `Codec.encode`. The cell is x / 4 + 0.5 truncated towards zero: -0.9 becomes cell 0."""
        cell = jnp.trunc(keypoints / STRIDE + 0.5)
        heatmaps = render_gaussians(cell, self.heatmap_size, self.sigma, window=cell)
        return mask_targets(heatmaps, visible, patch_touches_map(cell, self.heatmap_size, self.sigma))

    def _decode(
        self, heatmaps: Float[Array, "batch height width channels"]
    ) -> tuple[Float[Array, "batch keypoints 2"], Float[Array, "batch keypoints"]]:
        """Offsets a quarter cell towards the higher neighbour on each axis."""
        height, width = self.heatmap_size
        x, y, score = peaks(heatmaps)
        left, right, above, below = values_around(heatmaps, x, y, [(-1, 0), (1, 0), (0, -1), (0, 1)])
        # As in MMPose: no x offset in the first two columns, the last column or row 0; likewise for y.
        move_x = jnp.where((x > 1) & (x < width - 1) & (y > 0), jnp.sign(right - left), 0)
        move_y = jnp.where((y > 1) & (y < height - 1) & (x > 0), jnp.sign(below - above), 0)
        cell = jnp.stack([x + 0.25 * move_x, y + 0.25 * move_y], axis=-1)
        return STRIDE * jnp.where((score > 0)[..., None], cell, -1.0), score


@dataclasses.dataclass(frozen=True)
class Dark(Codec):
    """A Gaussian on the exact position, over the full map; decoded by a Taylor expansion of the blurred map's log.

    Attributes:
      sigma: of the target Gaussian, in cells.
      blur_kernel: side of the decoder's Gaussian blur, in cells. The published models use 11 at all input sizes.
    """

    sigma: float = 2.0
    blur_kernel: int = 11

    shift: ClassVar[bool] = True
    warp: ClassVar[str] = "msra"

    def encode(
        self, keypoints: Float[Array, "batch keypoints 2"], visible: Float[Array, "batch keypoints"]
    ) -> tuple[Float[Array, "batch height width channels"], Float[Array, "batch keypoints"]]:
        """See `Codec.encode`."""
        centre = keypoints / STRIDE
        heatmaps = render_gaussians(centre, self.heatmap_size, self.sigma)
        return mask_targets(heatmaps, visible, patch_touches_map(centre, self.heatmap_size, self.sigma))

    def _decode(
        self, heatmaps: Float[Array, "batch height width channels"]
    ) -> tuple[Float[Array, "batch keypoints 2"], Float[Array, "batch keypoints"]]:
        """Peaks in the two outermost rows and columns are not refined."""
        height, width = self.heatmap_size
        x, y, score = peaks(heatmaps)
        values = log_around(heatmaps, x, y, score, DARK_OFFSETS, self.blur_kernel, floor=DARK_FLOOR)
        step = newton_step(*dark_derivatives(values))
        inside = (x > 1) & (x < width - 2) & (y > 1) & (y < height - 2)
        cell = jnp.stack([x, y], axis=-1) + jnp.where(inside[..., None], step, 0)
        return STRIDE * jnp.where((score > 0)[..., None], cell, -1.0), score


# The cells, (dx, dy) from the peak, that `dark_derivatives` needs, and the least value before the logarithm.
DARK_OFFSETS = (
    *((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)),
    *((-2, 0), (2, 0), (0, -2), (0, 2)),
    *((-1, -1), (1, -1), (-1, 1), (1, 1)),
)
DARK_FLOOR = 1e-10


def dark_derivatives(values: Sequence[Any]) -> tuple[Any, Any, Any, Any, Any]:
    """dx, dy, dxx, dxy, dyy of a map at a cell, from its values at `DARK_OFFSETS`.

    The values may be arrays of any kind with arithmetic; `hrnet_jax.onnx` gives nodes of a graph.
    """
    here, left, right, above, below, left2, right2, above2, below2, nw, ne, sw, se = values
    return (
        0.5 * (right - left),
        0.5 * (below - above),
        0.25 * (right2 - 2 * here + left2),
        0.25 * (se - ne - sw + nw),
        0.25 * (below2 - 2 * here + above2),
    )
