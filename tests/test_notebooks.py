"""The notebooks, executed from top to bottom in their short mode, each in a process of its own."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from data_pipelines.keypoints import COCO
from hrnet_jax.codecs import create_codec
from hrnet_jax.inference.steps import make_eval_step, to_image
from hrnet_jax.models import FunctionalModel, abstract_model
from hrnet_jax.weights import checkpoint
from tests.helpers import REPOSITORY, load_arrays

NOTEBOOKS = REPOSITORY / "notebooks"

# Most of the time is XLA's; these programs run for a moment only.
COMPILE_QUICKLY = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}

# Executes cells as Jupyter does, in one namespace; counts the pictures that it would show. Ends with one line of JSON.
EXECUTE = """
import ast, json, sys
scope, shown = {"__name__": "__main__"}, {}
cells = json.load(open(sys.argv[1]))["cells"]
for cell in cells:
    if cell["cell_type"] == "code":
        tree = ast.parse("".join(cell["source"]), cell["id"])
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, cell["id"], "exec"), scope)
        if last:
            value = eval(compile(ast.Expression(last.value), cell["id"], "eval"), scope)
            if hasattr(value, "_repr_png_"):
                shown[cell["id"]] = value.size, value.convert("L").getextrema()
exec(sys.argv[2], scope)
print(json.dumps({"shown": shown, **scope["answer"]}))
"""


@pytest.fixture
def execute(tmp_path):
    """Executes a notebook in an empty folder beside `configs`, then `code`, which sets the dict `answer`."""
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    (tmp_path / "notebooks").mkdir()

    def run(name, code):
        done = subprocess.run(
            [sys.executable, "-c", EXECUTE, str(NOTEBOOKS / f"{name}.ipynb"), code],
            cwd=tmp_path / "notebooks",
            env={**os.environ, "HRNET_JAX_SHORT": "1", **COMPILE_QUICKLY},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout, json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.mark.parametrize("name", sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")))
def test_committed_as_jupyter_executed_it(name):
    """From top to bottom, with pictures, without errors, warnings, or names of the machine's folders."""
    content = (NOTEBOOKS / f"{name}.ipynb").read_text()
    notebook = json.loads(content)
    assert len(content) < 1_000_000
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert {output.get("name", output["output_type"]) for output in outputs} == {"stdout", "execute_result"}
    pictures = [output["data"] for output in outputs if output["output_type"] == "execute_result"]
    assert pictures
    assert all(("image/png" in data) != ("image/jpeg" in data) for data in pictures)
    assert not any(place in content for place in ("/tmp/", "/root/", "/home/", str(REPOSITORY)))
    for cell in notebook["cells"]:
        keys = {"cell_type", "id", "metadata", "source"}
        assert set(cell) == (keys | {"outputs", "execution_count"} if cell["cell_type"] == "code" else keys)
        assert cell["metadata"] == {}
        text = "".join(cell["source"])
        assert text
        assert not any(line.startswith(("%", "!")) for line in text.splitlines())  # plain Python runs anywhere


