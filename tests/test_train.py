"""The training step on meshes, the trainer's files, stopping and continuing, and what it refuses."""

import functools
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import optax
import pytest
from etils import epath

from data_pipelines.errors import InputError
from data_pipelines.pipeline import TrainData
from eval.coco import evaluate_results
from hrnet_jax.codecs import create_codec
from hrnet_jax.config import check_devices, differences, from_json, to_json
from hrnet_jax.mesh import create_mesh, on_mesh, replicated, shard_batch
from hrnet_jax.models import FunctionalModel, abstract_model, create_model, initial_arrays, state_dict
from hrnet_jax.outcomes import Aborted
from hrnet_jax.train import train
from hrnet_jax.training import metrics
from hrnet_jax.training.identity import check_experiment
from hrnet_jax.training.optimizer import create_optimizer, learning_rate
from hrnet_jax.training.step import abstract_items, make_train_step, new_state, to_items
from hrnet_jax.training.stopping import StopRequest
from hrnet_jax.weights import checkpoint
from hrnet_jax.weights.checkpoint import Checkpoints
from hrnet_jax.weights.folder import save_folder
from tests.helpers import REPOSITORY, STAGED, STAGES, local_config, run, training

FIELDS = ("image", "keypoints", "visible", "source")
EMA = 0.4  # of the first steps, and not of the eighth, it is more than the bound (1 + step) / (10 + step)


def parts_of(config):
    """A config's network, the arrays that it starts with, and its optimizer."""
    model = abstract_model(config)
    network = FunctionalModel.of(model)
    arrays = [initial_arrays(shapes, seed=0) for shapes in state_dict(model)]
    return network, arrays, create_optimizer(config, learning_rate(config, steps_per_epoch=6), network.param_layout)


def start(network, arrays, optimizer, ema_decay, mesh):
    """The state before the first step, on a mesh, by the trainer's program."""
    fresh = functools.partial(new_state, network, optimizer=optimizer, ema_decay=ema_decay)
    return jax.device_put(jax.jit(fresh)(*arrays), replicated(mesh))


@pytest.mark.parametrize("group_size", [4, 0])
def test_two_devices_train_like_one(shared, group_size):
    config = local_config(shared)
    config.model.group_size = group_size
    data = TrainData.load(config, create_codec(config.codec))
    batches = [{name: data.batches(16)[step][name] for name in FIELDS} for step in range(10)]
    network, arrays, optimizer = parts_of(config)
    codec = create_codec(config.codec)

    def trace(devices):
        mesh = create_mesh(devices)
        state, stats_of = start(network, arrays, optimizer, 0.0, mesh), jax.jit(network.stat_layout.arrays)
        step = make_train_step(network, codec, optimizer, 2)
        losses, first_stats = [], None
        for batch in batches:
            batch = shard_batch(batch, mesh)
            with jax.transfer_guard("disallow"):  # a step moves nothing between host and devices
                state, measured = step(state, batch)
            losses.append(float(measured["loss"]))
            first_stats = first_stats or jax.device_get(stats_of(state.stats))
        return losses, first_stats, jax.device_get(stats_of(state.stats))

    one, two = trace(jax.devices()[:1]), trace(jax.devices())
    assert len(jax.devices()) == 2
    assert two[0][0] == pytest.approx(one[0][0], rel=1e-6)
    assert two[0] == pytest.approx(one[0], rel=1e-4)
    assert one[0][-1] < one[0][0]
    for name in one[1]:
        assert relative(two[1][name], one[1][name]) < 1e-6, name
        assert relative(two[2][name], one[2][name]) < 1e-4, name


def relative(ours, theirs):
    """The relative L2 distance of two arrays."""
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


