"""Writes an HTML report of a work directory.

    python -m hrnet_jax.report runs/quickstart

writes `report.html` into it: AP with its conditions, curves, speed, kinds of mistakes, the worst, median and best
predictions drawn, and the config. The page needs no network and no scripts. `--config.data.root=DATA` gives the current
location of the data. The output folder of an evaluation can be reported too; outside a work
directory, `--checkpoint` names the evaluated model, whose config names the data.

    python -m hrnet_jax.report runs/merge --reference LOG

draws the loss, accuracy and AP of a training log of MMPose (TIME.log, TIME.log.json, scalars.json) or official HRNet
(*_train.log) beside the run's, by epoch, and says where the run leaves the band around it
(`hrnet_jax.reporting.beside`).
"""

from __future__ import annotations

from hrnet_jax import cli

OPTIONS: cli.Options = {
    "workdir": (None, "folder of the run; may be given as the first argument, without --workdir"),
    "output": ("", "HTML file; default: report.html in the folder"),
    "reference": ("", "training log of MMPose or official HRNet to draw beside the run"),
    "checkpoint": ("", "work directory or converted folder of the model, for a folder without a config"),
}
cli.help_first(__name__, __doc__, OPTIONS)  # the imports below take seconds

import datetime
import math
import os
import statistics
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from etils import epath
from ml_collections import ConfigDict

from data_pipelines import storage
from data_pipelines.errors import InputError
from data_pipelines.json_files import read_json
from eval.coco import METRICS
from hrnet_jax import config as config_lib
from hrnet_jax.models import array_shapes
from hrnet_jax.reporting import beside
from hrnet_jax.reporting.mistakes import EXPLANATION, mistakes
from hrnet_jax.reporting.page import Html, chart, note, page, table, tag, words
from hrnet_jax.training import metrics as metric_files
from hrnet_jax.training import record as record_lib
from hrnet_jax.weights import checkpoint

# Folders of a work directory that are not searched for evaluations, and the search depth.
_OTHERS = {checkpoint.FOLDER, "cache", "logs", "tensorboard", "profile", "metrics"}
_DEPTH = 3
_AP = metric_files.EVALUATION + "AP"

# What the conditions in metrics.json are called in the report.
_CONDITIONS = {
    "boxes": "person boxes",
    "keypoints": "keypoint set",
    "sigmas": "sigmas from",
    "flip_test": "flip test",
    "nms": "suppression of duplicates",
    "score_mode": "score of a person",
    "use_area": "area from the annotation",
    "instances": "predicted people",
    "codec_AP": "AP of the encoded and decoded annotations",
    "seconds_keypoints": "seconds for keypoints",
    "seconds_AP": "seconds for AP",
}
_SCORE_MODES = {
    "bbox": "box score",
    "keypoint": "mean of the keypoint scores",
    "bbox_keypoint": "box score x mean of the keypoint scores",
    "bbox_rle": "box score + mean and maximum of the keypoint scores",
}

Records = list[dict[str, float]]


class Evaluation(NamedTuple):
    """A metrics.json: its folder's name, its folder and its content."""

    name: str
    folder: epath.Path
    metrics: dict[str, Any]


def report(
    workdir: str | os.PathLike,
    output: str | os.PathLike = "",
    *,
    config: ConfigDict | None = None,
    reference: str | os.PathLike = "",
) -> str:
    """Writes the page and returns its path.

    Args:
      workdir: a run, finished or not, or the output folder of `hrnet_jax.evaluate`.
      output: an HTML file; default: `report.html` in the work directory.
      config: the experiment; None: read from the work directory.
      reference: a training log to draw beside the run, see `hrnet_jax.reporting.reference`.

    Raises:
      InputError: the folder is neither, one of its files or the log is damaged, or the page cannot be written.
    """
    config = stored_config(workdir) if config is None else config
    path = epath.Path(output or epath.Path(workdir) / "report.html")
    storage.check_output(path)
    storage.write(path, build(workdir, config, reference).encode(errors="replace"))  # names may hold invalid characters
    return str(path)


def stored_config(workdir: str | os.PathLike, model: str | os.PathLike = "") -> ConfigDict:
    """The config of a work directory, or that of `model`; empty if there is only an evaluation.

    Raises InputError if the folder is neither a work directory nor the output of an evaluation.
    """
    storage.check_bucket(workdir)
    folder = epath.Path(workdir)
    if not folder.is_dir():
        raise InputError(f"{workdir}: no such folder; --workdir must be written by training or evaluation")
    if (folder / "config.json").exists():
        return config_lib.from_json(folder / "config.json")
    if not (folder / "metrics.json").exists():
        raise InputError(f"{workdir}: neither a work directory (no config.json) nor an evaluation (no metrics.json)")
    return checkpoint.stored_config(model) if model else ConfigDict()


