"""PyTorch weights there and back, and files that are wrong, hostile or cut short."""

import json
import os
import pathlib
import re
import sys
import types
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from data_pipelines.errors import InputError, extra
from data_pipelines.keypoints import COCO, KeypointSet
from hrnet_jax import convert
from hrnet_jax.config import load_config, to_json
from hrnet_jax.models import create_model, state_dict
from hrnet_jax.weights import checkpoint, initial, torch_files
from hrnet_jax.weights.folder import FORMAT_VERSION, load_folder
from tests.helpers import REPOSITORY
from tests.torch_writer import ORDERED_DICT, OS_SYSTEM, Call, Global, Torch, named, pickled, save_torch

TINY = {"model": {"variant": "tiny"}, "keypoints": "coco"}
CONFIG = f"{REPOSITORY}/configs/coco.py:runlocal"  # of the variant tiny

# --- What the tests convert.


@pytest.fixture(scope="module")
def mmpose():
    """A whole tiny network in PyTorch's layouts under MMPose's names, every number random."""
    model = create_model(TINY)
    rng = np.random.default_rng(0)
    tensors = {}
    for name, array in {**state_dict(model)[0], **state_dict(model)[1]}.items():
        shape = array.shape if array.ndim != 4 else tuple(np.array(array.shape)[[3, 2, 0, 1]])
        tensors[name] = rng.standard_normal(shape, np.float32)
        if name.endswith("running_var"):
            tensors[name.replace("running_var", "num_batches_tracked")] = np.array(rng.integers(1 << 40))
    return tensors


@pytest.fixture(scope="module")
def folder(mmpose, tmp_path_factory):
    path = tmp_path_factory.mktemp("folder")
    convert.from_torch(save_torch(path / "x.pth", mmpose, nested=True), load_config(CONFIG), path / "converted")
    return path / "converted"


@pytest.fixture(scope="module")
def backbone_folder(mmpose, tmp_path_factory):
    path = tmp_path_factory.mktemp("backbone")
    convert.from_torch(save_torch(path / "x.pth", named(mmpose, "timm")), load_config(CONFIG), path / "converted")
    return path / "converted"


def same(a, b):
    """Equal names, types, shapes and bits."""
    assert a.keys() == b.keys()
    for name in a:
        assert (a[name].dtype, a[name].shape) == (b[name].dtype, b[name].shape), name
        assert a[name].tobytes() == b[name].tobytes(), name


# --- Reading.


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_are_read_by_type_offset_and_strides(tmp_path, legacy):
    torch = Torch(legacy)
    numbers = np.arange(24, dtype=np.float32)
    content = {
        "part": torch.tensor(numbers, offset=5, shape=(3, 4), strides=(4, 1)),
        "turned": torch.tensor(numbers, shape=(4, 2, 3), strides=(1, 12, 4)),
        "scalar": torch.tensor(np.array(7)),
        "empty": torch.tensor(np.zeros((0, 3), np.float32)),
        "half": torch.tensor(numbers.astype(np.float16)),
        "bfloat16": torch.tensor(numbers.astype(jnp.bfloat16)),
        "parameter": Call(
            Global("torch._utils", "_rebuild_parameter"), torch.tensor(numbers), True, Call(ORDERED_DICT)
        ),
    }
    torch.save(tmp_path / "x.pth", content)
    read = torch_files.read(tmp_path / "x.pth")
    assert list(read) == list(content)
    np.testing.assert_array_equal(read["part"], numbers[5:17].reshape(3, 4))
    np.testing.assert_array_equal(read["turned"], numbers.reshape(2, 3, 4).transpose(2, 0, 1))
    assert (read["scalar"].shape, read["scalar"].dtype, int(read["scalar"])) == ((), np.int64, 7)
    assert read["empty"].shape == (0, 3)
    for name in ("half", "bfloat16", "parameter"):
        np.testing.assert_array_equal(read[name].astype(np.float32), numbers)


