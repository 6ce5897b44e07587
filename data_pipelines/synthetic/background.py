"""Backgrounds with gradients, stripes, shapes and clutter, and the finish of an image: light, blur and noise."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
from jaxtyping import UInt8

from data_pipelines.synthetic import wardrobe
from data_pipelines.synthetic.wardrobe import Colour


def draw_background(
    rng: np.random.Generator, height: int, width: int, base: Colour
) -> UInt8[np.ndarray, "height width 3"]:
    """An RGB image around one main colour: light and dark patches, floor, patterns, shapes, and limb-like clutter."""
    patches = np.clip(np.array(base) + rng.normal(0, 22, (4, 5, 1)) + rng.normal(0, 6, (4, 5, 3)), 0, 255).astype(
        np.uint8
    )
    image = cv2.resize(patches, (width, height), interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.6:
        _floor(rng, image, base)
    if rng.random() < 0.35:
        _stripes(rng, image, base)
    for _ in range(int(rng.integers(2, 9))):
        _shape(rng, image, base)
    for _ in range(int(rng.integers(1, 5))):
        _false_limb(rng, image)
    return image


def finish(rng: np.random.Generator, image: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height width 3"]:
    """Adds uneven light, sometimes blur, and slight noise, as from a camera."""
    height, width = image.shape[:2]
    light = cv2.resize(rng.uniform(0.82, 1.12, (3, 3)).astype(np.float32) * 128, (width, height)).astype(np.uint8)
    image = cv2.multiply(image, cv2.merge([light] * 3), scale=1 / 128)
    if rng.random() < 0.25:
        image = cv2.GaussianBlur(image, (3, 3), float(rng.uniform(0.4, 0.9)))
    noise = np.frombuffer(rng.bytes(image.size), np.uint8).reshape(image.shape)
    strength = float(rng.uniform(0.01, 0.09))
    return cv2.addWeighted(image, 1.0, noise, strength, -127.5 * strength)


def _floor(rng: np.random.Generator, image: np.ndarray, base: Colour) -> None:
    horizon = int(rng.uniform(0.35, 0.85) * image.shape[0])
    floor = wardrobe.shade(wardrobe.jitter(rng, base, 25.0), float(rng.uniform(0.6, 0.9)))
    image[horizon:] = image[horizon:] // 2 + (np.array(floor) // 2).astype(np.uint8)


def _stripes(rng: np.random.Generator, image: np.ndarray, base: Colour) -> None:
    height, width = image.shape[:2]
    colour = wardrobe.jitter(rng, base, 30.0)
    step, slope = int(rng.integers(10, 40)), rng.uniform(-0.5, 0.5)
    for position in range(-height, width + height, step):
        if rng.random() < 0.8:
            cv2.line(image, (position, 0), (int(position + slope * height), height), colour, int(rng.integers(1, 4)))
    if rng.random() < 0.5:
        for position in range(0, height, step):
            cv2.line(image, (0, position), (width, position), colour, 1)


def _shape(rng: np.random.Generator, image: np.ndarray, base: Colour) -> None:
    height, width = image.shape[:2]
    colour = wardrobe.jitter(rng, base, 40.0) if rng.random() < 0.6 else wardrobe.random_background(rng)
    x, y = int(rng.uniform(0, width)), int(rng.uniform(0, height))
    a, b = (int(rng.uniform(0.03, 0.25) * width) for _ in range(2))
    kind = rng.integers(4)
    if kind == 0:
        cv2.rectangle(image, (x, y), (x + a, y + b), colour, -1)
        cv2.rectangle(image, (x, y), (x + a, y + b), wardrobe.shade(colour, 0.75), 1)
    elif kind == 1:
        cv2.ellipse(image, (x, y), (a, b), float(rng.uniform(0, 180)), 0, 360, colour, -1, cv2.LINE_AA)
    elif kind == 2:
        corners = np.array([(x, y), *rng.integers(-40, 41, (2, 2)) + (x, y)], np.int32)
        cv2.fillConvexPoly(image, corners, colour, cv2.LINE_AA)
    else:
        end = (int(x + rng.normal(0, 80)), int(y + rng.normal(0, 80)))
        cv2.line(image, (x, y), end, colour, int(rng.integers(1, 9)), cv2.LINE_AA)


def _false_limb(rng: np.random.Generator, image: np.ndarray) -> None:
    """Two joined strokes and a knob, like an arm or a leg, in a skin tone with red and blue exchanged."""
    height, width = image.shape[:2]
    colour = wardrobe.cold_skin(rng)
    points = [np.array([rng.uniform(0, width), rng.uniform(0, height)])]
    length, angle = rng.uniform(12, 40), rng.uniform(0, 2 * np.pi)
    for _ in range(2):
        points.append(points[-1] + length * np.array([np.cos(angle), np.sin(angle)]))
        angle += rng.uniform(-1.5, 1.5)
    thick = max(2, int(length * rng.uniform(0.2, 0.35)))
    ends = [(int(x), int(y)) for x, y in points]
    for a, b in itertools.pairwise(ends):
        cv2.line(image, a, b, colour, thick, cv2.LINE_AA)
    if rng.random() < 0.4:  # a head of the same colour
        cv2.ellipse(
            image, ends[0], (thick, int(1.25 * thick)), float(rng.uniform(0, 180)), 0, 360, colour, -1, cv2.LINE_AA
        )
