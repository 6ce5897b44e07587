"""Converts PyTorch weights to a converted folder, and back.

    python -m hrnet_jax.convert --input hrnet_w32.pth --config configs/coco.py:w32 --output runs/hrnet_w32
    python -m hrnet_jax.convert --input runs/hrnet_w32 --to mmpose --output hrnet_w32.pth

The first command reads checkpoints of MMPose, the official HRNet and timm, `.pth` or `.safetensors`. --config is the
config they were trained with, because weights do not state their codec. ImageNet weights give a folder that can only be
used as `config.init`. The second command writes MMPose's or the official names from a converted folder or a work
directory. Only writing `.pth` needs PyTorch (`pip install hrnet-jax[torch]`).

Names here are MMPose's. The others differ only in prefixes:

    MMPose                  official          timm
    backbone.NAME           NAME              NAME
    head.final_layer.NAME   final_layer.NAME  (none)

A common prefix of all names (`module.` of DataParallel, `_orig_mod.` of torch.compile, `model.` of a Lightning module,
or several) is detected and removed. Files written with MMEngine's or MMCV's EMAHook hold two sets of weights, one under
plain names and one under EMA names (`ema_state_dict`, `ema_backbone_...`). MMEngine swaps the two when saving, and MMCV
does if its hook runs before the saving hook; then the plain names, which are converted by default, hold the averages,
and `--ema` selects the other set.
"""

from __future__ import annotations

from hrnet_jax import cli

STYLES = ("mmpose", "official")

OPTIONS: cli.Options = {
    "input": (None, "checkpoint (.pth, .safetensors); with --to a converted folder or a work directory"),
    "output": (None, "converted folder; with --to a .pth or .safetensors file"),
    "config": ("", "config that the checkpoint was trained with, FILE or FILE:ARG; not with --to"),
    "ema": (False, "converts the weights under an EMAHook's names; see above"),
    "to": ("", f"converts back to PyTorch, with the names of {' or '.join(STYLES)}"),
}
cli.help_first(__name__, __doc__, OPTIONS)  # the imports below take seconds

import logging
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from data_pipelines.errors import InputError, brief, listed
from hrnet_jax import config as config_lib
from hrnet_jax.models import abstract_model, fill, state_dict
from hrnet_jax.models.names import mismatches
from hrnet_jax.weights import checkpoint, torch_files
from hrnet_jax.weights.backbone import WIDTH, backbone_of, variant_of_width
from hrnet_jax.weights.folder import check_free, is_folder, save_folder
from hrnet_jax.weights.torch_files import Tensors

# Arrays that only classification networks have: their head, and the stage 4 outputs that only the head uses.
_CLASSIFIER = re.compile(
    r"backbone\.((incre_modules|downsamp_modules|classifier|final_layer)\.|stage4\.\d+\.fuse_layers\.[123]\.)"
)
_COUNTER = ".num_batches_tracked"
# A name in every HRNet, used to find the common prefix; torch.compile's may also occur within it.
_ANCHOR = re.compile(r"(?P<prefix>|.*?\.)(backbone\.)?transition1\.0\.0\.weight", re.DOTALL)
_COMPILED = "_orig_mod."
# Entry of `ema_state_dict` that is not a weight.
_EMA_STEPS = "steps"

logger = logging.getLogger(__name__)


def from_torch(source: str | os.PathLike, config: ConfigDict, output: str | os.PathLike, *, ema: bool = False) -> None:
    """Converts a PyTorch checkpoint into a folder.

    Args:
      source: `.pth` or `.safetensors` file with MMPose's, official or timm names, with any common prefix.
      config: the config that the weights were trained with.
      output: the new folder; without `head.*` arrays if the file holds only a backbone.
      ema: converts the weights under an EMAHook's names.

    Raises:
      InputError: the file cannot be read, its architecture is not the config's, or the folder exists.
    """
    config_lib.check(config)
    check_free(output)
    shapes = _torch_shapes(config)
    tensors = _one_of_twins(torch_files.read(source), torch_files.read(source, "ema_state_dict"), ema, f"{source}")
    # The most common mistake, another variant, is told in one line instead of by every entry.
    if hint := _architecture_hint({_canonical_name(name): tensor for name, tensor in tensors.items()}, shapes):
        raise InputError(f"{source} does not fit config.model.variant={config.model.variant!r}: {hint}")
    arrays = _canonical(tensors, shapes, f"{source}")
    save_folder(output, config, {name: _ours(array) for name, array in arrays.items()})


