"""ONNX files: the live model's keypoints in onnxruntime, for every codec, size, batch, with and without flip test."""

import functools
import hashlib
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from configs import common
from data_pipelines.errors import InputError, extra
from data_pipelines.keypoints import keypoint_set
from hrnet_jax.codecs import CODECS, create_codec
from hrnet_jax.export import FACTS, ONNX, ONNX_TOLERANCE, PROGRAM, TOLERANCE, deviations, export
from hrnet_jax.inference.example import Model
from hrnet_jax.inference.steps import make_eval_step
from hrnet_jax.models import FunctionalModel, HRNet, Variant, abstract_model, state_dict
from hrnet_jax.models.fold import fold
from hrnet_jax.weights.folder import Model as StoredModel
from tests.helpers import mistake

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

SIZES = [(96, 64), (64, 64), (128, 96)]
BATCHES = [1, 3, 17]
# A third of the time; XLA's results then differ by rounding only.
COMPILE_QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def tiny_config(codec, size=(96, 64), flip_test=True):
    config = common.recipe(f"{codec},runlocal", keypoints="coco", train={}, evaluate=common.COCO_VAL)
    config.model.variant = "micro"
    config.codec.input_size = size
    config.eval.flip_test = flip_test
    return config


def clear_arrays(shapes):
    """Arrays of a network whose maps have one clear peak each.

    Of two equal peaks, or on a flat map, rounding errors decide where a keypoint is. Here each convolution hands its
    channels on, with some noise, and the head adds them: a spot in the image is a spot in the maps.
    """
    rng = np.random.default_rng(0)
    ranges = {"running_mean": (-0.3, 0.3), "running_var": (0.5, 2), "weight": (0.5, 1), "bias": (-0.2, 0.2)}

    def draw(name, shape):
        if name == "head.final_layer.weight":
            return rng.uniform(0.1, 1, shape) / shape[2]
        if len(shape) < 4:
            return rng.uniform(*ranges[name.rpartition(".")[2]], shape)
        kernel, (features, out) = rng.normal(0, 0.03, shape), shape[2:]
        same = np.arange(features)[:, None] % out == np.arange(out) % features
        kernel[shape[0] // 2, shape[1] // 2] += same * min(1, out / features)
        return kernel

    return {name: draw(name, array.shape).astype(np.float32) for name, array in shapes.items()}


@functools.cache
def clear_network(combined):
    """The network, its arrays and folded weights, with a map or (`combined`) three of a keypoint: for all sizes."""
    network = abstract_model(tiny_config("udp_combined" if combined else "udp"))
    params, stats = map(clear_arrays, state_dict(network))
    return FunctionalModel.of(network), params, stats, jax.device_get(jax.jit(fold)(params, stats))


def spots(count, size):
    """Images with a bright spot in each colour, anywhere in the image, and little noise."""
    rng = np.random.default_rng(1)
    y, x = rng.uniform(0, 1, (2, count, 1, 1, 3)) * np.reshape(size, (2, 1, 1, 1, 1))
    rows, columns = np.arange(size[0])[:, None, None], np.arange(size[1])[:, None]
    image = 20 + 200 * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * 8**2))
    return (image + rng.normal(0, 3, image.shape)).clip(0, 255).astype(np.uint8)


def session(model):
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def compiled(function, *arguments):
    return jax.device_get(function.lower(*arguments).compile(COMPILE_QUICKLY)(*arguments))