@pytest.mark.parametrize("legacy", [False, True])
def test_objects_in_meta_are_inert(tmp_path, legacy):
    torch = Torch(legacy)
    meta = {
        "array": Call(
            Global("numpy._core.multiarray", "_reconstruct"), Global("numpy", "ndarray"), (0,), state=(1, "b")
        ),
        "config": Call(Global("mmengine.config", "ConfigDict"), {"a": [1]}, state={"x": 1}),
        "code": Call(OS_SYSTEM, f"touch {tmp_path}/ran"),
        "evaluated": Call(Global("builtins", "eval"), f"open({str(tmp_path / 'ran')!r}, 'w')"),
    }
    state = Call(ORDERED_DICT, state={"_metadata": Call(ORDERED_DICT), "items": 1})
    torch.save(
        tmp_path / "x.pth", {"meta": meta, "state_dict": {"a": torch.tensor(np.ones(2, np.float32))}, "x": state}
    )
    assert list(torch_files.read(tmp_path / "x.pth")) == ["a"]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("where", ["whole", "state_dict", "tensor", "storage"])
def test_a_state_dict_that_needs_code_is_refused_and_nothing_runs(tmp_path, where, legacy):
    torch = Torch(legacy)
    command = Call(OS_SYSTEM, f"touch {tmp_path}/ran")
    hidden = Call(Global("torch._utils", "_rebuild_tensor_v2"), command, 0, (1,), (1,), False, None)
    content = {
        "whole": command,
        "state_dict": {"state_dict": command},
        "tensor": {"b": command},
        "storage": {"b": hidden},
    }[where]
    torch.save(tmp_path / "x.pth", content)
    with pytest.raises(InputError, match=r"x\.pth: .*posix\.system.*a file that needs code is refused"):
        torch_files.read(tmp_path / "x.pth")
    assert not (tmp_path / "ran").exists()


def test_a_plain_pickle_is_refused_unread(tmp_path):
    (tmp_path / "x.pth").write_bytes(pickled(Call(OS_SYSTEM, f"touch {tmp_path}/ran")))
    with pytest.raises(InputError, match=r"a pickle not written by torch\.save"):
        torch_files.read(tmp_path / "x.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_truncated_file_is_refused(tmp_path, kind):
    arrays = {"a": np.arange(50, dtype=np.float32), "b": np.ones((2, 3), np.float32)}
    path = tmp_path / ("x.safetensors" if kind == "safetensors" else "x.pth")
    if kind == "safetensors":
        save_file(arrays, path)
    else:
        save_torch(path, arrays, legacy=kind == "legacy")
    whole = path.read_bytes()
    same(torch_files.read(path), arrays)
    for size in [*range(0, len(whole) - 1, 37), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=rf"{path.name}: \S") as error:
            torch_files.read(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("legacy", [False, True])
def test_flipped_bytes_never_raise_anything_but_input_errors(tmp_path, legacy):
    whole = save_torch(tmp_path / "x.pth", {"a": np.arange(4, dtype=np.float32)}, legacy).read_bytes()
    rng = np.random.default_rng(0)
    messages = []
    for _ in range(300):
        damaged = np.frombuffer(whole, np.uint8).copy()
        damaged[rng.integers(len(whole), size=3)] = rng.integers(256, size=3)
        (tmp_path / "x.pth").write_bytes(damaged.tobytes())
        try:
            torch_files.read(tmp_path / "x.pth")
        except InputError as error:
            messages.append(str(error))
    assert len(messages) > 100
    assert not any("\n" in message for message in messages)


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [(0, (5,), (1,)), (2, (3,), (1,)), (0, (2, 2), (3, 1)), (0, (9,), (0,)), (3, (2,), (-1,))],
)
def test_a_tensor_outside_of_its_storage_is_refused(tmp_path, offset, shape, strides):
    torch = Torch()
    torch.save(tmp_path / "x.pth", {"a": torch.tensor(np.zeros(4, np.float32), offset, shape, strides)})
    with pytest.raises(InputError, match="damaged"):
        torch_files.read(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<html>404</html>", "of unknown format"),
        ("zip", "a zip archive, but not one that torch.save wrote"),
        ([1, 2], "holds no state dict"),
        ({"epoch": 3}, "'epoch' is not a tensor but int"),
        ({"a": Call(Global("torch._utils", "_rebuild_qtensor"), 1)}, "_rebuild_qtensor"),
    ],
)
def test_other_files_are_named_for_what_they_are(tmp_path, content, message):
    path = tmp_path / "x.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "zip":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("a.npy", b"1")
    else:
        Torch().save(path, content)
    with pytest.raises(InputError, match=message):
        torch_files.read(path)


