"""Scenes: a background, people and objects in front of each other, and exact annotations of what is visible.

Every polygon is drawn twice: into the image, and as its part's number into a map of the same size. A keypoint is
visible if the map's top layer there belongs to one of its own parts, occluded if something else covers it, and
unlabelled if it lies outside the image.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable

import cv2
import numpy as np
from jaxtyping import Bool, Int, UInt8

from data_pipelines.keypoints import COCO_AIC
from data_pipelines.synthetic import figures, wardrobe
from data_pipelines.synthetic.background import draw_background, finish
from data_pipelines.synthetic.poses import random_pose
from data_pipelines.synthetic.wardrobe import Colour

Box = tuple[int, int, int, int]  # x, y, width, height in pixels


@dataclasses.dataclass(frozen=True)
class Settings:
    """The composition of scenes.

    Attributes:
      people: probabilities of 0, 1, 2, ... labelled people.
      heights: smallest and largest standing height in pixels.
      truncated: share of people placed across the image's border.
      occluder: share of people with an object in front of them.
      tiny: share of images with people too small to be labelled.
      crowd: share of images with a crowd region.
      portrait: share of upright images.
    """

    people: tuple[float, ...] = (0.07, 0.5, 0.34, 0.09)
    heights: tuple[float, float] = (100.0, 220.0)
    truncated: float = 0.21
    occluder: float = 0.21
    tiny: float = 0.12
    crowd: float = 0.05
    portrait: float = 0.35


# AI Challenger's images show people close by, all of them annotated.
COCO_SETTINGS = Settings()
AIC_SETTINGS = Settings(
    people=(0.0, 0.45, 0.4, 0.15),
    heights=(100.0, 220.0),
    truncated=0.2,
    occluder=0.08,
    tiny=0.0,
    crowd=0.0,
    portrait=0.5,
)


@dataclasses.dataclass(frozen=True)
class Person:
    """One annotated person.

    Attributes:
      keypoints: [19, 3] integers (x, y, v) in the order of COCO_AIC; v is 2 visible, 1 occluded, 0 outside.
      labelled: whether the keypoints are annotated; tiny or hardly visible people have only a box.
      box: around the silhouette within the image, seen and occluded.
      mask: the pixels where the person is visible.
    """

    keypoints: Int[np.ndarray, "19 3"]
    labelled: bool
    box: Box
    mask: Bool[np.ndarray, "height width"]


@dataclasses.dataclass(frozen=True)
class Scene:
    """An RGB image, its people from back to front, and the mask of its crowd (None without one)."""

    image: UInt8[np.ndarray, "height width 3"]
    people: tuple[Person, ...]
    crowd: Bool[np.ndarray, "height width"] | None


def render_scene(rng: np.random.Generator, image_size: tuple[int, int], settings: Settings) -> Scene:
    """Draws a scene; `image_size` is the landscape (height, width), upright images exchange the two."""
    height, width = image_size
    if rng.random() < settings.portrait:
        height, width = width, height
    canvas = _Canvas(rng, height, width)
    if rng.random() < settings.crowd:
        canvas.draw_crowd()
    tiny = int(rng.integers(1, 3)) if rng.random() < settings.tiny else 0
    for _ in range(tiny):
        canvas.draw_person(rng.uniform(16, 30), labelled=False, truncated=False)
    count = int(rng.choice(len(settings.people), p=settings.people))
    # The smaller, the farther away.
    low, high = settings.heights
    heights = sorted((low + (high - low) * rng.random(count)).tolist())
    for person_height in heights:
        canvas.draw_person(person_height, labelled=True, truncated=rng.random() < settings.truncated)
        if rng.random() < settings.occluder:
            canvas.draw_occluder()
    return canvas.scene()


_STRIDE = len(figures.PARTS)
_CROWD, _THING = 254, 255
_SUBPIXEL_BITS = 4
_OUTLINED_FROM = 12  # Pixels; an outline would cover smaller shapes, such as eyes.
_MIN_VISIBLE = 3  # Keypoints are annotated only for people with at least this many visible ones.


class _Canvas:
    """The image and its map while a scene is drawn. The map holds 1 + person * parts + part."""

    def __init__(self, rng: np.random.Generator, height: int, width: int):
        self.rng, self.height, self.width = rng, height, width
        self.base = wardrobe.random_background(rng)
        self.image = draw_background(rng, height, width, self.base)
        self.map = np.zeros((height, width), np.uint8)
        self.people: list[tuple[figures.Figure, bool]] = []

    def draw_person(self, person_height: float, *, labelled: bool, truncated: bool) -> None:
        """Adds a random person; `truncated` places them across the border."""
        figure = self._figure(person_height)
        figure = figure.moved(*self._place(figure.bounds(), truncated))
        first = 1 + _STRIDE * len(self.people)
        self._draw(figure.shapes, lambda shape: first + shape.part, outlined=person_height > 45)
        self.people.append((figure, labelled))

    def draw_crowd(self) -> None:
        """Adds a row of small people that share one annotation."""
        x, y = self.rng.uniform(0.1, 0.6) * self.width, self.rng.uniform(0.2, 0.6) * self.height
        for _ in range(int(self.rng.integers(6, 11))):
            figure = self._figure(self.rng.uniform(22, 40))
            x += self.rng.uniform(6, 16)
            self._draw(figure.moved(x, y + self.rng.normal(0, 4)).shapes, lambda _: _CROWD, outlined=False)

    def draw_occluder(self) -> None:
        """Adds an object (a table, a box, a post, a plant) in front of the last person."""
        rng = self.rng
        figure, _ = self.people[-1]
        x0, y0, x1, y1 = figure.bounds()
        wide, high = x1 - x0, y1 - y0
        colour = wardrobe.jitter(rng, wardrobe.random_background(rng), 20.0)
        kind = rng.integers(4)
        if kind == 0:  # a table or a wall before the legs
            top = y0 + rng.uniform(0.55, 0.85) * high
            left, right = x0 - rng.uniform(0, 0.5) * wide, x1 + rng.uniform(0, 0.5) * wide
            bottom = top + rng.uniform(0.15, 0.5) * high
            self._thing([(left, top), (right, top), (right, bottom), (left, bottom)], colour)
            edge = top + 0.06 * high
            self._thing(
                [(left - 4, top), (right + 4, top), (right + 4, edge), (left - 4, edge)], wardrobe.shade(colour, 1.25)
            )
        elif kind == 1:  # a box before a side
            left = x0 + rng.uniform(-0.2, 0.7) * wide
            right = left + rng.uniform(0.25, 0.5) * wide
            top, bottom = y0 + rng.uniform(0.25, 0.7) * high, y0 + rng.uniform(0.8, 1.05) * high
            self._thing([(left, top), (right, top), (right, bottom), (left, bottom)], colour)
            lid = [
                (left, top),
                (right, top),
                (right - 0.1 * wide, top - 0.06 * high),
                (left + 0.1 * wide, top - 0.06 * high),
            ]
            self._thing(lid, wardrobe.shade(colour, 1.2))
        elif kind == 2:  # a post
            x, half = x0 + rng.uniform(0.1, 0.9) * wide, rng.uniform(0.02, 0.05) * max(wide, high)
            lean = rng.normal(0, 0.1) * high
            ends = y0 - rng.uniform(0, 0.6) * high, y1 + rng.uniform(0, 0.3) * high
            self._thing(
                [(x - half, ends[0]), (x + half, ends[0]), (x + half + lean, ends[1]), (x - half + lean, ends[1])],
                colour,
            )
        else:  # a plant
            foot = x0 + rng.uniform(0, 1) * wide, y0 + rng.uniform(0.8, 1.1) * high
            green = wardrobe.jitter(rng, (60, 140, 70), 30.0)
            for _ in range(int(rng.integers(4, 9))):
                angle, reach = rng.normal(0, 0.7), rng.uniform(0.2, 0.45) * max(wide, high)
                tip = foot[0] + np.sin(angle) * reach, foot[1] - np.cos(angle) * reach
                across = 0.12 * reach * np.cos(angle), 0.12 * reach * np.sin(angle)
                middle = (foot[0] + tip[0]) / 2, (foot[1] + tip[1]) / 2
                sides = [(middle[0] + s * across[0], middle[1] + s * across[1]) for s in (1, -1)]
                self._thing([foot, sides[0], tip, sides[1]], wardrobe.jitter(rng, green, 15.0))

    def scene(self) -> Scene:
        """Finishes the image and reads from the map which person is visible where."""
        people = tuple(
            p for i, (figure, labelled) in enumerate(self.people) if (p := self._person(i, figure, labelled))
        )
        crowd = self.map == _CROWD
        return Scene(finish(self.rng, self.image), people, crowd if crowd.any() else None)

    def _figure(self, person_height: float) -> figures.Figure:
        body, pose = figures.random_body(self.rng), random_pose(self.rng)
        return figures.build_figure(body, pose, wardrobe.random_clothes(self.rng, self.base), person_height)

    def _place(self, bounds: tuple[float, float, float, float], truncated: bool) -> tuple[float, float]:
        """An offset that puts a figure inside the image, or a part of it beyond one or two borders."""
        rng = self.rng
        x0, y0, x1, y1 = bounds
        wide, high = x1 - x0, y1 - y0
        spots = rng.uniform(0, 1, (3, 2)) * (max(self.width - wide, 1), max(self.height - high, 1))
        left, top = min(spots.tolist(), key=lambda spot: self._crowding(spot[0], spot[1], wide, high))
        if self.people and not truncated and rng.random() < 0.12:  # beside or before the one drawn last
            ox0, oy0, ox1, oy1 = self.people[-1][0].bounds()
            left = (ox0 + ox1) / 2 + rng.choice([-1, 1]) * rng.uniform(0.35, 0.6) * (wide + ox1 - ox0) / 2 - wide / 2
            top = (oy0 + oy1) / 2 - high / 2 + rng.normal(0, 8)
            left, top = np.clip(left, 0, max(self.width - wide, 1)), np.clip(top, 0, max(self.height - high, 1))
        if truncated:
            side = rng.choice(["bottom", "top", "left", "right"], p=[0.5, 0.1, 0.2, 0.2])
            cut = rng.uniform(0.1, 0.36)
            if side == "bottom":
                top = self.height - (1 - cut) * high
            elif side == "top":
                top = -cut * high
            elif side == "left":
                left = -cut * wide
            else:
                left = self.width - (1 - cut) * wide
        return float(left - x0), float(top - y0)

    def _crowding(self, left: float, top: float, wide: float, high: float) -> float:
        """The number of pixels that a box there would share with the people drawn so far."""
        shared = 0.0
        for figure, _ in self.people:
            x0, y0, x1, y1 = figure.bounds()
            across, down = min(x1, left + wide) - max(x0, left), min(y1, top + high) - max(y0, top)
            shared += max(across, 0.0) * max(down, 0.0)
        return shared

    def _draw(self, shapes: Iterable[figures.Shape], number: Callable[[figures.Shape], int], *, outlined: bool) -> None:
        for shape in shapes:
            corners = np.rint(shape.corners * (1 << _SUBPIXEL_BITS)).astype(np.int32)
            cv2.fillConvexPoly(self.image, corners, shape.colour, cv2.LINE_AA, _SUBPIXEL_BITS)
            cv2.fillConvexPoly(self.map, corners, [number(shape)], cv2.LINE_8, _SUBPIXEL_BITS)
            if outlined and np.ptp(shape.corners, axis=0).max() > _OUTLINED_FROM:
                dark = wardrobe.shade(shape.colour, 0.65)
                cv2.polylines(self.image, [corners], True, dark, 1, cv2.LINE_AA, _SUBPIXEL_BITS)

    def _thing(self, corners: list[tuple[float, float]], colour: Colour) -> None:
        fixed = np.rint(np.array(corners) * (1 << _SUBPIXEL_BITS)).astype(np.int32)
        cv2.fillConvexPoly(self.image, fixed, colour, cv2.LINE_AA, _SUBPIXEL_BITS)
        cv2.fillConvexPoly(self.map, fixed, [_THING], cv2.LINE_8, _SUBPIXEL_BITS)

    def _person(self, index: int, figure: figures.Figure, labelled: bool) -> Person | None:
        """The annotation of one person; None if nothing of them is visible."""
        first = 1 + _STRIDE * index
        mask = (self.map >= first) & (self.map < first + _STRIDE)
        if not mask.any():
            return None
        xy = np.rint(figure.points).astype(int)
        inside = ((xy >= 0) & (xy < (self.width, self.height))).all(1)
        x, y = np.where(inside[:, None], xy, 0).T
        part = self.map[y, x].astype(int) - first
        part[(part < 0) | (part >= _STRIDE)] = _STRIDE
        seen = np.where(figure.far, _limbs_own(), _own())[part, np.arange(len(xy))] & ~figure.turned_away
        visibility = np.where(inside, 1 + (inside & seen), 0)
        keypoints = np.stack([x, y, visibility], 1)
        x0, y0, x1, y1 = figure.bounds()
        # OpenCV may set a pixel just beyond a corner; the box includes those.
        mask_left, mask_top, mask_width, mask_height = cv2.boundingRect(mask.astype(np.uint8))
        left, top = min(max(0, round(x0)), mask_left), min(max(0, round(y0)), mask_top)
        right = max(min(self.width - 1, round(x1)), mask_left + mask_width - 1)
        bottom = max(min(self.height - 1, round(y1)), mask_top + mask_height - 1)
        coco = visibility[: COCO_AIC.index("head_top")]
        return Person(
            keypoints=keypoints,
            labelled=labelled and int((coco == 2).sum()) >= _MIN_VISIBLE,
            box=(left, top, right - left + 1, bottom - top + 1),
            mask=mask,
        )


# The parts whose pixels make a joint visible. For a shoulder or hip on the far side, only the limb's own.
_OWNERS = {
    **{name: ("head",) for name in ("nose", "left_eye", "right_eye", "left_ear", "right_ear")},
    "head_top": ("head", "hair"),
    "neck": ("neck", "torso"),
    **{
        f"{side}_{joint}": tuple(p if p in ("torso", "hips") else f"{side}_{p}" for p in parts)
        for side in figures.SIDES
        for joint, parts in {
            "shoulder": ("torso", "upper_arm"),
            "elbow": ("upper_arm", "forearm"),
            "wrist": ("forearm",),
            "hip": ("hips", "torso", "thigh"),
            "knee": ("thigh", "shin"),
            "ankle": ("shin",),
        }.items()
    },
}


@functools.cache
def _own() -> np.ndarray:
    """[parts + 1, 19]: whether a part shows a keypoint; the last row is for everything except the person."""
    own = np.zeros((_STRIDE + 1, len(COCO_AIC)), bool)
    for name, parts in _OWNERS.items():
        own[[figures.PARTS.index(part) for part in parts], COCO_AIC.index(name)] = True
    return own


@functools.cache
def _limbs_own() -> np.ndarray:
    """The same without the trunk, for shoulders and hips on its far side."""
    own = _own().copy()
    own[[figures.PARTS.index("torso"), figures.PARTS.index("hips")]] = False
    return own
