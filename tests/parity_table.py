"""Deviations from the reference, asserted and collected: HRNET_JAX_PARITY_TABLE=FILE writes them as a table."""

import os
import pathlib

_ROWS: dict[str, tuple[float, float, str]] = {}


def record(what: str, worst: float, allowed: float, unit: str = "") -> None:
    """Asserts that a deviation is within bounds, and enters it; of several under one name the worst stays."""
    worst = float(worst)
    if what not in _ROWS or not worst <= _ROWS[what][0]:
        _ROWS[what] = worst, allowed, unit
        if path := os.environ.get("HRNET_JAX_PARITY_TABLE"):
            lines = [f"| {name} | {a:g}{u} | {w:.2g}{u} |" for name, (w, a, u) in _ROWS.items()]
            pathlib.Path(path).write_text(
                "\n".join(["| What | Allowed | Worst seen |", "| :-- | --: | --: |", *lines, ""])
            )
    assert worst <= allowed, f"{what}: {worst:.3g}{unit} is more than {allowed:g}{unit}"
