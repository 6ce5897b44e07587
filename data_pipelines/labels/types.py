"""What every reader of labels returns: images with people, their keypoint sets, and notes."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from data_pipelines.checks import FARTHEST
from data_pipelines.errors import InputError, brief

UNLABELLED, OCCLUDED, VISIBLE = 0, 1, 2


class Notes:
    """Omissions and assumptions: for each reason, the count and the first place."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, str]] = {}

    def add(self, reason: str, where: str = "") -> None:
        """Counts a case of a reason."""
        count, first = self._found.get(reason, (0, where))
        self._found[reason] = count + 1, first

    def why(self) -> str:
        """Why nobody has keypoints: the first reason, or what to do where there is none."""
        return next(iter(self.lines()), "label keypoints, or export them too")

    def lines(self) -> list[str]:
        """One line per reason."""
        return [
            f"{count} {reason}" + (f" (first: {first})" if first else "")
            for reason, (count, first) in self._found.items()
        ]


@dataclasses.dataclass
class Kind:
    """A keypoint set as a file describes it: a category of COCO, a skeleton label of CVAT.

    Attributes:
      names: of its keypoints, in order.
      edges: pairs of indices, joined in drawings.
      pairs: left-right pairs of indices, swapped when an image is mirrored; None if the file has none.
      named: whether the names are from the file, not generated.
      contradiction: the reason why pairs must be given by the user; empty if there is none.
      aside: whether this kind is imported only if requested by name.
    """

    names: tuple[str, ...]
    edges: tuple[tuple[int, int], ...] = ()
    pairs: tuple[tuple[int, int], ...] | None = None
    named: bool = True
    contradiction: str = ""
    aside: bool = False


@dataclasses.dataclass(eq=False)  # two records may have equal values
class Person:
    """A labelled person, animal or thing.

    Attributes:
      kind: the name of its kind.
      points: x and y in image pixels, and COCO's visibility, in the kind's order.
      box: xywh in image pixels; None where there is none.
      where: the record, for messages.
      area: in square pixels; None where the file does not say.
      crowd: whether the record is a crowd.
      id: the file's id.
    """

    kind: str
    points: Float[np.ndarray, "keypoints 3"]
    box: tuple[float, float, float, float] | None
    where: str
    area: float | None = None
    crowd: bool = False
    id: Any = None


@dataclasses.dataclass(eq=False)
class Image:
    """An image with its people.

    Attributes:
      names: the names of its file in the labels; the first is preferred.
      where: the record, for messages.
      size: (height, width) in pixels by the labels, and once located, of the file; None if unknown.
      split: "train", "val" or "test" by the labels; empty if they give none.
      beside: the file of labels that names it.
      path: its file; None if it was not found.
      id: the labels' id.
    """

    names: tuple[str, ...]
    where: str
    size: tuple[int, int] | None = None
    split: str = ""
    people: list[Person] = dataclasses.field(default_factory=list)
    beside: pathlib.Path | None = None
    path: pathlib.Path | None = None
    id: Any = None


@dataclasses.dataclass
class Labels:
    """Everything that was read from a labelling tool's files."""

    tool: str
    kinds: dict[str, Kind]
    images: list[Image]

    def people(self) -> Iterable[Person]:
        """Everybody."""
        return (person for image in self.images for person in image.people)


def number(value: Any) -> float | None:
    """A finite number within the range of coordinates, also from a string of digits; None for anything else."""
    try:
        result = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return result if abs(result) <= FARTHEST else None


def numbers(values: Any, count: int | None = None) -> list[float] | None:
    """A list of numbers; None for anything else, and for a wrong count."""
    if not isinstance(values, Sequence) or isinstance(values, str | bytes) or count not in (None, len(values)):
        return None
    result = [number(value) for value in values]
    return None if None in result else result  # type: ignore[return-value]


def size_of(width: Any, height: Any) -> tuple[int, int] | None:
    """(height, width) of an image; None if they are invalid."""
    sides = numbers([height, width])
    return (round(sides[0]), round(sides[1])) if sides and min(sides) >= 1 else None


def visibility(value: Any, x: float, y: float, notes: Notes, where: str) -> int:
    """COCO's visibility from a file's value: 0 to 2, true or false, a confidence, or nothing.

    Nothing means visible, true visible, false occluded, a fraction above 0 is a confidence and means visible; a point
    at (0, 0) is unlabelled in any case. Raises InputError for other values.
    """
    if value is None or isinstance(value, bool):
        found = OCCLUDED if value is False else VISIBLE
    else:
        number_ = number(value)
        if number_ is None or number_ > VISIBLE:
            raise InputError(
                f"{where}: visibility must be 0 (unlabelled), 1 (occluded) or 2 (visible), not {brief(value)}"
            )
        found = int(number_) if number_ in (0, 1, 2) else VISIBLE if number_ > 0 else UNLABELLED
        if number_ not in (0, 1, 2) and number_ > 0:
            notes.add("visibilities are fractions, taken as confidences of visible keypoints", where)
    if found and x == 0 and y == 0:
        if value is not None and not isinstance(value, bool):
            notes.add("keypoints at (0, 0) taken as unlabelled", where)
        return UNLABELLED
    return found


def ordered(sequences: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """All names that occur, in the order of the most complete sequence; numbers in their own order."""
    sequences = list(sequences)
    longest: Sequence[str] = max(sequences, key=lambda sequence: len(sequence), default=())
    names = dict.fromkeys(longest)
    names.update(dict.fromkeys(name for sequence in sequences for name in sequence))
    if all(name.isdecimal() for name in names):
        return tuple(sorted(names, key=int))
    return tuple(names)


def unique(names: Iterable[Any]) -> tuple[str, ...]:
    """Names as distinct strings: empty ones become numbers, repeated ones get a number."""
    taken: dict[str, None] = {}
    for i, name in enumerate(names):
        text = " ".join(str(name).split()) if name is not None else ""
        text = text[:200] or f"kpt-{i}"
        candidate, again = text, 2
        while candidate in taken:
            candidate, again = f"{text}_{again}", again + 1
        taken[candidate] = None
    return tuple(taken)


def numbered(count: int) -> tuple[str, ...]:
    """Names for keypoints that have none."""
    return tuple(f"kpt-{i}" for i in range(count))


def outline(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float, float, float]:
    """The box xywh around points."""
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)