def test_groups_change_the_statistics(shared):
    """BatchNorm over four groups of 4 is not BatchNorm over 16."""

    def brighten(batch):
        return {**batch, "image": batch["image"] // 4 + 12 * np.arange(16, dtype=np.uint8)[:, None, None, None]}

    steps = [one_step(shared, group_size=group_size, change=brighten) for group_size in (4, 0)]
    states, measurements = zip(*steps, strict=True)
    name = "backbone.bn1.running_var"
    assert not np.allclose(states[0][1]["stats"][name], states[1][1]["stats"][name], rtol=1e-2)
    assert relative(measurements[0][0]["gradient_norm"], measurements[1][0]["gradient_norm"]) > 0.05


def test_both_sources_are_learnt(shared, tmp_path):
    """Of combine, whose network has two keypoints more than the evaluation."""
    config = local_config(shared, "coco_aic_combine", variant="tiny")
    config.model.group_size, config.optimizer.warmup_steps = 0, 10
    config.epochs, config.eval.every_epochs, config.checkpoint.every_epochs = 40, 40, 40
    config.optimizer.learning_rate = 3e-3
    config.optimizer.milestones = (34,)
    config.data.augment.update({"half_body": 0.0, "scale": 0.1, "rotation_probability": 0.0})
    config.log_every = 6
    numbers = train(config, tmp_path)
    records = [record for record in metrics.read(tmp_path) if "loss" in record]
    for source in ("coco", "aic"):
        losses = [record[f"loss/{source}"] for record in records if f"loss/{source}" in record]
        assert np.mean(losses[-5:]) < 0.5 * losses[0], source
    accuracy = [record["acc_pose"] for record in records]
    assert np.mean(accuracy[-5:]) > accuracy[0] + 0.03
    assert numbers["boxes"] == "annotated"
    assert numbers["instances"] == 28
    annotations = shared / "data" / config.data.eval.annotations
    assert numbers["AP"] == pytest.approx(evaluate_results(annotations, tmp_path / "keypoints.json")["AP"], abs=1e-6)
    assert numbers["keypoints"] == "coco_aic"
    results = json.loads((tmp_path / "keypoints.json").read_text())
    assert {len(result["keypoints"]) for result in results} == {17 * 3}


def state_of(workdir):
    """All arrays of the newest checkpoint and its meta."""
    config = from_json(pathlib.Path(workdir) / "config.json")
    network = FunctionalModel.of(abstract_model(config))
    abstract = abstract_items(network, optax.adam(lambda step: 1e-3), config.ema)
    abstract = on_mesh(abstract, replicated(create_mesh(jax.devices()[:1])))
    with Checkpoints(pathlib.Path(workdir) / "checkpoints", keep=2) as checkpoints:
        restored, meta = checkpoints.restore(abstract)
    return jax.device_get(restored), meta


def test_an_interrupted_run_continues_to_the_same_bits(shared, undisturbed, tmp_path):
    """Ctrl-C within an epoch saves and exits with 75; the same command then ends where no stop would have.

    Stages begin at steps 12 and 18.
    """
    arguments = training(shared, tmp_path / "stopped", STAGES, STAGED)
    command = [sys.executable, "-m", *arguments]
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout:
            if line.startswith("step 8/"):
                process.send_signal(signal.SIGINT)
                break
        process.stdout.read()
        message = process.stderr.read()
    assert process.returncode == 75, message
    assert "saved; the same command continues" in message
    assert "Traceback" not in message
    stopped_at = state_of(tmp_path / "stopped")[1]["step"]
    assert 8 <= stopped_at < 24

    again = run(*arguments)
    assert f"continuing at step {stopped_at} of 24" in again.stdout
    (ours, meta), (theirs, their_meta) = state_of(tmp_path / "stopped"), state_of(undisturbed)
    assert meta["step"] == their_meta["step"] == 24
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    steps = [record["step"] for record in metrics.read(tmp_path / "stopped") if "loss" in record]
    assert steps == sorted(set(steps))


def test_a_second_signal_ends_the_process_even_while_native_code_runs():
    """As a step that compiles: minutes in which Python itself calls no handler."""
    program = (
        "import hashlib\n"
        "from hrnet_jax.training.stopping import StopRequest\n"
        "with StopRequest():\n"
        "    print('ready', flush=True)\n"
        "    hashlib.pbkdf2_hmac('sha256', b'', b'', 2_000_000_000)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=REPOSITORY, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"ready\n"
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGINT)  # the same stop, sent twice
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=1.5)
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 128 + signal.SIGTERM
        finally:
            process.kill()


STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@pytest.mark.parametrize("number", STOPS)
def test_signals_are_as_before_afterwards(number):
    before, wakeup = list(map(signal.getsignal, STOPS)), signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    with StopRequest() as stop:
        signal.raise_signal(number)
        assert stop.requested
    assert before == list(map(signal.getsignal, STOPS))
    assert signal.set_wakeup_fd(wakeup) == wakeup


