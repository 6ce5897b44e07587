"""One side of `versus_torch.py`: a process that is asked to start, to measure and to stop.

    python -m benchmarks.versus_sides '{"side": "torch", "job": "train", ...}'

`benchmarks.sides` has the questions and answers.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from benchmarks.full_scale import SIZE, link_pictures, random_box, random_points, write_pictures
from benchmarks.sides import Run, serve
from benchmarks.steps import Step, experiment, random_batch
from data_pipelines.images import Decoded
from data_pipelines.keypoints import keypoint_set
from data_pipelines.pipeline import EvalData, TrainData, iterate, stack
from hrnet_jax.codecs import create_codec


def configure(task: dict[str, Any]) -> ConfigDict:
    """The recipe, on the task's files with annotated boxes."""
    config = experiment(task["variant"], tuple(task["size"]), task["dtype"], task["batch_size"])
    config.data.root, config.data.eval.boxes = task["root"], ""
    config.data.loader.threads = task["workers"]
    return config


def draw_files(config: ConfigDict, people: int) -> None:
    """Writes JPEGs of 640x480 and annotations, one person an image, for training and evaluation."""
    root, rng = pathlib.Path(config.data.root), np.random.default_rng(0)
    pictures, names = write_pictures(root), [f"{number:012d}.jpg" for number in range(people)]
    annotations = []
    for number in range(people):
        box = random_box(rng)
        facts = {"id": number, "image_id": number, "category_id": 1, "iscrowd": 0, "num_keypoints": 17}
        points = {"keypoints": random_points(rng, box, 17), "bbox": box, "area": box[2] * box[3] / 2}
        annotations.append({**facts, **points})
    images = [{"id": i, "file_name": name, "height": SIZE[0], "width": SIZE[1]} for i, name in enumerate(names)]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}
    for source in (config.data.train.coco, config.data.eval):
        link_pictures(pictures, root / source.images, names)
        (root / source.annotations).parent.mkdir(parents=True, exist_ok=True)
        (root / source.annotations).write_text(json.dumps(content))


def check_image(config: ConfigDict) -> np.ndarray:
    """An input of the network, [1,H,W,3]."""
    return np.random.default_rng(0).standard_normal((1, *config.codec.input_size, 3)).astype(np.float32)


def ours(task: dict[str, Any], config: ConfigDict) -> tuple[Run, dict[str, Any]]:
    """Our side: starts a job; returns how it runs, and facts about it."""
    import jax

    from hrnet_jax.inference.steps import to_image
    from hrnet_jax.mesh import shard_batch

    if task["job"] == "check":
        return _our_weights(task, config)
    train = task["job"].startswith("train")
    program = Step("train" if train else "eval", config)

    def forever() -> Iterator[dict[str, Any]]:
        if not task["job"].endswith("jpeg"):
            return itertools.repeat(program.batch)
        if train:
            stream = TrainData.load(config, create_codec(config.codec)).batches(config.batch_size)
            return iterate(stream, threads=1, workers=task["workers"])
        data = EvalData.load(config, create_codec(config.codec))
        return itertools.chain.from_iterable(itertools.repeat(data))

    def answered(batch: dict[str, Any], found: Any) -> None:
        keypoints, _ = jax.device_get(found)
        if "center" in batch:
            to_image(keypoints, batch["center"], batch["scale"], create_codec(config.codec))

    batches = forever()

    def run(steps: int) -> int:
        images, before, out = 0, None, None
        for _ in range(steps):
            batch = next(batches)
            images += int(np.sum(batch["valid"])) if "valid" in batch else config.batch_size
            keys = ("image", "keypoints", "visible", "source") if train else ("image",)
            on_device = batch if batch is program.batch else {key: batch[key] for key in keys}
            out = program(on_device if batch is program.batch else shard_batch(on_device, program.mesh))
            if before:  # the device works on this batch while the answers to the one before come back
                answered(*before)
            before = None if train else (batch, out)
        if before:
            answered(*before)
        jax.block_until_ready((out, program.state))
        return images

    return run, {"cost": program.cost}


def _our_weights(task: dict[str, Any], config: ConfigDict) -> tuple[Run, dict[str, Any]]:
    """Draws the files, and writes weights as PyTorch reads them and the heatmaps of an image."""
    import jax

    from hrnet_jax.convert import to_torch
    from hrnet_jax.models import FunctionalModel, create_model, state_dict
    from hrnet_jax.weights.folder import save_folder

    if task["people"]:
        draw_files(config, task["people"])
    config.model.dtype = "float32"
    with jax.default_device(jax.devices("cpu")[0]):
        model = create_model(config)
        params, stats = state_dict(model)
        # BatchNorm as a training leaves it, not the identity.
        rng = np.random.default_rng(0)
        params, stats = (
            {name: a + 0.5 * rng.random(a.shape, np.float32) * (a.ndim == 1) for name, a in arrays.items()}
            for arrays in (params, stats)
        )
        forward = jax.jit(lambda params, stats, x: FunctionalModel.of(model)(params, stats, x, train=False)[0])
        heatmaps = forward(params, stats, check_image(config))
    folder = pathlib.Path(task["weights"])
    arrays = {name: np.asarray(array) for name, array in {**params, **stats}.items()}
    save_folder(folder / "ours", config, arrays)
    to_torch(folder / "ours", "mmpose", folder / "theirs.safetensors")
    np.save(folder / "heatmaps.npy", np.asarray(heatmaps))
    return lambda steps: 0, {"version": jax.__version__}


