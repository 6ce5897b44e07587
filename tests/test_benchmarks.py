"""The accelerator's benchmarks, small and on CPU: they run, and their JSON holds what they say."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import accelerator, prediction
from benchmarks import model as benchmark
from benchmarks.steps import experiment, random_batch
from hrnet_jax import convert
from hrnet_jax.codecs import create_codec
from hrnet_jax.config import load_config
from hrnet_jax.models import VARIANTS, FunctionalModel, create_model, state_dict
from tests.helpers import REPOSITORY, run

SMALL = ("--variant", "tiny", "--size", "96x96", "--repeats", "2")


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def config():
    config = load_config(str(REPOSITORY / "configs/coco.py:runlocal"))
    config.codec.input_size = (96, 96)
    return config


@pytest.fixture(scope="module")
def both(torch, config, tmp_path_factory):
    """A model with statistics as training leaves them, as ours, by the `convert` command's way, and in PyTorch."""
    from safetensors.torch import load_file

    from benchmarks import torch_hrnet
    from hrnet_jax.weights.folder import save_folder

    model, rng = create_model(config), np.random.default_rng(0)
    params, stats = (
        {name: np.asarray(a) + 0.5 * rng.random(a.shape, np.float32) * (a.ndim == 1) for name, a in arrays.items()}
        for arrays in state_dict(model)
    )
    # At its own scale the head says so little that rounding decides.
    params["head.final_layer.weight"] = params["head.final_layer.weight"] * 100
    folder = tmp_path_factory.mktemp("both")
    save_folder(folder / "ours", config, {**params, **stats})
    convert.to_torch(folder / "ours", "mmpose", folder / "theirs.safetensors")
    theirs = torch_hrnet.HRNet(dataclasses.asdict(VARIANTS["tiny"]), outputs=17)
    theirs.load_state_dict(load_file(folder / "theirs.safetensors"))
    return FunctionalModel.of(model), params, stats, theirs


def images(config, count=2):
    return random_batch(config, seed=1)["image"][:count]


def close(ours, theirs, tolerance):
    np.testing.assert_allclose(ours, theirs, atol=tolerance * np.abs(theirs).max())


def test_the_torch_model_equals_ours(both, torch, config):
    network, params, stats, theirs = both
    from benchmarks import torch_hrnet
    from hrnet_jax.inference.steps import normalise

    crops = images(config)
    ours, _ = jax.jit(lambda *arrays: network(*arrays, train=False))(params, stats, normalise(jnp.asarray(crops)))
    with torch.no_grad():
        inputs = torch_hrnet.normalise(torch.from_numpy(crops))
        plain = theirs.eval()(inputs).permute(0, 2, 3, 1).numpy()
        fused = torch_hrnet.fold(copy_of(theirs, torch))(inputs).permute(0, 2, 3, 1).numpy()
    close(plain, np.asarray(ours), 1e-5)
    close(fused, np.asarray(ours), 1e-5)


def copy_of(model, torch):
    from benchmarks import torch_hrnet

    copy = torch_hrnet.HRNet(dataclasses.asdict(VARIANTS["tiny"]), outputs=17)
    copy.load_state_dict(model.state_dict())
    return copy


def test_the_torch_training_step_has_our_loss_and_gradients(both, torch, config):
    from benchmarks import torch_hrnet
    from hrnet_jax.inference.steps import normalise

    network, params, stats, theirs = both
    theirs = copy_of(theirs, torch)
    codec = create_codec(config.codec)
    batch = random_batch(config, seed=2)
    # Beyond the borders, far and just so far that they leave a mark.
    batch["keypoints"][0, :4] = [[-30, 10], [-200, 5], [100, 118], [95.9, 96]]

    def loss_of(params, batch):
        targets, weights = codec.encode(batch["keypoints"], batch["visible"])
        heatmaps, _ = network(params, stats, normalise(batch["image"]), train=True)
        return codec.loss(heatmaps, targets, weights).mean()

    expected, gradients = jax.jit(jax.value_and_grad(loss_of))(params, batch)
    step = torch_hrnet.make_train_step(theirs, "cpu", sigma=config.codec.sigma, dtype="float32", mode="eager")
    loss = step(*(torch.from_numpy(batch[key]) for key in ("image", "keypoints", "visible")))
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    # Gradients are there until the next step; those of the first BatchNorms are sums that nearly cancel.
    for name, gradient in theirs.named_parameters():
        array = gradient.grad.numpy()
        ours = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
        close(ours, np.asarray(gradients[name]), 2e-2)


