"""Training logs of other projects: five formats, resumed and incomplete logs, and where a run leaves them."""

import json
import math
import sys

import pytest

from data_pipelines.errors import InputError
from data_pipelines.json_files import read_json, write_json
from hrnet_jax import report
from hrnet_jax.config import load_config, to_json
from hrnet_jax.reporting import beside
from hrnet_jax.reporting.reference import read
from hrnet_jax.training.metrics import MetricWriter
from tests.helpers import REPOSITORY, logging_as_before, mistake

PER_EPOCH = 170  # iterations; each format logs three times
LAST = 60


def loss(epoch):
    return 4e-4 + 1e-3 / epoch


def accuracy(epoch):
    return 0.85 - 0.5 / epoch


def ap(epoch):
    return 0.76 - 0.8 / epoch


CURVES = {
    "loss": {epoch: loss(epoch) for epoch in range(1, LAST + 1)},
    "acc_pose": {epoch: accuracy(epoch) for epoch in range(1, LAST + 1)},
    "AP": {epoch: ap(epoch) for epoch in range(10, LAST + 1, 10)},
}


class Text1:
    """MMPose 1.x, TIME.log."""

    head = "2023/02/01 10:00:00 - mmengine - INFO - Config:\nval_cfg = dict(interval=10)\n"

    def step(self, epoch, number, loss, accuracy):
        values = f"loss: {loss:.6f}  loss_kpt: {loss:.6f}  acc_pose: {accuracy:.6f}"
        where = f"Epoch(train) [{epoch}]".ljust(20) + f"[{50 * number:3}/{PER_EPOCH}]"
        return f"02/01 10:01:00 - mmengine - INFO - {where}  lr: 5.000000e-04  eta: 1 day, 1:00:00  memory: 9  {values}"

    def evaluation(self, epoch, ap):
        started = (
            f"02/01 10:02:00 - mmengine - INFO - Epoch(val) [{epoch}][ 50/407]    eta: 0:01:00  time: 0.2  memory: 9"
        )
        return f"{started}\n02/01 10:03:00 - mmengine - INFO - Epoch(val) [{epoch}][407/407]    {self.results(ap)}"

    def results(self, ap):
        return f"coco/AP: {ap:.6f}  coco/AP .5: 0.900000  coco/AP (M): 0.700000  coco/AR: 0.800000  time: 0.2"


class Json1(Text1):
    """MMPose 1.x, scalars.json: `step` counts iterations, and epochs in evaluations."""

    head = ""

    def step(self, epoch, number, loss, accuracy):
        step = (epoch - 1) * PER_EPOCH + 50 * number
        record = {"lr": 5e-4, "loss": loss, "loss_kpt": loss, "acc_pose": accuracy, "epoch": epoch, "iter": step}
        return json.dumps({**record, "step": step})

    def evaluation(self, epoch, ap):
        return json.dumps({"coco/AP": ap, "coco/AP .5": 0.9, "coco/AR": 0.8, "step": epoch})


class Json0(Json1):
    """MMPose 0.x, TIME.log.json."""

    head = '{"env_info": "sys.platform: linux", "seed": 0}\n'

    def step(self, epoch, number, loss, accuracy):
        record = {"mode": "train", "epoch": epoch, "iter": 50 * number, "lr": 0.0, "heatmap_loss": round(loss, 5)}
        return json.dumps({**record, "acc_pose": round(accuracy, 5), "loss": round(loss, 5), "time": 0.2})

    def evaluation(self, epoch, ap):
        # With workflow=[('train', 1), ('val', 1)], 0.x logs a loss of the validation set.
        other = {"mode": "val", "epoch": epoch, "iter": 407, "lr": 0.0, "acc_pose": 0.1, "loss": 9.0}
        record = {"mode": "val", "epoch": epoch, "iter": 407, "lr": 0.0, "AP": round(ap, 5), "AP .5": 0.9, "AR": 0.8}
        return f"{json.dumps(other)}\n{json.dumps(record)}"


