"""Trains on COCO's 17 keypoints, with COCO and AI Challenger, whose 12 shared joints are mapped to COCO's.

    python -m hrnet_jax.train --config configs/coco_aic_merge.py --workdir runs/merge \
        --config.data.root=DATA --config.init=hrnet_w32-imagenet

Expected, HRNet-W32 256x192 on COCO val2017 with person boxes of AP 56.4: AP 0.757 (MMPose's checkpoint of 2022-10,
hrnet_coco_aic.md). Not trained to completion here; the README lists what was verified. Variants: configs/common.py.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe td-hm_hrnet-w32_8xb64-210e_coco-aic-256x192-merge; `arg` selects variants."""
    return common.recipe(arg, keypoints="coco", train=common.train_sources("coco", "aic"), evaluate=common.COCO_VAL)