def test_torch_predicts_our_keypoints(both, torch, config):
    from benchmarks import torch_hrnet
    from data_pipelines.keypoints import COCO
    from hrnet_jax.inference.steps import make_eval_step

    network, params, stats, theirs = both
    crops = images(config, 8)
    keypoints, scores = make_eval_step(network, create_codec(config.codec), COCO.flip_indices, True)(
        params, stats, crops
    )
    step = torch_hrnet.make_predict_step(
        copy_of(theirs, torch), "cpu", flip_indices=COCO.flip_indices.tolist(), dtype="float32", mode="eager"
    )
    found, height = (array.numpy() for array in step(torch.from_numpy(crops)))
    close(height, np.asarray(scores), 1e-5)
    # Peaks of noise can be equal but for rounding.
    assert (np.abs(found - keypoints).max(-1) < 1e-3).mean() > 0.97


def test_the_benchmark_of_prediction(tmp_path):
    numbers = prediction.measure(tmp_path, images=8, boxes_per_image=2, batch_size=4)
    assert (numbers["images"], numbers["boxes"]) == (8, 16)
    parts = [numbers[name] for name in ("predict", "decode and warp", "network")]
    assert all(part["images_per_second"] == pytest.approx(8 / part["seconds"]) for part in parts)
    rest = parts[0]["cpu_seconds"] - parts[1]["cpu_seconds"] - parts[2]["cpu_seconds"]
    assert numbers["python_cpu_seconds"] == pytest.approx(rest)
    records = json.loads((tmp_path / "out/predictions.json").read_text())["images"]
    assert [len(record["people"]) for record in records] == [2] * 8


def test_the_benchmark_of_one_device(tmp_path):
    output = tmp_path / "model.json"
    done = run(
        *("benchmarks.model", "--variants", "tiny", "--sizes", "96x96", "--batches", "4", "--steps", "train,eval"),
        *("--dtype", "float32", "--steps-each", "1", "--repeats", "2", "--json", output),
    )
    record = json.loads(output.read_text())
    rows = record["rows"]
    assert [(r["step"], r["batch_size"]) for r in rows] == [("train", 4), ("eval", 4)]
    for row in rows:
        assert row["images_per_second"] == pytest.approx(row["batch_size"] / row["step_seconds"])
        assert len(row["step_seconds_all"]) == 2
        assert row["compile_seconds"] > 0
    train, eval_ = (row["flops"] for row in rows)
    assert 1.2 < train / eval_ < 2  # three passes of one view, one pass of two views
    assert all(record["ceilings"][key] > 1e6 for key in ("copy_bytes_per_second", "matmul_flops_per_second"))
    assert f"| train | tiny 96x96 | 4 | {rows[0]['images_per_second']:.0f} |" in done.stdout