# --- Names, there and back.


def test_w32_takes_exactly_the_reference_names(shared):
    shapes = json.loads((shared / "reference/golden/state_names_w32.json").read_text())
    model = create_model({"model": {"variant": "w32"}, "keypoints": "coco"})
    tensors = {name: np.full(shape, i, np.float32) for i, (name, shape) in enumerate(shapes.items())}
    convert.load_torch_state_dict(model, tensors)
    arrays = {**state_dict(model)[0], **state_dict(model)[1]}
    assert {name for name in shapes if not name.endswith("num_batches_tracked")} == set(arrays)
    assert all(float(array.ravel()[0]) == tensors[name].ravel()[0] for name, array in arrays.items())


@pytest.mark.parametrize("style", ["mmpose", "mmpose 0.x", "official", "parallel"])
def test_all_names_give_the_same_model(mmpose, style):
    model = create_model(TINY)
    convert.load_torch_state_dict(model, named(mmpose, style))
    arrays = {**state_dict(model)[0], **state_dict(model)[1]}
    for name, array in arrays.items():
        kernel = mmpose[name].transpose(2, 3, 1, 0) if mmpose[name].ndim == 4 else mmpose[name]
        np.testing.assert_array_equal(array, kernel)


def test_timm_names_fill_the_backbone_and_leave_the_head(mmpose):
    model = create_model(TINY)
    before = np.asarray(state_dict(model)[0]["head.final_layer.weight"])
    convert.load_torch_state_dict(model, named(mmpose, "timm"))
    after, _ = state_dict(model)
    np.testing.assert_array_equal(after["head.final_layer.weight"], before)
    np.testing.assert_array_equal(after["backbone.bn1.weight"], mmpose["backbone.bn1.weight"])


def test_problems_of_each_kind_are_told_at_once_and_nothing_is_set(mmpose):
    model = create_model(TINY)
    before = state_dict(model)
    tensors = dict(mmpose)
    missing = ["backbone.conv1.weight", "backbone.bn2.running_var", "head.final_layer.bias"]
    for name in missing:
        del tensors[name]
    unknown = ["backbone.layer2.0.conv1.weight", "head.deconv.weight", "optimizer", "backbone.x.num_batches_tracked"]
    tensors |= {name: np.ones(3, np.float32) for name in unknown}
    shaped = {"head.final_layer.weight": (19, 8, 1, 1), "backbone.bn1.weight": (9,)}
    tensors |= {name: np.ones(shape, np.float32) for name, shape in shaped.items()}
    with pytest.raises(InputError) as error:
        convert.load_torch_state_dict(model, tensors)
    message = str(error.value)
    assert "in 9 entries" in message
    assert "\n" not in message
    assert [message.count(kind) for kind in ("missing ", "unknown ", "has shape")] == [2, 2, 1]
    assert "unknown backbone.layer2.0.conv1.weight" in message
    assert "backbone.bn1.weight has shape (9,), the model (8,)" in message
    assert message.endswith("; and 4 more")
    for old, new in zip(before, state_dict(model), strict=True):
        assert all(old[name] is new[name] for name in old)


def test_a_headless_mmpose_file_is_incomplete(mmpose):
    tensors = {name: array for name, array in mmpose.items() if not name.startswith("head.")}
    with pytest.raises(InputError, match=r"in 2 entries: missing head\.final_layer\S+; missing head\."):
        convert.load_torch_state_dict(create_model(TINY), tensors)


def test_names_of_a_classifier_beside_a_pose_head_are_unknown(mmpose):
    tensors = {**named(mmpose, "official"), "incre_modules.0.0.conv1.weight": np.ones(3, np.float32)}
    with pytest.raises(InputError, match=r"unknown backbone\.incre_modules"):
        convert.load_torch_state_dict(create_model(TINY), tensors)


