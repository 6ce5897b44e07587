"""The base class of all codecs: sizes, flipping heatmaps back and the loss."""

from __future__ import annotations

import abc
import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from data_pipelines.errors import InputError

STRIDE = 4  # input pixels per heatmap cell


@dataclasses.dataclass(frozen=True)
class Codec(abc.ABC):
    """Converts between keypoints in input pixels and heatmaps of a quarter of the input's size.

    Attributes:
      input_size: (height, width) of the network's input in pixels, multiples of 4.
      maps_per_keypoint: consecutive channels per keypoint; decoding looks for the peak of the first.
      shift: whether the flip test shifts the mirrored image's heatmaps by one cell, see `flip_back`.
      warp: the affine transform that crops must be cut with, "msra" or "udp".
    """

    input_size: tuple[int, int]

    maps_per_keypoint: ClassVar[int] = 1
    shift: ClassVar[bool]
    warp: ClassVar[str]

    @property
    def heatmap_size(self) -> tuple[int, int]:
        """(height, width) of a heatmap in cells."""
        return self.input_size[0] // STRIDE, self.input_size[1] // STRIDE

    def channels(self, keypoints: int) -> int:
        """The number of output channels for this number of keypoints."""
        return keypoints * self.maps_per_keypoint

    @abc.abstractmethod
    def encode(
        self, keypoints: Float[Array, "batch keypoints 2"], visible: Float[Array, "batch keypoints"]
    ) -> tuple[Float[Array, "batch height width channels"], Float[Array, "batch keypoints"]]:
        """Renders the targets.

        Args:
          keypoints: (x, y) in input pixels, pixel centres at integers; may be outside the input.
          visible: 1 if labelled, 0 if not; below 0.5 the maps stay empty.

        Returns:
          The target heatmaps, and each keypoint's loss weight: its visibility, or 0 if the keypoint is too far outside
          the map to affect it.
        """

    def decode(
        self, heatmaps: Float[Array, "batch height width channels"]
    ) -> tuple[Float[Array, "batch keypoints 2"], Float[Array, "batch keypoints"]]:
        """Decodes each keypoint's (x, y) in input pixels and its score, the height of the peak, both float32.

        Input pixels are those of the crop as an image, as in `encode`; `hrnet_jax.inference.steps.to_image` transforms
        them to image pixels. A map without a value above 0 decodes to cell (-1, -1), scaled like any other cell, and a
        score of at most 0.

        Raises:
          InputError: if the heatmaps' size is not the codec's.
        """
        if heatmaps.shape[1:3] != self.heatmap_size:
            raise InputError(
                f"heatmaps are {heatmaps.shape[1]}x{heatmaps.shape[2]}, but the codec's input_size "
                f"{self.input_size[0]}x{self.input_size[1]} requires {self.heatmap_size[0]}x{self.heatmap_size[1]}"
            )
        return self._decode(heatmaps.astype(jnp.float32))

    def flip_back(
        self,
        heatmaps: Float[Array, "batch height width channels"],
        flip_indices: Int[np.ndarray, " keypoints"],
    ) -> Float[Array, "batch height width channels"]:
        """Mirrors the heatmaps of mirrored images back into the frame of the original images.

        With `shift`, also moves them right by one cell, leaving column 0 unchanged: with the msra affine, cell c is at
        pixel 4 c, whose mirror image W - 1 - 4 c is 3/4 of a cell to the right of cell w - 1 - c; one cell is the
        nearest integer shift.

        Args:
          heatmaps: the network's output for the mirrored images.
          flip_indices: for each keypoint, the index of its left-right counterpart.
        """
        maps = self.maps_per_keypoint
        order = (np.asarray(flip_indices)[:, None] * maps + np.arange(maps)).reshape(-1)
        flipped = heatmaps[:, :, ::-1, order]
        if self.shift:
            flipped = jnp.concatenate([flipped[:, :, :1], flipped[:, :, :-1]], axis=2)
        return flipped

    def loss(
        self,
        prediction: Float[Array, "batch rows columns outputs"],
        targets: Float[Array, "batch height width channels"],
        weights: Float[Array, "batch keypoints"],
    ) -> Float[Array, " batch"]:
        """The loss of each sample in float32; its mean over the batch equals MMPose 1.3.2's loss.

        Keypoints with weight 0 add nothing to the sum but count in the mean.

        Args:
          prediction: the network's output, of the same shape as the targets and any float type.
          targets: from `encode`.
          weights: from `encode`.

        Raises:
          InputError: if prediction and targets differ in shape.
        """
        if prediction.shape != targets.shape:
            raise InputError(
                f"the network outputs heatmaps {prediction.shape[1:]}, but the codec's targets are {targets.shape[1:]} "
                "(height, width, channels); set the codec's input_size and the model's channels to match the data"
            )
        prediction, targets, weights = (a.astype(jnp.float32) for a in (prediction, targets, weights))
        return self._loss(prediction, targets, weights)

    @abc.abstractmethod
    def _decode(
        self, heatmaps: Float[Array, "batch height width channels"]
    ) -> tuple[Float[Array, "batch keypoints 2"], Float[Array, "batch keypoints"]]:
        """Decodes float32 heatmaps of the codec's size."""

    def _loss(
        self,
        prediction: Float[Array, "batch height width channels"],
        targets: Float[Array, "batch height width channels"],
        weights: Float[Array, "batch keypoints"],
    ) -> Float[Array, " batch"]:
        """MMPose's KeypointMSELoss: the mean of weight * (prediction - target)^2."""
        return jnp.mean(weights * jnp.mean(jnp.square(prediction - targets), axis=(1, 2)), axis=-1)
