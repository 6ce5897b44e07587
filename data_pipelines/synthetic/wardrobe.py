"""Colours: skin, hair, clothes, and the cold counterparts that fill the background.

People are warm, backgrounds cold, and clutter has skin colours with red and blue exchanged: a network that
reads the channels in the wrong order confuses the two.
"""

from __future__ import annotations

import colorsys
import dataclasses

import numpy as np

Colour = tuple[int, int, int]  # RGB

SKIN: tuple[Colour, ...] = (
    (250, 218, 190),
    (238, 192, 158),
    (222, 166, 126),
    (190, 132, 94),
    (148, 96, 64),
    (112, 70, 46),
)
HAIR: tuple[Colour, ...] = ((30, 24, 22), (66, 42, 28), (110, 68, 36), (196, 152, 84), (150, 62, 30), (172, 166, 160))


@dataclasses.dataclass(frozen=True)
class Clothes:
    """A person's appearance. Lengths count joints: sleeves 1 end at the elbow, 2 at the wrist; legs likewise."""

    skin: Colour
    hair: Colour
    eyes: Colour
    lips: Colour
    shirt: Colour
    sleeves: Colour
    stripes: Colour | None
    front: Colour | None
    trousers: Colour
    shoes: Colour
    sleeve_length: float
    trouser_length: float
    skirt: bool
    long_hair: bool


def random_clothes(rng: np.random.Generator, background: Colour) -> Clothes:
    """Draws an appearance whose clothes mostly stand out from the background's main colour."""
    skin = jitter(rng, SKIN[rng.integers(len(SKIN))], 8.0)
    # The back of a head must not look like a face.
    hair = [colour for colour in HAIR if np.abs(np.subtract(colour, skin)).sum() > 150]
    shirt = _cloth(rng, background)
    trousers = _cloth(rng, background)
    skirt = rng.random() < 0.15
    return Clothes(
        skin=skin,
        hair=jitter(rng, hair[rng.integers(len(hair))], 8.0),
        eyes=(24, 22, 30),
        lips=(168, 50, 56),
        shirt=shirt,
        # Differs slightly from the shirt, so that an arm in front of the trunk is distinguishable.
        sleeves=shade(shirt, rng.choice([0.75, 1.25]).item()) if rng.random() < 0.75 else _cloth(rng, shirt),
        stripes=_cloth(rng, shirt) if rng.random() < 0.25 else None,
        front=_cloth(rng, shirt) if rng.random() < 0.5 else None,
        trousers=trousers,
        shoes=_cloth(rng, background),
        sleeve_length=float(rng.choice([0.0, 0.5, 0.8, 1.5, 1.9], p=[0.15, 0.35, 0.1, 0.1, 0.3])),
        trouser_length=float(
            rng.uniform(0.45, 0.8) if skirt else rng.choice([0.5, 0.8, 1.5, 1.85], p=[0.2, 0.15, 0.1, 0.55])
        ),
        skirt=skirt,
        long_hair=bool(rng.random() < 0.4),
    )


def random_background(rng: np.random.Generator) -> Colour:
    """Mostly green to violet and grey; seldom warm."""
    if rng.random() < 0.12:
        return _hsv(rng.uniform(0.05, 0.15), rng.uniform(0.05, 0.3), rng.uniform(0.35, 0.95))
    return _hsv(rng.uniform(0.28, 0.72), rng.uniform(0.05, 0.5), rng.uniform(0.25, 0.95))


def cold_skin(rng: np.random.Generator) -> Colour:
    """A skin tone with red and blue exchanged."""
    r, g, b = jitter(rng, SKIN[rng.integers(len(SKIN))], 8.0)
    return b, g, r


def jitter(rng: np.random.Generator, colour: Colour, amount: float) -> Colour:
    """The colour with its lightness and each channel moved by up to `amount` levels."""
    return _clip(np.array(colour) + rng.uniform(-amount, amount) + rng.uniform(-amount, amount, 3) / 2)


def shade(colour: Colour, factor: float) -> Colour:
    """The colour made lighter or darker."""
    r, g, b = colour
    return min(255, int(r * factor)), min(255, int(g * factor)), min(255, int(b * factor))


def _cloth(rng: np.random.Generator, against: Colour) -> Colour:
    """A cloth colour: of a few draws, the one with the highest contrast to another."""
    best, distance = (0, 0, 0), -1.0
    for _ in range(3):
        kind = rng.random()
        if kind < 0.6:
            colour = _hsv(rng.uniform(-0.1, 0.16) % 1.0, rng.uniform(0.45, 0.95), rng.uniform(0.4, 0.95))
        elif kind < 0.85:
            colour = _hsv(rng.uniform(0, 1), rng.uniform(0, 0.12), float(rng.choice([0.15, 0.3, 0.9])))
        else:
            colour = _hsv(rng.uniform(0, 1), rng.uniform(0.4, 0.9), rng.uniform(0.3, 0.9))
        apart = float(np.abs(np.subtract(colour, against)).sum())
        if apart > distance:
            best, distance = colour, apart
        if apart > 150:
            break
    return best


def _hsv(hue: float, saturation: float, value: float) -> Colour:
    return _clip(np.array(colorsys.hsv_to_rgb(hue, saturation, value)) * 255)


def _clip(values: np.ndarray) -> Colour:
    r, g, b = np.clip(values, 0, 255).astype(int).tolist()
    return r, g, b
