"""Exported folders: the same numbers, by other people's code, or nothing at all."""

import hashlib
import json
import os
import subprocess
import sys

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from configs import common
from data_pipelines.errors import InputError, extra
from data_pipelines.images import read_image
from data_pipelines.keypoints import keypoint_set
from data_pipelines.synthetic import write_dataset
from data_pipelines.transforms import PADDING, view_of_box, warp_image, warp_matrix, warp_span
from eval.coco import METRICS
from hrnet_jax.codecs import create_codec
from hrnet_jax.config import load_config
from hrnet_jax.evaluate import evaluate
from hrnet_jax.export import FACTS, PROGRAM, TOLERANCE, deviations, export
from hrnet_jax.inference.example import Model
from hrnet_jax.inference.steps import make_eval_step, to_image
from hrnet_jax.models import FunctionalModel, abstract_model, create_model, state_dict
from hrnet_jax.models.fold import fold
from hrnet_jax.models.names import mismatches
from hrnet_jax.outcomes import Aborted
from hrnet_jax.weights import card, checkpoint
from hrnet_jax.weights.folder import Model as StoredModel
from hrnet_jax.weights.folder import load_folder
from tests.helpers import REPOSITORY, load_arrays, mistake, run
from tests.hub_server import hub

# Refuses what an exported folder must do without; a finder of its own, ahead of all others.
WITHOUT = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {refused}:
            raise ImportError(f"{{name}} is not for exported folders")
