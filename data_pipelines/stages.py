"""The stages of a training: epochs from which on other settings hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from data_pipelines.errors import InputError
from data_pipelines.types import Config

T = TypeVar("T")


def settings_by_epoch(config: Config, section: str) -> list[tuple[int, dict[str, Any]]]:
    """The settings of a section over the training: (first epoch, counted from 0; settings), in order.

    Each stage in `config.stages` changes some settings of the stage before it; a stage without the section changes
    none and is left out.

    Args:
      config: with `data.augment` or `optimizer`, and perhaps `stages`.
      section: "optimizer" or "augment".

    Raises:
      InputError: two stages start at the same epoch.
    """
    base = config["optimizer"] if section == "optimizer" else config["data"]["augment"]
    found, names = [(0, dict(base))], {0: "config"}
    for name, stage in sorted(config.get("stages", {}).items(), key=lambda item: item[1]["start"]):
        if (start := stage["start"]) in names:
            raise InputError(f"config.stages.{name}.start={start}: {names[start]} starts there already")
        names[start] = f"config.stages.{name}"
        if changes := {key: value for key, value in stage.get(section, {}).items() if value is not None}:
            found.append((start, {**found[-1][1], **changes}))
    return found


def at(settings: Sequence[tuple[int, T]], place: int) -> T:
    """Of settings that hold from an epoch, or a sample, on, those at a place."""
    return next(each for start, each in reversed(settings) if place >= start)
