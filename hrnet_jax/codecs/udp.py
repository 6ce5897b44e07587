"""The codecs of "The Devil Is in the Details" (Huang et al. 2020): unbiased data processing, UDP.

Both use crops of the "udp" affine and measure between pixel centres: a heatmap's w - 1 steps span the input's W - 1,
so that mirroring is exact. Results are those of MMPose 1.3.2's `UDPHeatmap`, types `gaussian` and `combined`.

In MMPose decoded keypoints are W / (W - 1) times ours, because its transform back to the image divides by W for both
affines. Here they are pixels of the crop, and `hrnet_jax.inference.steps.to_image` inverts the affine: the keypoints in
the image are the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from hrnet_jax.codecs.base import Codec
from hrnet_jax.codecs.heatmaps import (
    gaussian_blur,
    log_around,
    mask_targets,
    newton_step,
    patch_touches_map,
    peaks,
    render_gaussians,
    values_around,
)


@dataclasses.dataclass(frozen=True)
class _UdpGeometry(Codec):
    """Conversion between pixels and cells, common to both codecs."""

    shift: ClassVar[bool] = False
    warp: ClassVar[str] = "udp"

    @property
    def stride(self) -> Float[np.ndarray, "1 1 2"]:
        """Input pixels per cell along x and y."""
        pixels, cells = (np.array([[size[::-1]]], np.float32) - 1 for size in (self.input_size, self.heatmap_size))
        return pixels / cells

    def _to_pixels(
        self, cell: Float[Array, "batch keypoints 2"], score: Float[Array, "batch keypoints"]
    ) -> Float[Array, "batch keypoints 2"]:
        # For maps without a value above 0 MMPose returns NaN or values of another map; here the result is cell
        # (-1, -1), as with MSRA and DARK.
        return jnp.where((score > 0)[..., None], cell, -1.0) * self.stride


@dataclasses.dataclass(frozen=True)
class Udp(_UdpGeometry):
    """A Gaussian on the exact position, cut at 3 sigma around its cell; decoded by DARK's expansion with +-1 cell.

    Attributes:
      sigma: of the target Gaussian, in cells; the published models use 2 at 256x192 and 3 at 384x288.
      blur_kernel: side of the decoder's Gaussian blur, in cells. The published models use 11 at all input sizes.
    """

    sigma: float = 2.0
    blur_kernel: int = 11

    def encode(
        self, keypoints: Float[Array, "batch keypoints 2"], visible: Float[Array, "batch keypoints"]
    ) -> tuple[Float[Array, "batch height width channels"], Float[Array, "batch keypoints"]]:
        """See `Codec.encode`."""
        centre = keypoints / self.stride
        cell = jnp.trunc(centre + 0.5)
        heatmaps = render_gaussians(centre, self.heatmap_size, self.sigma, window=cell)
        return mask_targets(heatmaps, visible, patch_touches_map(cell, self.heatmap_size, self.sigma))

    def _decode(
        self, heatmaps: Float[Array, "batch height width channels"]
    ) -> tuple[Float[Array, "batch keypoints 2"], Float[Array, "batch keypoints"]]:
        """Borders are repeated outwards; blurred values are clipped to `UDP_RANGE`."""
        x, y, score = peaks(heatmaps)
        floor, ceiling = UDP_RANGE
        values = log_around(heatmaps, x, y, score, UDP_OFFSETS, self.blur_kernel, floor=floor, ceiling=ceiling)
        step = newton_step(*udp_derivatives(values))
        return self._to_pixels(jnp.stack([x, y], axis=-1) + step, score), score


# The cells, (dx, dy) from the peak, that `udp_derivatives` needs, and the range of values before the logarithm.
UDP_OFFSETS = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1), (-1, -1), (1, 1))
UDP_RANGE = (1e-3, 50.0)


def udp_derivatives(values: Sequence[Any]) -> tuple[Any, Any, Any, Any, Any]:
    """dx, dy, dxx, dxy, dyy of a map at a cell, from its values at `UDP_OFFSETS`; see `msra.dark_derivatives`."""
    here, left, right, above, below, above_left, below_right = values
    epsilon = float(np.finfo(np.float32).eps)
    return (
        0.5 * (right - left),
        0.5 * (below - above),
        right - 2 * here + left + epsilon,
        0.5 * (below_right - right - below + here + here - left - above + above_left),
        below - 2 * here + above + epsilon,
    )


@dataclasses.dataclass(frozen=True)
class UdpCombined(_UdpGeometry):
    """Three maps per keypoint: a disc around it as label, and the x and y offsets to it in units of the radius.

    Offsets fill their maps but count in the loss only inside the disc. Decoded to the peak of the blurred label map
    plus the offsets there. Keypoints outside the map keep their weight.

    Attributes:
      radius_factor: the disc's radius as a fraction of the heatmap's longer side.
    """

    radius_factor: float = 0.0546875

    maps_per_keypoint: ClassVar[int] = 3

    @property
    def radius(self) -> float:
        """The disc's radius in cells."""
        return self.radius_factor * max(self.heatmap_size)

    def encode(
        self, keypoints: Float[Array, "batch keypoints 2"], visible: Float[Array, "batch keypoints"]
    ) -> tuple[Float[Array, "batch height width channels"], Float[Array, "batch keypoints"]]:
        """See `Codec.encode`."""
        height, width = self.heatmap_size
        # Computed per channel, because an axis of length 3 would be padded wastefully on an accelerator.
        centre = jnp.repeat(keypoints / self.stride, 3, axis=1)[:, None, None]
        x = (centre[..., 0] - jnp.arange(width, dtype=jnp.float32)[None, None, :, None]) / self.radius
        y = (centre[..., 1] - jnp.arange(height, dtype=jnp.float32)[None, :, None, None]) / self.radius
        kind = np.arange(centre.shape[3])[None, None, None] % 3
        maps = jnp.where(kind == LABEL, x * x + y * y <= 1, jnp.where(kind == X, x, y))
        maps = jnp.where(jnp.repeat(visible >= 0.5, 3, axis=1)[:, None, None], maps, 0)
        return maps, visible

    def flip_back(
        self,
        heatmaps: Float[Array, "batch height width channels"],
        flip_indices: Int[np.ndarray, " keypoints"],
    ) -> Float[Array, "batch height width channels"]:
        """See `Codec.flip_back`; mirroring changes the sign of x offsets."""
        flipped = super().flip_back(heatmaps, flip_indices)
        kind = np.arange(heatmaps.shape[3])[None, None, None] % 3
        return jnp.where(kind == X, -flipped, flipped)

    def _decode(
        self, heatmaps: Float[Array, "batch height width channels"]
    ) -> tuple[Float[Array, "batch keypoints 2"], Float[Array, "batch keypoints"]]:
        """The score is the blurred label map's maximum."""
        labels = gaussian_blur(heatmaps[..., LABEL::3], LABEL_BLUR_KERNEL, mirror=True)
        x, y, score = peaks(labels)
        (x_offset,) = values_around(heatmaps[..., X::3], x, y, [(0, 0)])
        (y_offset,) = values_around(heatmaps[..., Y::3], x, y, [(0, 0)])
        cell = jnp.stack([x + self.radius * x_offset, y + self.radius * y_offset], axis=-1)
        return self._to_pixels(cell, score), score

    def _loss(
        self,
        prediction: Float[Array, "batch height width channels"],
        targets: Float[Array, "batch height width channels"],
        weights: Float[Array, "batch keypoints"],
    ) -> Float[Array, " batch"]:
        """MMPose's CombinedTargetMSELoss: offset errors are weighted by the label, and `weights` are squared."""
        label = targets[..., LABEL::3]
        error = jnp.square(prediction[..., LABEL::3] - label)
        for offset in (X, Y):
            error += jnp.square(label * (prediction[..., offset::3] - targets[..., offset::3]))
        return 0.5 * jnp.mean(jnp.square(weights) * jnp.mean(error, axis=(1, 2)), axis=-1)


# Each keypoint's maps, in this order.
LABEL, X, Y = range(3)

# MMPose blurs labels with 2 * blur_kernel_size + 1 cells; no config changes the default of 11.
LABEL_BLUR_KERNEL = 23
