"""HRNets from PyTorch's state dicts: names, layouts and architecture.

Names here are MMPose's. The others differ only in prefixes:

    MMPose                  official          timm
    backbone.NAME           NAME              NAME
    head.final_layer.NAME   final_layer.NAME  (none)

A common prefix of all names (`module.` of DataParallel, `_orig_mod.` of torch.compile, `model.` of a Lightning module,
or several) is detected and removed.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from data_pipelines.errors import InputError, brief, listed
from hrnet_jax.models import VARIANTS, array_shapes
from hrnet_jax.models.names import mismatches
from hrnet_jax.weights import torch_files
from hrnet_jax.weights.torch_files import Tensors

# Arrays that only classification networks have: their head, and the stage 4 outputs that only the head uses.
_CLASSIFIER = re.compile(
    r"backbone\.((incre_modules|downsamp_modules|classifier|final_layer)\.|stage4\.\d+\.fuse_layers\.[123]\.)"
)
COUNTER = ".num_batches_tracked"
# A tensor whose output width is that of the high-resolution branch.
WIDTH = "backbone.transition1.0.0.weight"
# A name in every HRNet, used to find the common prefix; torch.compile's may also occur within it.
_ANCHOR = re.compile(r"(?P<prefix>|.*?\.)(backbone\.)?transition1\.0\.0\.weight", re.DOTALL)
_COMPILED = "_orig_mod."
# Entry of `ema_state_dict` that is not a weight.
_EMA_STEPS = "steps"

logger = logging.getLogger(__name__)


def read_arrays(path: str | os.PathLike, config: ConfigDict, *, ema: bool = False) -> Tensors:
    """Reads the arrays of a PyTorch file that fit a model.

    Args:
      path: `.pth` or `.safetensors` file with MMPose's, official or timm names, with any common prefix.
      config: the config that the weights were trained with.
      ema: reads the weights under an EMAHook's names.

    Returns:
      Parameters, statistics (float32) and counters (int64) by canonical name, in our layouts; without `head.*` if the
      file holds only a backbone.

    Raises:
      InputError: the file cannot be read, or its architecture is not the config's.
    """
    shapes, source = _torch_shapes(config), f"{os.fspath(path)}"
    tensors = _one_of_twins(torch_files.read(path), torch_files.read(path, "ema_state_dict"), ema, source)
    # The most common mistake, another variant, is reported as such and not by the entries that differ.
    if hint := _architecture_hint({_canonical_name(name): tensor for name, tensor in tensors.items()}, shapes):
        raise InputError(f"{source} does not fit config.model.variant={config.model.variant!r}: {hint}")
    return {name: from_torch_layout(array) for name, array in canonical(tensors, shapes, source).items()}


def architecture(path: str | os.PathLike) -> tuple[str, int]:
    """The variant of the HRNet in a PyTorch file, and the number of its heatmaps: 0 for a backbone.

    The variant is "" if the file holds no HRNet of a known width. Raises InputError if it cannot be read.
    """
    tensors = plain_names(torch_files.read(path), f"{os.fspath(path)}")
    named = {_canonical_name(name): tensor for name, tensor in tensors.items()}
    kernel, head = named.get(WIDTH), named.get("head.final_layer.weight")
    width = kernel.shape[0] if kernel is not None and kernel.ndim == 4 else 0
    (variant, *_) = [name for name, variant in VARIANTS.items() if variant.width == width] or [""]
    return variant, head.shape[0] if head is not None and head.ndim == 4 else 0


def canonical(tensors: Mapping[str, np.ndarray], shapes: Mapping[str, Any], source: str) -> dict[str, np.ndarray]:
    """Converts a state dict to canonical names and float32, in PyTorch's layouts, and checks a model's shapes.

    The counters `num_batches_tracked` stay int64 and are optional; so is the head, in files without prefixes.
    """
    named = {_canonical_name(name): tensor for name, tensor in tensors.items()}
    problems = ["names repeat"] if len(named) < len(tensors) else []
    is_mmpose = any(name.startswith("backbone.") for name in tensors)
    if not is_mmpose and "head.final_layer.weight" not in named and "head.final_layer.bias" not in named:
        named = {name: tensor for name, tensor in named.items() if name in shapes or not _CLASSIFIER.match(name)}
        shapes = backbone_of(shapes)
        logger.info("%s: only a backbone, without a head", source)

    counters = {name: tensor for name, tensor in named.items() if _is_counter(name, shapes)}
    weights = {name: tensor for name, tensor in named.items() if name not in counters}
    problems += mismatches(weights, shapes)
    problems += [f"{name} has shape {t.shape}, the model ()" for name, t in counters.items() if t.shape]
    if problems:
        hint = _architecture_hint(named, shapes)
        raise InputError(
            f"{source} and the model do not fit{f' ({hint})' if hint else ''} in {len(problems)} entries: "
            f"{listed(problems)}"
        )
    if kinds := sorted({str(tensor.dtype) for tensor in weights.values()} - {"float32"}):
        logger.info("%s: %s converted to float32", source, ", ".join(kinds))
    return {
        **{name: np.asarray(tensor, np.float32) for name, tensor in weights.items()},
        **{name: np.asarray(tensor, np.int64) for name, tensor in counters.items()},
    }


def _one_of_twins(tensors: Tensors, beside: Tensors, ema: bool, source: str) -> Tensors:
    """The weights of a file, or with `ema` those of an EMAHook, under the names of `plain_names`.

    Args:
      tensors: the state dict; MMCV's has both `backbone.conv1.weight` and `ema_backbone_conv1_weight`.
      beside: MMEngine's `ema_state_dict`; empty if there is none.
      ema: whether to return the weights under EMA names.
      source: the file, for messages.
    """
    plain = plain_names(tensors, source)
    by_twin = {f"ema_{name.replace('.', '_')}": name for name in plain}
    twins = {by_twin[name]: tensor for name, tensor in plain.items() if name in by_twin}
    plain = {name: tensor for name, tensor in plain.items() if name not in by_twin}
    if not twins and not beside:
        if ema:
            raise InputError(f"{source}: holds no weights under EMA names; leave out --ema")
        return plain
    taken, left = ("EMA names", "their own") if ema else ("their own names", "EMA names")
    logger.info("%s: an EMAHook's file with two sets of weights: read under %s, not %s", source, taken, left)
    if ema and beside:
        twins = plain_names({name: tensor for name, tensor in beside.items() if name != _EMA_STEPS}, source)
    return {**plain, **twins} if ema else plain  # MMCV has EMA names for parameters only


def plain_names(tensors: Mapping[str, np.ndarray], source: str) -> Tensors:
    """Removes the common prefix of all names and logs it."""
    names = {name: name.replace(_COMPILED, "") for name in tensors}
    prefixes = sorted({match["prefix"] for name in names.values() if (match := _ANCHOR.fullmatch(name))})
    if len(prefixes) > 1:
        raise InputError(
            f"{source}: holds {len(prefixes)} networks, under {listed([repr(brief(prefix)) for prefix in prefixes])}; "
            "save the state dict of one of them"
        )
    prefix = "".join(prefixes)
    plain = {names[name].removeprefix(prefix): tensor for name, tensor in tensors.items()}
    if len(plain) < len(tensors):
        raise InputError(f"{source}: names repeat after removing {brief(prefix)!r} and {_COMPILED!r}")
    if any(name not in plain for name in tensors):
        shown = [repr(brief(prefix))] if prefix else []
        shown += [repr(_COMPILED)] if any(_COMPILED in name for name in tensors) else []
        logger.info("%s: an HRNet; removed from its names: %s", source, " and ".join(shown))
    return plain


def _canonical_name(name: str) -> str:
    if name.startswith("keypoint_head."):  # MMPose before 1.0
        name = name.removeprefix("keypoint_")
    if name.startswith(("backbone.", "head.")):
        return name
    return f"head.{name}" if name in ("final_layer.weight", "final_layer.bias") else f"backbone.{name}"


def _is_counter(name: str, shapes: Mapping[str, Any]) -> bool:
    return name.endswith(COUNTER) and name.replace(COUNTER, ".running_mean") in shapes


def _architecture_hint(named: Mapping[str, np.ndarray], shapes: Mapping[str, Any]) -> str:
    if not any(name.startswith("backbone.transition1.") for name in named):
        return "the file does not hold an HRNet"
    theirs, ours = named.get(WIDTH), shapes.get(WIDTH)
    if theirs is None or ours is None or theirs.ndim != 4 or theirs.shape[0] == ours.shape[0]:
        return ""
    return f"the file holds {variant_of_width(theirs.shape[0])}, the model is {variant_of_width(ours.shape[0])}"


def _torch_shapes(config: ConfigDict) -> dict[str, Any]:
    params, stats = array_shapes(config)
    return {name: torch_shape(array) for name, array in {**params, **stats}.items()}


def torch_shape(array: Any) -> np.ndarray:
    """An array without content, with the PyTorch shape of one of ours."""
    return to_torch_layout(np.broadcast_to(np.float32(0), array.shape))


def to_torch_layout(array: np.ndarray) -> np.ndarray:
    """Transposes kernels [height, width, in, out] to PyTorch's [out, in, height, width]."""
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array


def from_torch_layout(array: np.ndarray) -> np.ndarray:
    """Transposes PyTorch's kernels [out, in, height, width] to [height, width, in, out]."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array


def backbone_of(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The backbone's arrays by canonical name."""
    return {name: array for name, array in arrays.items() if name.startswith("backbone.")}


def variant_of_width(width: int) -> str:
    """The name of the variant with this width."""
    names = [name for name, variant in VARIANTS.items() if variant.width == width]
    return f"{names[0]} (width {width})" if names else f"an HRNet of width {width}"
