"""Trains on COCO's 17 keypoints for a higher AP than the published recipes: UDP, COCO and AIC, moving averages, stages.

    python -m hrnet_jax.train --config configs/coco_aic_udp_ema.py --workdir runs/udp_ema \
        --config.data.root=DATA --config.init=hrnet_w32-imagenet

Aim, HRNet-W32 256x192 on COCO val2017 with person boxes of AP 56.4: AP 0.770. Not trained here. Published gains over
the recipe of `coco` (AP 0.749) under these boxes, and what is taken from each source:

- UDP: AP 0.762 (MMPose, hrnet_udp_coco.md).
- AIC's joints mapped to COCO's: +0.008 (MMPose, hrnet_coco_aic.md). Three of four samples are COCO's here, because the
  data sets define some joints differently. An epoch has 200,000 samples: each of COCO's 150,000 people about once.
- A second training with parts of the crops hidden: +0.007 (AID, Huang et al. 2020), from a trained model only. It is
  the stage `cutout`; its learning rate starts anew and falls to 0.
- Weaker shifts, scales and rotations in the last 30 epochs, as in RTMPose (Jiang et al. 2023).
- Moving averages of the weights. Their gain is not known here.

The gains may not add up. Results with annotated boxes are higher and not comparable. The training takes 350 x 200,000 =
70 million samples, `coco_aic_merge` 111 million. `python -m hrnet_jax.schedule --config configs/coco_aic_udp_ema.py`
prints the learning rate and the augmentation of each epoch. Variants: configs/common.py.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """UDP on COCO and AIC 3:1, 210 epochs, then 140 epochs of `cutout`; `arg` selects variants, but no other codec."""
    c = common.recipe(
        ",".join(["udp", *common.parse(arg)]),
        keypoints="coco",
        train=common.train_sources("coco", "aic"),
        evaluate=common.COCO_VAL,
    )
    c.ema = 0.9998
    c.data.mix.coco, c.data.mix.aic = 3.0, 1.0
    c.data.epoch_size = 200_000
    if "runlocal" not in common.parse(arg):
        c.epochs = 350
    c.stages.cutout = ConfigDict()
    c.stages.cutout.start = 210
    c.stages.cutout.optimizer = ConfigDict({"learning_rate": 2.5e-4, "schedule": "cosine"})
    c.stages.cutout.augment = ConfigDict({"coarse_dropout": 0.5, "photometric": 0.5})
    c.stages.mild = ConfigDict()
    c.stages.mild.start = 320
    c.stages.mild.augment = ConfigDict({"shift_probability": 0.0, "scale": 0.25, "rotation": 60.0})
    return c
