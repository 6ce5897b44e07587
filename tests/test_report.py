"""The report of work directories: whole, young, and of evaluations alone; escaped; and what mistakes get."""

import base64
import html.parser
import json
import math
import re
import shutil

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from data_pipelines.errors import InputError
from data_pipelines.keypoints import COCO
from data_pipelines.pipeline import EvalData
from data_pipelines.synthetic import write_dataset
from eval.breakdown import diagnose
from eval.coco import evaluate_results
from hrnet_jax.codecs import create_codec
from hrnet_jax.config import load_config, to_json
from hrnet_jax.inference.drawings import contact_sheet, examples, pair, ranked
from hrnet_jax.models import array_shapes
from hrnet_jax.report import build, report, stored_config
from hrnet_jax.reporting import page as report_page
from hrnet_jax.training.metrics import MetricWriter
from hrnet_jax.training.step_log import StepLog
from tests.helpers import REPOSITORY, mistake, run

EVIL = '<script>alert("1")</script>'
TRUTH = "coco/annotations/person_keypoints_val2017.json"


class Page(html.parser.HTMLParser):
    """A page's elements as (tag, attributes), its text, its tables as rows of cells; fails on what is not closed."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self.tables, self._open = [], "", [], []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if "style" in self._open:
            return
        self.text += data
        if {"td", "th"} & set(self._open):
            self.tables[-1][-1][-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def table(self, first):
        """The table whose first row begins with a cell."""
        return next(table for table in self.tables if table[0][0] == first)

    def pictures(self):
        sources = [image["src"].removeprefix("data:image/jpeg;base64,") for image in self.all("img")]
        return [cv2.imdecode(np.frombuffer(base64.b64decode(source), np.uint8), 1) for source in sources]


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    root = tmp_path_factory.mktemp("people")
    write_dataset(root, coco_train=2, coco_val=6, aic_train=2, processes=1)
    return root


@pytest.fixture(scope="module")
def config(people):
    config = load_config(str(REPOSITORY / "configs/quickstart.py"))
    config.data.root = str(people)
    return config


def answers(people, noise=2.0, seed=0):
    """Results as good as the truth moved at random by some pixels."""
    rng = np.random.default_rng(seed)
    truth = json.loads((people / TRUTH).read_text())["annotations"]
    results = []
    for person in (person for person in truth if person["num_keypoints"] and not person["iscrowd"]):
        keypoints = np.array(person["keypoints"], float).reshape(-1, 3)
        keypoints[:, :2] += rng.normal(0, noise, (len(keypoints), 2))
        fields = {"keypoints": keypoints.ravel().tolist(), "score": float(rng.uniform(0.5, 1)), "bbox": person["bbox"]}
        results.append({"image_id": person["image_id"], "category_id": 1, **fields})
    return results


def write_evaluation(folder, people, results, **conditions):
    """The files of an evaluation."""
    folder.mkdir(parents=True, exist_ok=True)
    metrics = evaluate_results(people / TRUTH, results)
    metrics |= {"boxes": "annotated", "annotations": "person_keypoints_val2017.json", **conditions}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "keypoints.json").write_text(json.dumps(results))
    return metrics


def write_log(folder, config, sources=("coco", "aic"), steps=20):
    """What a training logs, by the trainer's own parts."""
    count = len(sources)
    progress, evaluated = {"samples": 0, "unreadable": 0}, {5: 0.25, 10: 0.625, 20: 0.5}
    log = StepLog(config, list(sources), 0, steps, steps, lambda step: jnp.float32(1e-3), progress)
    with MetricWriter(folder) as writer:
        for step in range(1, steps + 1):
            measured = {
                "loss": np.float32(1 / step),
                "acc_pose": np.float32(step / 100),
                "gradient_norm": np.float32(2 / step),
                "loss_sum": np.full(count, 4 / step, np.float32),
                "samples": np.full(count, 4.0, np.float32),
                "finite": np.bool_(True),
                "skipped": np.int32(step > 10),
            }
            valid = np.arange(4 * count) > (0 if step == 1 else -1)
            log.add(step, jax.tree.map(jnp.asarray, measured), {"valid": valid})
            writer.write(step, log.flush())
            if step in evaluated:
                writer.write(step, {"eval/AP": evaluated[step], "eval/AP50": 0.9, "eval/AR": 0.75})


