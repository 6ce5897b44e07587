"""Left and right, from the names of keypoints."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

# Words for left and right in names, also inside of words (leftear, oeil_gauche). A pair needs two names that differ
# only in these, so chance matches are unlikely.
_WORDS = (
    *(
        ("left", "right"),
        ("左", "右"),
        ("왼", "오른"),
        ("좌", "우"),
        ("ひだり", "みぎ"),
        ("лев", "прав"),
        ("левый", "правый"),
    ),
    *(("links", "rechts"), ("linke", "rechte"), ("gauche", "droite"), ("gauche", "droit"), ("izquierd", "derech")),
    *(("izq", "der"), ("esquerd", "direit"), ("sinistr", "destr"), ("lew", "praw"), ("sol", "sağ"), ("trái", "phải")),
    *(("vänster", "höger"), ("venstre", "høyre"), ("venstre", "højre"), ("يسار", "يمين"), ("أيسر", "أيمن")),
    *(("يسرى", "يمنى"), ("lft", "rgt"), ("lt", "rt")),
)
# A letter alone: at either end of a word, before or after a capital or a digit.
_LETTER = re.compile(r"(?<![a-zA-Z])[lL]|[lL](?![a-zA-Z])|L")


def pairs_by_name(names: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """(left, right) indices of the keypoints whose names differ only in the side."""
    index = {name: i for i, name in enumerate(names)}
    pairs: dict[int, int] = {}
    for words in (True, False):
        for name, left in index.items():
            if left in pairs or left in pairs.values():
                continue
            for other in _mirrored(name, words):
                right = index.get(other, left)
                if right != left and right not in pairs and right not in pairs.values():
                    pairs[left] = right
                    break
    return tuple(sorted(pairs.items()))


def one_sided(names: Sequence[str], pairs: Sequence[tuple[int, int]]) -> list[str]:
    """Names that contain left or right, but have no partner."""
    paired = {i for pair in pairs for i in pair}
    word = re.compile("left|right|左|右", re.I)
    return [name for i, name in enumerate(names) if i not in paired and word.search(name)]


def only_numbers(names: Sequence[str]) -> bool:
    """Whether all names are only numbers: 1, kpt-3, point_7."""
    pattern = r"\W*(kpts?|kps?|keypoints?|points?|pt|p|k|joints?|j|landmarks?|lm|nodes?|关键点|点)?[\W_]*\d+\W*"
    return all(re.fullmatch(pattern, name, re.I) for name in names)


def _mirrored(name: str, words: bool) -> Iterator[str]:
    """The names that the right counterpart of a left name may have."""
    if words:
        for left, right in _WORDS:
            for match in re.finditer(re.escape(left), name, re.I):
                yield name[: match.start()] + _like(match[0], right) + name[match.end() :]
        return
    for match in _LETTER.finditer(name):
        yield name[: match.start()] + _like(match[0], "r") + name[match.end() :]


def _like(model: str, word: str) -> str:
    """A word in the capitalisation of another."""
    if model.isupper():
        return word.upper()
    return word.capitalize() if model[:1].isupper() else word