@pytest.mark.parametrize("flip_test", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("codec_name", CODECS)
def test_keypoints_and_scores_are_the_live_models(codec_name, size, flip_test):
    from hrnet_jax.onnx import pose_model

    config, crops = tiny_config(codec_name, size, flip_test), spots(max(BATCHES), size)
    network, params, stats, weights = clear_network(codec_name == "udp_combined")
    codec, joints = create_codec(config.codec), keypoint_set("coco")
    live = make_eval_step(network, codec, joints.flip_indices, flip_test)
    keypoints, scores = compiled(live, params, stats, crops)
    assert len(np.unique(keypoints[:, 0].round(), axis=0)) > len(crops) / 2  # they follow the images
    assert (scores > 0).mean() > 0.8
    run = session(pose_model(config, weights)).run
    for batch in BATCHES:
        found_keypoints, found_scores = run(["keypoints", "scores"], {"crops": crops[:batch]})
        assert found_keypoints.shape == (batch, len(joints), 2)
        assert found_scores.shape == (batch, len(joints))
        pixels = np.abs(found_keypoints - keypoints[:batch]).max()
        of_scores = np.abs(found_scores - scores[:batch]).max() / max(1, np.abs(scores).max())
        print(f"{pixels:.1e} px, {of_scores:.1e} of the scores")  # shown by pytest -rP
        assert pixels <= 1e-3
        assert of_scores <= 1e-5


def test_every_layer_of_four_branches():
    """Several blocks and modules in each stage, which the micro network does not have."""
    from hrnet_jax.onnx.graph import Graph
    from hrnet_jax.onnx.network import hrnet

    variant = Variant(width=4, stem=4, bottlenecks=2, modules=(1, 2, 2), blocks=2)
    network = nnx.eval_shape(lambda: HRNet(variant, 5, folded=True))
    weights = clear_arrays(state_dict(network)[0])
    images = np.random.default_rng(2).standard_normal((2, 96, 128, 3)).astype(np.float32)
    forward = jax.jit(lambda weights, x: FunctionalModel.of(network)(weights, {}, x, train=False)[0])
    expected = compiled(forward, weights, images)

    graph = Graph()
    x = graph.input("images", np.float32, ("batch", 3, 96, 128))
    graph.output("heatmaps", hrnet(graph, weights, variant, x), ("batch", 5, 24, 32))
    (found,) = session(graph.model("network")).run(None, {"images": images.transpose(0, 3, 1, 2)})
    np.testing.assert_allclose(found.transpose(0, 2, 3, 1), expected, atol=2e-6 * np.abs(expected).max())
    with pytest.raises(ValueError, match=r"^no layer has the weights head\.other$"):
        hrnet(Graph(), {**weights, "head.other": np.zeros(1, np.float32)}, variant, x)


@pytest.mark.parametrize("codec_name", CODECS)
def test_decoding_of_unusual_maps(codec_name):
    """Equal peaks, peaks at borders and in corners, empty and negative maps; the maps are equal to the last bit."""
    from hrnet_jax.onnx.decode import decode
    from hrnet_jax.onnx.graph import Graph

    codec = create_codec({"name": codec_name, "input_size": (96, 64)})
    (height, width), maps = codec.heatmap_size, codec.maps_per_keypoint
    rows, columns = np.mgrid[:height, :width][..., None]
    cells = np.array([(y, x) for y in (0, 1, 2, height - 2, height - 1) for x in (0, 1, 2, width - 2, width - 1)])
    peaks = np.exp(-((rows - 0.2 - cells[:, 0]) ** 2 + (columns - 0.3 - cells[:, 1]) ** 2) / 8)
    # UDP-combined blurs before it looks for the peak: rounding errors then decide between equal ones.
    twice = peaks if codec_name == "udp_combined" else np.maximum(peaks, peaks[::-1, ::-1])
    other = np.stack([np.zeros_like(peaks), -1 - peaks, twice, peaks * 1e-7, peaks * 100, peaks])
    heatmaps = np.repeat(other, maps, axis=-1).astype(np.float32)
    expected = compiled(jax.jit(codec.decode), heatmaps)

    graph = Graph()
    x = graph.input("x", np.float32, ("batch", heatmaps.shape[-1], height, width))
    for name, value in zip(("keypoints", "scores"), decode(graph, codec, x), strict=True):
        graph.output(name, value, ("batch", "keypoints", 2)[: 3 if name == "keypoints" else 2])
    found = session(graph.model("decoder")).run(None, {"x": heatmaps.transpose(0, 3, 1, 2)})
    np.testing.assert_allclose(found[0], expected[0], atol=1e-3)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-6)
    assert (found[0][:2] < 0).all()  # cell (-1, -1)


# --- The file, and the exported folder.


@pytest.fixture(scope="module")
def trained():
    _, params, stats, _ = clear_network(combined=False)
    return StoredModel(tiny_config("msra"), params, stats, {}, "runs/of_mine, step 7")


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("exports") / "with_onnx"
    export(trained, path, onnx=True)
    return path


