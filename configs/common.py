"""MMPose's recipe, and the variants of all recipes.

A config file returns `recipe(...)` with its own settings. An argument after the file name selects variants, separated
by commas: `configs/coco.py:w48,384x288,udp` or `configs/coco.py:runlocal`.
"""

from typing import Any

from ml_collections import ConfigDict

from data_pipelines.keypoints import KeypointSet, keypoint_set

VARIANTS = {
    "w32": "HRNet-W32 (the default)",
    "w48": "HRNet-W48: batches of 256 with BatchNorm over 32, as published",
    "256x192": "input height x width (the default)",
    "384x288": "the larger input; Gaussians of sigma 3",
    "msra": "quarter-cell decoding (the default)",
    "dark": "unbiased encoding and DARK decoding (Zhang et al. 2020)",
    "udp": "unbiased data processing (Huang et al. 2020)",
    "udp_combined": "UDP with offset maps",
    "photometric": "random brightness, contrast, saturation, hue and channel order",
    "coarse_dropout": "black rectangles in half of the crops",
    "grid_mask": "a grid of black squares in half of the crops",
    "bf16": "bfloat16 compute (the default is float32 on every device)",
    "small": "a small network and half the input's size, to train on CPUs from random weights",
    "runlocal": "laptop size: a tiny network, 64x64 inputs, batches of 16, two epochs",
}

# What each variant changes, in the order of `VARIANTS`.
_CHANGES: dict[str, dict[str, Any]] = {
    "w48": {"model.variant": "w48", "model.group_size": 32, "batch_size": 256},
    "384x288": {"codec.input_size": (384, 288), "codec.sigma": 3.0},
    "dark": {"codec.name": "dark", "codec.blur_kernel": 11},  # also at 384x288, as published
    "udp": {"codec.name": "udp", "codec.blur_kernel": 11},
    "udp_combined": {"codec.name": "udp_combined", "codec.sigma": None, "codec.radius_factor": 0.0546875},
    "photometric": {"data.augment.photometric": 1.0},
    "coarse_dropout": {"data.augment.coarse_dropout": 0.5},
    "grid_mask": {"data.augment.grid_mask": 0.5},
    "bf16": {"model.dtype": "bfloat16"},
    "small": {
        **{"model.variant": "small", "optimizer.learning_rate": 2e-3, "data.loader.workers": 0},
        **{"eval.batch_size": 64},
    },
    "runlocal": {
        **{"model.variant": "tiny", "model.group_size": 0, "codec.input_size": (64, 64), "batch_size": 16},
        **{"epochs": 2, "optimizer.warmup_steps": 10, "optimizer.milestones": (), "log_every": 20},
        **{"eval.every_epochs": 2, "eval.batch_size": 16, "data.loader.workers": 0},
    },
}

# Of a training with few people.
_FEWEST_STEPS = 1260

# At most one of each group may be given.
_CODECS = ("msra", "dark", "udp", "udp_combined")
_ALTERNATIVES = (("w32", "w48", "small"), ("256x192", "384x288"), _CODECS, ("small", "runlocal"))

COCO_TRAIN = {
    "annotations": "coco/annotations/person_keypoints_train2017.json",
    "images": "coco/train2017",
    "prepared": "prepared/coco_train2017",
    "keypoints": "coco",
}
AIC_TRAIN = {
    "annotations": "aic/ai_challenger_keypoint_train_20170902/keypoint_train_annotations_20170909.json",
    "images": "aic/ai_challenger_keypoint_train_20170902/keypoint_train_images_20170902",
    "prepared": "prepared/aic_train",
    "keypoints": "aic",
}
AIC_VAL = {
    "annotations": "aic/ai_challenger_keypoint_validation_20170911/keypoint_validation_annotations_20170911.json",
    "images": "aic/ai_challenger_keypoint_validation_20170911/keypoint_validation_images_20170911",
    "prepared": "prepared/aic_val",
    "keypoints": "aic",
    "boxes": "",
}
COCO_VAL = {
    "annotations": "coco/annotations/person_keypoints_val2017.json",
    "images": "coco/val2017",
    "prepared": "prepared/coco_val2017",
    "keypoints": "coco",
    "boxes": "coco/person_detection_results/COCO_val2017_detections_AP_H_56_person.json",
}