def to_torch(source: str | os.PathLike, style: str, output: str | os.PathLike) -> str:
    """Writes a model as a PyTorch checkpoint.

    Args:
      source: a converted folder (with or without a head), or a work directory.
      style: "mmpose" or "official": the names to use.
      output: `.pth` or `.safetensors`.

    Returns:
      A description of the source: the folder, or the checkpoint of the work directory.

    Raises:
      InputError: the style is unknown, the source cannot be read or the output cannot be written.
    """
    if style not in STYLES:
        raise InputError(f"--to={style}: unknown; there are {', '.join(STYLES)}")
    torch_files.check_writable(output)
    model = checkpoint.load(source, whole=False)
    arrays: dict[str, Any] = {**model.params, **model.stats, **model.extra}
    if not is_folder(source):
        # PyTorch's own files have the counters, but use their values only with momentum=None.
        arrays |= {name.replace(".running_mean", _COUNTER): np.int64(0) for name in model.stats if "mean" in name}
    tensors = {name: _theirs(np.asarray(array)) for name, array in arrays.items()}
    if style == "official":
        tensors = {re.sub(r"^(backbone|head)\.", "", name): tensor for name, tensor in tensors.items()}
    torch_files.write(output, tensors, nested=style == "mmpose")
    return model.origin


def load_torch_state_dict(model: nnx.Module, tensors: Mapping[str, np.ndarray]) -> None:
    """Sets a model's arrays from PyTorch's, in place.

    Args:
      model: from `create_model`.
      tensors: arrays in PyTorch's layouts with MMPose's, official or timm names, with any common prefix. A
        classification network's file fills only the backbone.

    Raises:
      InputError: lists missing and unknown arrays and other shapes; the model is then unchanged.
    """
    params, stats = state_dict(model)
    ours = {**params, **stats}
    shapes, source = {name: _torch_shape(array) for name, array in ours.items()}, "the state dict"
    arrays = _canonical(_plain_names(tensors, source), shapes, source)
    filled = {name: jnp.array(_ours(array)) for name, array in arrays.items() if not name.endswith(_COUNTER)}
    fill(model, {**ours, **filled})


def _canonical(tensors: Mapping[str, np.ndarray], shapes: Mapping[str, Any], source: str) -> dict[str, np.ndarray]:
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
    """The weights of a file, or with `ema` those of an EMAHook, under the names of `_plain_names`.

    Args:
      tensors: the state dict; MMCV's has both `backbone.conv1.weight` and `ema_backbone_conv1_weight`.
      beside: MMEngine's `ema_state_dict`; empty if there is none.
      ema: whether to return the weights under EMA names.
      source: the file, for messages.
    """
    plain = _plain_names(tensors, source)
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
        twins = _plain_names({name: tensor for name, tensor in beside.items() if name != _EMA_STEPS}, source)
    return {**plain, **twins} if ema else plain  # MMCV has EMA names for parameters only


def _plain_names(tensors: Mapping[str, np.ndarray], source: str) -> Tensors:
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
    return name.endswith(_COUNTER) and name.replace(_COUNTER, ".running_mean") in shapes


def _architecture_hint(named: Mapping[str, np.ndarray], shapes: Mapping[str, Any]) -> str:
    if not any(name.startswith("backbone.transition1.") for name in named):
        return "the file does not hold an HRNet"
    theirs, ours = named.get(WIDTH), shapes.get(WIDTH)
    if theirs is None or ours is None or theirs.ndim != 4 or theirs.shape[0] == ours.shape[0]:
        return ""
    return f"the file holds {variant_of_width(theirs.shape[0])}, the model is {variant_of_width(ours.shape[0])}"


def _torch_shapes(config: ConfigDict) -> dict[str, Any]:
    params, stats = state_dict(abstract_model(config))
    return {name: _torch_shape(array) for name, array in {**params, **stats}.items()}


def _torch_shape(array: Any) -> np.ndarray:
    """An array without content, with the PyTorch shape of one of ours."""
    return _theirs(np.broadcast_to(np.float32(0), array.shape))


def _theirs(array: np.ndarray) -> np.ndarray:
    """Transposes kernels [height, width, in, out] to PyTorch's [out, in, height, width]."""
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array


def _ours(array: np.ndarray) -> np.ndarray:
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array


def main() -> None:
    """The command line."""
    cli.run(__doc__, OPTIONS, _convert, _config_of)


def _config_of(values: Mapping[str, Any]) -> ConfigDict:
    if values["to"]:
        if values["config"]:
            raise InputError("--config cannot be used with --to: the folder has its own config")
        if values["ema"]:
            raise InputError("--ema cannot be used with --to: it selects weights in a PyTorch file")
        return checkpoint.stored_config(values["input"])
    if pathlib.Path(values["input"]).is_dir():
        raise InputError(f"{values['input']}: is a folder; add --to {' or --to '.join(STYLES)} to convert it back")
    if not values["config"]:
        raise InputError(
            f"{values['input']}: weights do not state their codec and keypoints; add --config FILE[:ARG], the config "
            "they were trained with"
        )
    return config_lib.load_config(values["config"])


def _convert(values: Mapping[str, Any], config: ConfigDict) -> None:
    if values["to"]:
        origin = to_torch(values["input"], values["to"], values["output"])
    else:
        origin = values["input"]
        from_torch(origin, config, values["output"], ema=values["ema"])
    print(f"{origin} -> {values['output']}")


if __name__ == "__main__":
    main()