@pytest.mark.parametrize("style", ["mmpose", "mmpose 0.x", "official", "timm"])
@pytest.mark.parametrize(
    ("before", "told"),
    [
        ("_orig_mod.", "'_orig_mod.'"),
        ("model.", "'model.'"),
        ("module.module.", "'module.module.'"),
        ("module._orig_mod.net.", "'module.net.' and '_orig_mod.'"),
    ],
)
def test_what_stands_in_front_of_all_names_is_left_out(mmpose, caplog, style, before, told):
    caplog.set_level("INFO")
    plain, prefixed = create_model(TINY), create_model(TINY)
    tensors = named(mmpose, style)
    convert.load_torch_state_dict(plain, tensors)
    assert "removed from its names" not in caplog.text
    convert.load_torch_state_dict(prefixed, {before + name: array for name, array in tensors.items()})
    assert f"the state dict: an HRNet; removed from its names: {told}\n" in caplog.text
    for expected, found in zip(state_dict(plain), state_dict(prefixed), strict=True):
        same({n: np.asarray(a) for n, a in found.items()}, {n: np.asarray(a) for n, a in expected.items()})


def test_a_backbone_that_was_compiled_by_itself(mmpose):
    tensors = {name.replace("backbone.", "backbone._orig_mod."): array for name, array in mmpose.items()}
    convert.load_torch_state_dict(create_model(TINY), tensors)


def test_two_networks_in_a_file_are_refused(mmpose):
    tensors = {f"{who}.{name}": array for who in ("student", "teacher") for name, array in mmpose.items()}
    with pytest.raises(InputError, match=r"holds 2 networks, under 'student\.'; 'teacher\.'; save the"):
        convert.load_torch_state_dict(create_model(TINY), tensors)


@pytest.mark.parametrize("hook", ["MMEngine", "MMCV"])
def test_of_weights_that_an_ema_hook_doubled_one_is_taken(mmpose, caplog, tmp_path, hook):
    caplog.set_level("INFO")
    rng = np.random.default_rng(1)
    others = {
        name: rng.standard_normal(array.shape, np.float32) if name.endswith(("weight", "bias")) else array
        for name, array in mmpose.items()
    }
    torch, path = Torch(), tmp_path / "x.pth"
    if hook == "MMEngine":
        doubled = {"steps": np.array(7), **{f"module.{name}": array for name, array in others.items()}}
        content = {"state_dict": mmpose, "ema_state_dict": doubled}
    else:
        parameters = {name: array for name, array in others.items() if name.endswith(("weight", "bias"))}
        twins = {f"ema_{name.replace('.', '_')}": array for name, array in parameters.items()}
        content = {"state_dict": {**mmpose, **twins}}
    torch.save(path, {key: {n: torch.tensor(a) for n, a in tensors.items()} for key, tensors in content.items()})
    for ema, expected, taken in ((False, mmpose, "their own names"), (True, others, "EMA names")):
        caplog.clear()
        convert.from_torch(path, load_config(CONFIG), tmp_path / str(ema), ema=ema)
        assert f"x.pth: an EMAHook's file with two sets of weights: read under {taken}, not" in caplog.text
        convert.to_torch(tmp_path / str(ema), "mmpose", tmp_path / "back.safetensors")
        same(dict(sorted(load_file(tmp_path / "back.safetensors").items())), dict(sorted(expected.items())))


def test_averages_that_are_not_there(pth, tmp_path):
    with pytest.raises(InputError, match=r"x\.pth: holds no weights under EMA names; leave out --ema"):
        convert.from_torch(pth, load_config(CONFIG), tmp_path / "folder", ema=True)


