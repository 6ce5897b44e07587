"""Trains on the 19-keypoint union of COCO and AI Challenger, with both; evaluates on COCO's 17.

    python -m hrnet_jax.train --config configs/coco_aic_combine.py --workdir runs/combine \
        --config.data.root=DATA --config.init=hrnet_w32-imagenet

Expected, HRNet-W32 256x192 on COCO val2017 with person boxes of AP 56.4: AP 0.756 (MMPose's checkpoint of 2022-10,
hrnet_coco_aic.md). Not trained to completion here; the README lists what was verified. Variants: configs/common.py.

To evaluate the same model on AIC's 14 keypoints, a subset of the 19:

    AIC=aic/ai_challenger_keypoint_validation_20170911/keypoint_validation
    python -m hrnet_jax.evaluate --checkpoint runs/combine --output runs/combine/aic --config.data.eval.boxes= \
        --config.data.eval.annotations=${AIC}_annotations_20170911.json --config.data.eval.keypoints=aic \
        --config.data.eval.images=${AIC}_images_20170911 --config.eval.use_area=false
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe td-hm_hrnet-w32_8xb64-210e_coco-aic-256x192-combine; `arg` selects variants."""
    return common.recipe(arg, keypoints="coco_aic", train=common.train_sources("coco", "aic"), evaluate=common.COCO_VAL)