class Text0(Text1):
    """MMPose 0.x, TIME.log."""

    head = "2022-02-01 10:00:00,000 - mmpose - INFO - Config:\ndata_cfg = dict(use_gt_bbox=False, det_bbox_thr=0.0)\n"

    def step(self, epoch, number, loss, accuracy):
        values = f"heatmap_loss: {loss:.4f}, acc_pose: {accuracy:.4f}, loss: {loss:.4f}"
        where = f"Epoch [{epoch}][{50 * number}/{PER_EPOCH}]"
        return f"2022-02-01 10:01:00,000 - mmpose - INFO - {where}\tlr: 5.000e-04, eta: 1:00:00, memory: 9, {values}"

    def evaluation(self, epoch, ap):
        return f"2022-02-01 10:02:00,000 - mmpose - INFO - Epoch(val) [{epoch}][407]\tAP: {ap:.4f}, AP .5: 0.9, AR: 0.8"


class Official:
    """Official HRNet: epochs from 0, half the loss, running means of the epoch in parentheses."""

    head = "2019-02-01 10:00:00,000 TEST:\n  USE_GT_BBOX: True\n"

    def step(self, epoch, number, loss, accuracy):
        before = self.sums if number > 1 else (0, 0)
        self.sums = tuple(total + value for total, value in zip(before, (loss / 2, accuracy), strict=True))
        means = [total / number for total in self.sums]
        where = (
            f"Epoch: [{epoch - 1}][{50 * number}/{PER_EPOCH}]\tTime 0.5s (0.5s)\tSpeed 64.0 samples/s\tData 0.1s (0.1s)"
        )
        values = f"Loss {loss / 2:.5f} ({means[0]:.5f})\tAccuracy {accuracy:.3f} ({means[1]:.3f})"
        return f"2019-02-01 10:01:00,000 {where}\t{values}"

    def evaluation(self, epoch, ap):
        stamp = "2019-02-01 10:02:00,000"
        test = f"{stamp} Test: [0/100]\tTime 0.5 (0.5)\tLoss 0.0001 (0.0001)\tAccuracy 0.1 (0.1)"
        table = [
            "| Arch | AP | Ap .5 | AP .75 | AR |",
            "|---|---|---|---|---|",
            f"| pose_hrnet | {ap:.3f} | 0.9 | 0.8 | 0.8 |",
        ]
        return "\n".join([test, *(f"{stamp} {row}" for row in table)])


FORMATS = {"1.x text": Text1, "1.x json": Json1, "0.x json": Json0, "0.x text": Text0, "official": Official}
# Precision of the printed values: loss, accuracy, AP.
PRECISION = {"1.x text": (6, 6, 6), "1.x json": (12, 12, 12), "0.x json": (5, 5, 5), "0.x text": (4, 4, 4)}
PRECISION["official"] = (5, 3, 3)


@pytest.fixture(params=FORMATS)
def kind(request):
    return request.param


def lines(kind, epochs=range(1, LAST + 1), skew=1.0, lines_of=lambda epoch: (1, 2, 3), evaluated=10):
    """A log's lines for some epochs; the three values of an epoch lie around its mean."""
    log = FORMATS[kind]()
    found = []
    for epoch in epochs:
        for number in lines_of(epoch):
            around = 1 + 0.1 * (number - 2)
            found += log.step(epoch, number, skew * loss(epoch) * around, skew * accuracy(epoch) * around).splitlines()
        if epoch % evaluated == 0:
            found += log.evaluation(epoch, skew * ap(epoch)).splitlines()
    return found


def write(folder, kind, found, head=True):
    path = folder / "a.log"
    path.write_text((FORMATS[kind].head if head else "") + "\n".join(found) + "\n")
    return path


def check(curves, kind, expected):
    """Values are those expected, but for half a unit of the last printed digit."""
    for (metric, values), digits in zip(expected.items(), PRECISION[kind], strict=True):
        factor = 2 if kind == "official" and metric == "loss" else 1
        assert curves[metric] == pytest.approx(values, rel=1e-9, abs=0.501 * factor * 10.0**-digits), metric


def test_each_format(kind, tmp_path):
    log = read(write(tmp_path, kind, lines(kind)))
    check(log.curves, kind, CURVES)
    assert list(log.curves["loss"]) == list(range(1, LAST + 1))
    assert log.sampled == kind.startswith("1.x")
    assert log.annotated == {"official": True, "0.x text": False}.get(kind)
    assert log.kind == ("official HRNet" if kind == "official" else f"MMPose {kind[:3]}")
    digits = PRECISION[kind][0]
    if kind != "1.x json":
        assert log.rounding == pytest.approx((1 if kind == "official" else 0.5) * 10.0**-digits)
    assert read(write(tmp_path, kind, lines(kind), head=False)).annotated == {"official": True}.get(kind)