def test_messages_of_files_that_fit_nowhere_are_short(mmpose):
    tensors = {f"{name}\n{'x' * 500}": array for name, array in mmpose.items()}
    tensors["transition1.0.0.weight"] = mmpose["backbone.transition1.0.0.weight"]
    with pytest.raises(InputError, match=r"; and \d+ more$") as error:
        convert.load_torch_state_dict(create_model(TINY), tensors)
    assert len(str(error.value)) < 1000
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("style", ["mmpose", "official"])
@pytest.mark.parametrize("legacy", [False, True])
def test_there_and_back_is_bit_exact(mmpose, tmp_path, style, legacy):
    tensors = dict(named(mmpose, style))
    tensors["backbone.bn1.bias" if style == "mmpose" else "bn1.bias"] = np.array(  # bits that arithmetic would lose
        [np.nan, -0.0, np.inf, 1e-42, -np.inf, 0.1, 3e38, -1], np.float32
    )
    source = save_torch(tmp_path / "x.pth", tensors, legacy, nested=style == "mmpose")
    convert.from_torch(source, load_config(CONFIG), tmp_path / "folder")
    convert.to_torch(tmp_path / "folder", style, tmp_path / "back.safetensors")
    same(dict(sorted(load_file(tmp_path / "back.safetensors").items())), dict(sorted(tensors.items())))
    # And once more, from our own file.
    convert.from_torch(tmp_path / "back.safetensors", load_config(CONFIG), tmp_path / "folder2")
    first, second = (tmp_path / name / "model.safetensors" for name in ("folder", "folder2"))
    assert first.read_bytes() == second.read_bytes()


def test_files_without_counters_come_back_without_them(mmpose, tmp_path):
    tensors = {name: array for name, array in mmpose.items() if not name.endswith("num_batches_tracked")}
    convert.from_torch(save_torch(tmp_path / "x.pth", tensors), load_config(CONFIG), tmp_path / "folder")
    convert.to_torch(tmp_path / "folder", "mmpose", tmp_path / "back.safetensors")
    same(dict(sorted(load_file(tmp_path / "back.safetensors").items())), dict(sorted(tensors.items())))


