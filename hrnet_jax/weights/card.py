"""The model card of an exported folder: the front matter that the Hugging Face Hub reads, and sections on the model.

The Hub's fields: https://huggingface.co/docs/hub/model-cards; `model-index` holds the results with their conditions.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import yaml
from ml_collections import ConfigDict

from data_pipelines.errors import InputError, brief
from data_pipelines.keypoints import keypoint_set
from eval.coco import METRICS

# Terms of the training data, by source; docs/contributing.md has the same in more detail.
_TERMS = {
    "coco": "COCO: annotations CC BY 4.0; images under the Flickr licences that its annotations list",
    "aic": "AI Challenger: the terms of its competition",
}


def check_license(license_id: str) -> None:
    """Raises InputError if a text cannot be one of the Hub's identifiers of licences, e.g. `cc-by-4.0`."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license_id):
        raise InputError(f"--license={brief(license_id)}: must be an identifier like cc-by-4.0, or other")


def front_matter(config: ConfigDict, name: str, metrics: Mapping[str, Any], license_id: str) -> str:
    """The YAML block at the head of a card.

    Args:
      config: the model's.
      name: the model in words.
      metrics: of `Model.metrics` or the content of a metrics.json; may be empty.
      license_id: of the weights, see `check_license`; "other" refers to the card.
    """
    fields: dict[str, Any] = {"library_name": "jax", "pipeline_tag": "keypoint-detection", "license": license_id}
    if license_id == "other":
        fields |= {"license_name": "terms-of-the-training-data", "license_link": "README.md"}
    tags = ["hrnet", "pose-estimation", "top-down", "stablehlo", keypoint_set(config.keypoints).name, config.codec.name]
    fields["tags"] = list(dict.fromkeys(tags))
    if numbers := _numbers(metrics):
        labels = keypoint_set(config.data.eval.keypoints).name
        result: dict[str, Any] = {
            "task": {"type": "keypoint-detection", "name": "Keypoint detection"},
            "dataset": {"type": labels, "name": _measured_on(config, metrics)},
            "metrics": [{"type": key, "name": key, "value": value} for key, value in numbers.items()],
        }
        if "page" in metrics:
            result["source"] = {"name": "published results", "url": str(metrics["page"])}
        fields["model-index"] = [{"name": f"HRNet {name}", "results": [result]}]
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=1000)}---\n"


def sections(config: ConfigDict, metrics: Mapping[str, Any], license_id: str) -> str:
    """The sections on results, intended use and licence."""
    joints = keypoint_set(config.keypoints)
    lines = ["## Results", ""]
    if numbers := _numbers(metrics):
        rows = [" | ".join(numbers), " | ".join(["--:"] * len(numbers))]
        rows.append(" | ".join(f"{value:.3f}" for value in numbers.values()))
        lines += [f"| {row} |" for row in rows]
        origin = f"Published on {metrics['page']}" if "page" in metrics else "Measured with hrnet_jax"
        lines += ["", f"{origin}, before the export, on {_measured_on(config, metrics)}. Results with other boxes are"]
        lines += ["not comparable."]
    else:
        lines += ["No evaluation is stored with this model; `hrnet_jax.evaluate` measures AP."]
    sources = list(config.data.train)
    terms = [_TERMS.get(source, f"{source}: the terms of these data") for source in sources]
    init = pathlib.PurePath(config.get("init", "")).name
    start = (
        f"weights of {init}, with their own terms (ImageNet's allow non-commercial research)"
        if init
        else "random weights"
    )
    named = "the terms of the training data and of the initial weights" if license_id == "other" else license_id
    lines += [
        "",
        "## Intended use",
        "",
        f"Finds {len(joints)} keypoints ({', '.join(joints.names)}) of each person or animal for which a detector or a "
        "user gives a box. A box should contain the complete body. Every keypoint gets a place, also if it is hidden "
        "or outside of the image; low scores mark these. The model does not identify people. It was evaluated only as "
        "stated above.",
        "",
        "## Licence",
        "",
        f"Weights: {named}. Code: Apache-2.0. Training data: {'; '.join(terms) or 'not stated'}. Training started from "
        f"{start}.",
        "",
    ]
    return "\n".join(lines)


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The measured numbers among the metrics; -1 stands for none."""
    found = {key: metrics[key] for key in METRICS if key in metrics}
    return {
        key: round(float(value), 4)
        for key, value in found.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0
    }


def _measured_on(config: ConfigDict, metrics: Mapping[str, Any]) -> str:
    """The annotations, and the conditions of the metrics."""
    data = pathlib.PurePath(str(metrics.get("annotations", config.data.eval.annotations))).name
    rest = {key: value for key, value in metrics.items() if key not in ("annotations", "checkpoint", "page")}
    stated = [f"{key} {value}" for key, value in rest.items() if isinstance(value, (str, bool)) and key != "conditions"]
    return f"{data} ({', '.join([*filter(None, [metrics.get('conditions')]), *stated])})"
