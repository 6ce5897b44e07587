"""The people to import, and their keypoint set: category, names, pairs, sigmas."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Sequence

from data_pipelines.errors import InputError, brief, listed
from data_pipelines.keypoints import AIC, COCO, DEFAULT_SIGMA, KEYPOINT_SETS, KeypointSet
from data_pipelines.labels.files import Source, read_text
from data_pipelines.labels.left_right import one_sided, only_numbers, pairs_by_name
from data_pipelines.labels.types import Kind, Labels, unique

_REMEDY = (
    "give the left-right pairs: --pairs 0-1,2-3 (numbers from 0), --no-pairs if none do, or name them: "
    "--keypoints coco, --keypoints nose,left_eye,..."
)


@dataclasses.dataclass(frozen=True)
class Choice:
    """The user's choice on the command line.

    Attributes:
      categories: names of categories; empty: all, which must then have the same keypoints.
      keypoints: names of the keypoints: a built-in set's name, comma-separated names, or a file with one name per line.
      pairs: left-right pairs, `0-1,2-3` or `left eye:right eye`; "none" for none; None to find them.
    """

    categories: Sequence[str] = ()
    keypoints: str = ""
    pairs: str | None = None


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The keypoint set and the origin of its pairs.

    Attributes:
      keypoints: the set.
      name: the category's name, or the joined names of several.
      pairs_from: where the pairs come from.
    """

    keypoints: KeypointSet
    name: str
    pairs_from: str


def choose(labels: Labels, source: Source, choice: Choice) -> Chosen:
    """Makes the keypoint set of the chosen categories; removes other people from the images. Raises InputError."""
    chosen = _categories(labels, choice.categories, source)
    kind = next((labels.kinds[name] for name in chosen if labels.kinds[name].edges), labels.kinds[chosen[0]])
    for image in labels.images:
        for person in image.people:
            if person.kind not in chosen:
                source.notes.add(f"people of category {person.kind!r} left out", person.where)
        image.people = [person for person in image.people if person.kind in chosen]
    known = KEYPOINT_SETS.get(choice.keypoints) or next((s for s in (COCO, AIC) if s.names == kind.names), None)
    names = _names(kind, choice.keypoints, source)
    if known and len(known) != len(names):
        raise InputError(
            f"--keypoints {choice.keypoints}: that set has {len(known)} keypoints, the labels have {len(kind.names)}"
        )
    pairs, origin = _pairs(names, kind, choice, known, source)
    edges = kind.edges or (known.skeleton_indices if known else ())
    label = "+".join(chosen[:3]) + (f"+{len(chosen) - 3} more" if len(chosen) > 3 else "")
    sigmas, sigmas_from = _sigmas(names)
    upper = known.upper_body if known else _upper(names)
    keypoints = KeypointSet(
        name=_identifier(label),
        names=names,
        sigmas=sigmas,
        flip_pairs=tuple((names[a], names[b]) for a, b in pairs),
        upper_body=upper,
        skeleton=tuple(dict.fromkeys((names[a], names[b]) for a, b in edges)),
        sigmas_from=sigmas_from,
    )
    return Chosen(keypoints, label, origin)


def _categories(labels: Labels, asked: Sequence[str], source: Source) -> list[str]:
    """The names of the kinds to import."""
    counts = {name: sum(person.kind == name for person in labels.people()) for name in labels.kinds}
    say = ", ".join(
        f"{name!r} ({len(kind.names)} keypoints, {counts[name]} people)" for name, kind in labels.kinds.items()
    )
    if missing := [name for name in asked if name not in labels.kinds]:
        raise InputError(f"{source.path}: has no category {missing[0]!r} with keypoints; there are {say or 'none'}")
    if not labels.kinds:
        raise InputError(f"{source.path}: nobody has keypoints; {source.notes.why()}")
    among = (
        list(asked) or [n for n, kind in labels.kinds.items() if not kind.aside and counts[n]] or list(labels.kinds)[:1]
    )
    different = {labels.kinds[name].names for name in among}
    if len(different) > 1:
        raise InputError(
            f"{source.path}: its categories have different keypoints, which one network cannot predict: {say}; choose "
            "with --category NAME"
        )
    return among