def test_the_file_holds_everything_under_the_layers_names(folder):
    model = onnx.load(folder / ONNX, load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert [(domain.domain, domain.version) for domain in model.opset_import] == [("", 17)]
    assert model.ir_version == 8
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in [*model.graph.input, *model.graph.output]
    }
    assert shapes == {"crops": ["batch", 96, 64, 3], "keypoints": ["batch", 17, 2], "scores": ["batch", 17]}
    nodes = {node.name: node.op_type for node in model.graph.node}
    assert nodes["backbone.stage2.0.branches.1.0.conv2"] == nodes["head.final_layer"] == "Conv"
    assert "BatchNormalization" not in nodes.values()


def test_the_folder_describes_and_checks_it(folder, trained, tmp_path):
    facts = json.loads((folder / FACTS).read_text())["onnx"]
    assert (facts["file"], facts["opset"]) == (ONNX, 17)
    assert facts["deviation"]["scores"] < 1e-5
    assert facts["deviation"]["moved"] == 0
    assert "python example.py --onnx" in (folder / "README.md").read_text()
    digest = hashlib.sha256((folder / ONNX).read_bytes()).hexdigest()
    assert f"{digest}  {ONNX}" in (folder / "SHA256SUMS").read_text().splitlines()
    # A weight of another model is seen.
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    model = onnx.load(copy / ONNX)
    (bias,) = (tensor for tensor in model.graph.initializer if tensor.name == "head.final_layer.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(1e-3), bias.name))
    onnx.save(model, copy / ONNX)
    found = deviations(copy, trained, {PROGRAM: TOLERANCE["float32"], ONNX: ONNX_TOLERANCE})
    assert found[PROGRAM].moved == 0
    assert found[ONNX].scores > ONNX_TOLERANCE.scores


def test_equal_models_are_equal_files(folder, trained):
    from hrnet_jax.export import build_onnx

    content, _ = build_onnx(trained)
    assert content == (folder / ONNX).read_bytes()


def test_the_example_runs_it_without_jax(folder, tmp_path):
    """In a process that can import neither JAX nor our code; the keypoints are those of JAX's program."""
    Image.fromarray(spots(1, (120, 160))[0]).save(tmp_path / "photo.png")
    script = f"""
import runpy, sys
for name in ("jax", "jaxlib", "safetensors", "hrnet_jax", "data_pipelines", "cv2", "onnx"):
    sys.modules[name] = None
sys.argv = ["example.py", "--onnx", "photo.png", "10,10,80,100", "-5,20,60,90"]
runpy.run_path({str(folder / "example.py")!r}, run_name="__main__")
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-I", "-c", script],
        cwd=tmp_path,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    people = [json.loads(line) for line in done.stdout.splitlines()]
    image = np.asarray(Image.open(tmp_path / "photo.png"))
    keypoints, scores = Model(folder)(image, [[10, 10, 80, 100], [-5, 20, 60, 90]])
    found = np.array([list(person.values()) for person in people])
    np.testing.assert_allclose(found[..., :2], keypoints, atol=5e-3)  # crop pixels are up to two of the image
    np.testing.assert_allclose(found[..., 2], scores, atol=1e-5)


# --- Refusals.


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_without_the_extra_one_line_names_it(monkeypatch, folder, tmp_path, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    line = mistake("hrnet_jax.export", "--checkpoint", folder, "--output", tmp_path / "out", "--onnx")
    assert line == f"error: --onnx: needs onnx and onnxruntime: {extra('onnx')}"
    assert not (tmp_path / "out").exists()


def test_a_codec_without_a_decoder_is_refused():
    from hrnet_jax.codecs import Msra
    from hrnet_jax.onnx.decode import decode
    from hrnet_jax.onnx.graph import Graph

    class Mine(Msra):
        pass

    graph = Graph()
    with pytest.raises(InputError, match="codec Mine: ONNX has no decoder for it"):
        decode(graph, Mine((96, 64)), graph.input("x", np.float32, ("batch", 17, 24, 16)))
