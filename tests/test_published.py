"""Published models by name: the record, downloads that fail in every way, and files that are recognised."""

import hashlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

import hrnet_jax
from data_pipelines.errors import InputError, extra
from hrnet_jax import convert
from hrnet_jax.config import load_config
from hrnet_jax.models import create_model, state_dict
from hrnet_jax.weights import checkpoint, download, initial, named, published, torch_models
from hrnet_jax.weights.folder import load_folder
from tests.helpers import REPOSITORY
from tests.hub_server import hub
from tests.torch_writer import Torch, save_torch
from tests.weights_server import serve

TINY = f"{REPOSITORY}/configs/coco.py:runlocal"
CONTENT = np.random.default_rng(0).bytes(300_000)
NOT_LISTENING = "http://127.0.0.1:9"  # the discard port: refused at once


@pytest.fixture
def server():
    with serve() as server:
        yield server


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes the user's record, with `HRNET_JAX_MODELS` and an empty cache; returns a model's file."""
    monkeypatch.setenv("HRNET_JAX_CACHE", str(tmp_path / "cache"))

    def write(content, urls, name="mine", config=TINY, file="mine.pth", **more):
        entry = {"file": file, "urls": urls, "sha256": hashlib.sha256(content).hexdigest()[:8], "page": "a page"}
        entry["published"] = {"AP": 0.25}
        models = [{"name": name, "config": config, "conditions": "with care", "files": [entry]}]
        (tmp_path / "models.json").write_text(json.dumps({"models": models, **more}))
        monkeypatch.setenv("HRNET_JAX_MODELS", str(tmp_path / "models.json"))
        return published.find(name)

    return write


@pytest.fixture(scope="module")
def tiny():
    """A tiny network with random numbers, under MMPose's names and in PyTorch's layouts."""
    rng = np.random.default_rng(0)
    params, stats = state_dict(create_model(load_config(TINY)))
    return {
        name: np.abs(rng.standard_normal(torch_models.torch_shape(array).shape, np.float32))
        for name, array in {**params, **stats}.items()
    }


def fetch(weights, timeout=5.0, waits=(0.0, 0.0, 0.0)):
    return download.fetch(weights, timeout=timeout, waits=waits)


def in_cache(tmp_path):
    """The visible files of the cache, and the partial ones."""
    names = [path.name for path in (tmp_path / "cache" / "weights").glob("*") if not path.name.endswith(".lock")]
    return sorted(name for name in names if name[0] != "."), [name for name in names if name[0] == "."]


# --- The record.


def test_the_record_holds_together():
    weights = published.record()
    names = {entry.model for entry in weights}
    assert len(weights) == 30
    assert len({entry.file for entry in weights}) == len(weights)
    for entry in weights:
        if entry.urls:
            assert entry.urls[0].endswith(f"/{entry.file}")
            # MMPose's, the official ImageNet's and timm's names carry the hash; the last part may be a date.
            assert re.findall(r"-([0-9a-f]{8})(?:_\d{8})?\.pth$", entry.file) == [entry.sha256]
        assert entry.page.startswith("https://")
        assert entry.init in {"", *names}
        assert published.find(entry.file) == published.find(pathlib.PurePath(entry.file).stem) == entry
    for entry in weights:
        if published.find(entry.model) != entry:
            assert entry.file.rpartition("_")[2] < published.find(entry.model).file.rpartition("_")[2]  # older


def test_configs_of_the_record_have_the_published_architectures():
    """Codec, size and outputs follow from tests/test_recipes.py; here: what the names themselves say."""
    for entry in published.record():
        config = load_config(entry.config_spec)
        variant, size = re.search(r"w(?:32|48)", entry.file)[0], re.search(r"256x192|384x288", entry.file)
        assert config.model.variant == variant
        if size:
            assert "x".join(map(str, config.codec.input_size)) == size[0]
        names = {"dark": "dark", "udp-regress": "udp_combined", "udp": "udp"}
        expected = next((codec for part, codec in names.items() if f"_{part}-" in entry.file), "msra")
        assert config.codec.name == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "models.json"),
        ([], "must be an object"),
        ({"models": {}}, "'models' must be a list"),
        ({"models": [{"name": "a"}]}, r"models\[0\]: must be an object with 'name', 'config' and 'files'"),
        ({"models": [{"name": "a", "config": "b", "files": [{}]}]}, r"models\[0\]: a file must be an object"),
        ({"models": [{"name": "a", "files": [{"urls": [], "file": "x"}]}]}, "lacks config"),
        ({"models": [{"name": "a", "config": "b", "files": [{"urls": ["ftp://x/y"]}]}]}, "'?ftp://x/y'? is not an add"),
        ({"models": [{"name": "a", "config": "b", "files": [{"urls": ["http://x/y"]}]}]}, "y: sha256 must be"),
        ({"models": [{"name": "a", "config": "b", "files": [{"urls": [], "file": "../x"}]}]}, "not the name of a file"),
        ({"models": [{"name": 3, "config": "b", "files": [{"urls": [], "file": "x"}]}]}, "name must be a string"),
        ({"mirrors": "http://x"}, "mirrors: must be a list"),
    ],
)
def test_mistakes_in_the_users_record_are_named(tmp_path, monkeypatch, content, message):
    path = tmp_path / "models.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    monkeypatch.setenv("HRNET_JAX_MODELS", str(path))
    with pytest.raises(InputError, match=message) as error:
        published.record()
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


# --- Downloads.


def test_a_file_is_downloaded_once(server, own, tmp_path):
    server.files["mine.pth"] = CONTENT
    weights = own(CONTENT, [f"{server.address}/a/mine.pth"])
    path = fetch(weights)
    assert path == tmp_path / "cache/weights/mine.pth"
    assert path.read_bytes() == CONTENT
    assert fetch(weights) == path
    assert server.requests == [("mine.pth", None)]
    assert in_cache(tmp_path) == (["mine.pth"], [])


@pytest.mark.parametrize(
    ("script", "ranges"),
    [
        ([("cut", 100_000)], [None, "bytes=100000-"]),
        ([("cut", 100_000), ("cut", 50_000), ("cut", 0)], [None, "bytes=100000-", "bytes=150000-", "bytes=150000-"]),
        ([("cut", 100_000), "whole"], [None, "bytes=100000-"]),
        ([("cut", 100_000), ("bytes", CONTENT[::-1])], [None, "bytes=100000-", None]),
        ([500, 503, 429], [None] * 4),
        ([("stall", 70_000)], [None, "bytes=70000-"]),
        ([("cut", 300_000 - 1)], [None, "bytes=299999-"]),
        ([("bytes", CONTENT + b"more"), None], [None, None]),
        ([("bytes", b"<html>log in</html>")], [None, None]),
        ([404], [None, None]),
        ([("move", "/b/mine.pth")], [None, None]),
        ([("cut", 10), ("move", "/b/mine.pth")], [None, "bytes=10-", "bytes=10-"]),
    ],
)
def test_every_failure_ends_in_a_good_file(server, own, tmp_path, script, ranges):
    """From the same address, or from the mirror behind it."""
    server.files["mine.pth"], server.script = CONTENT, list(script)
    weights = own(CONTENT, [f"{server.address}/a/mine.pth", f"{server.address}/mirror/mine.pth"])
    path = fetch(weights, timeout=0.5)
    assert path.read_bytes() == CONTENT
    assert [span for _, span in server.requests] == ranges
    assert in_cache(tmp_path) == (["mine.pth"], [])


def test_mirrors_of_the_users_record_are_tried_first(server, own):
    server.files["mine.pth"] = CONTENT
    weights = own(CONTENT, [f"{NOT_LISTENING}/mine.pth"], mirrors=[f"{server.address}/mirror/"])
    assert weights.urls == (f"{server.address}/mirror/mine.pth", f"{NOT_LISTENING}/mine.pth")
    assert fetch(weights).read_bytes() == CONTENT
    assert published.find("hrnet_w32-imagenet").urls[0] == f"{server.address}/mirror/hrnet_w32-36af842e.pth"


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (404, "404 Not Found"),
        (500, "500 Internal Server Error"),
        (("bytes", CONTENT[::-1]), f"sends a file whose SHA-256 starts with {'.' * 8};"),
        (("cut", 0), r"connection lost \(0 of 300000 bytes\)"),
        ("gone", "Connection refused"),
        ("nowhere", "[Nn]ame"),
    ],
)
def test_a_file_that_no_address_gives_is_told_in_one_line(server, own, tmp_path, step, reason):
    server.files["mine.pth"], server.script = CONTENT, [step] * 20
    url = {"gone": f"{NOT_LISTENING}/mine.pth", "nowhere": "http://host.invalid/mine.pth"}.get(step)
    weights = own(CONTENT, [url or f"{server.address}/mine.pth"])
    with pytest.raises(InputError, match=reason) as error:
        fetch(weights)
    message = str(error.value)
    assert message.startswith(f"mine.pth (SHA-256 {weights.sha256}...) cannot be downloaded: {weights.urls[0]}: ")
    assert message.endswith(f"; fetch it in another way and put it at {tmp_path}/cache/weights/mine.pth")
    assert "\n" not in message
    assert in_cache(tmp_path)[0] == []
    (tmp_path / "cache/weights/mine.pth").write_bytes(CONTENT)  # as it says
    assert fetch(weights).read_bytes() == CONTENT


def test_a_file_without_an_address_is_put_there_by_hand(own, tmp_path):
    own(CONTENT, [])
    weights = published.find("pose_hrnet_w32_256x192")
    with pytest.raises(InputError, match=r"no address is known; download it from https://github.com/leox\S+ and"):
        fetch(weights)
    target = tmp_path / "cache/weights/pose_hrnet_w32_256x192.pth"
    target.parent.mkdir(parents=True)
    target.write_bytes(b"anything: its hash was not published")
    assert fetch(weights) == target


def test_another_file_in_the_cache_is_never_used(server, own, tmp_path, caplog):
    server.files["mine.pth"] = CONTENT
    weights = own(CONTENT, [f"{server.address}/mine.pth"])
    target = tmp_path / "cache/weights/mine.pth"
    target.parent.mkdir(parents=True)
    target.write_bytes(CONTENT[:-1])
    assert fetch(weights).read_bytes() == CONTENT
    assert "is another file than the published one" in caplog.text
    target.write_bytes(CONTENT[:-1])
    server.script = [404]
    with pytest.raises(InputError, match="cannot be downloaded"):
        fetch(weights)


def test_what_an_earlier_download_left_is_completed_or_dropped(server, own, tmp_path):
    server.files["mine.pth"] = CONTENT
    weights = own(CONTENT, [f"{server.address}/mine.pth"])
    partial = tmp_path / "cache/weights/.mine.pth.partial"
    partial.parent.mkdir(parents=True)
    cases = {CONTENT: ["bytes=300000-"], CONTENT[:9]: ["bytes=9-"], b"other": ["bytes=5-", None]}
    cases[CONTENT + b"more"] = ["bytes=300004-", None]
    for before, ranges in cases.items():
        partial.write_bytes(before)
        server.requests.clear()
        assert fetch(weights).read_bytes() == CONTENT
        assert [span for _, span in server.requests] == ranges
        fetch(weights).unlink()


def test_a_disk_that_refuses_is_named(server, own, tmp_path):
    server.files["mine.pth"] = CONTENT
    weights = own(CONTENT, [f"{server.address}/mine.pth"])
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(InputError, match=r"cache/weights/mine\.pth: cannot be written \("):
        fetch(weights)


FETCH = "from hrnet_jax.weights import download, published; print(download.fetch(published.find('mine')))"


def start():
    return subprocess.Popen([sys.executable, "-c", FETCH], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)


def test_two_processes_get_one_download(server, own, tmp_path):
    server.files["mine.pth"], server.script = CONTENT, [("stall", 1000)]
    own(CONTENT, [f"{server.address}/mine.pth"])
    first = start()
    assert server.stalled.wait(120)
    second = start()
    server.release.set()  # the first connection ends early; the download continues
    paths = {process.communicate(timeout=120)[0].strip() for process in (first, second)}
    assert paths == {f"{tmp_path}/cache/weights/mine.pth"}
    assert pathlib.Path(paths.pop()).read_bytes() == CONTENT
    assert server.requests == [("mine.pth", None), ("mine.pth", "bytes=1000-")]


def test_a_killed_download_continues(server, own, tmp_path):
    server.files["mine.pth"], server.script = CONTENT, [("stall", 200_000)]
    weights = own(CONTENT, [f"{server.address}/mine.pth"])
    process, partial = start(), tmp_path / "cache/weights/.mine.pth.partial"
    assert server.stalled.wait(120)
    while not partial.exists() or partial.stat().st_size < 200_000:
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert in_cache(tmp_path) == ([], [".mine.pth.partial"])
    assert fetch(weights).read_bytes() == CONTENT
    assert server.requests == [("mine.pth", None), ("mine.pth", "bytes=200000-")]


# --- By name, and from files.


def arrays_of(tensors):
    return {name: torch_models.from_torch_layout(array) for name, array in tensors.items()}


@pytest.fixture
def by_name(server, own, tiny, tmp_path):
    """A tiny model that can be downloaded as `mine`; the path of its file elsewhere."""
    path = save_torch(tmp_path / "elsewhere.pth", tiny, nested=True)
    server.files["mine.pth"] = path.read_bytes()
    own(path.read_bytes(), [f"{server.address}/mine.pth"])
    return path


def test_a_name_stands_for_a_model_everywhere(by_name, tiny, tmp_path, monkeypatch):
    expected = arrays_of(tiny)
    trained = checkpoint.load("mine")
    for found in (trained, initial.initial_model("mine"), checkpoint.load("mine.pth")):
        assert {**found.params, **found.stats}.keys() == expected.keys()
        np.testing.assert_array_equal(found.params["backbone.conv1.weight"], expected["backbone.conv1.weight"])
    assert checkpoint.stored_config("mine").to_json() == load_config(TINY).to_json() == trained.config.to_json()
    assert trained.origin == "mine.pth"
    assert trained.metrics == {"AP": 0.25, "conditions": "with care", "page": "a page"}
    assert named.load(by_name).metrics == trained.metrics
    (people,) = hrnet_jax.load("mine")(np.zeros((96, 72, 3), np.uint8))
    assert people[0]["keypoints"].shape == (17, 2)
    monkeypatch.setattr(sys, "argv", ["convert", "--input=mine", f"--output={tmp_path / 'folder'}"])
    convert.main()
    stored = load_folder(tmp_path / "folder")
    assert stored.config.to_json() == trained.config.to_json()
    np.testing.assert_array_equal(stored.params["head.final_layer.bias"], expected["head.final_layer.bias"])
    convert.to_torch("mine", "official", tmp_path / "official.safetensors")
    official = load_file(tmp_path / "official.safetensors")
    np.testing.assert_array_equal(official["final_layer.bias"], expected["head.final_layer.bias"])


def test_a_file_that_torch_wrote_is_found_by_name(server, own, tiny, tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "mmpose.pth"
    state = {name: torch.from_numpy(array) for name, array in tiny.items()}
    torch.save({"meta": {"cfg": "codec = dict()", "dataset_meta": {"sigmas": np.ones(17)}}, "state_dict": state}, path)
    server.files["mine.pth"] = path.read_bytes()
    own(path.read_bytes(), [f"{server.address}/mine.pth"])
    np.testing.assert_array_equal(checkpoint.load("mine").params["backbone.bn1.bias"], tiny["backbone.bn1.bias"])


def test_a_file_is_recognised_by_its_hash_under_any_name(by_name, server, caplog):
    caplog.set_level("INFO")
    trained = checkpoint.load(by_name)
    assert trained.config.to_json() == load_config(TINY).to_json()
    assert f"{by_name}: is mine; config {TINY}" in caplog.text
    assert server.requests == []


def test_a_file_with_a_published_name_and_another_hash_is_refused(by_name, tiny, tmp_path):
    other = save_torch(tmp_path / "mine.pth", tiny, nested=False)
    with pytest.raises(InputError, match=r"mine\.pth: its SHA-256 starts with \S{8}, the published file's with"):
        checkpoint.load(other)
    convert.from_torch(other, load_config(TINY), tmp_path / "folder")  # the user says what it is


def test_unknown_names_and_files_say_what_helps(own, tiny, tmp_path, monkeypatch, capsys):
    own(CONTENT, [], config=f"{REPOSITORY}/configs/coco.py")
    path = save_torch(tmp_path / "unknown.pth", tiny)
    with pytest.raises(InputError, match=r"unknown\.pth: unknown weights .* add --config FILE\[:ARG\]"):
        checkpoint.load(path)
    with pytest.raises(InputError, match=r"256x129: no such folder; .*; did you mean td-hm_hrnet-w32_8xb64-210e_coco"):
        checkpoint.load("td-hm_hrnet-w32_8xb64-210e_coco-256x129")
    monkeypatch.setattr(sys, "argv", ["convert", "--input=td-hm_hrnet-w32", f"--output={tmp_path / 'folder'}"])
    with pytest.raises(SystemExit):
        convert.main()
    assert "td-hm_hrnet-w32: no such file, and no published model has this name" in capsys.readouterr().err


def test_a_folder_of_a_published_name_is_that_folder(by_name, tmp_path, monkeypatch, server):
    convert.from_torch(by_name, load_config(TINY), tmp_path / "place" / "mine")
    monkeypatch.chdir(tmp_path / "place")
    assert checkpoint.load("mine").origin == "mine"
    assert server.requests == []


# --- Whole networks, under the names that MMPose 1.3.2 and timm give their arrays.


def write_w(path, shapes):
    """A PyTorch file with these shapes whose tensors share one storage, as torch.save keeps it: small, and complete."""
    torch = Torch()
    numbers = np.zeros(max(int(np.prod(shape)) for shape in shapes.values()), np.float32)
    first, counter = torch.tensor(numbers), torch.tensor(np.array(7))
    storage = first.args[0]

    def view(shape):
        strides = tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
        return type(first)(first.function, storage, 0, tuple(shape), strides, False, first.args[5])

    state = {name: view(shape) if shape else counter for name, shape in shapes.items()}
    torch.save(path, {"meta": {}, "state_dict": state})
    return path


@pytest.fixture(scope="module")
def networks(shared, tmp_path_factory):
    """Files of each architecture by (variant, heatmaps), 0 for timm's classifiers."""
    folder, files = tmp_path_factory.mktemp("networks"), {}
    for variant, maps in (("w32", 17), ("w48", 17), ("w32", 51), ("w32", 19), ("w32", 14), ("w32", 0), ("w48", 0)):
        shapes = json.loads((shared / f"reference/golden/state_names_{variant}.json").read_text())
        if maps:
            shapes = {name: [maps, *shape[1:]] if name.startswith("head.") else shape for name, shape in shapes.items()}
        else:
            shapes = {n.removeprefix("backbone."): s for n, s in shapes.items() if not n.startswith("head.")}
            shapes |= {"incre_modules.0.0.conv1.weight": [64, 32, 1, 1], "classifier.weight": [1000, 2048]}
        files[variant, maps] = write_w(folder / f"{variant}_{maps}.pth", shapes)
    return files