def build(workdir: str | os.PathLike, config: ConfigDict, reference: str | os.PathLike = "") -> str:
    """The HTML page of a work directory. Raises InputError if one of its files or the log is damaged."""
    folder = epath.Path(workdir)
    name = storage.absolute(folder).name
    records, evaluations = _records(folder), list(_evaluations(folder, name))
    content = [tag("h1", name), tag("p", _described(config), class_="soft"), _overview(folder, records, evaluations)]
    content += _results(evaluations)
    if records:
        content += [tag("h2", "Curves"), _curves(records), tag("h2", "Speed"), _speed(records)]
    if reference:
        ours = beside.by_epoch(records, _steps_per_epoch(folder), _AP)
        content += beside.section(reference, ours, annotated=bool(config) and not config.data.eval.boxes)
    if evaluations:
        content += [tag("h2", "Mistakes"), tag("p", EXPLANATION, class_="soft")]
    for found in evaluations:
        content += [tag("h3", found.name), *mistakes(found.folder, found.metrics, config)]
    if config:
        content.append(tag("details", tag("summary", "Config"), tag("pre", config_lib.to_json(config))))
    return page(f"{name}: report", *content)


def _records(folder: epath.Path) -> Records:
    """The logged records, only their numbers."""
    try:
        lines = list(metric_files.read(folder))
    except UnicodeDecodeError:
        raise InputError(f"{folder / 'metrics.jsonl'}: not text in UTF-8") from None
    records = []
    for line in lines:
        if isinstance(line, dict) and _is_number(line.get("step")) and 0 <= line["step"] < 1e12:
            records.append({key: float(value) for key, value in line.items() if _is_number(value)})
    return records


def _evaluations(folder: epath.Path, name: str, depth: int = _DEPTH) -> Iterator[Evaluation]:
    """All evaluations in a folder and its subfolders."""
    if (folder / "metrics.json").exists():
        metrics = read_json(folder / "metrics.json")
        if isinstance(metrics, dict) and all(_is_number(metrics.get(key)) for key in METRICS):
            yield Evaluation(name, folder, metrics)
    for inner in sorted(folder.iterdir()) if depth else ():
        if inner.name not in _OTHERS and inner.is_dir():
            yield from _evaluations(inner, f"{name}/{inner.name}", depth - 1)


def _described(config: ConfigDict) -> str:
    """The experiment in one line, as far as the config describes it."""
    try:
        height, width = config.codec.input_size
        params, _ = array_shapes(config)
        count = sum(math.prod(array.shape) for array in params.values()) / 1e6
        parts = [f"HRNet {config.model.variant}", f"{count:.1f} million parameters", f"{height}x{width}"]
        parts += [config.codec.name, f"{config.epochs} epochs", f"batches of {config.batch_size}"]
        return ", ".join([*parts, f"trained on {' + '.join(config.data.train)}"])
    except (AttributeError, KeyError, TypeError, ValueError):
        return ""