def test_other_float_types_become_float32(mmpose, tmp_path):
    tensors = {n: a.astype(np.float16) if a.dtype == np.float32 else a for n, a in mmpose.items()}
    convert.from_torch(save_torch(tmp_path / "x.pth", tensors), load_config(CONFIG), tmp_path / "folder")
    stored = load_folder(tmp_path / "folder")
    assert {array.dtype for array in {**stored.params, **stored.stats}.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(stored.params["backbone.bn1.bias"], tensors["backbone.bn1.bias"])


def test_torch_reads_what_is_written_and_we_read_what_torch_writes(mmpose, folder, tmp_path):
    torch = pytest.importorskip("torch", minversion="2.10")
    convert.to_torch(folder, "mmpose", tmp_path / "x.pth")
    convert.to_torch(folder, "official", tmp_path / "y.pth")
    loaded = torch.load(tmp_path / "x.pth", weights_only=True)["state_dict"]
    same({name: tensor.numpy() for name, tensor in loaded.items()}, {name: mmpose[name] for name in loaded})
    assert loaded.keys() == mmpose.keys()
    assert set(torch.load(tmp_path / "y.pth", weights_only=True)) == set(named(mmpose, "official"))
    same(torch_files.read(tmp_path / "x.pth"), {name: mmpose[name] for name in loaded})
    torch.save(loaded, tmp_path / "z.pth", _use_new_zipfile_serialization=False)
    same(torch_files.read(tmp_path / "z.pth"), {name: mmpose[name] for name in loaded})


@pytest.mark.parametrize(("version", "message"), [(None, re.escape(extra("torch"))), ("2.9.1", "2.10 or newer")])
def test_writing_pth_says_what_it_takes(folder, tmp_path, monkeypatch, version, message):
    fake = None if version is None else types.ModuleType("torch")
    if fake is not None:
        fake.__version__ = version
    monkeypatch.setitem(sys.modules, "torch", fake)
    with pytest.raises(InputError, match=message):
        convert.to_torch(folder, "mmpose", tmp_path / "x.pth")
    assert not list(tmp_path.iterdir())


# --- Folders, and what takes them.


def test_a_folder_loads_like_a_work_directory(folder, mmpose):
    trained = checkpoint.load(folder)
    assert trained.config.model.variant == "tiny"
    np.testing.assert_array_equal(
        trained.params["backbone.conv1.weight"], mmpose["backbone.conv1.weight"].transpose(2, 3, 1, 0)
    )
    np.testing.assert_array_equal(trained.stats["backbone.bn1.running_mean"], mmpose["backbone.bn1.running_mean"])
    assert not any(name.endswith("num_batches_tracked") for name in {**trained.params, **trained.stats})


def test_a_folder_is_whole_and_never_overwritten(folder, tmp_path):
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    assert [path.name for path in folder.parent.iterdir() if path.name.endswith(".partial")] == []
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty"):
        convert.from_torch(tmp_path / "unread.pth", load_config(CONFIG), tmp_path / "taken")


def test_a_backbone_initialises_training_and_is_refused_elsewhere(backbone_folder, mmpose):
    with pytest.raises(InputError, match="a backbone without a head"):
        checkpoint.load(backbone_folder)
    params, stats = state_dict(create_model(TINY, seed=3))
    model = initial.initial_model(str(backbone_folder))
    new_params, new_stats, taken = initial.initialised(model, COCO, params, stats)
    assert taken == ()
    assert (new_params.keys(), new_stats.keys()) == (params.keys(), stats.keys())
    for name, array in {**new_params, **new_stats}.items():
        if name.startswith("head."):
            assert array is params[name]
        else:
            kernel = mmpose[name].transpose(2, 3, 1, 0) if mmpose[name].ndim == 4 else mmpose[name]
            np.testing.assert_array_equal(array, kernel)


def test_a_whole_model_initialises_the_backbone_and_the_keypoints_of_equal_names(folder, mmpose):
    model = initial.initial_model(str(folder))
    params, stats = state_dict(create_model({**TINY, "keypoints": "coco"}))
    whole, _, taken = initial.initialised(model, COCO, params, stats)
    assert taken == COCO.names
    np.testing.assert_array_equal(whole["head.final_layer.weight"], model.params["head.final_layer.weight"])

    mine = KeypointSet("mine", ("tail", "right_hip", "nose"), (0.1,) * 3, (), (), ())
    params, stats = state_dict(create_model({**TINY, "keypoints": mine}))
    new_params, _, taken = initial.initialised(model, mine, params, stats)
    np.testing.assert_array_equal(new_params["backbone.bn1.bias"], mmpose["backbone.bn1.bias"])
    assert taken == ("right_hip", "nose")
    for name in ("head.final_layer.weight", "head.final_layer.bias"):
        stored = model.params[name][..., [COCO.index("right_hip"), COCO.index("nose")]]
        np.testing.assert_array_equal(new_params[name][..., 1:], stored)
        np.testing.assert_array_equal(new_params[name][..., 0], params[name][..., 0])


def test_the_head_of_a_codec_with_other_maps_is_not_taken(folder):
    offsets = {**TINY, "keypoints": "coco", "codec": {"name": "udp_combined", "input_size": (64, 64)}}
    params, stats = state_dict(create_model(offsets))
    new_params, _, taken = initial.initialised(initial.initial_model(str(folder)), COCO, params, stats)
    assert taken == ()
    np.testing.assert_array_equal(new_params["head.final_layer.weight"], params["head.final_layer.weight"])


def test_a_work_directory_converts_and_initialises(tmp_path):
    config = load_config(CONFIG)
    params, stats = state_dict(create_model(config, seed=5))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(to_json(config))
    checkpoints = checkpoint.Checkpoints(tmp_path / "run" / "checkpoints", keep=1)
    checkpoints.save(1, {"params": params, "stats": stats}, {})
    checkpoints.close()
    origin = convert.to_torch(tmp_path / "run", "mmpose", tmp_path / "x.safetensors")
    assert origin == f"{tmp_path}/run, step 1"
    tensors = load_file(tmp_path / "x.safetensors")
    assert sum(name.endswith("num_batches_tracked") for name in tensors) == len(stats) / 2
    model = create_model(config)
    convert.load_torch_state_dict(model, tensors)
    same({n: np.asarray(a) for n, a in state_dict(model)[0].items()}, {n: np.asarray(a) for n, a in params.items()})
    fresh = state_dict(create_model(config))
    filled, *_ = initial.initialised(initial.initial_model(str(tmp_path / "run")), COCO, *fresh)
    np.testing.assert_array_equal(filled["backbone.conv1.weight"], params["backbone.conv1.weight"])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: os.truncate(path / "model.safetensors", 5000), "damaged or truncated"),
        (lambda path: (path / "config.json").unlink(), r"config\.json: no such file"),
        (lambda path: (path / "config.json").write_text("{"), "not a config"),
        (lambda path: save_file({}, path / "model.safetensors", {"format_version": "9"}), "format_version 9"),
        (lambda path: save_file({"a": np.ones(1)}, path / "model.safetensors"), "format_version None"),
        (
            lambda path: save_file(
                {"head.x": np.ones(1, np.float32)}, path / "model.safetensors", {"format_version": str(FORMAT_VERSION)}
            ),
            "do not fit the config in .* missing backbone.bn1.bias",
        ),
    ],
)
def test_a_damaged_folder_is_named(folder, tmp_path, damage, message):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    damage(tmp_path)
    with pytest.raises(InputError, match=message):
        checkpoint.load(tmp_path)