@pytest.fixture(scope="module")
def workdir(people, config, tmp_path_factory):
    """What a run and an evaluation of it leave, but for the arrays."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    conditions = {"step": 20, "flip_test": True, "score_mode": "bbox_keypoint"}
    write_evaluation(folder, people, answers(people, 6.0), **conditions)
    write_evaluation(folder / "annotated_boxes", people, answers(people, 1.0))
    (folder / "config.json").write_text(to_json(config))
    config = config.copy_and_resolve_references()
    config.data.max_unreadable = 1.0
    write_log(folder, config)
    for step in (10, 20):
        (folder / f"checkpoints/{step}").mkdir(parents=True)
        (folder / f"checkpoints/{step}/digests.json").write_text("{}")
    start = {"start": "2026-01-02T03:04:05.678+00:00", "host": "a", "devices": "8 x b", "versions": {"jax": "1"}}
    start |= {"python": "3.9", "commit": "0123456789abcdef"}
    first = {**start, "start": "2026-01-01T00:00:00.000+00:00", "end": "2026-01-01T01:02:03.000+00:00"}
    (folder / "starts.json").write_text(json.dumps([{**first, "outcome": "done"}, {**start, "outcome": None}]))
    (folder / "checkpoints/20/metrics.json").write_text("no JSON")  # nothing is looked for in there
    return folder


@pytest.fixture
def copy(workdir, tmp_path):
    return shutil.copytree(workdir, tmp_path / "copy")


def page_of(folder, config=None):
    return Page(build(folder, stored_config(folder) if config is None else config))


def test_a_run_with_two_evaluations(copy):
    written = report(copy)
    assert written == str(copy / "report.html")
    page = Page((copy / "report.html").read_text(encoding="utf-8"))
    head, root, annotated = page.table("folder")
    for row, folder in ((root, copy), (annotated, copy / "annotated_boxes")):
        metrics = json.loads((folder / "metrics.json").read_text())
        assert row[1:] == [f"{metrics[name]:.3f}" if metrics[name] >= 0 else "n/a" for name in head[1:]]
    assert (root[0], annotated[0]) == ("copy", "copy/annotated_boxes")
    overview = dict(page.tables[0])
    assert overview["Best AP"] == "0.625 at step 10"
    assert overview["Checkpoints at steps"] == "10, 20"
    assert overview["Started"] == "2 times, last 2026-01-02 03:04:05: running, or killed"
    assert overview["Duration"] == "1:02:03; 1 starts without a recorded end are not counted"
    assert (overview["Devices"], overview["Versions"]) == ("8 x b", "Python 3.9, jax 1, commit 0123456789ab")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d \S+", overview["Report written"])
    parameters = sum(math.prod(array.shape) for array in array_shapes(stored_config(copy))[0].values())
    assert f"{parameters / 1e6:.1f} million parameters" in page.text
    assert overview["Skipped steps (not finite)"] == "1"
    assert overview["Unreadable samples (replaced)"] == "1"
    titles = {drawing["aria-label"] for drawing in page.all("svg")}
    assert titles == {
        *("Loss", "Training accuracy", "Evaluation", "Learning rate", "Gradient norm"),
        *("Samples per second", "Share of the time", "Skipped steps", "Unreadable samples"),
    }
    for name in ("loss/coco", "loss/aic", "waiting for data", "AP50"):
        assert name in page.text
    assert '"every_epochs": 6' in page.text
    conditions = dict((row[0], row[1:]) for row in page.table("")[1:])
    assert conditions["step"] == ["20", ""]
    assert conditions["person boxes"] == ["annotated", "annotated"]
    assert conditions["flip test"] == ["yes", ""]
    assert conditions["score of a person"] == ["box score x mean of the keypoint scores", ""]
    assert not {"flip_test", "True", "bbox_keypoint"} & {cell for table in page.tables for row in table for cell in row}


def test_nothing_comes_from_elsewhere_and_nothing_runs(workdir):
    text = build(workdir, stored_config(workdir))
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "base", "form"} & {tag for tag, _ in page.elements}
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("href", "srcset")], tag
        assert attributes.get("src", "data:").startswith("data:"), tag
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in str(page.all("meta"))


def test_mistakes_by_keypoint(people, config, tmp_path):
    """Noses moved far away are misses, left and right ankles changed are inversions, the rest is good."""
    results = answers(people, 0.0)
    for result in results:
        points = np.array(result["keypoints"]).reshape(-1, 3)
        points[0, :2] += 1000
        points[[15, 16]] = points[[16, 15]]
        result["keypoints"] = points.ravel().tolist()
    write_evaluation(tmp_path, people, results)
    rows = {row[0]: row for row in page_of(tmp_path, config).table("keypoint")}
    head = rows["keypoint"]
    assert rows["nose"][head.index("miss")] == "100.0%"
    assert rows["nose"][head.index("within 10%")] == "0.0%"
    assert rows["left knee"][head.index("good")] == "100.0%"
    assert rows["left knee"][head.index("similarity")] == "1.000"
    truth = json.loads((people / TRUTH).read_text())["annotations"]
    counted = [np.array(p["keypoints"]).reshape(-1, 3) for p in truth if p["num_keypoints"] and not p["iscrowd"]]
    labelled = sum((points[:, 2] > 0).sum() for points in counted)
    noses = sum(points[0, 2] > 0 for points in counted)
    assert rows["all"][1] == str(labelled)
    assert rows["all"][head.index("miss")] == f"{noses / labelled:.1%}"
    assert float(rows["left ankle"][head.index("inversion")].rstrip("%")) > 50


def test_the_worst_are_drawn_first(people, config, tmp_path):
    results = answers(people, 0.5)
    worst = np.array(results[3]["keypoints"]).reshape(-1, 3)
    worst[3:, :2] += [0, 0.15 * math.sqrt(np.prod(results[3]["bbox"][2:]))]
    results[3]["keypoints"] = worst.ravel().tolist()
    write_evaluation(tmp_path, people, results)
    page = page_of(tmp_path, config)
    pictures = page.pictures()
    assert len(pictures) == min(12, len(results))
    assert all(picture.shape == (280, 424, 3) for picture in pictures)
    captions = [image["alt"] for image in page.all("img")]
    values = [float(re.search(r"OKS (\d\.\d\d)", caption)[1]) for caption in captions]
    assert values == sorted(values)
    assert values[0] < 0.5 < values[1]
    name = {i["id"]: i["file_name"] for i in json.loads((people / TRUTH).read_text())["images"]}
    assert captions[0].startswith(name[results[3]["image_id"]])


def test_predictions_of_low_scores_are_not_among_the_worst(people, config, tmp_path):
    results = answers(people, 0.5)
    for result in results[:2]:  # boxes on no person
        result["score"] *= 0.05
        result["keypoints"] = (np.array(result["keypoints"]) + 15).tolist()
    breakdown = diagnose(people / TRUTH, results)
    order = ranked(breakdown)
    assert len(order) == len(results) - 2
    assert (np.diff(breakdown.oks[order]) >= 0).all()
    assert breakdown.scores[order].min() > 0.1 * breakdown.scores[order].max()
    write_evaluation(tmp_path, people, results)
    page = page_of(tmp_path, config)
    assert "2 people are left out" in page.text
    assert len(page.pictures()) == min(12, len(results) - 2)


def test_people_are_drawn_although_nothing_was_found_near_them(people, config, tmp_path):
    results = answers(people)
    for result in results:
        result["keypoints"] = (np.array(result["keypoints"]) + 1e4).tolist()
    instances = EvalData.load(config, create_codec(config.codec)).instances
    contact_sheet(tmp_path / "sheet.png", diagnose(people / TRUTH, results), instances)
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet.shape[1] == 3 * 424 + 24
    assert (sheet < 100).any()


def test_examples_are_the_ends_and_the_middle():
    assert examples(np.arange(100), 3, 2) == {"worst": [0, 1, 2], "median": [49, 50], "best": [99, 98]}
    assert examples(np.arange(4), 3, 2) == {"worst": [0, 1, 2], "median": [], "best": [3]}


def test_prediction_and_truth_are_drawn_in_their_places():
    """A white image, one person in its middle; the prediction is 20 pixels lower."""
    truth = np.column_stack([np.linspace(80, 120, 17), np.linspace(60, 140, 17), np.full(17, 2)])
    person = {"id": 1, "image_id": 1, "category_id": 1, "keypoints": truth.ravel().tolist(), "iscrowd": 0}
    person |= {"bbox": [65.0, 50.0, 70.0, 100.0], "area": 40_000.0}
    found = truth + [0, 20, 0]
    image = np.full((200, 200, 3), 255, np.uint8)
    annotations = {"images": [{"id": 1}], "categories": [{"id": 1}], "annotations": [person]}
    result = {"image_id": 1, "category_id": 1, "keypoints": found.ravel().tolist(), "score": 1.0}
    breakdown = diagnose(annotations, [result])
    drawn = pair(image, breakdown, 0)

    def extent(panel):
        rows, columns = np.nonzero(panel[10:-10, 10:-10].astype(int).min(2) < 200)
        return rows.min() + 10, columns.min() + 10

    zoom = 280 / 150  # the box of 100 pixels with a margin fills the height
    (left_top, left_side), (right_top, right_side) = extent(drawn[:, :210]), extent(drawn[:, 214:])
    assert left_top - right_top == pytest.approx(20 * zoom, abs=2)
    assert left_side == pytest.approx(right_side, abs=1)
    assert right_top == pytest.approx((60 - 25) * zoom, abs=5)
    assert right_side == pytest.approx((80 - 100) * zoom + 105, abs=5)


def test_everything_is_escaped(people, config, tmp_path, monkeypatch):
    """Names of sources, folders and files, and values of config and metrics, that would be HTML."""
    monkeypatch.chdir(tmp_path)  # where the relative cache is
    root = tmp_path / "data"
    shutil.copytree(people / "coco", root / "coco")
    truth = json.loads((root / TRUTH).read_text())
    for i, image in enumerate(truth["images"]):
        name = f'<img src=x onerror="alert({i})">.jpg'
        (root / "coco/val2017" / image["file_name"]).rename(root / "coco/val2017" / name)
        image["file_name"] = name
    (root / TRUTH).write_text(json.dumps(truth))
    config = config.copy_and_resolve_references()
    config.data.root, config.cache_dir = str(root), f"</pre>{EVIL}"
    folder = tmp_path / "<b onclick=x>run"
    write_evaluation(folder, people, answers(people), **{EVIL: EVIL, "nested": {"a": [EVIL]}})
    write_evaluation(folder / "<i>inner", people, answers(people), annotations=f"{EVIL}.json")
    (folder / "config.json").write_text(to_json(config))
    with MetricWriter(folder) as writer:
        writer.write(1, {"loss": 1.0, f"loss/{EVIL}": 1.0, "loss/coco": 2.0})
    page = page_of(folder)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "b"}
    assert not [attributes for _, attributes in page.elements if {"onerror", "onclick"} & set(attributes)]
    assert all(image["src"].startswith("data:") for image in page.all("img"))
    assert len(page.pictures()) == min(12, len(answers(people)))
    for text in (f"loss/{EVIL}", f"</pre>{json.dumps(EVIL)[1:-1]}", "<b onclick=x>run/<i>inner", 'onerror="alert(0)"'):
        assert text in page.text, text
    assert EVIL in page.table("")[-2][0] + page.table("")[-1][0]
    assert f"measured on {EVIL}.json" in page.text


def test_a_fresh_run(config, tmp_path):
    (tmp_path / "config.json").write_text(to_json(config))
    page = page_of(tmp_path)
    assert "Nothing was evaluated yet" in page.text
    assert [row[0] for row in page.tables[0]] == ["Best AP", "Report written"]
    assert page.tables[0][0][1] == "nothing was evaluated yet"
    assert not page.all("svg")


def test_a_run_before_its_first_evaluation(config, tmp_path):
    (tmp_path / "config.json").write_text(to_json(config))
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "loss": 0.25, "learning_rate": 0.1}\n{"step": 10, "lo')
    page = page_of(tmp_path)
    assert "Nothing was evaluated yet" in page.text
    assert dict(page.tables[0])["Logged"] == "up to step 5; loss 0.25"
    assert dict(page.tables[0])["Checkpoints at steps"] == "none"
    assert {drawing["aria-label"] for drawing in page.all("svg")} == {"Loss", "Learning rate"}
    assert page.text.count("Nothing was logged yet.") == 5


def test_the_output_of_an_evaluation_alone(workdir, people, tmp_path):
    folder = shutil.copytree(workdir / "annotated_boxes", tmp_path / "val")
    page = page_of(folder)
    assert "give the model's folder as --checkpoint" in page.text
    assert page.table("folder")[1][0] == "val"
    with_model = page_of(folder, stored_config(folder, workdir))
    assert len(with_model.pictures()) == min(12, len(answers(people)))


def test_data_that_is_gone(copy, people, config, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(people / "coco/annotations", root / "coco/annotations")
    config = config.copy_and_resolve_references()
    config.data.root = str(root)
    page = page_of(copy, config)
    assert page.text.count("Not drawn, because the images cannot be read") == 2
    assert "val2017: no such folder" in page.text
    assert page.table("keypoint")
    assert not page.all("img")
    config.data.root = str(tmp_path / "nowhere")
    page = page_of(copy, config)
    assert page.text.count("Mistakes cannot be computed: ") == 2
    assert "nowhere/coco/annotations/person_keypoints_val2017.json: no such file" in page.text
    assert page.table("folder")


def test_an_image_that_is_gone(people, config, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(people / "coco", root / "coco")
    results = answers(people)
    images = json.loads((root / TRUTH).read_text())["images"]
    file = root / "coco/val2017" / next(i["file_name"] for i in images if i["id"] == results[-1]["image_id"])
    file.write_bytes(file.read_bytes()[:500])
    config = config.copy_and_resolve_references()
    config.data.root = str(root)
    write_evaluation(tmp_path / "run", people, results)
    page = page_of(tmp_path / "run", config)
    lost = sum(result["image_id"] == results[-1]["image_id"] for result in results)
    assert page.text.count("Not drawn: ") == lost
    assert "truncated" in page.text
    assert len(page.pictures()) == min(12, len(results)) - lost


def test_files_beside_and_files_missing(copy):
    """Another program's metrics.json is none of ours; an evaluation without keypoints has its numbers all the same."""
    (copy / "other").mkdir()
    (copy / "other/metrics.json").write_text('{"accuracy": 1}')
    (copy / "annotated_boxes/keypoints.json").unlink()
    page = page_of(copy)
    assert [row[0] for row in page.table("folder")] == ["folder", "copy", "copy/annotated_boxes"]
    assert "keypoints.json: no such file" in page.text


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("metrics.json", b"{", r"metrics\.json: not JSON"),
        ("config.json", b"[]", r"config\.json: not a config"),
    ],
)
def test_damaged_files_are_named(copy, file, content, message):
    (copy / file).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        report(copy)
    assert "\n" not in str(error.value)
    assert not (copy / "report.html").exists()