def _overview(folder: epath.Path, records: Records, evaluations: list[Evaluation]) -> Html:
    rows: list[tuple[str, object]] = []
    measured = [record for record in records if _AP in record]
    if measured:
        best = max(measured, key=lambda record: record[_AP])
        rows.append(("Best AP", f"{_ap(best[_AP])} at step {best['step']:,.0f}"))
    elif not evaluations:
        rows.append(("Best AP", "nothing was evaluated yet"))
    if last := _last(records, "loss"):
        rows.append(("Logged", f"up to step {records[-1]['step']:,.0f}; loss {last:.3g}"))
    if (steps := checkpoint.steps(folder / checkpoint.FOLDER)) or records:
        rows.append(("Checkpoints at steps", ", ".join(f"{step:,}" for step in steps) or "none"))
    if starts := record_lib.read_starts(folder):
        times = f"{len(starts)} times, last" if len(starts) > 1 else "once,"
        rows.append(("Started", f"{times} {_start(starts[-1])}"))
        rows.append(("Duration", _duration(starts)))
        rows.append(("Devices", starts[-1].get("devices")))
        rows.append(("Versions", _versions(starts[-1])))
    rows.append(("Report written", datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")))
    for key, title in (("skipped", "Skipped steps (not finite)"), ("unreadable", "Unreadable samples (replaced)")):
        if (count := _last(records, key)) is not None:
            rows.append((title, tag("strong", f"{count:,.0f}") if count else "0"))
    if rates := _values(records, "samples_per_second"):
        rows.append(("Samples per second", f"{statistics.median(rates):,.0f} (median of the log's {len(rates)} lines)"))
    if waits := _values(records, "data_wait"):
        rows.append(("Waiting for data", f"{statistics.fmean(waits):.1%} of the time (mean of the log's lines)"))
    return table((), rows, kind="text") if rows else Html("")


def _results(evaluations: list[Evaluation]) -> list[Html]:
    if not evaluations:
        text = (
            "Nothing was evaluated yet: training evaluates every config.eval.every_epochs, hrnet_jax.evaluate any time."
        )
        return [tag("h2", "Results"), note(text)]
    numbers = [[found.name, *(_ap(found.metrics[key]) for key in METRICS)] for found in evaluations]
    flat = ((key, value) for found in evaluations for key, value in found.metrics.items() if key not in METRICS)
    keys = dict.fromkeys(key for key, value in flat if not isinstance(value, dict))
    conditions = [
        [_CONDITIONS.get(key, words(key)), *(_said(key, found.metrics.get(key, "")) for found in evaluations)]
        for key in keys
    ]
    names = [found.name for found in evaluations]
    return [
        tag("h2", "Results"),
        table(["folder", *METRICS], numbers),
        tag("h3", "Measured under"),
        table(["", *names], conditions, kind="text"),
    ]


def _curves(records: Records) -> Html:
    losses = {key: _points(records, key) for record in records for key in record if key.startswith("loss/")}
    losses = {"loss": _points(records, "loss"), **losses} if len(losses) != 1 else losses
    scores = {name: _points(records, metric_files.EVALUATION + name) for name in ("AP", "AP50", "AR")}
    return tag(
        "div",
        chart("Loss", losses, log=True),
        chart("Evaluation", {name: [p for p in points if p[1] >= 0] for name, points in scores.items()}, limits=(0, 1)),
        chart("Training accuracy", {"acc_pose": _points(records, "acc_pose")}, limits=(0, 1)),
        chart("Learning rate", {"learning rate": _points(records, "learning_rate")}),
        chart("Gradient norm", {"gradient norm": _points(records, "gradient_norm")}, log=True),
        class_="grid",
    )


def _speed(records: Records) -> Html:
    shares = {"waiting for data": "data_wait", "steps, of all time (goodput)": "goodput"}
    charts = [
        chart("Samples per second", {"samples per second": _points(records, "samples_per_second")}),
        chart("Share of the time", {n: _points(records, key) for n, key in shares.items()}, limits=(0, 1)),
    ]
    for key, title in (
        ("skipped", "Skipped steps"),
        ("unreadable", "Unreadable samples"),
        ("device_memory_gib", "Device memory, peak, GiB"),
    ):
        if any(_values(records, key)):
            charts.append(chart(title, {title: _points(records, key)}))
    return tag("div", *charts, class_="grid")


def _steps_per_epoch(folder: epath.Path) -> int:
    for start in reversed(record_lib.read_starts(folder)):
        if isinstance(steps := start.get("steps_per_epoch"), int) and steps > 0:
            return steps
    raise InputError(
        f"{folder / record_lib.NAME}: does not state steps_per_epoch, which every start of a training does"
    )


def _points(records: Records, key: str) -> list[tuple[float, float]]:
    return [(record["step"], record[key]) for record in records if key in record]


def _values(records: Records, key: str) -> list[float]:
    return [value for _, value in _points(records, key)]


def _last(records: Records, key: str) -> float | None:
    return next((record[key] for record in reversed(records) if key in record), None)


def _start(start: dict[str, Any]) -> str:
    """A start's time and outcome."""
    return f"{str(start.get('start'))[:19].replace('T', ' ')}: {start.get('outcome') or 'running, or killed'}"


def _duration(starts: list[dict[str, Any]]) -> str:
    """The time of all starts that ended, and how many did not."""
    seconds, unended = 0.0, 0
    for start in starts:
        try:
            first, last = (datetime.datetime.fromisoformat(str(start[key])) for key in ("start", "end"))
            seconds += (last - first).total_seconds()
        except (KeyError, ValueError, TypeError):
            unended += 1
    told = str(datetime.timedelta(seconds=round(seconds)))
    return f"{told}; {unended} starts without a recorded end are not counted" if unended else told


def _versions(start: dict[str, Any]) -> str:
    """Versions of Python and the main packages, and the commit."""
    versions = start["versions"] if isinstance(start.get("versions"), dict) else {}
    parts = [f"Python {start.get('python')}"] if start.get("python") else []
    parts += [f"{name} {versions[name]}" for name in ("hrnet-jax", "jax", "flax", "optax", "grain") if name in versions]
    return ", ".join([*parts, *([f"commit {start['commit'][:12]}"] if isinstance(start.get("commit"), str) else [])])


def _said(key: str, value: Any) -> Any:
    """The value of a condition, in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key == "nms":
        return words(str(value))
    return _SCORE_MODES.get(str(value), value) if key == "score_mode" else value


def _ap(number: float) -> str:
    return f"{number:.3f}" if number >= 0 else "n/a"


def _is_number(value: Any) -> bool:
    # Python's integers may be larger than any float.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and (abs(value) < 1e300 or value != value)


def main() -> None:
    """The command line."""
    cli.run(__doc__, OPTIONS, _report, lambda values: stored_config(values["workdir"], values["checkpoint"]), "workdir")


def _report(values: Mapping[str, Any], config: ConfigDict) -> None:
    print(report(values["workdir"], values["output"], config=config, reference=values["reference"]))


if __name__ == "__main__":
    main()
