"""The content of `report.json` in a prepared folder."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import numpy as np

from data_pipelines.instances import Instances
from data_pipelines.json_files import read_json
from data_pipelines.prepared import FORMAT_VERSION, read_report

# The folder with the facts of each shard.
FACTS = "shards"

_LISTED = 100  # maximum number of images listed per category


def make_report(
    facts: list[dict[str, Any]], instances: Instances, kept: Instances, others: dict[str, dict[str, str]]
) -> dict[str, Any]:
    """Creates the report.

    Args:
      facts: of the shards, in order; see `shards.write_shard`.
      instances: all people in the annotations that are not dropped.
      kept: those whose images have records.
      others: SHA-256 by file name of the images in other folders, by folder.
    """
    images = [image for shard in facts for image in shard["images"]]
    changes = [image["change"] for image in images if image["change"] is not None]
    unreadable = {file: reason for shard in facts for file, reason in shard["unreadable"].items()}
    return {
        "format_version": FORMAT_VERSION,
        "images": len(images),
        "people": len(kept),
        "dropped": dict(instances.dropped),
        "unreadable_images": len(unreadable),
        "people_on_unreadable_images": len(instances) - len(kept),
        "unreadable": unreadable,
        "cells": len(changes),
        "mean_change": round(float(np.mean(changes)), 4) if changes else None,
        "largest_change": max(changes, default=None),
        "bytes_before": sum(image["bytes"] for image in images),
        "bytes_after": sum(shard["bytes"] for shard in facts),
        "shards": [{key: shard[key] for key in ("file", "records", "bytes", "sha256")} for shard in facts],
        "also_in": {folder: _overlap(images, other) for folder, other in others.items()},
    }


def sources(folder: str | os.PathLike) -> dict[str, str]:
    """SHA-256 by file name of a prepared folder's source images. Raises InputError like `read_report`."""
    folder, report = pathlib.Path(folder), read_report(folder)
    shards = [read_json(folder / FACTS / f"{number:05d}.json") for number in range(len(report["shards"]))]
    return {image["file"]: image["sha256"] for shard in shards for image in shard["images"]}


def summary(report: dict[str, Any], target: str) -> str:
    """The report as a few lines of text; `target` is the folder's name."""
    dropped = [f"{count} {reason}" for reason, count in report["dropped"].items()]
    lines = [
        f"{target}: {report['images']} images, {report['people']} people in {len(report['shards'])} shards",
        f"dropped people: {', '.join(dropped) or 'none'}",
        f"images that cannot be used: {report['unreadable_images']} (people: {report['people_on_unreadable_images']})",
        f"bytes: {report['bytes_before']:,} -> {report['bytes_after']:,}, {report['seconds']:.0f} s",
    ]
    if report["mode"] == "cells":
        as_is = report["images"] - report["cells"]
        change = f"by {report['mean_change']} grey levels on average" if report["cells"] else "none"
        lines.append(f"changed by re-encoding: {change}; stored as they were: {as_is}")
    for folder, also in report["also_in"].items():
        if also["by_name"] or also["by_content"]:
            lines.append(f"WARNING: {also['by_name']} images by name, {also['by_content']} by content, are in {folder}")
    return "\n".join(lines)


def _overlap(images: list[dict[str, Any]], other: dict[str, str]) -> dict[str, Any]:
    """Images that are also in another folder (SHA-256 by file name), by file name and by content."""
    names, digests = {os.path.basename(file) for file in other}, set(other.values())
    same_name = [image["file"] for image in images if os.path.basename(image["file"]) in names]
    same_content = [image["file"] for image in images if image["sha256"] in digests]
    return {
        "by_name": len(same_name),
        "by_content": len(same_content),
        "first": sorted({*same_name[:_LISTED], *same_content[:_LISTED]})[:_LISTED],
    }
