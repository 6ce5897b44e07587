"""Trains on COCO's 17 keypoints, with COCO only.

    python -m hrnet_jax.train --config configs/coco.py --workdir runs/coco \
        --config.data.root=DATA --config.init=hrnet_w32-imagenet

Expected, HRNet-W32 256x192 on COCO val2017 with person boxes of AP 56.4: AP 0.749 (MMPose's checkpoint of 2022-09-09,
hrnet_coco.md). Not trained to completion here; the README lists what was verified. Variants: configs/common.py.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe td-hm_hrnet-w32_8xb64-210e_coco-256x192; `arg` selects variants."""
    return common.recipe(arg, keypoints="coco", train=common.train_sources("coco"), evaluate=common.COCO_VAL)