def test_gaps(kind, tmp_path):
    """Epochs without lines, lines that are cut or not finite, and evaluations at irregular epochs."""
    found = lines(kind, [1, 2, 5, 9, 10, 23], lines_of=lambda epoch: () if epoch == 9 else (1, 2, 3))
    found += [lines(kind, [30])[0][:40]]
    log = read(write(tmp_path, kind, found))
    part = {metric: {e: v for e, v in values.items() if e in (1, 2, 5, 10, 23)} for metric, values in CURVES.items()}
    check(log.curves, kind, part)
    diverged = FORMATS[kind]().step(24, 1, math.nan, math.nan)
    assert read(write(tmp_path, kind, [*found, diverged])).curves["loss"].keys() == {1, 2, 5, 10, 23}


def test_a_log_of_three_starts(kind, tmp_path):
    """It goes back to epoch 8, and in the middle of 24: what was logged from there on was lost, AP too."""
    found = [*lines(kind, range(1, 21), skew=0.9), *lines(kind, range(8, 25))]
    cut = lines(kind, range(25, 31), skew=0.9)
    # Official HRNet's means start again with an epoch.
    first = (1, 2, 3) if kind == "official" else (3,)
    again = lines(kind, range(24, LAST + 1), lines_of=lambda epoch: first if epoch == 24 else (1, 2, 3))
    curves = read(write(tmp_path, kind, [*found, *cut, *again])).curves
    expected = {
        metric: {epoch: (0.9 if epoch < 8 else 1) * value for epoch, value in values.items()}
        for metric, values in CURVES.items()
    }
    check(curves, kind, expected)
    curves = read(write(tmp_path, kind, [*found, *cut, *lines(kind, range(24, 29))])).curves
    assert max(curves["loss"]) == 28
    assert list(curves["AP"]) == [10, 20]


def test_a_run_that_deviates_is_told_at_its_epoch(kind, tmp_path):
    log = read(write(tmp_path, kind, lines(kind)))
    annotated = kind == "official"
    noisy = {metric: {e: v * (1 + 0.009 * (-1) ** e) for e, v in values.items()} for metric, values in CURVES.items()}
    noisy["loss"][33] *= 2  # a single epoch is none that leaves the band
    noisy["loss"][34] *= 0.5
    noisy["loss"][35] *= 2
    told = beside.compare(noisy, log, annotated)
    assert all("in the band in all" in line for line in told.values()), told
    assert "60 common epochs, 1 to 60" in told["loss"]
    ours = {
        "loss": {epoch: value * (1.3 if epoch >= 23 else 1) for epoch, value in CURVES["loss"].items()},
        "acc_pose": {epoch: value - (0.05 if epoch >= 41 else 0) for epoch, value in CURVES["acc_pose"].items()},
        "AP": {epoch: value - (0.015 if epoch >= 50 else 0) for epoch, value in CURVES["AP"].items() if epoch != 30},
    }
    told = beside.compare(ours, log, annotated)
    assert told["loss"].startswith(
        "leaves the band at epoch 23, for 3 common epochs in a row: 0.0005765, above the log's "
    )
    assert told["acc_pose"].startswith("leaves the band at epoch 41, for 3 common epochs in a row: 0.7878, below the")
    assert told["AP"].startswith("leaves the band at epoch 50: 0.729, below the log's 0.74")
    assert told["AP"].endswith(" by more than 0.01")


