"""Keypoint sets: names, flip pairs, OKS sigmas and skeletons.

A `KeypointSet` defines the network's outputs, the augmentations, the flip test, OKS, the drawings and the metadata of
an export. All code that depends on the order of keypoints uses it.

Sources: COCO's names, skeleton and sigmas are from cocodataset.org; AIC's sigmas are from the AI Challenger evaluation
script; the 19-keypoint union and the upper and lower body follow MMPose 1.3.2.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from data_pipelines.errors import InputError
from data_pipelines.types import Config

LEFT_COLOUR = (0, 170, 255)
RIGHT_COLOUR = (255, 128, 0)
MIDDLE_COLOUR = (80, 220, 100)


# For keypoints of which no annotator's deviation is known: close to the mean of COCO's (0.065), and what MMPose's data
# sets of horses, zebras and flies use.
DEFAULT_SIGMA = 0.05


@dataclasses.dataclass(frozen=True)
class KeypointSet:
    """An ordered set of K named keypoints.

    Attributes:
      name: the set's name in configs and files.
      names: the K keypoint names, in order.
      sigmas: K OKS sigmas (COCO's k_i / 2), as fractions of the square root of the object's area; empty:
        `DEFAULT_SIGMA` for every keypoint.
      flip_pairs: pairs of names (left, right), swapped when the image is mirrored; the others map to themselves.
      upper_body: names that the half-body augmentation counts as upper; the others are lower.
      skeleton: pairs of names joined by a line in drawings.
      sigmas_from: the origin of the sigmas, which is printed with every AP.
    """

    name: str
    names: tuple[str, ...]
    sigmas: tuple[float, ...]
    flip_pairs: tuple[tuple[str, str], ...]
    upper_body: tuple[str, ...]
    skeleton: tuple[tuple[str, str], ...]
    sigmas_from: str = "the keypoint set's own"

    def __post_init__(self) -> None:
        if not self.sigmas:
            object.__setattr__(self, "sigmas", (DEFAULT_SIGMA,) * len(self.names))
            object.__setattr__(self, "sigmas_from", f"{DEFAULT_SIGMA:g} for every keypoint, a default")
        if not self.names:
            raise InputError(f"keypoint set {self.name!r}: has no names")
        if len(set(self.names)) != len(self.names):
            raise InputError(f"keypoint set {self.name!r}: names repeat: {self.names}")
        if len(self.sigmas) != len(self.names):
            raise InputError(f"keypoint set {self.name!r}: {len(self.sigmas)} sigmas for {len(self.names)} names")
        if not all(0 < sigma < math.inf for sigma in self.sigmas):
            raise InputError(f"keypoint set {self.name!r}: sigmas must be numbers above 0")
        used = {name for pair in self.flip_pairs + self.skeleton for name in pair} | set(self.upper_body)
        if unknown := sorted(used - set(self.names)):
            raise InputError(f"keypoint set {self.name!r}: unknown keypoints {unknown}")
        paired = [name for pair in self.flip_pairs for name in pair]
        if len(set(paired)) != len(paired):
            raise InputError(f"keypoint set {self.name!r}: a keypoint occurs in two flip pairs")

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """The index of a keypoint by name."""
        return self.names.index(name)

    @functools.cached_property
    def flip_indices(self) -> Int[np.ndarray, " keypoints"]:
        """For each keypoint, the index of its left-right counterpart."""
        indices = np.arange(len(self))
        for a, b in self.flip_pairs:
            indices[self.index(a)], indices[self.index(b)] = self.index(b), self.index(a)
        return indices

    @functools.cached_property
    def is_upper(self) -> np.ndarray:
        """bool [K]: whether a keypoint belongs to the upper body."""
        return np.array([name in self.upper_body for name in self.names])

    @functools.cached_property
    def skeleton_indices(self) -> tuple[tuple[int, int], ...]:
        """The skeleton's lines as pairs of indices."""
        return tuple((self.index(a), self.index(b)) for a, b in self.skeleton)

    @functools.cached_property
    def colours(self) -> tuple[tuple[int, int, int], ...]:
        """An RGB colour per keypoint: one each for left (first in its flip pair), right and middle."""
        left, right = ({pair[side] for pair in self.flip_pairs} for side in (0, 1))
        return tuple(
            LEFT_COLOUR if name in left else RIGHT_COLOUR if name in right else MIDDLE_COLOUR for name in self.names
        )


def _both(*names: str) -> tuple[str, ...]:
    return tuple(f"{side}_{name}" for name in names for side in ("left", "right"))


def _pairs(*names: str) -> tuple[tuple[str, str], ...]:
    return tuple((f"left_{name}", f"right_{name}") for name in names)


_LIMBS = ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
_COCO_SKELETON = (
    *((f"{side}_{a}", f"{side}_{b}") for side in ("left", "right") for a, b in (("ankle", "knee"), ("knee", "hip"))),
    ("left_hip", "right_hip"),
    *((f"{side}_shoulder", f"{side}_hip") for side in ("left", "right")),
    ("left_shoulder", "right_shoulder"),
    *((f"{side}_shoulder", f"{side}_elbow") for side in ("left", "right")),
    *((f"{side}_elbow", f"{side}_wrist") for side in ("left", "right")),
    ("left_eye", "right_eye"),
    *(("nose", f"{side}_eye") for side in ("left", "right")),
    *((f"{side}_eye", f"{side}_ear") for side in ("left", "right")),
    *((f"{side}_ear", f"{side}_shoulder") for side in ("left", "right")),
)

COCO = KeypointSet(
    name="coco",
    names=("nose", *_both("eye", "ear", *_LIMBS)),
    sigmas=(
        *(0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072),
        *(0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089),
    ),
    flip_pairs=_pairs("eye", "ear", *_LIMBS),
    upper_body=("nose", *_both("eye", "ear", "shoulder", "elbow", "wrist")),
    skeleton=_COCO_SKELETON,
    sigmas_from="COCO",
)

AIC = KeypointSet(
    name="aic",
    names=(
        *(f"{side}_{name}" for side in ("right", "left") for name in ("shoulder", "elbow", "wrist")),
        *(f"{side}_{name}" for side in ("right", "left") for name in ("hip", "knee", "ankle")),
        "head_top",
        "neck",
    ),
    sigmas=(
        *(0.01388152, 0.01515228, 0.01057665, 0.01417709, 0.01497891, 0.01402144, 0.03909642),
        *(0.03686941, 0.01981803, 0.03843971, 0.03412318, 0.02415081, 0.01291456, 0.01236173),
    ),
    flip_pairs=_pairs(*_LIMBS),
    upper_body=(*_both("shoulder", "elbow", "wrist"), "head_top", "neck"),
    skeleton=(
        *((f"{side}_{a}", f"{side}_{b}") for side in ("right", "left") for a, b in (("wrist", "elbow"),)),
        *((f"{side}_elbow", f"{side}_shoulder") for side in ("right", "left")),
        *((f"{side}_shoulder", "neck") for side in ("right", "left")),
        *((f"{side}_ankle", f"{side}_knee") for side in ("right", "left")),
        *((f"{side}_knee", f"{side}_hip") for side in ("right", "left")),
        ("right_hip", "left_hip"),
        ("head_top", "neck"),
        *((f"{side}_shoulder", f"{side}_hip") for side in ("right", "left")),
    ),
    sigmas_from="AI Challenger",
)

# COCO's 17 keypoints followed by AIC's two additional ones, with the nose's sigma.
COCO_AIC = KeypointSet(
    name="coco_aic",
    names=(*COCO.names, "head_top", "neck"),
    sigmas=(*COCO.sigmas, 0.026, 0.026),
    flip_pairs=COCO.flip_pairs,
    upper_body=(*COCO.upper_body, "head_top", "neck"),
    skeleton=(*COCO.skeleton, ("head_top", "neck")),
    sigmas_from="COCO; of the nose for head_top and neck",
)

KEYPOINT_SETS = {keypoint_set.name: keypoint_set for keypoint_set in (COCO, AIC, COCO_AIC)}


def keypoint_set(name: str | KeypointSet | Config) -> KeypointSet:
    """Returns the keypoint set with this name; a `KeypointSet` is returned unchanged.

    A mapping must hold a set's attributes, as in a config stored as JSON. Raises InputError for an unknown name or
    invalid attributes.
    """
    if isinstance(name, KeypointSet):
        return name
    if isinstance(name, (Mapping, ConfigDict)):
        return _from_attributes(dict(name))
    if not isinstance(name, str) or name not in KEYPOINT_SETS:
        raise InputError(f"unknown keypoint set {name!r}; there are {', '.join(KEYPOINT_SETS)}")
    return KEYPOINT_SETS[name]


def _from_attributes(attributes: dict[str, Any]) -> KeypointSet:
    *expected, optional = [field.name for field in dataclasses.fields(KeypointSet)]
    origin = attributes.pop(optional, KeypointSet.sigmas_from)
    if set(attributes) != set(expected):
        raise InputError(f"a keypoint set has {', '.join(expected)}; this has {', '.join(map(str, attributes))}")
    name, *lists = (attributes[key] for key in expected)
    names, sigmas, flip_pairs, upper_body, skeleton = lists
    sound = (
        isinstance(name, str) and isinstance(origin, str) and all(isinstance(value, (list, tuple)) for value in lists)
    )
    if not sound or not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in (*flip_pairs, *skeleton)):
        raise InputError(f"keypoint set {name!r}: some attributes are not lists, or some pairs not pairs")
    if not all(isinstance(sigma, (int, float)) for sigma in sigmas):
        raise InputError(f"keypoint set {name!r}: sigmas must be numbers above 0")
    if not all(isinstance(text, str) for text in (*names, *upper_body, *itertools.chain(*flip_pairs, *skeleton))):
        raise InputError(f"keypoint set {name!r}: some of its names are not strings")
    pairs, lines = (tuple((a, b) for a, b in both) for both in (flip_pairs, skeleton))
    return KeypointSet(name, tuple(names), tuple(map(float, sigmas)), pairs, tuple(upper_body), lines, origin)


