"""A run beside a training log of another project, by epoch, and where it leaves the band around the log.

The band is the same for all logs (`allowed`). It was chosen by the six logs of 210 epochs in ViTPose's repository
(logs/*.log.json, MMPose 0.24): after epoch 10 an epoch differs from the mean of its two neighbours by 0.25 to 0.5 %
of the loss, 0.002 to 0.003 in accuracy and 0.001 in AP (standard deviations), and MMPose's own repetitions of the
merge and combine recipes differ by 0.001 in AP. Another head changes the loss by 3 to 6 % until the end (ViTPose-B, L
and H with either head), and a fall of the learning rate changes it by 3 to 4 %. In the first epochs the loss falls by
up to a third per epoch, so the band is wider there.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence

from etils import epath

from hrnet_jax.reporting.page import Html, chart, table, tag
from hrnet_jax.reporting.reference import ACCURACY, AP, LOSS, Curves, Reference, read

# A metric's band: share of the value for the loss, else absolute; up to epoch _EARLY, and later.
_EARLY = 10
_BANDS = {LOSS: (0.10, 0.03), ACCURACY: (0.05, 0.01), AP: (0.03, 0.01)}
# Five iterations per epoch with 64 people each: their mean scatters by 0.013, as a mean of 50 scatters by 0.004.
_SAMPLED_BAND = 0.03
# Successive common epochs outside of the band, on the same side, that count as leaving it.
_SUCCESSIVE = {LOSS: 3, ACCURACY: 3, AP: 1}

logger = logging.getLogger(__name__)


def section(path: str | os.PathLike, ours: Curves, annotated: bool) -> list[Html]:
    """The report's section on a log; its lines on the band are logged too. Raises InputError like `read`.

    Args:
      path: the log.
      ours: values by metric and epoch of the run.
      annotated: whether the run's AP uses annotated boxes.
    """
    log, name = read(path), epath.Path(path).name
    lines = compare(ours, log, annotated)
    for metric, line in lines.items():
        logger.info("%s: %s", metric, line)
    boxes = {True: "annotated boxes", False: "boxes of a detector", None: "boxes that it does not state"}
    text = f"{name} ({log.kind}), the means of its epochs, counted from 1; its AP is with {boxes[log.annotated]}."

    def drawn(title: str, metric: str) -> Html:
        lines = {"this run": sorted(ours[metric].items()), name: sorted(log.curves[metric].items())}
        is_loss = metric == LOSS
        return chart(title, lines, log=is_loss, limits=None if is_loss else (0, 1), unit="epoch")

    titles = {"Loss by epoch": LOSS, "Accuracy by epoch": ACCURACY, "AP by epoch": AP}
    return [
        tag("h2", f"Beside {name}"),
        tag("p", text, class_="soft"),
        table((), lines.items(), kind="text"),
        tag("div", *(drawn(title, metric) for title, metric in titles.items()), class_="grid"),
    ]


def by_epoch(records: Sequence[Mapping[str, float]], steps_per_epoch: int, ap: str) -> dict[str, dict[int, float]]:
    """Loss and accuracy of each complete epoch, counted from 1, and the AP after it.

    Args:
      records: a run's records; loss and accuracy are means over the steps since the record before, and count for the
        epoch of their middle.
      steps_per_epoch: at least 1.
      ap: the name of AP in the records.
    """
    sums: dict[str, dict[int, list[tuple[float, float]]]] = {LOSS: {}, ACCURACY: {}}
    evaluated, before = {}, 0.0
    for record in records:
        step = record["step"]
        if record.get(ap, -1) >= 0:
            evaluated[round(step / steps_per_epoch)] = record[ap]
        if LOSS in record and step > before:
            epoch = math.floor((before + step) / 2 / steps_per_epoch) + 1
            for key in sums.keys() & record.keys():
                sums[key].setdefault(epoch, []).append((record[key], step - before))
            before = step
    means = {
        key: {
            epoch: sum(value * weight for value, weight in parts) / sum(weight for _, weight in parts)
            for epoch, parts in epochs.items()
            if epoch * steps_per_epoch <= before
        }
        for key, epochs in sums.items()
    }
    return {**means, AP: evaluated}


def compare(ours: Curves, reference: Reference, annotated: bool) -> dict[str, str]:
    """Says for each metric in one line at which epoch a run first leaves the band around a log.

    Args:
      ours: values by metric and epoch of a run.
      reference: the log.
      annotated: whether the run's AP uses annotated boxes.
    """
    lines = {}
    for metric, successive in _SUCCESSIVE.items():
        mine, theirs = ours.get(metric, {}), reference.curves[metric]
        common = sorted(mine.keys() & theirs.keys())
        if metric == AP and reference.annotated is not None and reference.annotated != annotated:
            boxes = {True: "annotated boxes", False: "boxes of a detector"}
            lines[metric] = f"not comparable: the log's with {boxes[not annotated]}, this run's with {boxes[annotated]}"
        elif not common:
            lines[metric] = "no epoch in common"
        elif (epoch := _leaves(mine, theirs, common, metric, reference)) is None:
            lines[metric] = f"in the band in all {len(common)} common epochs, {common[0]} to {common[-1]}"
        else:
            value, expected = mine[epoch], theirs[epoch]
            side = "below" if value < expected else "above"
            width = allowed(metric, epoch, expected, reference)
            times = f", for {successive} common epochs in a row" if successive > 1 else ""
            lines[metric] = (
                f"leaves the band at epoch {epoch}{times}: {value:.4g}, {side} the log's {expected:.4g} by more than "
                f"{width:.2g}"
            )
    return lines


def allowed(metric: str, epoch: int, value: float, reference: Reference) -> float:
    """The band's half width around a log's value."""
    width = _BANDS[metric][epoch > _EARLY]
    if metric == LOSS:
        return width * value + reference.rounding
    return max(width, _SAMPLED_BAND) if metric == ACCURACY and reference.sampled else width


def _leaves(
    ours: Mapping[int, float], theirs: Mapping[int, float], common: list[int], metric: str, reference: Reference
) -> int | None:
    """The first of enough successive epochs outside of the band on the same side; None if there are none."""
    outside: list[int] = []
    for epoch in common:
        difference = ours[epoch] - theirs[epoch]
        if abs(difference) <= allowed(metric, epoch, theirs[epoch], reference):
            outside = []
            continue
        if outside and (difference < 0) != (ours[outside[0]] < theirs[outside[0]]):
            outside = []
        outside.append(epoch)
        if len(outside) == _SUCCESSIVE[metric]:
            return outside[0]
    return None
