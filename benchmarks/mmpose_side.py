"""MMPose's side of `versus_mmpose.py`: a process that is asked to start, to measure and to stop.

Runs in an environment of its own with MMPose 1.3.2, without this project's packages; `benchmarks.sides` has the
questions and answers. Everything is MMPose's or MMEngine's own: the data sets and their pipelines, HRNet with its head,
loss and codec, the runner's loops, hooks and schedules, CocoMetric. Different are

- the stem and stage 1, which MMPose's HRNet has at 64 channels only: they are replaced by narrower ones;
- the order of the people, which a sampler takes from a file;
- modules that MMPose imports and HRNet does not use: `mmdet`, and `mmcv.ops`, which mmcv-lite lacks, are stand-ins
  without function.
"""

from __future__ import annotations

import itertools
import json
import os
import pathlib
import sys
import time
import types
from collections.abc import Iterator
from typing import Any

from benchmarks.sides import Run, serve

_STAND_INS = {"mmcv.ops": ["MultiScaleDeformableAttention"], "mmdet": [], "mmdet.utils": ["ConfigType", "reduce_mean"]}
for _name, _attributes in _STAND_INS.items():
    sys.modules[_name] = types.ModuleType(_name)
    for _attribute in _attributes:
        setattr(sys.modules[_name], _attribute, None)

import cv2  # noqa: E402
import mmengine  # noqa: E402
import mmpose  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from mmengine.hooks import Hook  # noqa: E402
from mmengine.optim import OptimWrapper  # noqa: E402
from mmengine.runner import Runner  # noqa: E402
from mmengine.structures import InstanceData, PixelData  # noqa: E402
from mmpose.codecs import UDPHeatmap  # noqa: E402
from mmpose.models.backbones.resnet import Bottleneck  # noqa: E402
from mmpose.registry import MODELS  # noqa: E402
from mmpose.structures import PoseDataSample  # noqa: E402
from mmpose.utils import register_all_modules  # noqa: E402
from torch import nn  # noqa: E402

Task = dict[str, Any]


