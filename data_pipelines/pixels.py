"""Random changes of a crop's pixels that do not move its keypoints.

As in MMPose 1.3.2's configs, they are applied to the crop after the affine: PhotometricDistortion, and Albumentations'
CoarseDropout and GridDropout. Holes are black, like the area outside the image. Crops are uint8 RGB.

Two bugs of PhotometricDistortion are fixed: "contrast first" did not change the contrast and "contrast last" changed it
twice, before and after the colour; and a hue below 0 wrapped at 256 instead of 180, the range of OpenCV's hue.
"""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
from jaxtyping import UInt8

from data_pipelines.transforms import Augmentation

BRIGHTNESS = 32.0  # grey levels, up or down
CONTRAST = (0.5, 1.5)
SATURATION = (0.5, 1.5)
HUE = (-18, 17)  # OpenCV's hues, 2 degrees each; as in MMPose, 18 is excluded
HOLES = (1, 8)  # coarse dropout: holes per crop
HOLE_SIDE = (10, 40)  # pixels; height and width are drawn independently
GRID_UNIT = (10, 40)  # grid mask: pixels from one hole to the next; a hole is half as wide

Crop = UInt8[np.ndarray, "height width 3"]


@dataclasses.dataclass(frozen=True)
class Distortion:
    """A colour change; the defaults change nothing.

    Attributes:
      brightness: added to every value.
      contrast: multiplies every value.
      contrast_first: whether contrast is changed before saturation and hue, or after.
      saturation: multiplies the HSV saturation.
      hue: added to OpenCV's hue, modulo 180.
      channels: source channel of each of the three channels.
    """

    brightness: float = 0.0
    contrast: float = 1.0
    contrast_first: bool = True
    saturation: float = 1.0
    hue: int = 0
    channels: tuple[int, int, int] = (0, 1, 2)

    @classmethod
    def random(cls, rng: np.random.Generator) -> Distortion:
        """Draws a distortion as MMPose does: each part independently, with probability 1/2."""
        brighten, contrast, contrast_first, saturate, turn, swap = rng.random(6) < 0.5
        brightness = rng.uniform(-BRIGHTNESS, BRIGHTNESS)
        factor, saturation = rng.uniform(*CONTRAST), rng.uniform(*SATURATION)
        hue = int(rng.integers(*HUE, endpoint=True))
        red, green, blue = rng.permutation(3).tolist()
        return cls(
            brightness=brightness if brighten else 0.0,
            contrast=factor if contrast else 1.0,
            contrast_first=bool(contrast_first),
            saturation=saturation if saturate else 1.0,
            hue=hue if turn else 0,
            channels=(red, green, blue) if swap else (0, 1, 2),
        )


def augment_pixels(rng: np.random.Generator, crop: Crop, augmentation: Augmentation) -> Crop:
    """Applies `photometric`, `coarse_dropout` and `grid_mask`, each with its probability; the input is not modified.

    Draws no random numbers for probabilities of 0.
    """
    if augmentation.photometric and rng.random() < augmentation.photometric:
        crop = distort(crop, Distortion.random(rng))
    if augmentation.coarse_dropout and rng.random() < augmentation.coarse_dropout:
        crop = coarse_dropout(rng, crop)
    if augmentation.grid_mask and rng.random() < augmentation.grid_mask:
        crop = grid_mask(rng, crop)
    return crop


def distort(crop: Crop, distortion: Distortion) -> Crop:
    """Changes brightness, contrast, saturation, hue and the order of channels; each step rounds down."""
    d = distortion
    first, last = (d.contrast, 1.0) if d.contrast_first else (1.0, d.contrast)
    values = _scaled(_scaled(_LEVELS, 1.0, d.brightness), first)
    crop = cv2.LUT(crop, values)
    if d.saturation != 1 or d.hue:
        of_hsv = np.stack([(_LEVELS + d.hue) % 180, _scaled(_LEVELS, d.saturation), _LEVELS], axis=-1).astype(np.uint8)
        hsv = cv2.LUT(cv2.cvtColor(crop, cv2.COLOR_RGB2HSV), of_hsv[None])
        crop = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if last != 1:
        crop = cv2.LUT(crop, _scaled(_LEVELS, last))
    if d.channels != (0, 1, 2):
        planes = cv2.split(crop)
        crop = cv2.merge([planes[channel] for channel in d.channels])
    return crop


def coarse_dropout(rng: np.random.Generator, crop: Crop) -> Crop:
    """Blackens one to eight rectangles within the crop, which may overlap."""
    crop = crop.copy()
    shape = np.array(crop.shape[:2])
    for _ in range(rng.integers(*HOLES, endpoint=True)):
        side = np.minimum(rng.integers(*HOLE_SIDE, size=2, endpoint=True), shape)
        y, x = rng.integers(shape - side, endpoint=True)
        crop[y : y + side[0], x : x + side[1]] = 0
    return crop


def grid_mask(rng: np.random.Generator, crop: Crop) -> Crop:
    """Blackens squares on a grid, a quarter of the crop: GridMask (Chen et al. 2020) without rotation."""
    height, width = crop.shape[:2]
    unit = int(rng.integers(GRID_UNIT[0], min(GRID_UNIT[1], height, width), endpoint=True))
    hole = unit // 2
    y, x = rng.integers(unit - hole, size=2, endpoint=True)
    in_rows, in_columns = ((np.arange(n) - start) % unit < hole for n, start in ((height, y), (width, x)))
    keep = ~(in_rows[:, None] & in_columns)
    return cv2.bitwise_and(crop, crop, mask=keep.astype(np.uint8))


_LEVELS = np.arange(256)


def _scaled(values: np.ndarray, alpha: float, beta: float = 0.0) -> UInt8[np.ndarray, "256"]:
    # float32, because its rounding affects some levels.
    scaled = values.astype(np.float32) * np.float32(alpha) + np.float32(beta)
    return np.clip(scaled, 0, 255).astype(np.uint8)