def pytorch(task: dict[str, Any], config: ConfigDict) -> tuple[Run, dict[str, Any]]:
    """PyTorch's side, like `ours`."""
    import torch

    from benchmarks import torch_hrnet
    from hrnet_jax.inference.steps import to_image
    from hrnet_jax.models import VARIANTS

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    joints, codec = keypoint_set(config.keypoints), create_codec(config.codec)
    model = torch_hrnet.HRNet(dataclasses.asdict(VARIANTS[task["variant"]]), len(joints))
    if task["job"] == "check":
        return _their_deviation(task, config, model)
    train, settings = task["job"].startswith("train"), {"dtype": task["dtype"], "mode": task["mode"]}
    if train:
        step: Any = torch_hrnet.make_train_step(model, device, sigma=config.codec.sigma, **settings)
    else:
        step = torch_hrnet.make_predict_step(model, device, flip_indices=joints.flip_indices.tolist(), **settings)

    def on_device(batch: dict[str, Any]) -> list[Any]:
        keys = ("image", "keypoints", "visible") if train else ("image",)
        return [torch.as_tensor(batch[key]).to(device, non_blocking=True) for key in keys]

    random = random_batch(config)
    resident = on_device(random)

    def forever() -> Iterator[dict[str, Any]]:
        if not task["job"].endswith("jpeg"):
            return itertools.repeat(random)
        loader = torch.utils.data.DataLoader(
            Crops(config, train),
            batch_size=config.batch_size,
            num_workers=task["workers"],
            collate_fn=lambda samples: {key: torch.from_numpy(array) for key, array in stack(samples).items()},
            pin_memory=device == "cuda",
            persistent_workers=True,
            prefetch_factor=2,
            drop_last=train,
        )
        return itertools.chain.from_iterable(itertools.repeat(loader))

    batches = forever()

    def answered(batch: dict[str, Any], found: Any, arrived: Any) -> None:
        if arrived:
            arrived.synchronize()
        if "center" in batch:
            center, scale = (batch[key].numpy() for key in ("center", "scale"))
            to_image(found.numpy(), center, scale, codec)

    def to_host(keypoints: Any) -> tuple[Any, Any]:
        if device == "cpu":
            return keypoints, None
        host = torch.empty(keypoints.shape, dtype=keypoints.dtype, pin_memory=True)
        host.copy_(keypoints, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        return host, arrived

    def run(steps: int) -> int:
        images, before = 0, None
        for _ in range(steps):
            batch = next(batches)
            images += len(batch["image"])
            inputs = resident if batch is random else on_device(batch)
            out = step(*inputs)
            if before:  # the device works on this batch while the answers to the one before come back
                answered(*before)
            before = None if train else (batch, *to_host(out[0]))
        if before:
            answered(*before)
        if device == "cuda":
            torch.cuda.synchronize()
        return images

    def cost() -> dict[str, Any]:
        return {"peak_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None}

    return run, {"cost": cost}


def _their_deviation(task: dict[str, Any], config: ConfigDict, model: Any) -> tuple[Run, dict[str, Any]]:
    import torch
    from safetensors.torch import load_file

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    folder = pathlib.Path(task["weights"])
    model.load_state_dict(load_file(folder / "theirs.safetensors"))
    with torch.inference_mode():
        heatmaps = model.eval()(torch.from_numpy(check_image(config)).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    expected = np.load(folder / "heatmaps.npy")
    deviation = float(np.abs(heatmaps - expected).max() / np.abs(expected).max())
    return lambda steps: 0, {"version": torch.__version__, "device": device, "deviation": deviation}


class Crops:
    """Our samples as PyTorch's loaders index them: training's without end, or every box of the evaluation."""

    def __init__(self, config: ConfigDict, train: bool):
        self.train = train
        self.data: Any = EvalData.load(config, create_codec(config.codec))
        self.order: Any = None
        if train:
            self.data = TrainData.load(config, create_codec(config.codec))
            self.order = self.data.order()

    def __len__(self) -> int:
        return 10**9 if self.train else len(self.data.instances)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self.train:
            return self.data.sample(index, self.order[index])
        return self.data._sample(Decoded(self.data.instances.open(index).pixels()), index)


def main() -> None:
    task = json.loads(sys.argv[1])
    side = ours if task["side"] == "ours" else pytorch
    serve(task, lambda: side(task, configure(task)))


if __name__ == "__main__":
    main()