sys.meta_path.insert(0, Refuse())
"""
REFUSED = {"hrnet_jax", "data_pipelines", "eval", "configs", "flax", "optax", "cv2", "ml_collections", "grain", "orbax"}


def random_model(config):
    """A model whose BatchNorms are far from the identity, and whose maps depend on the image."""
    params, stats = state_dict(create_model(config))
    rng = np.random.default_rng(0)

    def draw(name, array):
        if name == "head.final_layer.weight":
            return rng.normal(0, 0.3, array.shape)
        if name.endswith("running_var"):
            return rng.uniform(0.5, 2, array.shape)
        return rng.normal(0.2, 0.5, array.shape) if array.ndim == 1 else np.asarray(array)

    params, stats = (
        {name: jnp.asarray(draw(name, array), jnp.float32) for name, array in arrays.items()}
        for arrays in (params, stats)
    )
    return StoredModel(config, params, stats, {}, "runs/of_mine, step 7")


def tiny_config(codec="msra", flip_test=True):
    config = common.recipe(f"{codec},runlocal", keypoints="coco", train={}, evaluate=common.COCO_VAL)
    config.model.variant = "micro"
    config.codec.input_size = (96, 64)
    config.eval.flip_test = flip_test
    return config


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    root = tmp_path_factory.mktemp("people")
    write_dataset(root, coco_train=1, coco_val=8, aic_train=1, processes=1)
    return root


@pytest.fixture(scope="module")
def workdir(people, tmp_path_factory):
    """A tiny network that knows eight drawn images by heart, with moving averages."""
    from hrnet_jax.train import train

    config = load_config(f"{REPOSITORY}/configs/coco.py:runlocal,udp")
    config.data.root = str(people)
    config.data.train.coco.update({key: common.COCO_VAL[key] for key in ("annotations", "images", "prepared")})
    config.data.eval.boxes = ""
    config.data.augment.update({"half_body": 0.0, "shift_probability": 0.0, "scale": 0.0, "rotation_probability": 0.0})
    config.codec.input_size = (96, 96)
    config.batch_size = config.eval.batch_size = 8
    config.epochs = config.eval.every_epochs = config.checkpoint.every_epochs = 100
    config.optimizer.learning_rate = 4e-3
    config.ema = 0.9
    config.log_every = 1000
    path = tmp_path_factory.mktemp("runs") / "drawn"
    train(config, path)
    return path


@pytest.fixture(scope="module")
def folder(workdir, tmp_path_factory):
    path = tmp_path_factory.mktemp("exports") / "drawn"
    run("hrnet_jax.export", "--checkpoint", workdir, "--output", path)
    return path


def deviation(folder, trained):
    return deviations(folder, trained, {PROGRAM: TOLERANCE["float32"]})[PROGRAM]


def live_answers(trained, image, boxes):
    """Keypoints in image pixels and scores by the parts that evaluation is made of."""
    codec = create_codec(trained.config.codec)
    views = [view_of_box(np.array([x, y, x + w, y + h], np.float32)) for x, y, w, h in boxes]
    views = [view.fix_aspect(codec.input_size) for view in views]
    crops = [warp_image(image, warp_matrix(view, codec.input_size, codec.warp), codec.input_size) for view in views]
    flip_indices = keypoint_set(trained.config.keypoints).flip_indices
    step = make_eval_step(FunctionalModel.of(abstract_model(trained.config)), codec, flip_indices, True)
    keypoints, scores = jax.device_get(step(trained.params, trained.stats, np.stack(crops)))
    center, scale = np.stack([view.center for view in views]), np.stack([view.scale for view in views])
    return to_image(keypoints, center, scale, codec), scores


# --- Folding.


def test_the_folded_network_is_the_network():
    config = tiny_config()
    trained = random_model(config)
    folded_model = abstract_model(config, folded=True)
    weights = jax.jit(fold)(trained.params, trained.stats)
    shapes, rest = state_dict(folded_model)
    assert not rest
    assert not mismatches(weights, shapes)
    images = jnp.asarray(np.random.default_rng(1).standard_normal((2, 96, 64, 3)), jnp.float32)
    network = FunctionalModel.of(abstract_model(config))
    expected, _ = jax.jit(lambda p, s, x: network(p, s, x, train=False))(trained.params, trained.stats, images)
    found, _ = jax.jit(lambda w, x: FunctionalModel.of(folded_model)(w, {}, x, train=False))(weights, images)
    assert float(jnp.abs(found - expected).max()) < 1e-5 * float(jnp.abs(expected).max())
    identity, _ = jax.jit(lambda p, s, x: network(p, s, x, train=False))(
        trained.params,
        {name: jnp.full_like(array, name.endswith("var")) for name, array in trained.stats.items()},
        images,
    )
    assert float(jnp.abs(identity - expected).max()) > 0.1 * float(jnp.abs(expected).max())  # they matter


# --- The folder.


@pytest.mark.parametrize(("codec", "flip_test"), [("msra", True), ("dark", False), ("udp_combined", True)])
def test_codecs_and_flip_test_are_in_the_program(tmp_path, codec, flip_test):
    trained = random_model(tiny_config(codec, flip_test))
    facts = export(trained, tmp_path / "model")
    assert facts["deviation"]["scores"] < 1e-5
    assert facts["deviation"]["moved"] == 0
    assert facts["flip_test"] is flip_test
    other = trained.config.copy_and_resolve_references()
    other.eval.flip_test = not flip_test
    assert deviation(tmp_path / "model", trained._replace(config=other)).scores > 1e-3


def test_facts(folder):
    facts = json.loads((folder / FACTS).read_text())
    assert facts["weights"].endswith(", step 200, moving averages")
    assert facts["input"]["size"] == [96, 96]
    assert facts["crop"] == {"padding": 1.25, "warp": "udp", "span": [95, 95]}
    assert facts["keypoints"]["flip_pairs"][0] == ["left_eye", "right_eye"]
    assert len(facts["keypoints"]["names"]) == len(facts["keypoints"]["colours"]) == 17
    assert facts["made_with"]["jax"] == jax.__version__
    assert facts["deviation"]["scores"] <= 1e-4
    # No keypoint moves by more than 1e-4 px and ten times what a change of the pixels by a millionth moves it; in flat
    # maps of a short training that is up to a tenth of a pixel.
    assert facts["deviation"]["moved"] == 0


def test_hashes_cover_every_file_and_none_names_this_machine(folder):
    lines = [line.split("  ") for line in (folder / "SHA256SUMS").read_text().splitlines()]
    assert sorted(name for _, name in lines) == sorted(p.name for p in folder.iterdir() if p.name != "SHA256SUMS")
    for digest, name in lines:
        content = (folder / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest
        assert str(REPOSITORY).encode() not in content, name


def test_an_exported_folder_is_a_converted_folder(folder, workdir):
    trained, stored = checkpoint.load(workdir), load_folder(folder)
    for ours, theirs in ((stored.params, trained.params), (stored.stats, trained.stats)):
        assert ours.keys() == theirs.keys()
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name])
    metrics = evaluate(checkpoint.load(folder), folder.parent / "evaluated")
    assert metrics["AP"] == json.loads((workdir / "metrics.json").read_text())["AP"] > 0.5


def test_the_example_needs_none_of_our_code(folder, workdir, people, tmp_path):
    """In a process that can import neither it nor what it is made of, from another directory, without a user's site."""
    annotations = json.loads((people / common.COCO_VAL["annotations"]).read_text())
    images = {image["id"]: image["file_name"] for image in annotations["images"]}
    by_image = {}
    for person in annotations["annotations"]:
        if person["num_keypoints"] > 5:
            by_image.setdefault(person["image_id"], []).append(person["bbox"])
    trained = checkpoint.load(workdir)
    clear = 0
    pictures = []
    for image_id, boxes in by_image.items():
        image = cv2.cvtColor(read_image(people / common.COCO_VAL["images"] / images[image_id]), cv2.COLOR_BGR2RGB)
        pictures.append((image, np.array(boxes, np.float32)))
    arrays = {f"{kind}{i}": array for i, pair in enumerate(pictures) for kind, array in zip("ib", pair, strict=True)}
    np.savez(tmp_path / "in.npz", **arrays)
    script = f"""{WITHOUT.format(refused=REFUSED)}
sys.path.insert(0, {str(folder)!r})
import numpy as np
from example import Model
model, data = Model({str(folder)!r}), np.load("in.npz")
out = {{}}
for i in range(len(data.files) // 2):
    out[f"k{{i}}"], out[f"s{{i}}"] = model(data[f"i{{i}}"], data[f"b{{i}}"])
np.savez("out.npz", **out)
nobody = model(data["i0"], [])
assert nobody[0].shape == (0, *out["k0"].shape[1:]) and nobody[1].shape == (0, out["s0"].shape[1])
assert not {REFUSED} & {{name.split(".")[0] for name in sys.modules}}
"""
    (tmp_path / "script.py").write_text(script)
    subprocess.run([sys.executable, "-I", "script.py"], cwd=tmp_path, env=plain_environment(), check=True)
    found = load_arrays(tmp_path / "out.npz")
    for i, (image, boxes) in enumerate(pictures):
        keypoints, scores = live_answers(trained, image, boxes)
        assert found[f"k{i}"].shape == keypoints.shape
        np.testing.assert_allclose(found[f"s{i}"], scores, atol=0.02)
        shown = scores > 0.3
        clear += shown.sum()
        off = np.abs(found[f"k{i}"] - keypoints)[shown]
        assert off.size == 0 or off.max() < 0.5
    assert clear > 50