@dataclasses.dataclass(frozen=True)
class KeypointMapping:
    """Maps keypoints from one set to another by name.

    AIC -> COCO keeps the 12 common joints ("merge"); COCO -> COCO_AIC and AIC -> COCO_AIC fill the 19-keypoint union
    ("combine"). Raises InputError if the two sets have no common name.
    """

    source: KeypointSet
    target: KeypointSet

    def __post_init__(self) -> None:
        if not self.pairs:
            raise InputError(f"keypoint sets {self.source.name!r} and {self.target.name!r} share no keypoint")

    @functools.cached_property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """(index in source, index in target) for every common name, in the source's order."""
        return tuple((i, self.target.index(n)) for i, n in enumerate(self.source.names) if n in self.target.names)

    def apply(self, keypoints: Float[np.ndarray, "*batch source 3"]) -> Float[np.ndarray, "*batch target 3"]:
        """Maps (x, y, visibility) rows; target keypoints missing in the source become zeros (unlabelled)."""
        if keypoints.shape[-2] != len(self.source):
            raise InputError(
                f"{keypoints.shape[-2]} keypoints given where set {self.source.name!r} has {len(self.source)}"
            )
        mapped = np.zeros((*keypoints.shape[:-2], len(self.target), keypoints.shape[-1]), keypoints.dtype)
        source, target = zip(*self.pairs, strict=True)
        mapped[..., target, :] = keypoints[..., source, :]
        return mapped
