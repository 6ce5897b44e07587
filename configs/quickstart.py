"""The quickstart: a small HRNet on synthetic COCO and AI Challenger people, merged into COCO's 17 keypoints.

    python -m data_pipelines.synthetic --root runs/synthetic
    python -m hrnet_jax.train --config configs/quickstart.py --workdir runs/quickstart

`make quickstart` runs these and other commands in a few minutes on two CPU cores. The recipe is that of coco_aic_merge
with smaller settings and the UDP codec: at this input size quarter-cell decoding would limit AP to far below 1, and UDP
decodes to fractions of a cell.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The quickstart's config. It has no variants, because it sets most of their keys itself."""
    if arg:
        raise ValueError(f"unknown variant {arg}; the quickstart has none, configs/coco_aic_merge.py has")
    c = common.recipe(
        "udp,small", keypoints="coco", train=common.train_sources("coco", "aic"), evaluate=common.COCO_VAL
    )
    c.data.root = "runs/synthetic"
    c.model.group_size = 0
    c.codec.input_size = (96, 96)
    c.codec.sigma = 1.5
    c.batch_size = 16
    c.epochs = 12
    c.optimizer.warmup_steps = 100
    c.optimizer.milestones = (9, 11)
    # Weaker augmentation than the recipe's, because training takes minutes, not days.
    c.data.augment.half_body = 0.0
    c.data.augment.rotation = 20.0
    c.data.augment.scale = 0.2
    c.eval.every_epochs = 6
    c.log_every = 200
    return c
