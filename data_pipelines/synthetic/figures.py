"""Jointed people in three dimensions: proportions, poses and clothes, projected to polygons in depth order.

A person's own axes are x to their left, y up, z forward; a rotation and an orthographic camera carry them to the
image: x right, y down (pixels), z towards the viewer. Nothing in a figure depends on its handedness, so a mirrored
picture with left and right exchanged is again a picture that could have been drawn.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float

from data_pipelines.keypoints import COCO_AIC
from data_pipelines.synthetic import geometry
from data_pipelines.synthetic.wardrobe import Clothes, Colour, shade

SIDES = ("left", "right")
PARTS = ("head", "hair", "neck", "torso", "hips") + tuple(
    f"{side}_{part}" for side in SIDES for part in ("upper_arm", "forearm", "thigh", "shin")
)


@dataclasses.dataclass(frozen=True)
class Body:
    """Lengths and radii as fractions of the standing height."""

    thigh: float
    shin: float
    foot: float
    hips: float
    torso: float
    shoulders: float
    upper_arm: float
    forearm: float
    neck: float
    head: float
    girth: float


@dataclasses.dataclass(frozen=True)
class Pose:
    """Angles in radians; pairs are (left, right).

    yaw, pitch and roll turn the whole person (yaw 0 faces the viewer, pitch is how far the viewer looks down, roll
    turns in the image plane); lean, bend and twist turn the upper body about its left, forward and up axes.
    `elbow_towards` are the directions (left, up, forward; the first mirrored for the right arm) of the bent forearms.
    """

    yaw: float
    pitch: float
    roll: float
    lean: float
    bend: float
    twist: float
    head: tuple[float, float, float]
    hip_flexion: tuple[float, float]
    hip_abduction: tuple[float, float]
    knee: tuple[float, float]
    shoulder_flexion: tuple[float, float]
    shoulder_abduction: tuple[float, float]
    elbow: tuple[float, float]
    elbow_towards: tuple[tuple[float, float, float], tuple[float, float, float]]


@dataclasses.dataclass(frozen=True)
class Shape:
    """One convex polygon of a body part: its index in PARTS, its corners in pixels, its colour."""

    part: int
    corners: Float[np.ndarray, "corners 2"]
    colour: Colour


@dataclasses.dataclass(frozen=True)
class Figure:
    """A projected person.

    Attributes:
      points: [19, 2] pixel positions of the keypoints of COCO_AIC.
      turned_away: [19] face keypoints on the far side of the head; never visible.
      far: [19] shoulders and hips on the far side of the torso; visible only where their limb shows.
      shapes: polygons from back to front.
    """

    points: Float[np.ndarray, "19 2"]
    turned_away: Bool[np.ndarray, "19"]
    far: Bool[np.ndarray, "19"]
    shapes: tuple[Shape, ...]

    def bounds(self) -> tuple[float, float, float, float]:
        """(x0, y0, x1, y1) around all shapes, in pixels."""
        corners = np.concatenate([shape.corners for shape in self.shapes])
        (x0, y0), (x1, y1) = corners.min(0), corners.max(0)
        return float(x0), float(y0), float(x1), float(y1)

    def moved(self, dx: float, dy: float) -> Figure:
        """The figure at another position in the image."""
        offset = np.array([dx, dy])
        shapes = tuple(dataclasses.replace(s, corners=s.corners + offset) for s in self.shapes)
        return dataclasses.replace(self, points=self.points + offset, shapes=shapes)


def random_body(rng: np.random.Generator) -> Body:
    """Adults of various builds, and a share of children with larger heads and shorter legs."""
    child = rng.random() < 0.2
    legs = rng.uniform(0.88, 0.98) if child else rng.uniform(0.94, 1.08)
    arms = rng.uniform(0.9, 1.1)
    return Body(
        thigh=0.245 * legs,
        shin=0.24 * legs,
        foot=0.11 * rng.uniform(0.9, 1.15),
        hips=rng.uniform(0.1, 0.13),
        torso=rng.uniform(0.27, 0.31),
        shoulders=rng.uniform(0.19, 0.25),
        upper_arm=0.17 * arms,
        forearm=0.155 * arms,
        neck=rng.uniform(0.045, 0.06),
        head=rng.uniform(0.1, 0.112) if child else rng.uniform(0.085, 0.1),
        girth=rng.uniform(1.5, 1.9),
    )


def build_figure(body: Body, pose: Pose, clothes: Clothes, height: float) -> Figure:
    """Projects a person whose standing height is `height` pixels, the middle of the hips at (0, 0)."""
    return _Builder(body, pose, clothes, height).build()


class _Builder:
    """State shared by the limbs while a figure is built. Vectors are in camera axes, lengths in pixels."""

    def __init__(self, body: Body, pose: Pose, clothes: Clothes, height: float):
        self.body, self.pose, self.clothes, self.height = body, pose, clothes, height
        # Columns are the person's left, up and forward in camera axes (x right, y up, z to the viewer).
        self.pelvis = geometry.about_z(pose.roll) @ geometry.about_x(pose.pitch) @ geometry.about_y(pose.yaw)
        self.chest = (
            self.pelvis @ geometry.about_y(pose.twist) @ geometry.about_z(pose.bend) @ geometry.about_x(pose.lean)
        )
        self.joints: dict[str, np.ndarray] = {}
        self.turned_away: set[str] = set()
        self.far: set[str] = set()
        self.layers: list[tuple[float, list[Shape]]] = []

    def build(self) -> Figure:
        self._torso()
        for i, side in enumerate(SIDES):
            self._leg(i, side)
            self._arm(i, side)
        if self.clothes.skirt:
            self._skirt()
        self._head()
        self.layers.sort(key=lambda layer: layer[0])
        names = COCO_AIC.names
        return Figure(
            points=np.array([geometry.flat(self.joints[name]) for name in names]),
            turned_away=np.array([name in self.turned_away for name in names]),
            far=np.array([name in self.far for name in names]),
            shapes=tuple(shape for _, shapes in self.layers for shape in shapes),
        )

    def _length(self, fraction: float) -> float:
        return fraction * self.height

    def _layer(self, part: str, depth: float, *pieces: tuple[np.ndarray, Colour]) -> None:
        """Adds the pieces of one part; `depth` in pixels towards the viewer orders the layers."""
        # Farther parts are slightly darker, to distinguish crossing limbs of the same colour.
        light = 1.0 + 0.6 * float(np.clip(depth / self.height, -0.25, 0.15))
        shapes = [Shape(PARTS.index(part), corners, shade(colour, light)) for corners, colour in pieces]
        self.layers.append((depth, shapes))

    def _torso(self) -> None:
        body, clothes = self.body, self.clothes
        left, up, forward = self.chest.T
        hips_left, hips_up, hips_forward = self.pelvis.T
        half_hips, half_shoulders = self._length(body.hips) / 2, self._length(body.shoulders) / 2
        neck = up * self._length(body.torso)
        for sign, side in ((1, "left"), (-1, "right")):
            self.joints[f"{side}_hip"] = sign * half_hips * hips_left
            self.joints[f"{side}_shoulder"] = neck + sign * half_shoulders * left - 0.03 * self.height * up
            if sign * left[2] < -0.75:
                self.far.add(f"{side}_shoulder")
            if sign * hips_left[2] < -0.75:
                self.far.add(f"{side}_hip")
        self.joints["neck"] = neck + 0.01 * self.height * up

        girth = self.height * body.girth
        hip_ring = geometry.ring(
            -0.02 * self.height * hips_up, hips_left, half_hips + 0.032 * girth, hips_forward, 0.055 * girth
        )
        waist = geometry.ring(0.35 * neck, left, half_hips + 0.022 * girth, forward, 0.052 * girth)
        chest = geometry.ring(0.8 * neck, left, half_shoulders + 0.012 * girth, forward, 0.062 * girth)
        collar = geometry.ring(neck, left, half_shoulders * 0.75, forward, 0.04 * girth)
        pieces = [(geometry.hull(waist, chest, collar), clothes.shirt), (geometry.hull(hip_ring, waist), clothes.shirt)]
        if clothes.stripes is not None:
            for t in np.arange(0.08, 0.9, 0.28):
                band = [waist + (chest - waist) * s for s in (t, t + 0.13)]
                pieces.append((geometry.hull(*band), clothes.stripes))
        facing = forward[2]
        if facing > 0.25:  # Details on the front of a shirt.
            front = [0.07 * girth * forward * 0.8 + s * neck for s in (0.2, 0.6, 0.98)]
            if clothes.front is not None:
                wide = 0.35 * half_shoulders
                panel = [p + w * left for p, w in zip(front * 2, [wide] * 3 + [-wide] * 3, strict=True)]
                pieces.append((geometry.hull(panel), clothes.front))
            collar_width = 0.4 * half_shoulders
            vee = [neck + collar_width * left, neck - collar_width * left, 0.78 * neck + 0.05 * girth * forward]
            pieces.append((geometry.hull(vee), clothes.skin))
        self._layer("torso", float(neck[2]) / 2, *pieces)
        belt = geometry.hull(hip_ring, 0.6 * hip_ring + 0.4 * waist)
        self._layer("hips", 0.01 * self.height, (belt, clothes.trousers))

    def _leg(self, index: int, side: str) -> None:
        body, pose, clothes = self.body, self.pose, self.clothes
        sign = 1 - 2 * index
        flexion, abduction = pose.hip_flexion[index], pose.hip_abduction[index]
        hip = self.joints[f"{side}_hip"]
        knee = hip + self._length(body.thigh) * (self.pelvis @ geometry.limb(flexion, abduction, sign))
        bent = flexion - pose.knee[index]
        ankle = knee + self._length(body.shin) * (self.pelvis @ geometry.limb(bent, 0.6 * abduction, sign))
        toes_forward = self.pelvis @ geometry.limb(bent + 1.45, 0.12, sign)
        self.joints[f"{side}_knee"], self.joints[f"{side}_ankle"] = knee, ankle
        girth = self.height * (0.4 + 0.6 * body.girth)
        radii = 0.052 * girth, 0.036 * girth, 0.026 * girth
        thigh = [(geometry.capsule(hip, knee, radii[0], radii[1]), clothes.skin)]
        shin = [(geometry.capsule(knee, ankle, radii[1], radii[2]), clothes.skin)]
        covered = clothes.trouser_length
        thigh.append((geometry.covered(hip, knee, radii[0], radii[1], min(covered, 1.0)), clothes.trousers))
        if covered > 1.0:
            shin.append((geometry.covered(knee, ankle, radii[1], radii[2], covered - 1.0), clothes.trousers))
        toes = ankle + self._length(body.foot) * toes_forward
        shin.append((geometry.capsule(ankle, toes, 0.03 * girth, 0.02 * girth), clothes.shoes))
        self._layer(f"{side}_thigh", float(hip[2] + knee[2]) / 2, *thigh)
        self._layer(f"{side}_shin", float(knee[2] + ankle[2]) / 2, *shin)

    def _skirt(self) -> None:
        covered, width = self.clothes.trouser_length, 0.06 * self.height
        hips, knees = ([self.joints[f"{side}_{joint}"] for side in SIDES] for joint in ("hip", "knee"))
        hems = [hip + covered * (knee - hip) for hip, knee in zip(hips, knees, strict=True)]
        around = np.concatenate([geometry.ring(p, np.eye(3)[0], width, np.eye(3)[1], width) for p in hips + hems])
        depth = max(float(hip[2] + knee[2]) / 2 for hip, knee in zip(hips, knees, strict=True)) + 1e-3 * self.height
        self._layer("hips", depth, (geometry.hull(around), self.clothes.trousers))

    def _arm(self, index: int, side: str) -> None:
        body, pose, clothes = self.body, self.pose, self.clothes
        sign = 1 - 2 * index
        direction = geometry.limb(pose.shoulder_flexion[index], pose.shoulder_abduction[index], sign)
        towards = np.array(pose.elbow_towards[index]) * (sign, 1, 1)
        towards = towards - (towards @ direction) * direction
        towards /= np.linalg.norm(towards) + 1e-6
        bent = np.cos(pose.elbow[index]) * direction + np.sin(pose.elbow[index]) * towards
        shoulder = self.joints[f"{side}_shoulder"]
        elbow = shoulder + self._length(body.upper_arm) * (self.chest @ direction)
        wrist = elbow + self._length(body.forearm) * (self.chest @ bent)
        hand = wrist + 0.045 * self.height * (self.chest @ bent)
        self.joints[f"{side}_elbow"], self.joints[f"{side}_wrist"] = elbow, wrist
        girth = self.height * (0.5 + 0.5 * body.girth)
        radii = 0.036 * girth, 0.029 * girth, 0.021 * girth
        covered = clothes.sleeve_length
        upper = [(geometry.capsule(shoulder, elbow, radii[0], radii[1]), clothes.skin)]
        lower = [
            (geometry.capsule(wrist, hand, 0.024 * girth, 0.022 * girth), clothes.skin),
            (geometry.capsule(elbow, wrist, radii[1], radii[2]), clothes.skin),
        ]
        if covered > 0:
            upper.append((geometry.covered(shoulder, elbow, radii[0], radii[1], min(covered, 1.0)), clothes.sleeves))
        if covered > 1:
            lower.append((geometry.covered(elbow, wrist, radii[1], radii[2], covered - 1.0), clothes.sleeves))
        # Arms hanging beside the torso have its depth; they are drawn over it.
        self._layer(f"{side}_upper_arm", float(shoulder[2] + elbow[2]) / 2 + 0.02 * self.height, *upper)
        self._layer(f"{side}_forearm", float(elbow[2] + wrist[2]) / 2 + 0.03 * self.height, *lower)

    def _head(self) -> None:
        body, clothes = self.body, self.clothes
        yaw, pitch, roll = self.pose.head
        axes = self.chest @ geometry.about_y(yaw) @ geometry.about_x(pitch) @ geometry.about_z(roll)
        left, up, forward = axes.T
        radius = self._length(body.head)
        neck = self.joints["neck"]
        centre = neck + self._length(body.neck) * self.chest[:, 1] + 1.1 * radius * up + 0.1 * radius * forward

        def on_head(direction: np.ndarray, scale: float = 1.0) -> np.ndarray:
            """The point of the skull in a direction (camera axes); the skull is a quarter longer upwards."""
            return centre + scale * radius * (direction + 0.25 * (direction @ up) * up)

        face = {
            "nose": (0.0, -0.12, 1.08),
            **{f"{side}_eye": (sign * 0.4, 0.18, 0.9) for sign, side in ((1, "left"), (-1, "right"))},
            **{f"{side}_ear": (sign * 1.02, 0.05, -0.05) for sign, side in ((1, "left"), (-1, "right"))},
        }
        least = {"nose": -0.05, "eye": 0.12, "ear": -0.35}
        for name, own in face.items():
            direction = axes @ np.array(own)
            self.joints[name] = on_head(direction)
            if direction[2] < least[name.split("_")[-1]]:
                self.turned_away.add(name)
        self.joints["head_top"] = on_head(up, 0.98)

        depth = float(centre[2]) + 0.04 * self.height
        skull = geometry.hull([on_head(d, 1.06) for d in geometry.disc()])
        pieces = [(skull, clothes.hair)]
        skin = geometry.cap(forward - 0.3 * up, reach=0.12)
        if skin is not None:
            pieces.append((geometry.hull([on_head(d) for d in skin]), clothes.skin))
        dark = shade(clothes.skin, 0.6)
        for name in face:
            if name in self.turned_away:
                continue
            where, small = self.joints[name], radius * {"nose": 0.15, "eye": 0.15, "ear": 0.21}[name.split("_")[-1]]
            if name == "nose":
                pieces.append(
                    (geometry.capsule(where + 0.12 * radius * up, where - 0.05 * radius * up, 0.6 * small, small), dark)
                )
            elif name.endswith("eye"):
                pieces.append(
                    (
                        geometry.capsule(where - 0.08 * radius * left, where + 0.08 * radius * left, small, small),
                        clothes.eyes,
                    )
                )
            else:
                pieces.append(
                    (geometry.capsule(where + 0.1 * radius * up, where - 0.1 * radius * up, small, small), clothes.skin)
                )
        mouth = axes @ np.array((0.0, -0.62, 0.78))
        if mouth[2] > 0.15:
            where = on_head(mouth)
            wide = 0.22 * radius * left
            pieces.append((geometry.capsule(where - wide, where + wide, 0.09 * radius, 0.09 * radius), clothes.lips))
        self._layer("neck", min(depth, float(neck[2]) + 0.02 * self.height) - 1e-3, (
            geometry.capsule(neck - 0.02 * self.height * up, centre - 0.5 * radius * up, 0.5 * radius, 0.5 * radius),
            shade(clothes.skin, 0.9),
        ))  # fmt: skip
        self._layer("head", depth, *pieces)
        if clothes.long_hair:
            back = centre - 0.35 * radius * forward
            end = back - (1.5 * radius + 0.03 * self.height) * self.chest[:, 1] - 0.25 * radius * forward
            hair = geometry.capsule(back, end, 1.02 * radius, 0.85 * radius)
            # Behind the trunk if the face is visible, in front of it if the back is.
            trunk = float(neck[2]) / 2
            behind = forward[2] > 0
            hair_depth = min(depth - radius, trunk - 1e-3) if behind else max(depth, trunk) + 1e-3
            self._layer("hair", hair_depth, (hair, shade(clothes.hair, 0.92)))