@pytest.mark.parametrize("content", ["[{}]", "{", "[1]", '[{"image_id": 1}]', "null"])
def test_damaged_results_are_told_in_the_page(copy, content):
    (copy / "keypoints.json").write_text(content)
    page = page_of(copy)
    assert page.text.count("Mistakes cannot be computed: ") == 1
    assert len(page.table("folder")) == 3


@pytest.mark.parametrize(
    "key", ["data.root", "data.eval", "data.eval.annotations", "data.eval.keypoints", "eval", "data"]
)
@pytest.mark.parametrize("value", [None, 7, "nothing"])
def test_configs_that_lack_something_get_a_page(copy, config, key, value):
    broken = json.loads(to_json(config))
    *parents, last = key.split(".")
    inner = broken
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    (copy / "config.json").write_text(json.dumps(broken))
    page = page_of(copy)
    assert "Mistakes cannot be computed: " in page.text


def test_no_work_directory(tmp_path):
    with pytest.raises(InputError, match=r"nowhere: no such folder"):
        stored_config(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"neither a work directory .* nor an evaluation"):
        stored_config(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file: no such folder"):
        stored_config(tmp_path / "file")


def test_places_that_cannot_be_written(workdir, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        report(workdir, tmp_path / "file" / "report.html")
    with pytest.raises(InputError, match="is a folder; --output takes a file"):
        report(workdir, tmp_path)


def test_the_command(workdir, people, tmp_path):
    output = tmp_path / "page.html"
    done = run("hrnet_jax.report", f"--config.data.root={people}", "--output", output, workdir)
    assert done.stdout.splitlines()[-1] == str(output)
    assert len(Page(output.read_text(encoding="utf-8")).pictures()) > 0
    assert f"{tmp_path}" in mistake("hrnet_jax.report", tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)
KEYS = st.sampled_from(["loss", "loss/a", "eval/AP", "samples_per_second", "data_wait", "skipped", "learning_rate"])
LINES = st.lists(
    st.fixed_dictionaries({"step": st.integers(0, 100)}, optional={}).flatmap(
        lambda step: st.dictionaries(KEYS, st.floats() | st.integers() | JSON, max_size=5).map(lambda d: {**step, **d})
    )
    | JSON,
    max_size=6,
)


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(LINES)
def test_whatever_the_log_holds(config, tmp_path, lines):
    (tmp_path / "config.json").write_text(to_json(config))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = build(tmp_path, config)
    Page(text)
    coordinates = re.findall(r'(?:points|cx|cy)="([^"]*)"', text)
    assert not any("nan" in value or "inf" in value for value in coordinates)


def places(chart):
    """The points of each line of a chart."""
    lines = [attributes["points"] for attributes in Page(chart).all("polyline")]
    return [[tuple(map(float, point.split(","))) for point in line.split()] for line in lines]


def test_lines_lie_where_their_values_are():
    (line,) = places(report_page.chart("", {"a": [(0, 0.0), (50, 1.0), (100, 4.0)]}))
    (x0, y0), (x1, y1), (x2, y2) = line
    assert 0 <= x0 < x2 <= 460
    assert y0 <= 230
    assert y2 >= 0
    assert x1 - x0 == pytest.approx((x2 - x0) / 2, abs=0.1)
    assert y0 - y1 == pytest.approx((y0 - y2) / 4, abs=0.1)
    assert y2 < y1 < y0
    (line,) = places(report_page.chart("", {"a": [(1, 0.01), (2, 0.1), (3, 1.0)]}, log=True))
    assert line[0][1] - line[1][1] == pytest.approx(line[1][1] - line[2][1], abs=0.1)
    (line,) = places(report_page.chart("", {"a": [(1, 0.5)]}, limits=(0, 1)))
    (other,) = places(report_page.chart("", {"a": [(1, 0.0), (2, 1.0)]}))
    assert line[0][1] == pytest.approx((other[0][1] + other[1][1]) / 2, abs=0.1)


def test_what_cannot_be_drawn_is_left_out():
    values = [1.0, math.nan, 0.0, -1.0, math.inf, 2.0]
    (line,) = places(report_page.chart("", {"a": list(enumerate(values))}, log=True))
    assert len(line) == 2
    assert "Nothing was logged yet" in report_page.chart("", {"a": [(1, math.nan)], "b": []})


def test_long_lines_are_means_of_neighbours():
    points = [(step, float(step % 2)) for step in range(10_000)]
    thinned = report_page._thinned(points)
    assert len(thinned) == 400
    assert thinned[-1][0] == 9999
    assert np.mean([value for _, value in thinned]) == pytest.approx(0.5, abs=0.02)


@settings(max_examples=300)
@given(
    st.floats(-1e12, 1e12).map(lambda x: round(x, 6)),
    st.floats(1e-6, 1e12),
    st.booleans(),
)
@example(0.0, 0.3, False)  # a third of it is a little less than 0.1
def test_ticks_are_few_and_in_range(low, size, log):
    low = max(abs(low), 1e-6) if log else low
    high = low + size
    if high - low <= 1e-6 * abs(low):
        return
    axis = report_page._Axis.of(low, high, log, 0, 100)
    assert 1 <= len(axis.ticks) <= 11
    assert axis.ticks == sorted(set(axis.ticks))
    assert all(low <= tick <= high for tick in axis.ticks)
    assert (axis.place(low), axis.place(high)) == (pytest.approx(0, abs=1e-6), pytest.approx(100))


def test_html_is_escaped_once():
    assert report_page.tag("p", "<&>", report_page.tag("b", '"')) == "<p>&lt;&amp;&gt;<b>&quot;</b></p>"
    assert report_page.tag("a", title='"><x>') == '<a title="&quot;&gt;&lt;x&gt;"></a>'
    assert isinstance(report_page.tag("p", report_page.join(["a", "b"])), report_page.Html)


def test_buckets_paths_are_taken(workdir):
    """Paths may be of any kind that has `etils.epath.Path`."""
    assert page_of(epath.Path(workdir)).table("folder")
    assert COCO.names[0] in page_of(str(workdir)).text