def test_gradients_in_bfloat16_agree_and_those_of_a_faulty_kernel_do_not():
    exact, rounded = (benchmark.gradients(experiment("micro", (64, 64), dtype, 8)) for dtype in ("float32", "bfloat16"))
    result = benchmark.compare(exact, rounded)
    assert result["agrees"]
    assert 0.001 < result["gradients"] < benchmark.TOLERANCES["gradients"]

    found, loss = rounded
    name = "backbone.stage2.0.branches.0.0.conv2.weight"
    result = benchmark.compare(exact, ({**found, name: found[name][::-1]}, loss))
    assert not result["agrees"]
    assert result["worst"] == name
    assert not benchmark.compare(exact, (found, loss * 1.1))["agrees"]
    # Every cosine as it should be, and the whole too long.
    longer = {name: gradient * 1.5 for name, gradient in found.items()}
    assert not benchmark.compare(exact, (longer, loss))["agrees"]


def test_what_finds_no_time_says_so(tmp_path):
    output = tmp_path / "model.json"
    arguments = ("--variants", "tiny", "--sizes", "96x96", "--batches", "2", "--steps", "train", "--minutes", "0")
    done = run("benchmarks.model", *arguments, "--json", output)
    (row,) = json.loads(output.read_text())["rows"]
    assert "images_per_second" not in row
    assert "--minutes 0 were over" in done.stdout


def test_a_row_that_fails_ends_only_itself_and_a_later_call_goes_on(tmp_path, monkeypatch, capsys):
    output = tmp_path / "accelerator.json"

    def kernels(name, variant):
        arguments = ("--variant", variant, "--size", "96x96", "--batch", "2", "--dtype", "float32", "--step", "eval")
        return accelerator.Row(name, "kernel_times", arguments, "--xla_gpu_autotune_level=0")

    rows = [kernels("broken", "nothing"), kernels("kernels", "tiny")]
    monkeypatch.setattr(accelerator, "rows", lambda small: rows)
    accelerator.main(["--json", str(output)])
    record = json.loads(output.read_text())["rows"]
    assert "unknown 'nothing'" in record["broken"]["failed"]
    assert sum(kernel["launches"] for kernel in record["kernels"]["figures"]["kernels"]) > 40
    assert record["kernels"]["xla_flags"].endswith("--xla_gpu_autotune_level=0")
    assert "failed: broken\nnot measured: nothing" in capsys.readouterr().out

    rows[0] = kernels("broken", "tiny")
    accelerator.main(["--json", str(output)])
    later = json.loads(output.read_text())["rows"]
    assert "failed" not in later["broken"]
    assert later["kernels"] == record["kernels"]
    assert "failed: nothing\nnot measured: nothing" in capsys.readouterr().out


def test_against_torch(torch, tmp_path):
    output, log = tmp_path / "versus.json", tmp_path / "log"
    done = run(
        *("benchmarks.versus_torch", *SMALL, "--batches", "2", "--dtype", "float32", "--modes", "eager"),
        *("--steps-each", "1", "--people", "16", "--workers", "2", "--jobs", "train,predict_jpeg"),
        *("--log", log, "--json", output),
    )
    record = json.loads(output.read_text())
    assert record["deviation"] < 1e-5
    assert list(record["ratios"]) == ["train", "predict_jpeg"]
    for job, ratio in record["ratios"].items():
        rates = {r["side"]: r for r in record["rows"] if r["job"] == job}
        assert set(rates) == {"ours", "torch"}
        assert all(len(row["all"]) == 2 for row in rates.values()), log.read_text()
        assert ratio["ratio"] == pytest.approx(rates["ours"]["images_per_second"] / rates["torch"]["images_per_second"])
    assert "predict_jpeg: " in done.stdout


def test_one_image_on_the_cpu(torch, tmp_path):
    output = tmp_path / "cpu.json"
    pytest.importorskip("onnxruntime")
    modes = ["ours folded", "onnxruntime", "torch eager"]
    run("benchmarks.cpu_inference", *SMALL, "--images", "2", "--modes", ",".join(modes), "--json", output)
    rows = json.loads(output.read_text())["rows"]
    assert [row["mode"] for row in rows] == modes
    for row in rows:
        assert 0 < row["least_wall_seconds"] <= row["median_wall_seconds"]
        assert len(row["wall_seconds"]) == 4