def test_nohup_is_heeded():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_finished_run_is_not_trained_again(shared, trained, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    before = (workdir / "metrics.jsonl").read_text()
    assert train(local_config(shared), workdir) == json.loads((trained / "metrics.json").read_text())
    assert (workdir / "metrics.jsonl").read_text() == before


def test_another_experiment_is_refused(shared, tmp_path):
    config = local_config(shared)
    (tmp_path / "config.json").write_text(to_json(config))
    (tmp_path / "checkpoints" / "6").mkdir(parents=True)
    (tmp_path / "checkpoints/6/digests.json").write_text("{}")
    config.optimizer.learning_rate = 1e-4
    config.data.loader.threads = 4  # free
    with pytest.raises(InputError, match=r"holds another experiment.*optimizer.learning_rate: 0.0001, not 0.0005"):
        train(config, tmp_path)
    assert [d.split(":")[0] for d in differences(config, local_config(shared))] == ["optimizer.learning_rate"]


def test_a_start_that_failed_claims_nothing(shared, tmp_path):
    config = local_config(shared)
    config.data.root = str(tmp_path / "nowhere")
    with pytest.raises(InputError, match="nowhere"):
        train(config, tmp_path / "run")
    config = local_config(shared)
    config.optimizer.learning_rate = 1e-4
    check_experiment(epath.Path(tmp_path / "run"), config)
    assert not (tmp_path / "run/config.json").exists()


def test_a_converted_folder_is_not_trained_in(shared, tmp_path):
    config = local_config(shared)
    params, stats = state_dict(create_model(config))
    save_folder(tmp_path / "converted", config, jax.device_get({**params, **stats}))
    before = (tmp_path / "converted/config.json").read_text()
    config.optimizer.learning_rate = 1e-4
    with pytest.raises(InputError, match="is a converted or exported folder"):
        train(config, tmp_path / "converted")
    assert (tmp_path / "converted/config.json").read_text() == before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"batch_size": 15}, "batch_size=15 is not a multiple of the 2 devices"),
        ({"eval.batch_size": 15}, "eval.batch_size=15 is not a multiple of the 2 devices"),
        ({"batch_size": 24, "model.group_size": 16}, "24 does not divide into groups of config.model.group_size=16"),
        (
            {"accumulate": 2, "model.group_size": 0},
            r"config.accumulate=2: parts must hold complete BatchNorm groups .* it can be 1$",
        ),
        ({"codec.name": "dark2"}, "config.codec.name='dark2'"),
        ({"codec.name": "udp_combined"}, "codec 'udp_combined' has no setting sigma"),
        ({"model.variant": "w64"}, "config.model.variant='w64'"),
        ({"model.dtype": "float16"}, "config.model.dtype"),
        ({"codec.input_size": (60, 64)}, "each a multiple of 32 from 32 to 4096"),
        ({"epochs": 0}, "config.epochs=0"),
        ({"optimizer.learning_rate": float("nan")}, "optimizer.learning_rate=nan"),
        ({"data.root": "nowhere"}, "config.data.root=nowhere: no such folder"),
        ({"data.train.coco.keypoints": "aic"}, "'keypoints' .*of the 14 keypoints of set 'aic'"),
    ],
)
def test_impossible_configs_get_one_line(shared, tmp_path, override, message):
    config = local_config(shared)
    config.update_from_flattened_dict(override)
    with pytest.raises(InputError, match=message) as error:
        train(config, tmp_path)
    assert "\n" not in str(error.value)


def test_groups_that_span_devices_are_told(shared, caplog):
    config = local_config(shared)
    config.model.group_size = 8
    check_devices(config, devices=2)
    assert not caplog.records
    check_devices(config, devices=4)
    assert "groups of 8 samples span devices with 4 samples" in caplog.text


def test_too_many_unreadable_images_stop_the_run(shared, tmp_path):
    source, root = shared / "data", tmp_path / "data"
    (root / "coco/train2017").mkdir(parents=True)
    for place in ("aic", "coco/annotations", "coco/val2017"):
        (root / place).symlink_to(source / place)
    for i, file in enumerate(sorted((source / "coco/train2017").iterdir())):
        data = file.read_bytes()
        (root / "coco/train2017" / file.name).write_bytes(data[:1000] if i % 3 == 1 else data)
    config = local_config(shared)
    config.data.root = str(root)
    with pytest.raises(InputError, match=r"samples could not be read and were replaced, more than"):
        train(config, tmp_path / "strict")
    config.data.max_unreadable, config.epochs = 0.9, 1
    train(config, tmp_path / "lenient")
    counted = [record["unreadable"] for record in metrics.read(tmp_path / "lenient") if "unreadable" in record]
    assert counted[-1] > 0


