"""Writes the tables of docs/aot.md from docs/aot.json.

python -m hrnet_jax.aot ... --output report.json
python docs/aot.py report.json ...     # adds reports to the records, in place of older ones of the same kind
python docs/aot.py                     # writes the tables
"""

from __future__ import annotations

import json
import pathlib
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from hrnet_jax.aot import needed_bytes

PAGE = pathlib.Path(__file__).with_suffix(".md")
RECORDS = PAGE.with_suffix(".json")

Step = Mapping[str, Any]


def add(path: str) -> None:
    """Adds a report of `hrnet_jax.aot` to the records, a step at a time, kernels summed up."""
    records = json.loads(RECORDS.read_text()) if RECORDS.exists() else {}
    report = json.loads(pathlib.Path(path).read_text())
    for name, step in report.pop("steps").items():
        launched = step.pop("kernels")
        if launched:
            step["kernels"] = {key: sum(entry[key] for entry in launched) for key in ("count", "small")}
            step["convolution_bytes"] = sum(e["bytes"] for e in launched if e["kind"] == "convolution")
        key = f"{name}, {report['topology']}, {step['batch_size']}"
        records[key] = {**report, "step": name, **step}
    RECORDS.write_text(json.dumps(dict(sorted(records.items())), indent=1) + "\n")


def gib(count: float) -> str:
    """Bytes as GiB."""
    return f"{count / 2**30:.1f}"


def exchanged(step: Step) -> str:
    """Collectives and their size."""
    parts = [f"{c['count']} over {c['devices']} ({c['bytes'] / 1e6:.1f} MB)" for c in step["collectives"]]
    return "; ".join(parts) or "none"


COMMON: dict[str, Callable[[Step], str]] = {
    "images per chip": lambda s: f"{s['images']}",
    "memory per chip, of its HBM": lambda s: f"{gib(needed_bytes(s))} of {gib(s['hbm_bytes'])} GiB",
    "FLOPs per image": lambda s: f"{s['flops'] / s['images'] / 1e9:.1f} G",
    "HBM bytes per image": lambda s: f"{s['bytes'] / s['images'] / 1e6:.0f} MB",
}
TIMES: dict[str, Callable[[Step], str]] = {
    "minimum time by HBM bandwidth; by FLOP/s": lambda s: "; ".join(
        f"{s['seconds'][key] * 1e3:.1f} ms" for key in ("HBM", "compute")
    ),
    "images/s per chip, at most": lambda s: f"{s['images'] / s['seconds'][s['bound']]:,.0f}",
    "compiling, CPU seconds": lambda s: f"{s['compile_cpu_seconds']:.0f}",
}
TPU = {
    **COMMON,
    **TIMES,
    "the compiler's estimate per image": lambda s: f"{s['cycles'] / s['images'] / 1e3:,.0f} k cycles",
    "images/s per chip, by that estimate": lambda s: f"{s['images'] / s['estimated_seconds']:,.0f}",
    "all-reduces": exchanged,
    "executable file": lambda s: f"{s['executable_bytes'] / 1e6:.0f} MB",
}
GPU = {
    **COMMON,
    "of that: convolutions": lambda s: f"{s['convolution_bytes'] / s['images'] / 1e6:.0f} MB",
    "kernels; of these, moving less than 1 MB": lambda s: f"{s['kernels']['count']:,}; {s['kernels']['small']:,}",
    **TIMES,
}


def table(title: str, rows: Mapping[str, Callable[[Step], str]], steps: list[Step]) -> str:
    """A Markdown table, one column per step, and the versions below it."""
    heads = [f"{s['step']}, {s['topology']}, batch {s['batch_size']}" for s in steps]
    lines = [f"| {title} | {' | '.join(heads)} |", f"| :-- |{' --: |' * len(steps)}"]
    lines += [f"| {name} | {' | '.join(cell(s) for s in steps)} |" for name, cell in rows.items()]
    versions = {", ".join(f"{name} {version}" for name, version in s["versions"].items()) for s in steps}
    return "\n".join(lines) + f"\n\n{'; '.join(sorted(versions))}."


def page(text: str) -> str:
    """The page with its tables made anew."""
    steps = json.loads(RECORDS.read_text()).values()
    ordered = sorted(steps, key=lambda s: (s["step"] == "eval", s["topology"], -s["batch_size"]))
    for name, rows in (("tpu", TPU), ("gpu", GPU)):
        chosen = [step for step in ordered if (step["topology"][0] == "v") == (name == "tpu")]
        if not chosen:
            continue
        new = table(chosen[0]["model"], rows, chosen)
        text = re.sub(rf"(<!-- {name} -->\n).*?(\n<!-- end -->)", rf"\g<1>\n{new}\n\g<2>", text, flags=re.DOTALL)
    return text


def main() -> None:
    """Adds the reports that are named, and writes the page."""
    for path in sys.argv[1:]:
        add(path)
    PAGE.write_text(page(PAGE.read_text()))


if __name__ == "__main__":
    main()