def plain_environment():
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


@pytest.mark.parametrize("warp", ["udp", "msra"])
@pytest.mark.parametrize("box", [(30, 40, 100, 150), (-20, -30, 100, 90), (250, 200, 120, 90), (5.3, 7.7, 20, 200)])
def test_the_examples_crop_is_the_pipelines(warp, box):
    """Also of boxes that reach beyond the image; OpenCV rounds its weights to 1/32 pixel."""
    image = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8), (0, 0), 2)
    image = cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX)
    size = (256, 192)
    model = object.__new__(Model)
    model.facts = {"input": {"size": size}, "crop": {"padding": PADDING, "span": warp_span(size, warp)}}
    x, y, w, h = box
    view = view_of_box(np.array([x, y, x + w, y + h], np.float32)).fix_aspect(size)
    expected = warp_image(image, warp_matrix(view, size, warp), size).astype(int)
    scale = model.crop_scale(w, h)
    np.testing.assert_allclose(scale, view.scale, rtol=1e-6)
    off = np.abs(model.crop(image, view.center, scale) - expected)
    assert off.max() <= 5
    assert off.mean() < 0.2


def test_the_example_command(folder, people, tmp_path):
    """As README.md of the folder says, on an image file."""
    image = next((people / common.COCO_VAL["images"]).iterdir())
    command = [sys.executable, "-I", folder / "example.py", image, "10,10,80,120", "-5,20,60,90"]
    done = subprocess.run(command, cwd=tmp_path, env=plain_environment(), check=True, capture_output=True, text=True)
    first, second = map(json.loads, done.stdout.splitlines())
    assert list(first) == list(second) == json.loads((folder / FACTS).read_text())["keypoints"]["names"]
    assert all(len(values) == 3 for values in first.values())


