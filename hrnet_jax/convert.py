"""PyTorch weights <-> a converted folder.

    python -m hrnet_jax.convert --input hrnet_w32.pth --config configs/coco.py:w32 --output runs/hrnet_w32
    python -m hrnet_jax.convert --input runs/hrnet_w32 --to mmpose --output hrnet_w32.pth

The first reads MMPose's, the official HRNet's and timm's checkpoints, `.pth` or `.safetensors`; the config is the one
they were trained with, since weights do not say their codec. ImageNet weights make a folder that only `config.init`
takes. The second writes MMPose's or the official names from a converted folder or a work directory; `.pth` takes
PyTorch (`pip install hrnet-jax[torch]`), `.safetensors` does not, and reading never does.

Names here are MMPose's. The others differ in prefixes only:

    MMPose                  official          timm
    backbone.NAME           NAME              NAME
    head.final_layer.NAME   final_layer.NAME  (none)

What stands in front of all names (`module.` of DataParallel, `_orig_mod.` of torch.compile, `model.` of a Lightning
module, or several of these) is found and left out. With MMEngine's or MMCV's EMAHook a file holds its weights twice,
under their own names and under EMA names (`ema_state_dict`, `ema_backbone_...`). MMEngine swaps the two when it saves,
and MMCV when its hook runs before the one that saves: the weights under their own names, which are converted, then are
the averages, and `--ema` takes the others.
"""

from __future__ import annotations

from hrnet_jax import cli