def test_ablation(execute, tmp_path):
    printed, answer = execute(
        "ablation",
        "answer = {'rows': rows, 'ap': [AP[s].tolist() for s in settings],"
        " 'curves': [[[v.tolist() for v in c] for c in curves[s]] for s in settings]}",
    )
    work = tmp_path / "runs/ablation/synthetic_short"
    assert [row[:3] for row in answer["rows"]] == [["msra", "coco + aic", 96], ["udp", "coco + aic", 96]]
    for row, ap in zip(answer["rows"], answer["ap"], strict=True):
        names = [f"{row[0]}-coco_aic-96-seed{seed}" for seed in (0, 1)]
        assert ap == [json.loads((work / name / "metrics.json").read_text())["AP"] for name in names]
        assert row[3:] == pytest.approx([np.mean(ap), np.std(ap, ddof=1), min(ap), max(ap)])
        assert f"{row[3]:.3f}" in printed
    assert len(answer["curves"]) == 2
    for curves, ap in zip(answer["curves"], answer["ap"], strict=True):
        for (seconds, values), final in zip(curves, ap, strict=True):
            assert len(seconds) == len(values) == 2  # two epochs, evaluated after each
            assert 0 < seconds[0] < seconds[1]
            assert values[-1] == final
    assert set(answer["shown"]) == {"spread", "time"}

    configs = {path.parent.name: json.loads(path.read_text()) for path in work.glob("*/config.json")}
    assert set(configs) == {f"{codec}-coco_aic-96-seed{seed}" for codec in ("msra", "udp") for seed in (0, 1)}
    assert configs["udp-coco_aic-96-seed1"]["codec"]["name"] == "udp"
    assert configs["udp-coco_aic-96-seed1"]["seed"] == 1


def test_data(execute):
    printed, answer = execute(
        "data",
        "answer = {'people': {s.name: len(s) for s in data.sources},"
        " 'targets': {n: t.shape for n, t in targets.items()}, 'labelled': {s: dict(zip(names, v.tolist()))"
        " for s, v in labelled.items()}, 'error': float(error)}",
    )
    assert set(answer["shown"]) == {"sources", "crops", "views", "pixels", "targets", "maps", "batch"}
    # Large enough to look at, and with dark and bright places.
    assert all(min(size) > 150 and dark < 64 < 192 < bright for size, (dark, bright) in answer["shown"].values())
    assert answer["people"]["coco"] >= 8
    assert answer["labelled"]["aic"]["nose"] == 0 < answer["labelled"]["coco"]["nose"]
    assert answer["targets"] == {
        **{name: [64, 48, 17] for name in ("msra", "dark", "udp")},
        "udp_combined": [64, 48, 51],
    }
    assert answer["error"] < 0.5
    assert "image        uint8    [8, 256, 192, 3]" in printed


def test_export(execute, tmp_path):
    """Nothing but the cell that makes the folder needs this project, and the keypoints are the live model's."""
    printed, answer = execute(
        "export",
        "ours = {'hrnet_jax', 'data_pipelines', 'flax', 'cv2', 'grain', 'orbax'}\n"
        "center = np.array(BOXES[0][:2]) + np.array(BOXES[0][2:]) / 2\n"
        "scale = model.crop_scale(*BOXES[0][2:])\n"
        "np.savez('found.npz', crop=model.crop(image, center, scale), center=center, scale=scale, crops=crops,"
        " keypoints=keypoints, scores=scores, crop_keypoints=crop_keypoints, crop_scores=crop_scores)\n"
        "answer = {'imported': sorted(ours & set(sys.modules)), 'names': facts['keypoints']['names']}",
    )
    assert answer["imported"] == []
    assert set(answer["shown"]) == {"draw"}
    assert all(name in printed for name in answer["names"])

    found = load_arrays(tmp_path / "notebooks/found.npz")
    trained = checkpoint.load(tmp_path / "runs/short/quickstart")
    codec, flip_test = create_codec(trained.config.codec), trained.config.eval.flip_test
    step = make_eval_step(FunctionalModel.of(abstract_model(trained.config)), codec, COCO.flip_indices, flip_test)
    crops = np.concatenate([found["crop"][None], found["crops"]])
    keypoints, scores = jax.device_get(step(trained.params, trained.stats, crops))
    np.testing.assert_allclose(found["crop_keypoints"], keypoints[1:], atol=1e-3)
    np.testing.assert_allclose(found["crop_scores"], scores[1:], atol=1e-4)
    in_image = to_image(keypoints[:1], found["center"][None], found["scale"][None], codec)[0]
    np.testing.assert_allclose(found["keypoints"][0], in_image, atol=1e-3)
    np.testing.assert_allclose(found["scores"][0], scores[0], atol=1e-4)