def test_bfloat16_computes_in_fewer_bits_and_stores_all(workdir, folder, tmp_path):
    trained = checkpoint.load(workdir)
    facts = export(trained, tmp_path / "model", "bfloat16")
    assert facts["dtype"] == "bfloat16"
    assert 1e-4 < facts["deviation"]["scores"] < 0.05
    assert (tmp_path / "model/model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_equal_models_are_equal_files(workdir, folder, tmp_path):
    export(checkpoint.load(workdir), tmp_path / "again")
    assert (tmp_path / "again/SHA256SUMS").read_text() == (folder / "SHA256SUMS").read_text()


# --- The model card, and the Hub.


def card_of(folder):
    """The front matter and the text of a folder's README.md."""
    _, head, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(head), text


def test_the_card_holds_the_checkpoints_results(folder, workdir):
    measured = json.loads((workdir / "metrics.json").read_text())
    head, text = card_of(folder)
    assert head["library_name"] == "jax"
    assert head["pipeline_tag"] == "keypoint-detection"
    assert head["license"] == "other"
    assert {"hrnet", "pose-estimation", "coco", "udp"} <= {*head["tags"]}
    (model,) = head["model-index"]
    (result,) = model["results"]
    assert model["name"] == "HRNet tiny 96x96 udp"
    found = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert found == {name: round(measured[name], 4) for name in METRICS if measured[name] >= 0}
    assert found["AP"] > 0.5
    where = result["dataset"]["name"]
    assert where.startswith("person_keypoints_val2017.json (boxes annotated, model tiny 96x96 udp, keypoints coco")
    assert "flip_test True" in where
    assert f" {found['AP']:.3f} |" in text
    assert where in text
    assert "Finds 17 keypoints (nose, " in text
    assert "COCO: annotations CC BY 4.0" in text


def test_cards_of_other_models(tmp_path):
    trained = random_model(tiny_config())
    export(trained, tmp_path / "unmeasured", license_id="cc-by-4.0")
    head, text = card_of(tmp_path / "unmeasured")
    assert "model-index" not in head
    assert head["license"] == "cc-by-4.0"
    assert "license_name" not in head
    assert "No evaluation is stored with this model" in text
    assert "Weights: cc-by-4.0." in text
    config = load_config(f"{REPOSITORY}/configs/coco_aic_merge.py")
    config.init = "/somewhere/hrnet_w32-imagenet"
    published = {"AP": 0.757, "AR": -1.0, "conditions": "boxes: of AP 56.4", "page": "https://a.b/c"}
    _, head, _ = card.front_matter(config, "w32", published, "other").split("---\n")
    (result,) = yaml.safe_load(head)["model-index"][0]["results"]
    assert result["source"] == {"name": "published results", "url": "https://a.b/c"}
    assert result["metrics"] == [{"type": "AP", "name": "AP", "value": 0.757}]
    assert result["dataset"]["name"] == "person_keypoints_val2017.json (boxes: of AP 56.4)"
    text = card.sections(config, published, "other")
    assert "Published on https://a.b/c" in text
    assert "AI Challenger: the terms of its competition" in text
    assert "from weights of hrnet_w32-imagenet, with their own terms" in text


def test_the_hubs_library_reads_the_card(folder):
    cards = pytest.importorskip("huggingface_hub").ModelCard.load(folder / "README.md")
    results = cards.data.eval_results
    assert {result.metric_type for result in results} >= {"AP", "AP50", "AR"}
    assert results[0].task_type == "keypoint-detection"
    assert cards.data.license == "other"


def test_an_exported_folder_is_pushed(folder, tmp_path):
    """The command uploads what it wrote; from the Hub it is the same model."""
    pytest.importorskip("huggingface_hub")
    (tmp_path / "metrics.json").write_text('{"AP": 0.123, "boxes": "mine"}')
    command = ["hrnet_jax.export", "--checkpoint", folder, f"--metrics={tmp_path}/metrics.json"]
    files = {}
    with hub(files, tmp_path / "home") as environment:
        output = ["--output", tmp_path / "out", "--push", "hf://user/name/deep"]
        done = run(*command, *output, **environment)
        assert done.stdout.splitlines()[-1] == f"uploaded to {environment['HF_ENDPOINT']}/user/name"
        assert files == {f"deep/{path.name}": path.read_bytes() for path in (tmp_path / "out").iterdir()}
        assert card_of(tmp_path / "out")[0]["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.123
        convert = ["hrnet_jax.convert", "--input=hf://user/name/deep", "--to=official"]
        run(*convert, "--output", tmp_path / "again.safetensors", **environment)
        again = load_file(tmp_path / "again.safetensors")
        assert len([name for name in again if name.endswith("running_var")]) == len(load_folder(folder).stats) // 2
        output = ["--output", tmp_path / "out2", "--push", "hf://user/another"]
        done = run(*command, *output, check=False, **environment)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: hf://user/another: cannot be uploaded (403")
    assert line.endswith(f"{tmp_path}/out2 is complete, `hf upload` can retry")


def test_pushing_says_what_it_needs(folder, tmp_path, monkeypatch):
    """Before anything is written."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    command = ["hrnet_jax.export", "--checkpoint", folder, "--output", tmp_path / "out", "--push"]
    expected = f"error: hf://user/name: needs huggingface_hub: {extra('hub')}"
    assert mistake(*command, "hf://user/name") == expected
    assert "user/name: must be hf://USER/REPOSITORY" in mistake(*command, "user/name")
    assert list(tmp_path.iterdir()) == []


# --- Refusals.


def test_the_check_sees_what_differs(folder, workdir, tmp_path):
    trained = checkpoint.load(workdir)
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in (path for path in folder.iterdir() if path.is_file()):
        (copy / path.name).write_bytes(path.read_bytes())
    assert deviation(copy, trained).moved == 0
    arrays = load_file(copy / "model.safetensors")
    arrays["backbone.stage4.0.fuse_layers.0.3.1.running_mean"] += 0.01
    save_file(arrays, copy / "model.safetensors")
    assert deviation(copy, trained).scores > TOLERANCE["float32"].scores


def test_nothing_is_written_when_program_and_model_differ(tmp_path, monkeypatch):
    monkeypatch.setitem(TOLERANCE, "float32", TOLERANCE["float32"]._replace(scores=1e-12))
    with pytest.raises(
        Aborted, match=r"model: not written: program.jaxexport and the model differ by .* of the scores"
    ) as error:
        export(random_model(tiny_config()), tmp_path / "model")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_damaged_weights_are_refused(tmp_path):
    trained = random_model(tiny_config())
    trained.params["head.final_layer.bias"] = trained.params["head.final_layer.bias"].at[3].set(jnp.nan)
    with pytest.raises(InputError, match="of_mine, step 7: the network's outputs are not finite"):
        export(trained, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--checkpoint", "{tmp}/none", "--output", "{tmp}/out"), "none: no such folder"),
        (("--checkpoint", "{folder}", "--output", "{folder}"), "is not empty"),
        (("--checkpoint", "{folder}", "--output", "{tmp}/out", "--dtype=float16"), "float32, bfloat16"),
        (("--checkpoint", "{folder}", "--output", "{tmp}/out", "--license=My Licence"), "an identifier like cc-by-4.0"),
        (
            ("--checkpoint", "{folder}", "--output", "{tmp}/out", "--metrics={folder}/program.json"),
            "not the metrics.json",
        ),
        (("--checkpoint", "{folder}", "--output", "{tmp}/out", "--config.eval.flip=True"), "flip"),
        (("--checkpoint", "{folder}"), "missing --output"),
    ],
)
def test_mistakes_get_one_line_and_status_1(folder, tmp_path, arguments, message):
    arguments = [argument.format(tmp=tmp_path, folder=folder) for argument in arguments]
    assert message in mistake("hrnet_jax.export", *arguments)
    assert not (tmp_path / "out").exists()