MAPS = {"udp-regress": 51, "combine": 19, "aic-256x192": 14, "imagenet": 0, "timm": 0}
MODELS = list(dict.fromkeys(entry.model for entry in published.record()))


def maps_of(model):
    return next((maps for part, maps in MAPS.items() if part in model and "merge" not in model), 17)


@pytest.mark.parametrize(("variant", "maps"), [("w32", 17), ("w48", 17), ("w32", 51), ("w32", 19), ("w32", 14)])
def test_models_are_fetched_and_fit_by_name_alone(networks, server, own, variant, maps):
    """Every model of an architecture; the record's hashes and addresses are replaced by those of the stand-in."""
    content = networks[variant, maps].read_bytes()
    mine = [m for m in MODELS if variant in m and maps_of(m) == maps]
    assert mine
    for name in mine:
        theirs = published.find(name)
        server.files[theirs.file] = content
        weights = own(content, [f"{server.address}/{theirs.file}"], name, theirs.config_spec, theirs.file)
        assert fetch(weights).name == theirs.file
        assert named.config_of(name).to_json() == load_config(theirs.config_spec).to_json()
    config = named.config_of(mine[-1])
    arrays = torch_models.read_arrays(named.file_of(mine[-1]), config)
    assert sum(a.size for n, a in arrays.items() if n.endswith(("weight", "bias"))) == {
        # The official repository's table: 28.5 and 63.6 million parameters.
        ("w32", 17): 28_536_113,
        ("w48", 17): 63_595_745,
    }.get((variant, maps), 28_536_113 + (maps - 17) * 33)