def test_initial_backbone_says_what_is_wrong(folder, tmp_path):
    w32 = state_dict(create_model({"model": {"variant": "small"}, "keypoints": "coco"}))
    (tmp_path / "x.pth").write_bytes(b"")
    for path, message in [
        (folder, r"holds tiny \(width 8\), config.model.variant is small \(width 16\)"),
        (tmp_path / "nowhere", "no such folder"),
        (tmp_path / "x.pth", r"^config\.init: .*x\.pth: is empty"),
    ]:
        with pytest.raises(InputError, match=message):
            initial.initialised(initial.initial_model(str(path)), COCO, *w32)


# --- The command.


def run(monkeypatch, capsys, **flags):
    """Runs the command; returns its exit code and what it wrote to standard error."""
    monkeypatch.setattr(sys, "argv", ["convert", *(f"--{name}={value}" for name, value in flags.items())])
    try:
        convert.main()
    except SystemExit as stop:
        return stop.code, capsys.readouterr().err
    return 0, capsys.readouterr().err


@pytest.fixture(scope="module")
def pth(mmpose, tmp_path_factory):
    return save_torch(tmp_path_factory.mktemp("pth") / "x.pth", mmpose, nested=True)


def test_the_command_converts_both_ways(monkeypatch, capsys, pth, mmpose, tmp_path):
    assert run(monkeypatch, capsys, input=pth, config=CONFIG, output=tmp_path / "folder") == (0, "")
    back = tmp_path / "back.safetensors"
    assert run(monkeypatch, capsys, input=tmp_path / "folder", to="official", output=back) == (0, "")
    same(dict(sorted(load_file(back).items())), dict(sorted(named(mmpose, "official").items())))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"config": ""}, "add --config FILE[:ARG]"),
        ({"config": "nowhere.py"}, "nowhere.py: no such config file"),
        ({"config": f"{REPOSITORY}/configs/coco.py:w99"}, "unknown variant w99"),
        (
            {"config": f"{REPOSITORY}/configs/quickstart.py"},
            "the file holds tiny (width 8), the model is small (width 16)",
        ),
        ({"config": f"{REPOSITORY}/configs/coco_aic_combine.py:runlocal"}, "(17, 8, 1, 1), the model (19, 8, 1, 1)"),
        ({"input": "nowhere.pth"}, "nowhere.pth: no such file"),
        ({"input": __file__}, "of unknown format"),
        ({"to": "keras"}, "no such folder"),
        ({"config": "", "to": "keras", "input": "FOLDER"}, "--to=keras: unknown; there are mmpose, official"),
        ({"config": "", "to": "mmpose", "input": "FOLDER", "output": "x.h5"}, "must end in .pth, .pt or .safetensors"),
        ({"config": "", "input": "FOLDER"}, "is a folder; add --to mmpose"),
        ({"to": "mmpose", "input": "FOLDER"}, "--config cannot be used with --to"),
    ],
)
def test_the_command_names_errors_in_one_line(monkeypatch, capsys, pth, folder, tmp_path, flags, message):
    if flags.get("to") == "keras" and "input" not in flags:
        flags = {**flags, "config": "", "input": tmp_path / "none"}
    flags = {"input": pth, "config": CONFIG, "output": tmp_path / "out", **flags}
    flags["input"] = folder if flags["input"] == "FOLDER" else flags["input"]
    code, error = run(monkeypatch, capsys, **flags)
    assert code == 1
    assert message in error
    assert error.count("\n") == 1
    assert not pathlib.Path(flags["output"]).exists()