def _names(kind: Kind, given: str, source: Source) -> tuple[str, ...]:
    if not given:
        return kind.names
    if given in KEYPOINT_SETS:
        return KEYPOINT_SETS[given].names
    path = pathlib.Path(given)
    if "," not in given and path.is_file():
        given = read_text(source, path).replace("\n", ",")
    parts = [part.strip() for part in given.split(",") if part.strip()]
    names = unique(parts)
    if list(names) != parts:
        raise InputError(f"--keypoints: names repeat: {brief(given)}")
    if len(names) != len(kind.names):
        raise InputError(f"--keypoints gives {len(names)} names; the labels have {len(kind.names)} keypoints")
    return names


def _pairs(
    names: Sequence[str], kind: Kind, choice: Choice, known: KeypointSet | None, source: Source
) -> tuple[tuple[tuple[int, int], ...], str]:
    """Pairs of (left, right) indices, and where they come from."""
    if choice.pairs is not None:
        origin = "none, as --no-pairs says" if choice.pairs == "none" else "as --pairs says"
        return _given_pairs(names, choice.pairs), origin
    if known and names == known.names:
        return tuple((names.index(a), names.index(b)) for a, b in known.flip_pairs), f"of the set {known.name!r}"
    by_name = pairs_by_name(names)
    if kind.contradiction and not choice.keypoints:
        raise InputError(f"{kind.contradiction}; {_REMEDY}")
    if kind.pairs is not None:
        if by_name and {frozenset(pair) for pair in by_name} != {frozenset(pair) for pair in kind.pairs}:
            raise InputError(
                f"{source.path}: its flip_idx contradicts the pairs by name "
                f"({listed([f'{names[a]} and {names[b]}' for a, b in by_name])}); correct it, or give --pairs"
            )
        return by_name or kind.pairs, "of the labels' flip_idx"
    if by_name:
        for name in one_sided(names, by_name):
            source.notes.add(f"keypoints named left or right without a partner: {brief(name)}")
        return by_name, "by name"
    if only_numbers(names) or (not kind.named and not choice.keypoints):
        says = f"its {len(names)} keypoints have no names that tell left from right"
        raise InputError(f"{source.path}: {says}; {_REMEDY}")
    return (), "none found by name"


def _given_pairs(names: Sequence[str], text: str) -> tuple[tuple[int, int], ...]:
    pairs: list[tuple[int, int]] = []
    if text == "none":
        return ()
    for part in filter(None, (part.strip() for part in text.split(","))):
        if match := re.fullmatch(r"(\d+)\s*[-:]\s*(\d+)", part):
            ends = [int(end) if int(end) < len(names) else -1 for end in match.groups()]
        else:
            ends = [names.index(end.strip()) if end.strip() in names else -1 for end in part.split(":")]
        if len(ends) != 2 or -1 in ends or ends[0] == ends[1]:
            raise InputError(
                f"--pairs: {brief(part)} is not two of the {len(names)} keypoints; write 0-1,2-3 with numbers from 0 "
                f"to {len(names) - 1}, or left eye:right eye"
            )
        pairs.append((ends[0], ends[1]))
    used = [end for pair in pairs for end in pair]
    if twice := [names[end] for end in used if used.count(end) > 1]:
        raise InputError(f"--pairs: keypoint {twice[0]!r} is in two pairs")
    return tuple(pairs)


def _sigmas(names: Sequence[str]) -> tuple[tuple[float, ...], str]:
    known = dict(zip(COCO.names, COCO.sigmas, strict=True))
    sigmas = tuple(known.get(name, DEFAULT_SIGMA) for name in names)
    count = sum(name in known for name in names)
    if not count:
        return sigmas, f"{DEFAULT_SIGMA:g} for every keypoint, a default"
    rest = "" if count == len(names) else f", {DEFAULT_SIGMA}, a default, for the other {len(names) - count}"
    return sigmas, f"COCO's for the {count} keypoints with COCO's names{rest}"


def _upper(names: Sequence[str]) -> tuple[str, ...]:
    """The upper body, if all names are COCO's or AI Challenger's and of both halves of the body; else empty."""
    above = {*COCO.upper_body, *AIC.upper_body, "head", "top_head", "thorax", "upper_neck", "head_bottom"}
    lower = {*COCO.names, *AIC.names} - above
    if (
        len(above & {*names}) < 2
        or len(lower & {*names}) < 2
        or not {*names} <= above | lower | {"pelvis", "hip", "belly"}
    ):
        return ()
    return tuple(name for name in names if name in above)


def _identifier(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:40] or "labels"
