"""Evaluates the published models at hand under their published conditions, and compares AP with the published AP.

    make reproduce DATA=DATA
    python -m benchmarks.reproduce --data DATA --output runs/reproduced --download --models=NAME,NAME

DATA is laid out as in the README. A model is at hand if its file is in the cache of downloads or below `--weights`,
where files are recognised by their hash or name; `--download` fetches the others. After every model, reproduced.json
and reproduced.md (a table) are written to OUTPUT; a folder for each model there holds its metrics.json, keypoints.json
and predictions.png. The same command continues: a model is evaluated again only if its file or its settings changed.

Exit codes: 0 if every AP is within `--tolerance` of the published one; otherwise 1, also if a model could not be
evaluated or none is at hand.
"""

from __future__ import annotations

import hashlib
import logging
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from data_pipelines import command_line, storage
from data_pipelines.errors import InputError, tell
from data_pipelines.json_files import read_json_if_intact, write_json
from hrnet_jax import config as config_lib
from hrnet_jax.evaluate import evaluate
from hrnet_jax.weights import checkpoint, download, published
from hrnet_jax.weights.published import Weights

OPTIONS: command_line.Options = {
    "data": (None, "folder of the data"),
    "output": ("runs/reproduced", "folder for the results"),
    "models": ("", "names of models or files, separated by commas; default: all"),
    "weights": ("", "folder with downloaded files, besides the cache"),
    "download": (False, "fetches files that are not at hand"),
    "tolerance": (0.002, "largest difference of AP; published AP are rounded to 0.001"),
    "batch_size": (256, "people per batch"),
}

RECORD, TABLE = "reproduced.json", "reproduced.md"

Row = dict[str, Any]


def chosen(names: str) -> list[Weights]:
    """Published files with an AP: all, or those of the named models and files. Raises InputError if one is unknown."""
    weights = [entry for entry in published.record() if "AP" in entry.results]
    if not names:
        return weights
    wanted = {name.strip() for name in names.split(",")}
    if unknown := sorted(wanted - {name for entry in weights for name in (entry.model, entry.file)}):
        similar = published.similar(unknown[0])
        hint = f"; did you mean {' or '.join(similar)}?" if similar else ""
        raise InputError(f"--models: {unknown[0]}: no published model or file with an AP has this name{hint}")
    return [entry for entry in weights if {entry.model, entry.file} & wanted]


def below(folder: str) -> Iterator[tuple[str, pathlib.Path]]:
    """The published files below a folder: their published name and where they are. Reports damaged ones."""
    if not folder:
        return
    if not pathlib.Path(folder).is_dir():
        raise InputError(f"--weights={folder}: no such folder")
    for path in sorted(pathlib.Path(folder).rglob("*.pth")):
        try:
            entry = published.identify(path)
        except InputError as error:
            tell(error)
            continue
        if entry is None:
            print(f"{path}: not a published file; skipped")
        else:
            yield entry.file, path


def measure(entry: Weights, path: pathlib.Path, values: Mapping[str, Any], before: Row) -> Row:
    """A model's row: from an earlier run if the file and the settings are the same, else evaluated."""
    config = config_lib.load_config(entry.config_spec)
    config.data.root, config.eval.batch_size = values["data"], values["batch_size"]
    identity = {
        "sha256": published.sha256(path),
        "config": hashlib.sha256(config_lib.to_json(config).encode()).hexdigest(),
    }
    metrics = before.get("metrics")
    if metrics is None or any(before.get(key) != value for key, value in identity.items()):
        trained = checkpoint.load(path)._replace(config=config)
        metrics = evaluate(trained, pathlib.Path(values["output"]) / pathlib.Path(entry.file).stem)
    difference = metrics["AP"] - entry.results["AP"]
    return {
        "model": entry.model,
        "file": entry.file,
        **identity,
        "published": {**entry.results, "conditions": entry.conditions, "page": entry.page},
        "metrics": metrics,
        "difference": difference,
        "within": abs(difference) <= values["tolerance"] + 1e-9,  # 0.751 - 0.749 is more than 0.002 in binary
    }


def table(rows: list[Row], tolerance: float) -> str:
    """The rows as Markdown."""
    lines = [
        f"| file | AP | published | difference | within {tolerance:g} | images | boxes | measured with boxes |",
        "| :-- | --: | --: | --: | :-- | --: | --: | :-- |",
    ]
    for row in rows:
        metrics = row["metrics"]
        cells = [row["file"], f"{metrics['AP']:.4f}", f"{row['published']['AP']:.3f}", f"{row['difference']:+.4f}"]
        cells += ["yes" if row["within"] else "**no**", f"{metrics['images']:,}", f"{metrics['instances']:,}"]
        lines.append(f"| {' | '.join([*cells, metrics['boxes']])} |")
    return "\n".join(lines) + "\n"


def reproduce(values: Mapping[str, Any]) -> int:
    """Runs the command with its options and returns the exit code."""
    output = pathlib.Path(values["output"])
    storage.check_output(output, folder=True)
    entries, found = chosen(values["models"]), dict(below(values["weights"]))
    rows: list[Row] = []
    absent, failed = [], False
    earlier = {row["file"]: row for row in read_json_if_intact(output / RECORD, list) or []}
    for entry in entries:
        try:
            path = found.get(entry.file) or download.cached(entry)
            if path is None and values["download"] and entry.urls:
                path = download.fetch(entry)
            if path is None:
                absent.append(entry.file)
                continue
            row = measure(entry, path, values, earlier.get(entry.file, {}))
        except InputError as error:
            tell(InputError(f"{entry.file}: not evaluated: {error}"))
            failed = True
            continue
        rows.append(row)
        earlier[entry.file] = row
        print(
            f"{entry.file}: AP {row['metrics']['AP']:.4f}, published {entry.results['AP']:.3f}, difference "
            f"{row['difference']:+.4f}: {'within' if row['within'] else 'MORE THAN'} {values['tolerance']:g}",
            flush=True,
        )
        write_json(output / RECORD, list(earlier.values()))
        storage.write(output / TABLE, table(list(earlier.values()), values["tolerance"]))
    if absent:
        print(f"{len(absent)} files are not at hand ({absent[0]}, ...); --download fetches those with an address")
    if not rows:
        raise InputError(
            f"none of {len(entries)} published models could be evaluated; put their files below --weights=FOLDER or "
            "add --download"
        )
    print(f"\n{table(rows, values['tolerance'])}\nwritten to {output / RECORD} and {output / TABLE}")
    return int(failed or not all(row["within"] for row in rows))


def main() -> int:
    """The command line; returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout, force=True)
    return command_line.status(lambda: reproduce(command_line.parse(sys.argv[1:], __doc__, OPTIONS)))


if __name__ == "__main__":
    sys.exit(main())