@pytest.mark.parametrize("variant", ["w32", "w48"])
def test_backbones_by_name_alone(networks, server, own, variant):
    content = networks[variant, 0].read_bytes()
    for name in (f"hrnet_{variant}-imagenet", f"timm_hrnet_{variant}"):
        theirs = published.find(name)
        server.files[theirs.file] = content
        own(content, [f"{server.address}/{theirs.file}"], name, theirs.config_spec, theirs.file)
        assert named.config_of(name).model.variant == variant
    model = named.load(name)
    assert not model.has_head
    assert {name.partition(".")[0] for name in model.params} == {"backbone"}


@pytest.mark.parametrize(
    ("variant", "maps", "config"),
    [
        ("w32", 51, "configs/coco.py:udp_combined"),
        ("w32", 19, "configs/coco_aic_combine.py"),
        ("w32", 14, "configs/aic.py"),
        ("w32", 0, None),
        ("w48", 0, None),
        ("w32", 17, "ask"),
        ("w48", 17, "ask"),
    ],
)
def test_unknown_files_are_recognised_by_an_architecture_of_one_config(networks, own, caplog, variant, maps, config):
    own(b"", [])
    path = networks[variant, maps]
    if config == "ask":
        with pytest.raises(InputError, match=r"unknown weights do not state .*; it fits coco\.py.*: convert it"):
            named.config_of(path)
        return
    found = named.config_of(path)
    assert found.model.variant == variant
    if config:
        assert found.to_json() == load_config(f"{REPOSITORY}/{config}").to_json()
    assert f"{path}: unknown; by its architecture ({variant}," in caplog.text