OPTIONS: cli.Options = {
    "input": (None, "checkpoint (.pth, .safetensors); with --to a converted folder or a work directory"),
    "output": (None, "converted folder; with --to a .pth or .safetensors file"),
    "config": ("", "the config that the checkpoint was trained with, FILE or FILE:ARG; not with --to"),
    "ema": (False, "takes the weights under the names of an EMAHook; see above"),
    "to": ("", "the way back: whose names to write, mmpose or official"),
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

STYLES = ("mmpose", "official")

# What classification networks have on top of our backbone: their head, and the outputs of stage 4 that only it reads.
_CLASSIFIER = re.compile(
    r"backbone\.((incre_modules|downsamp_modules|classifier|final_layer)\.|stage4\.\d+\.fuse_layers\.[123]\.)"
)
_COUNTER = ".num_batches_tracked"
# A name in every HRNet, by which what stands in front of all names is found; one of torch.compile's may be within.
_ANCHOR = re.compile(r"(?P<prefix>|.*?\.)(backbone\.)?transition1\.0\.0\.weight", re.DOTALL)
_COMPILED = "_orig_mod."
# What stands in `ema_state_dict` beside the weights.
_EMA_STEPS = "steps"

logger = logging.getLogger(__name__)


def from_torch(source: str | os.PathLike, config: ConfigDict, output: str | os.PathLike, *, ema: bool = False) -> None:
    """Converts a PyTorch checkpoint into a folder.

    Args:
      source: `.pth` or `.safetensors` file with MMPose's, official or timm names, whatever stands in front of them.
      config: the config that the weights were trained with.
      output: the new folder; without `head.*` arrays when the file holds a backbone alone.
      ema: takes the weights under an EMAHook's names.

    Raises:
      InputError: the file cannot be read or is not of the config's architecture, or the folder exists.
    """
    config_lib.check(config)
    check_free(output)
    shapes = _torch_shapes(config.model)
    tensors = _one_of_twins(torch_files.read(source), torch_files.read(source, "ema_state_dict"), ema, f"{source}")
    _check_architecture(tensors, shapes, f"{source}", f"config.model.variant={config.model.variant!r}")
    arrays = _canonical(tensors, shapes, f"{source}")
    save_folder(output, config, {name: _ours(array) for name, array in arrays.items()})


def to_torch(source: str | os.PathLike, style: str, output: str | os.PathLike) -> str:
    """Writes a model as a PyTorch checkpoint.

    Args:
      source: a converted folder (also of a backbone alone), or a work directory.
      style: "mmpose" or "official", whose names to use.
      output: `.pth` or `.safetensors`.

    Returns:
      The source in words: the folder, or the checkpoint of the work directory.

    Raises:
      InputError: for an unknown style, a source that cannot be read or an output that cannot be written.
    """
    if style not in STYLES:
        raise InputError(f"--to={style}: there are {', '.join(STYLES)}")
    torch_files.check_writable(output)
    model = checkpoint.load(source, whole=False)
    arrays: dict[str, Any] = {**model.params, **model.stats, **model.extra}
    if not is_folder(source):
        # PyTorch's own files have the counters; without momentum=None nothing reads their values.
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
      tensors: arrays in PyTorch's layouts by MMPose's, official or timm names, whatever stands in front of them.
        A classification network's file fills the backbone; the head stays as it is.

    Raises:
      InputError: one line about what is missing, unknown or of another shape; nothing is set then.
    """
    params, stats = state_dict(model)
    ours = {**params, **stats}
    shapes, source = {name: _torch_shape(array) for name, array in ours.items()}, "the state dict"
    arrays = _canonical(_plain_names(tensors, source), shapes, source)
    filled = {name: jnp.array(_ours(array)) for name, array in arrays.items() if not name.endswith(_COUNTER)}
    fill(model, {**ours, **filled})


def _canonical(tensors: Mapping[str, np.ndarray], shapes: Mapping[str, Any], source: str) -> dict[str, np.ndarray]:
    """Brings a state dict to canonical names and float32, in PyTorch's layouts, and checks it against a model's shapes.

    The counters `num_batches_tracked` stay int64 and may be absent; so may the head, in files with bare names.
    """
    named = {_canonical_name(name): tensor for name, tensor in tensors.items()}
    problems = ["names repeat"] if len(named) < len(tensors) else []
    is_mmpose = any(name.startswith("backbone.") for name in tensors)
    if not is_mmpose and "head.final_layer.weight" not in named and "head.final_layer.bias" not in named:
        named = {name: tensor for name, tensor in named.items() if name in shapes or not _CLASSIFIER.match(name)}
        shapes = backbone_of(shapes)
        logger.info("%s: a backbone alone, without a head", source)

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
    """The weights of a file, or with `ema` those under an EMAHook's names, under the names of `_plain_names`.

    Args:
      tensors: the state dict; MMCV has twins in it: `backbone.conv1.weight` and `ema_backbone_conv1_weight`.
      beside: MMEngine's `ema_state_dict`, empty when there is none.
      ema: which to take.
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
    logger.info("%s: an EMAHook's file, which holds the weights twice: taken under %s, not %s", source, taken, left)
    if ema and beside:
        twins = _plain_names({name: tensor for name, tensor in beside.items() if name != _EMA_STEPS}, source)
    return {**plain, **twins} if ema else plain  # MMCV has twins of parameters only


def _plain_names(tensors: Mapping[str, np.ndarray], source: str) -> Tensors:
    """Takes away what stands in front of all names; one line of the log says what."""
    names = {name: name.replace(_COMPILED, "") for name in tensors}
    prefixes = sorted({match["prefix"] for name in names.values() if (match := _ANCHOR.fullmatch(name))})
    if len(prefixes) > 1:
        raise InputError(
            f"{source}: holds {len(prefixes)} networks, behind {listed([repr(brief(prefix)) for prefix in prefixes])}; "
            "save the state dict of one of them"
        )
    prefix = "".join(prefixes)
    plain = {names[name].removeprefix(prefix): tensor for name, tensor in tensors.items()}
    if len(plain) < len(tensors):
        raise InputError(f"{source}: names repeat when {brief(prefix)!r} and {_COMPILED!r} are taken away")
    if any(name not in plain for name in tensors):
        shown = [repr(brief(prefix))] if prefix else []
        shown += [repr(_COMPILED)] if any(_COMPILED in name for name in tensors) else []
        logger.info("%s: an HRNet whose names are read without %s", source, " and ".join(shown))
    return plain


def _canonical_name(name: str) -> str:
    if name.startswith("keypoint_head."):  # MMPose before 1.0
        name = name.removeprefix("keypoint_")
    if name.startswith(("backbone.", "head.")):
        return name
    return f"head.{name}" if name in ("final_layer.weight", "final_layer.bias") else f"backbone.{name}"


def _is_counter(name: str, shapes: Mapping[str, Any]) -> bool:
    return name.endswith(_COUNTER) and name.replace(_COUNTER, ".running_mean") in shapes


def _check_architecture(
    tensors: Mapping[str, np.ndarray], shapes: Mapping[str, Any], source: str, variant: str
) -> None:
    """Says the commonest mistake in few words, where listing every entry would fill screens."""
    if hint := _architecture_hint({_canonical_name(name): tensor for name, tensor in tensors.items()}, shapes):
        raise InputError(f"{source} does not fit {variant}: {hint}")


def _architecture_hint(named: Mapping[str, np.ndarray], shapes: Mapping[str, Any]) -> str:
    if not any(name.startswith("backbone.transition1.") for name in named):
        return "the file holds no HRNet"
    theirs, ours = named.get(WIDTH), shapes.get(WIDTH)
    if theirs is None or ours is None or theirs.ndim != 4 or theirs.shape[0] == ours.shape[0]:
        return ""
    return f"the file holds {variant_of_width(theirs.shape[0])}, the model is {variant_of_width(ours.shape[0])}"


def _torch_shapes(model_config: ConfigDict) -> dict[str, Any]:
    params, stats = state_dict(abstract_model(model_config))
    return {name: _torch_shape(array) for name, array in {**params, **stats}.items()}


def _torch_shape(array: Any) -> np.ndarray:
    """An array without content, of PyTorch's shape for one of ours."""
    return _theirs(np.broadcast_to(np.float32(0), array.shape))


def _theirs(array: np.ndarray) -> np.ndarray:
    """Kernels [height, width, in, out] -> PyTorch's [out, in, height, width]."""
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array


def _ours(array: np.ndarray) -> np.ndarray:
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array


def main() -> None:
    """The command line."""
    cli.run(__doc__, OPTIONS, _convert, _config_of)


def _config_of(values: Mapping[str, Any]) -> ConfigDict:
    if values["to"]:
        if values["config"]:
            raise InputError("--config does not go with --to: the folder carries its config")
        if values["ema"]:
            raise InputError("--ema does not go with --to: it chooses among the weights of a PyTorch file")
        return checkpoint.stored_config(values["input"])
    if pathlib.Path(values["input"]).is_dir():
        raise InputError(f"{values['input']}: is a folder; add --to {' or --to '.join(STYLES)} to convert it back")
    if not values["config"]:
        raise InputError(
            f"{values['input']}: weights do not say their codec and keypoints; add --config FILE[:ARG], the config "
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