def recipe(
    arg: str | None = None,
    *,
    keypoints: str | KeypointSet,
    train: dict[str, dict[str, Any]],
    evaluate: dict[str, Any],
    input_size: tuple[int, int] = (256, 192),
    people: int | None = None,
) -> ConfigDict:
    """The training recipe of MMPose 1.3.2's HRNet configs.

    Args:
      arg: variants from `VARIANTS`, separated by commas.
      keypoints: the keypoint set that the network predicts, or its name; docs/own-data.md defines a custom set.
      train: sources by name, each with annotations, images (both relative to `data.root`) and keypoint set.
      evaluate: the evaluation set: annotations, images, keypoint set, detector boxes ("" for annotated boxes).
      input_size: (height, width) of the crops in pixels, unless a variant sets it.
      people: the number of people to train on, if they are far fewer than COCO's 150,000: chooses the batch size,
        epochs, warm-up and intervals for them (`_fit`), and UDP unless a variant names another codec.
    """
    variants = parse(arg)
    if people is not None and not {*variants} & {*_CODECS}:
        variants = ["udp", *variants]
    c = ConfigDict()
    c.seed = 0
    c.epochs = 210
    c.batch_size = 512  # global batch, over all devices
    c.cache_dir = ""  # annotation indexes and compiled programs; "": `cache` in the work directory
    c.devices = 0  # number of devices to use; 0: all devices of all hosts
    c.accumulate = 1  # number of parts in which a batch's gradients are computed
    c.ema = 0.0  # decay of the weights' moving averages, which evaluation then uses; 0: none
    c.best = "AP"  # metric of the best checkpoint: the highest value, or the lowest of "loss"
    c.accept_changed_data = False  # allows a run to continue on changed data; checkpoints record it
    c.max_skipped = 10  # steps with non-finite loss or gradients before the run is aborted
    c.profile = (0, 0)  # first and last step of a TensorBoard trace; (0, 0): none
    c.init = ""  # a model, by name or path, that training starts from (hrnet_jax.weights.initial); "": random weights
    c.keypoints = keypoints  # the set that the network predicts, or its name; each source's keypoints are mapped to it

    c.model = ConfigDict()
    c.model.variant = "w32"
    c.model.dtype = "float32"
    c.model.group_size = 64  # samples that share BatchNorm statistics; 0: the complete batch
    c.model.scan = False  # identical blocks and modules as loops: a third of the compile time, more memory

    c.codec = ConfigDict()
    c.codec.name = "msra"
    c.codec.input_size = input_size  # height, width of the crops
    c.codec.sigma = 2.0

    c.data = ConfigDict()
    c.data.root = "data"
    c.data.format = "files"  # or "tfds": the records of data_pipelines.prepare in each source's `prepared`
    c.data.train = ConfigDict(train)
    c.data.eval = ConfigDict(evaluate)
    c.data.mix = ConfigDict({name: 0.0 for name in train})  # weights of the sources; all 0: each person once per epoch
    c.data.epoch_size = 0  # samples per epoch of a weighted mix
    c.data.augment = ConfigDict()
    c.data.augment.flip = 0.5
    c.data.augment.half_body = 0.3
    c.data.augment.shift = 0.16  # of the padded box
    c.data.augment.shift_probability = 0.3
    c.data.augment.scale = 0.5  # views of 0.5 to 1.5 times the padded box
    c.data.augment.rotation = 80.0  # degrees
    c.data.augment.rotation_probability = 0.6
    c.data.augment.photometric = 0.0  # probability, as are the next two
    c.data.augment.coarse_dropout = 0.0
    c.data.augment.grid_mask = 0.0
    c.data.max_unreadable = 0.01  # share of unreadable samples above which training stops
    c.data.loader = ConfigDict()
    c.data.loader.threads = 0  # of a host, divided among its worker processes; 0: one per core
    c.data.loader.workers = -1  # processes; 0: threads of the trainer only; -1: by the cores, none below eight

    c.optimizer = ConfigDict()  # Adam
    c.optimizer.weight_decay = 0.0  # above 0: AdamW
    c.optimizer.learning_rate = 5e-4
    c.optimizer.schedule = "steps"  # or "cosine": falls to 0 at the end of the training or stage
    c.optimizer.warmup_steps = 500
    c.optimizer.warmup_factor = 0.001
    c.optimizer.milestones = (170, 200)  # epochs, of the schedule "steps"
    c.optimizer.decay = 0.1

    # Later stages of the training, by name: an epoch `start`, counted from 0, and changed keys of `optimizer`, whose
    # warm-up and schedule then begin again, and of data.augment, as `augment`.
    c.stages = ConfigDict()

    c.eval = ConfigDict()
    c.eval.every_epochs = 10
    c.eval.batch_size = 256
    c.eval.flip_test = True
    c.eval.nms = "oks_nms"
    c.eval.nms_threshold = 0.9
    c.eval.score_mode = "bbox_keypoint"
    c.eval.keypoint_threshold = 0.2
    c.eval.use_area = True

    c.checkpoint = ConfigDict()
    c.checkpoint.every_epochs = 1
    c.checkpoint.keep = 2
    c.log_every = 50  # steps

    joints = keypoint_set(keypoints)
    if not joints.flip_pairs:  # whether left and right differ is not known
        c.data.augment.flip, c.eval.flip_test = 0.0, False
    if not joints.upper_body:
        c.data.augment.half_body = 0.0
    for variant in variants:
        c.update_from_flattened_dict(_CHANGES.get(variant, {}))
    if "small" in variants:
        c.codec.input_size = tuple(side // 2 for side in c.codec.input_size)
    if people is not None and "runlocal" not in variants:
        _fit(c, people)
    return c


def _fit(c: ConfigDict, people: int) -> None:
    """Fits the recipe's schedule to a number of people.

    Batches shrink before epochs grow: a batch is a 32nd of the people, from 16 to the recipe's, so that 210 epochs are
    some thousand steps even for 100 people. Fewer people get more epochs, up to 1,260 steps in total. The warm-up is a
    25th of the steps, and the learning rate falls at the same shares of the training as in the recipe.
    """
    recipe_epochs = c.epochs
    c.batch_size = min(1 << (max(people // 32, 16).bit_length() - 1), c.batch_size)  # a power of two
    steps_per_epoch = -(-people // c.batch_size)
    c.epochs = max(recipe_epochs, -(-_FEWEST_STEPS // steps_per_epoch))
    c.model.group_size = min(c.model.group_size, c.batch_size)
    c.optimizer.warmup_steps = min(c.optimizer.warmup_steps, c.epochs * steps_per_epoch // 25)
    c.optimizer.milestones = tuple(c.epochs * epoch // recipe_epochs for epoch in c.optimizer.milestones)
    c.eval.every_epochs = c.epochs // 10
    c.checkpoint.every_epochs = min(max(1, 200 // steps_per_epoch), c.eval.every_epochs)


def parse(arg: str | None) -> list[str]:
    """Splits a config argument; raises ValueError for an unknown variant and for two of one group."""
    variants = [part for part in (arg or "").split(",") if part]
    if unknown := [variant for variant in variants if variant not in VARIANTS]:
        raise ValueError(f"unknown variant {', '.join(unknown)}; there are {', '.join(VARIANTS)}")
    for alternatives in _ALTERNATIVES:
        if len(given := sorted({*variants} & {*alternatives})) > 1:
            raise ValueError(f"variants {' and '.join(given)} contradict each other; give one of them")
    # `runlocal` is applied last.
    return sorted(variants, key=list(VARIANTS).index)


def train_sources(*names: str) -> dict[str, dict[str, str]]:
    """The training sources with the given names, `coco` or `aic`."""
    known: dict[str, dict[str, str]] = {"coco": COCO_TRAIN, "aic": AIC_TRAIN}
    return {name: known[name] for name in names}
