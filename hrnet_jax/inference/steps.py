"""Steps shared by evaluation, prediction and export: crops to heatmaps, keypoints and image pixels."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from data_pipelines.transforms import warp_span
from hrnet_jax.codecs import Codec
from hrnet_jax.models import FunctionalModel
from hrnet_jax.models.names import Arrays

# ImageNet's mean and standard deviation on the 0..255 scale, RGB.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


def normalise(images: Real[Array, "batch height width 3"]) -> Float[Array, "batch height width 3"]:
    """Normalises RGB values from 0 to 255 (uint8 or float) to float32 with ImageNet's mean and standard deviation."""
    mean, std = (jnp.array(values)[None, None, None] for values in (MEAN, STD))
    return (images.astype(jnp.float32) - mean) / std


def make_heatmap_step(network: FunctionalModel, codec: Codec, flip_indices: np.ndarray, flip_test: bool) -> Callable:
    """Compiles the step from crops to heatmaps; with `flip_test`, the mean over each crop and its mirror image.

    Returns:
      f(params, stats, images of 0 to 255 [B,H,W,3]) -> heatmaps [B,h,w,C].
    """

    @jax.jit
    def heatmap_step(params: Arrays, stats: Arrays, images: Real[Array, "b h w 3"]) -> Float[Array, "b y x c"]:
        images = normalise(images)
        if flip_test:
            # Interleaved with their mirror images: a single pass, without communication between devices.
            images = jnp.stack([images, images[:, :, ::-1]], axis=1).reshape(-1, *images.shape[1:])
        heatmaps, _ = network(params, stats, images, train=False)
        if flip_test:
            mirrored = codec.flip_back(heatmaps[1::2], flip_indices)
            heatmaps = (heatmaps[0::2] + mirrored) * 0.5
        return heatmaps

    return heatmap_step


def make_eval_step(network: FunctionalModel, codec: Codec, flip_indices: np.ndarray, flip_test: bool) -> Callable:
    """Compiles the step from crops to keypoints: `make_heatmap_step` and decoding in one program.

    Returns:
      f(params, stats, images of 0 to 255 [B,H,W,3]) -> keypoints [B,K,2] in crop pixels, scores [B,K].
    """
    heatmap_step = make_heatmap_step(network, codec, flip_indices, flip_test)

    @jax.jit
    def eval_step(params: Arrays, stats: Arrays, images: Real[Array, "b h w 3"]) -> tuple[Array, Array]:
        return codec.decode(heatmap_step(params, stats, images))

    return eval_step


def to_image(
    keypoints: Float[np.ndarray, "batch k 2"],
    center: Float[np.ndarray, "batch 2"],
    scale: Float[np.ndarray, "batch 2"],
    codec: Codec,
) -> Float[np.ndarray, "batch k 2"]:
    """Transforms crop pixels to image pixels: the inverse of `warp_matrix` of unrotated views.

    Args:
      keypoints: (x, y) in crop pixels.
      center: of the views, in image pixels.
      scale: (width, height) of the views in image pixels.
      codec: has the crop's size and warp.
    """
    span = np.array(warp_span(codec.input_size, codec.warp), np.float32)
    return keypoints / span * scale[:, None] + (center - 0.5 * scale)[:, None]