# --- The Hugging Face Hub.


def test_the_hub_says_what_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=rf"hf://user/name: needs huggingface_hub: {re.escape(extra('hub'))}"):
        checkpoint.load("hf://user/name")
    with pytest.raises(InputError, match="must be hf://USER/REPOSITORY"):
        checkpoint.stored_config("hf://user")


def test_folders_and_files_on_the_hub(by_name, tmp_path):
    pytest.importorskip("huggingface_hub")
    convert.from_torch(by_name, load_config(TINY), tmp_path / "folder")
    files = {f"deep/{path.name}": path.read_bytes() for path in (tmp_path / "folder").iterdir()}
    files["weights/mine.pth"] = by_name.read_bytes()
    program = (
        "import sys\n"
        "from hrnet_jax.weights import checkpoint\n"
        "for path in sys.argv[1:]:\n"
        "    print(checkpoint.load(path).digest())\n"
    )
    with hub(files, tmp_path / "hub") as environment:
        paths = ["hf://user/name/deep", "hf://user/name@main/weights/mine.pth", "hf://user/none/deep"]
        command = [sys.executable, "-c", program, *paths]
        environment = {**os.environ, **environment}
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [checkpoint.load(tmp_path / "folder").digest()] * 2, done.stderr
    assert "InputError: hf://user/none/deep: cannot be downloaded (" in done.stderr
