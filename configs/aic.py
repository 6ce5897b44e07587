"""Trains on AI Challenger's 14 keypoints, with AI Challenger only.

    python -m hrnet_jax.train --config configs/aic.py --workdir runs/aic \
        --config.data.root=DATA --config.init=hrnet_w32-imagenet

Expected, HRNet-W32 256x192 on AIC's validation set with its annotated boxes: AP 0.323 (MMPose's checkpoint of
2020-08-26, hrnet_aic.md); the AP is low because AIC's sigmas are small. Not trained to completion here; the README
lists what was verified. Variants: configs/common.py.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe td-hm_hrnet-w32_8xb64-210e_aic-256x192; `arg` selects variants."""
    c = common.recipe(arg, keypoints="aic", train=common.train_sources("aic"), evaluate=common.AIC_VAL)
    c.eval.use_area = False  # AIC has no area annotations
    return c