def test_what_cannot_be_compared(tmp_path):
    log = read(write(tmp_path, "official", lines("official")))
    told = beside.compare({**CURVES, "acc_pose": {99: 0.5}}, log, annotated=False)
    assert told["AP"] == "not comparable: the log's with annotated boxes, this run's with boxes of a detector"
    assert told["acc_pose"] == "no epoch in common"
    diverged = {"loss": {**CURVES["loss"], **{epoch: math.nan for epoch in range(40, 61)}}}
    assert "at epoch 40, for" in beside.compare(diverged, log, annotated=True)["loss"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"a\.log: no log of MMPose \(.log, .log.json, scalars.json\) or official HRNet that counts epochs"),
        ("06/28 03:16:23 - mmengine - INFO - Iter(train) [ 50/9000]  lr: 5e-4  loss: 0.01", "counts epochs"),
        (
            '{"lr": 1e-4, "loss": 0.1, "acc_pose": 0.2, "step": 50}',
            r"line 1: has no epoch; give the text log of the same",
        ),
        ('[1, 2]\n{"step": 5}\n{"mode": "train"\n', "no log of"),
    ],
)
def test_other_files_are_refused(tmp_path, text, message):
    (tmp_path / "a.log").write_text(text)
    with pytest.raises(InputError, match=message) as error:
        read(tmp_path / "a.log")
    assert "\n" not in str(error.value)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.log: cannot be read \(No such file"):
        read(tmp_path / "none.log")


# --- The run's own records, and the page.


def test_records_become_complete_epochs():
    steps = [(4, 4.0), (8, 2.0), (10, 1.0), (14, 0.5), (20, 0.25), (27, 0.1)]
    records = [{"step": float(step), "loss": value, "acc_pose": value / 10} for step, value in steps]
    records.insert(3, {"step": 10.0, "eval/AP": 0.5})
    records.append({"step": 20.0, "eval/AP": -1.0})
    curves = beside.by_epoch(records, 10, "eval/AP")
    assert curves["loss"] == pytest.approx({1: 2.6, 2: 0.35})
    assert curves["acc_pose"] == pytest.approx({1: 0.26, 2: 0.035})
    assert curves["AP"] == {1: 0.5}


@pytest.fixture
def workdir(tmp_path):
    """A run of `LAST` epochs that logged what `CURVES` says, its loss a third higher from epoch 23 on."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(to_json(load_config(f"{REPOSITORY}/configs/coco.py")))
    write_json(folder / "starts.json", [{"start": "2026-01-01", "steps_per_epoch": PER_EPOCH}, {"start": "2026-01-02"}])
    with MetricWriter(folder) as writer:
        for epoch in range(1, LAST + 1):
            factor = 1.3 if epoch >= 23 else 1
            for number, step in ((1, 50), (2, 120), (3, PER_EPOCH)):
                value = {"loss": factor * loss(epoch) * (1 + 0.1 * (number - 2)), "acc_pose": accuracy(epoch)}
                writer.write((epoch - 1) * PER_EPOCH + step, value)
            if epoch in CURVES["AP"]:
                writer.write(epoch * PER_EPOCH, {"eval/AP": ap(epoch)})
    return folder


def command(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["report", *map(str, arguments)])
    with logging_as_before():
        report.main()
    return capsys.readouterr().out.splitlines()


def test_the_page_and_the_command(workdir, tmp_path, monkeypatch, capsys):
    path = write(tmp_path, "1.x text", lines("1.x text")).rename(tmp_path / "<b>.log")
    printed = command(monkeypatch, capsys, workdir, "--reference", path)
    assert printed[0].startswith("loss: leaves the band at epoch 23, for 3 common epochs in a row: 0.0005")
    assert printed[1:3] == [
        "acc_pose: in the band in all 60 common epochs, 1 to 60",
        "AP: in the band in all 6 common epochs, 10 to 60",
    ]
    assert printed[3] == str(workdir / "report.html")
    page = (workdir / "report.html").read_text()
    assert "Beside &lt;b&gt;.log" in page
    assert "<b>" not in page
    for title in ("Loss by epoch", "Accuracy by epoch", "AP by epoch"):
        assert f'aria-label="{title}"' in page
    assert "&lt;b&gt;.log: 0.68 at epoch 10" in page
    assert "leaves the band at epoch 23" in page


def test_mistakes_with_a_reference(workdir, tmp_path):
    (tmp_path / "other.txt").write_text("anything")
    assert "other.txt: no log of MMPose" in mistake("hrnet_jax.report", workdir, "--reference", tmp_path / "other.txt")
    write_json(workdir / "starts.json", [])
    path = write(tmp_path, "0.x json", lines("0.x json"))
    assert "starts.json: does not state steps_per_epoch" in mistake("hrnet_jax.report", workdir, "--reference", path)


def test_a_real_run_states_its_epochs(trained, tmp_path):
    assert read_json(trained / "starts.json")[-1]["steps_per_epoch"] == 6
    path = write(tmp_path, "1.x json", lines("1.x json", range(1, 3)))
    page = report.build(trained, report.stored_config(trained), path)
    assert "leaves the band" not in page  # of two epochs, none can follow three
    assert "no epoch in common" in page  # AP
    assert "2 common epochs, 1 to 2" in page
