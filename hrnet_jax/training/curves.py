"""Plots of a run's metrics."""

from __future__ import annotations

import os

from etils import epath
from matplotlib.figure import Figure

from data_pipelines import storage
from hrnet_jax.training import metrics


def draw_curves(workdir: str | os.PathLike) -> None:
    """Plots a run's loss (per source, if there are several), training accuracy and AP by step into its `curves.png`."""
    records = list(metrics.read(workdir))
    figure = Figure(figsize=(10, 4), layout="constrained")
    loss_axis, ap_axis = figure.subplots(1, 2)
    for name in dict.fromkeys(key for record in records for key in record if key == "loss" or key.startswith("loss/")):
        steps, values = zip(*((r["step"], r[name]) for r in records if name in r), strict=True)
        loss_axis.plot(steps, values, label=name, linewidth=1)
    loss_axis.set(xlabel="step", ylabel="loss", yscale="log", title="Training loss")
    if loss_axis.lines:
        loss_axis.legend()
    for name in ("AP", "AP50", "AR"):
        key = metrics.EVALUATION + name
        points = [(record["step"], record[key]) for record in records if key in record]
        if points:
            ap_axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
    if points := [(record["step"], record["acc_pose"]) for record in records if "acc_pose" in record]:
        ap_axis.plot(*zip(*points, strict=True), label="acc_pose (training)", linewidth=1)
    ap_axis.set(xlabel="step", ylim=(0, 1), title="Evaluation, training accuracy")
    if ap_axis.lines:
        ap_axis.legend()
    with storage.whole(epath.Path(workdir) / "curves.png") as partial:
        figure.savefig(partial, dpi=100)