def codec(task: Task) -> dict[str, Any]:
    """The UDP codec's config; sizes are (width, height)."""
    height, width = task["size"]
    sizes = {"input_size": (width, height), "heatmap_size": (width // 4, height // 4)}
    return {"type": "UDPHeatmap", **sizes, "sigma": task["sigma"]}


def build_model(task: Task, weights: str) -> Any:
    """The narrow HRNet with the weights of a file."""
    v = task["variant"]
    widths = [v["width"] * 2**b for b in range(4)]
    stages = {
        f"stage{n}": {
            "num_modules": v["modules"][n - 2],
            "num_branches": n,
            "block": "BASIC",
            "num_blocks": (v["blocks"],) * n,
            "num_channels": widths[:n],
        }
        for n in (2, 3, 4)
    }
    stage1 = {"num_modules": 1, "num_branches": 1, "block": "BOTTLENECK"}
    stages["stage1"] = {**stage1, "num_blocks": (v["bottlenecks"],), "num_channels": (v["stem"],)}
    model = MODELS.build(
        {
            "type": "TopdownPoseEstimator",
            "data_preprocessor": {
                "type": "PoseDataPreprocessor",
                "mean": [123.675, 116.28, 103.53],
                "std": [58.395, 57.12, 57.375],
                "bgr_to_rgb": True,
            },
            "backbone": {"type": "HRNet", "in_channels": 3, "extra": stages},
            "head": {
                "type": "HeatmapHead",
                "in_channels": v["width"],
                "out_channels": task["keypoints"],
                "deconv_out_channels": None,
                "loss": {"type": "KeypointMSELoss", "use_target_weight": True},
                "decoder": codec(task),
            },
            "test_cfg": {"flip_test": True, "flip_mode": "heatmap", "shift_heatmap": False},
        }
    )
    stem, backbone = v["stem"], model.backbone
    for name, channels in (("1", 3), ("2", stem)):
        setattr(backbone, f"conv{name}", nn.Conv2d(channels, stem, 3, stride=2, padding=1, bias=False))
        setattr(backbone, f"bn{name}", nn.BatchNorm2d(stem))
    backbone.layer1 = backbone._make_layer(Bottleneck, stem, 4 * stem, v["bottlenecks"])
    model.init_weights()  # only the first call counts, and the runner makes another
    with np.load(weights) as arrays:
        model.load_state_dict({name: torch.from_numpy(arrays[name]) for name in arrays.files})
    return model


def save_weights(model: Any, path: str) -> None:
    """Writes a state dict as `build_model` reads it, without the counters."""
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    np.savez(path, **{name: array for name, array in arrays.items() if not name.endswith("num_batches_tracked")})


class Order(torch.utils.data.Sampler):
    """A sampler of the people in a file: annotation ids [epochs, samples]."""

    def __init__(self, dataset: Any, path: str):
        rows = {dataset.get_data_info(i)["id"]: i for i in range(len(dataset))}
        self.epochs = [[rows[number] for number in epoch] for epoch in np.load(path).tolist()]
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.epochs[0])

    def __iter__(self) -> Iterator[int]:
        return iter(self.epochs[self.epoch])

    def set_epoch(self, epoch: int) -> None:
        """Called by the runner before every epoch."""
        self.epoch = epoch


def loader(task: Task, train: bool, batch_size: int, pack: dict[str, Any] | None = None) -> Any:
    """The recipe's loader of the training people in the task's order, or of the validation people."""
    view: list[dict[str, Any]] = [{"type": "LoadImage"}, {"type": "GetBBoxCenterScale"}]
    if train:
        view += [{"type": "RandomFlip", "direction": "horizontal"}]
        view += [{"type": "RandomHalfBody"}, {"type": "RandomBBoxTransform"}]
    view += [{"type": "TopdownAffine", "input_size": codec(task)["input_size"], "use_udp": True}]
    if train:
        view += [{"type": "GenerateTarget", "encoder": codec(task)}]
    root, name = pathlib.Path(task["root"]), "train" if train else "val"
    dataset = {
        "type": "AicDataset",
        "ann_file": str(root / f"annotations/{name}.json"),
        "data_prefix": {"img": str(root / "images")},
        "pipeline": [*view, {"type": "PackPoseInputs", **(pack or {})}],
        "test_mode": not train,
    }
    workers = 0 if task["threads"] == 1 else task["threads"]
    config: dict[str, Any] = {"batch_size": batch_size, "num_workers": workers, "persistent_workers": workers > 0}
    config["dataset"] = mmengine.registry.DATASETS.build({**dataset, "_scope_": "mmpose"})
    config["sampler"] = {"type": "DefaultSampler", "shuffle": False, "round_up": False}
    if train:
        config["sampler"] = Order(config["dataset"], task["order"])
    return Runner.build_dataloader(config, seed=task["seed"])


class Losses(Hook):
    """Keeps the mean training loss of every epoch."""

    def __init__(self) -> None:
        self.epochs: list[list[float]] = []

    def before_train_epoch(self, runner: Any) -> None:
        """Starts the next mean."""
        self.epochs.append([])

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Adds a step's loss."""
        self.epochs[-1].append(outputs["loss"].item())


def schedules(task: Task) -> list[dict[str, Any]]:
    """The recipe's warm-up; the runs are shorter than its milestones."""
    return [{"type": "LinearLR", "begin": 0, "end": task["warmup"], "start_factor": 0.001, "by_epoch": False}]


def make_runner(task: Task, model: Any, folder: pathlib.Path, **settings: Any) -> Runner:
    """A runner of MMEngine that keeps no checkpoints."""
    return Runner(
        model=model,
        work_dir=str(folder),
        default_hooks={"checkpoint": None, "logger": {"type": "LoggerHook", "interval": 50}},
        default_scope="mmpose",
        randomness={"seed": task["seed"]},
        experiment_name=str(folder),
        **settings,
    )


def train(task: Task) -> dict[str, Any]:
    """Trains from the task's weights; the mean loss by epoch."""
    model, losses = build_model(task, task["weights"]), Losses()
    folder = pathlib.Path(task["folder"])
    runner = make_runner(
        task,
        model,
        folder,
        train_dataloader=loader(task, True, task["batch_size"]),
        train_cfg={"by_epoch": True, "max_epochs": task["epochs"]},
        optim_wrapper={"optimizer": {"type": "Adam", "lr": task["learning_rate"]}},
        param_scheduler=schedules(task),
        custom_hooks=[losses],
    )
    runner.train()
    save_weights(model, str(folder / "weights.npz"))
    return {"losses": [float(np.mean(epoch)) for epoch in losses.epochs]}


def evaluate(task: Task) -> dict[str, Any]:
    """Evaluates the task's models, weights by name. Results go to NAME/keypoints.json in its folder."""
    truth, numbers = str(pathlib.Path(task["root"]) / "annotations/val.json"), {}
    for name, weights in task["models"].items():
        folder = pathlib.Path(task["folder"]) / name
        metric = {"type": "CocoMetric", "ann_file": truth, "use_area": False, "outfile_prefix": str(folder / "results")}
        runner = make_runner(
            task,
            build_model(task, weights),
            folder,
            test_dataloader=loader(task, False, task["batch_size"]),
            test_cfg={},
            test_evaluator=metric,
        )
        found = runner.test()
        (folder / "results.keypoints.json").rename(folder / "keypoints.json")
        numbers[name] = {"AP": float(found["coco/AP"]), "AP50": float(found["coco/AP .5"])}
    return {"numbers": numbers}


def optimiser(task: Task, model: Any) -> tuple[OptimWrapper, list[Any]]:
    """Adam and the schedules, outside of a runner."""
    wrapper = OptimWrapper(torch.optim.Adam(model.parameters(), lr=task["learning_rate"]))
    build = mmengine.registry.PARAM_SCHEDULERS.build
    return wrapper, [build({**schedule, "optimizer": wrapper}) for schedule in schedules(task)]


def packed(images: np.ndarray, keypoints: np.ndarray, visible: np.ndarray, encoder: UDPHeatmap) -> dict[str, Any]:
    """A batch of ours as MMPose's loader would give it: RGB crops become BGR, targets come from its codec."""
    samples = []
    for points, seen in zip(keypoints, visible, strict=True):
        encoded = encoder.encode(points[None], seen[None])
        sample = PoseDataSample(gt_instance_labels=InstanceData(), gt_fields=PixelData())
        sample.gt_instance_labels.keypoint_weights = torch.from_numpy(encoded["keypoint_weights"])
        sample.gt_fields.set_field(torch.from_numpy(encoded["heatmaps"]), "heatmaps")
        samples.append(sample)
    inputs = torch.from_numpy(np.ascontiguousarray(images[..., ::-1].transpose(0, 3, 1, 2)))
    return {"inputs": list(inputs), "data_samples": samples}


def recorded(task: Task) -> dict[str, Any]:
    """Trains on our recorded batches; the loss of every step."""
    model = build_model(task, task["weights"]).train()
    wrapper, scheduled = optimiser(task, model)
    encoder = UDPHeatmap(**{key: value for key, value in codec(task).items() if key != "type"})
    losses = []
    with np.load(task["batches"]) as batches:
        images, keypoints, visible = (batches[name] for name in ("image", "keypoints", "visible"))
    for batch in zip(images, keypoints, visible, strict=True):
        losses.append(model.train_step(packed(*batch, encoder), wrapper)["loss"].item())
        for schedule in scheduled:
            schedule.step()
    return {"losses": losses}


def samples(task: Task) -> dict[str, Any]:
    """Describes one pass of the training loader; arrays go to samples.npz in the task's folder."""
    np.random.seed(task["seed"])  # noqa: NPY002, MMPose draws from NumPy's global state
    found: dict[str, list[Any]] = {name: [] for name in ("mean", "std", "black", "keypoints", "weights", "target")}
    for batch in loader({**task, "threads": 1}, True, 50, {"pack_transformed": True}):
        for crop, sample in zip(batch["inputs"], batch["data_samples"], strict=True):
            pixels = crop.numpy()[::-1].reshape(3, -1)
            weights = sample.gt_instance_labels.keypoint_weights[0].numpy()
            heatmaps = sample.gt_fields.heatmaps.numpy()
            found["mean"].append(pixels.mean(1))
            found["std"].append(pixels.std(1))
            found["black"].append((pixels == 0).all(0).mean())
            found["keypoints"].append(sample.gt_instances.transformed_keypoints[0])
            found["weights"].append(weights)
            found["target"].append((np.square(heatmaps).mean((1, 2)) * weights).mean())
    np.savez(pathlib.Path(task["folder"]) / "samples.npz", **{name: np.array(rows) for name, rows in found.items()})
    return {}


def speed(task: Task) -> tuple[Run, dict[str, Any]]:
    """The training loader alone, the step on one batch, or both; CPU seconds of this process stand in the facts."""
    batches = itertools.chain.from_iterable(itertools.repeat(loader(task, True, task["batch_size"])))
    model = build_model(task, task["weights"]).train()
    wrapper, _ = optimiser(task, model)
    resident, cpu = next(batches), []

    def run(steps: int) -> int:
        begin = time.process_time()
        for _ in range(steps):
            batch = resident if task["job"] == "step" else next(batches)
            if task["job"] != "loader":
                model.train_step(batch, wrapper)["loss"].item()
        cpu.append((time.process_time() - begin) / (steps * task["batch_size"]))
        return steps * task["batch_size"]

    return run, {"cost": lambda: {"cpu_seconds": cpu[2:]}}


JOBS = {"train": train, "evaluate": evaluate, "recorded": recorded, "samples": samples}


def begin(task: Task) -> tuple[Run, dict[str, Any]]:
    """Starts a job; see `benchmarks.sides.serve`."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: task["threads"]])
    torch.set_num_threads(task["threads"])
    cv2.setNumThreads(0)  # as MMPose's configs do
    register_all_modules(init_default_scope=True)
    if task["job"] not in JOBS:
        return speed(task)
    versions = {"mmpose": mmpose.__version__, "mmengine": mmengine.__version__, "torch": torch.__version__}
    return lambda steps: 0, {**JOBS[task["job"]](task), "versions": versions}


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    serve(arguments, lambda: begin(arguments))