def flipped(data, number):
    """The bytes with one bit changed."""
    data = bytearray(data)
    data[number * 7919 % len(data)] ^= 1 << number % 8
    return bytes(data)


def test_damage_to_any_file_of_a_checkpoint_is_noticed(trained, tmp_path):
    """One flipped bit, a missing end, or no file at all."""
    folder = tmp_path / "12"
    shutil.copytree(trained / "checkpoints/12", folder)
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in checkpoint.AFTERWARDS]
    assert len(files) > 20
    assert checkpoint.damage(folder) is None
    for number, file in enumerate(files):
        data = file.read_bytes()
        for damaged in (flipped(data, number), data[: len(data) // 2]):
            file.write_bytes(damaged)
            assert checkpoint.damage(folder), file
        file.unlink()
        assert checkpoint.damage(folder), file
        file.write_bytes(data)
    assert checkpoint.damage(folder) is None


def test_a_damaged_checkpoint_gives_way_to_the_one_before(trained, tmp_path, caplog):
    """What Orbax notes last may be damaged: nothing is read from it."""
    whole, _ = state_of(trained)
    before = None
    for number, name in enumerate(("digests.json", "meta/metadata", *checkpoint.AFTERWARDS)):
        workdir = tmp_path / str(number)
        shutil.copytree(trained, workdir)
        file = workdir / "checkpoints/12" / name
        if not file.exists():
            continue
        file.write_bytes(flipped(file.read_bytes(), number))
        restored, meta = state_of(workdir)
        if name in checkpoint.AFTERWARDS:
            assert meta["step"] == 12
            jax.tree.map(np.testing.assert_array_equal, restored, whole)
        else:
            assert meta["step"] == 6
            before = before or restored
            jax.tree.map(np.testing.assert_array_equal, restored, before)
    assert "checkpoints/12 is damaged" in caplog.text


def test_a_damaged_checkpoint_is_written_anew(shared, trained, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    for file in (workdir / "checkpoints/12").rglob("d/*"):
        file.write_bytes(b"")
    train(local_config(shared), workdir)
    (ours, meta), (theirs, _) = state_of(workdir), state_of(trained)
    assert meta["step"] == 12
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def one_step(shared, *, parts=1, ema_decay=0.0, steps=1, devices=None, change=lambda batch: batch, **options):
    """States, as checkpoints hold them, and measurements of some steps of the tiny network on real people."""
    config = local_config(shared)
    config.model.update(options)
    codec = create_codec(config.codec)
    data = TrainData.load(config, codec)
    network, arrays, optimizer = parts_of(config)
    mesh = create_mesh(jax.devices()[:devices])
    state = start(network, arrays, optimizer, ema_decay, mesh)
    step = make_train_step(network, codec, optimizer, 2, parts=parts, devices=mesh.size, ema_decay=ema_decay)
    items_of = jax.jit(functools.partial(to_items, network))
    states, measurements = [jax.device_get(items_of(state))], []
    for number in range(steps):
        batch = {name: data.batches(16)[number][name] for name in FIELDS}
        batch = shard_batch(change(batch), mesh)
        with jax.transfer_guard("disallow"):  # a step moves nothing between host and devices
            state, measured = step(state, batch)
        states.append(jax.device_get(items_of(state)))
        measurements.append(jax.device_get(measured))
    return states, measurements


@pytest.mark.parametrize(("parts", "devices"), [(2, 2), (4, 1)])
def test_parts_of_a_batch_add_up_to_it(shared, parts, devices):
    """Parts that hold whole BatchNorm groups on each device give the batch's loss, gradients and statistics."""
    (_, whole), (a,) = one_step(shared)
    (_, parted), (b,) = one_step(shared, parts=parts, devices=devices)
    assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
    assert b["gradient_norm"] == pytest.approx(a["gradient_norm"], rel=1e-4)
    np.testing.assert_allclose(b["loss_sum"], a["loss_sum"], rtol=1e-5)
    np.testing.assert_array_equal(b["samples"], a["samples"])
    assert b["acc_pose"] == pytest.approx(a["acc_pose"], abs=1e-6)
    for name, statistics in whole["stats"].items():
        assert relative(parted["stats"][name], statistics) < 1e-5, name
    # After one step Adam's first moments are a tenth of the gradients.
    ours, theirs = (
        np.concatenate([g.ravel() for g in state["optimizer"]["state"][0].mu.values()]) for state in (parted, whole)
    )
    assert relative(ours, theirs) < 1e-4


def test_parts_that_cut_groups_change_the_statistics(shared):
    """Why they are refused."""
    (_, whole), _ = one_step(shared, group_size=0)
    (_, parted), _ = one_step(shared, group_size=0, parts=4, devices=1)
    name = "backbone.bn1.running_var"
    assert relative(parted["stats"][name], whole["stats"][name]) > 1e-4


def test_moving_averages_follow_the_weights(shared):
    states, _ = one_step(shared, ema_decay=EMA, steps=8)
    name = "backbone.conv1.weight"
    average = states[0]["params"][name]
    for number, state in enumerate(states[1:]):
        keep = min(EMA, (1 + number) / (10 + number))
        average = keep * average + (1 - keep) * state["params"][name]
        np.testing.assert_allclose(state["ema"]["params"][name], average, rtol=1e-5, atol=1e-7)
    assert not np.allclose(states[-1]["ema"]["params"][name], states[-1]["params"][name], rtol=1e-6)


def test_a_step_that_is_not_finite_changes_nothing(shared):
    def poison(batch):
        return {**batch, "visible": np.full_like(batch["visible"], np.inf if poisoned else 1)}

    poisoned = True
    (before, after), (measured,) = one_step(shared, ema_decay=EMA, change=poison)
    assert not measured["finite"]
    optimizer = after["optimizer"]
    assert (optimizer["step"], optimizer["skipped"], measured["skipped"]) == (1, 1, 1)
    after["optimizer"] = {**before["optimizer"], "state": optimizer["state"]}
    jax.tree.map(np.testing.assert_array_equal, after, before)
    poisoned = False
    (_, after), (measured,) = one_step(shared, ema_decay=EMA, change=poison)
    assert measured["finite"]
    assert after["optimizer"]["skipped"] == 0


def test_too_many_steps_that_are_not_finite_abort_the_run(shared, trained, tmp_path, caplog):
    """The message has the step, the rate and the samples; the exit status is 2, and the run before it is whole."""
    config = local_config(shared)
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    config.epochs, config.max_skipped = 4, 2
    poison(tmp_path)
    with pytest.raises(
        Aborted, match=r"step 15: loss nan.*3 steps were not finite.*learning rate .*samples 224 to 239: "
    ):
        train(config, tmp_path)
    assert caplog.text.count("skipped, the") == 3


def poison(workdir):
    """Makes the newest checkpoint's head infinite."""
    items, meta = state_of(workdir)
    name = "head.final_layer.bias"
    items["params"][name] = np.full_like(items["params"][name], np.inf)
    with Checkpoints(pathlib.Path(workdir) / "checkpoints", keep=3) as checkpoints:
        checkpoints._manager.delete(meta["step"])
        carried = {key: meta[key] for key in ("progress", "config", "data")}
        checkpoints.save(meta["step"], jax.device_put(items), carried)
        checkpoints.add_metrics(meta["step"], {"AP": 0.0})  # it is not evaluated again


def test_averages_are_what_is_evaluated_and_kept(shared, tmp_path):
    config = local_config(shared)
    config.ema = EMA
    train(config, tmp_path)
    state, _ = state_of(tmp_path)
    loaded = checkpoint.load(tmp_path)
    assert "moving averages" in loaded.origin
    for name, array in state["ema"]["params"].items():
        np.testing.assert_array_equal(loaded.params[name], array)
    assert relative(loaded.params["backbone.conv1.weight"], state["params"]["backbone.conv1.weight"]) > 1e-4


def test_speed_and_the_wait_for_data_are_measured(shared, tmp_path):
    config = local_config(shared)
    config.profile = (8, 9)
    start = time.monotonic()
    train(config, tmp_path)
    seconds = time.monotonic() - start
    records = [record for record in metrics.read(tmp_path) if "loss" in record]
    assert all(0 <= record["data_wait"] <= 1 for record in records)
    assert sum(1 / record["steps_per_second"] for record in records) * config.log_every < seconds
    assert all(0 <= record["goodput"] <= 1 for record in records)
    assert list((tmp_path / "tensorboard").iterdir())
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
