"""Converts PyTorch weights to a converted folder, and back.

    python -m hrnet_jax.convert --input td-hm_hrnet-w32_8xb64-210e_coco-256x192 --output runs/hrnet_w32
    python -m hrnet_jax.convert --input mine.pth --config configs/coco.py:w32,udp --output runs/mine
    python -m hrnet_jax.convert --input runs/hrnet_w32 --to mmpose --output hrnet_w32.pth

The first two commands read checkpoints of MMPose, the official HRNet and timm: a `.pth` or `.safetensors` file, or the
name of a published model (docs/recipes.md), which is downloaded to $HRNET_JAX_CACHE (default: ~/.cache/hrnet_jax).
Published files are recognised by their hash or name. Others need --config, the config they were trained with, because
weights do not state their codec. ImageNet weights give a folder that can only be used as `config.init`. The last
command writes MMPose's or the official names from a converted folder or a work directory. Only writing `.pth` needs
PyTorch (the extra `torch`).

`hrnet_jax.weights.torch_models` describes the names. Files written with MMEngine's or MMCV's EMAHook hold two sets of
weights, one under plain names and one under EMA names (`ema_state_dict`, `ema_backbone_...`). MMEngine swaps the two
when saving, and MMCV does if its hook runs before the saving hook; then the plain names, which are converted by
default, hold the averages, and `--ema` selects the other set.
"""

from __future__ import annotations

from hrnet_jax import cli

STYLES = ("mmpose", "official")

OPTIONS: cli.Options = {
    "input": (
        None,
        "checkpoint (.pth, .safetensors) or the name of a published model; with --to a converted folder or a work "
        "directory",
    ),
    "output": (None, "converted folder; with --to a .pth or .safetensors file"),
    "config": ("", "config that an unknown checkpoint was trained with, FILE or FILE:ARG; not with --to"),
    "ema": (False, "converts the weights under an EMAHook's names; see above"),
    "to": ("", f"converts back to PyTorch, with the names of {' or '.join(STYLES)}"),
}
cli.help_first(__name__, __doc__, OPTIONS)  # the imports below take seconds

import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from data_pipelines.errors import InputError
from hrnet_jax import config as config_lib
from hrnet_jax.models import fill, state_dict
from hrnet_jax.weights import checkpoint, hub, named, torch_files
from hrnet_jax.weights.folder import check_free, is_folder, save_folder
from hrnet_jax.weights.torch_models import (
    COUNTER,
    canonical,
    from_torch_layout,
    plain_names,
    read_arrays,
    to_torch_layout,
    torch_shape,
)


def from_torch(source: str | os.PathLike, config: ConfigDict, output: str | os.PathLike, *, ema: bool = False) -> None:
    """Converts a PyTorch checkpoint into a folder.

    Args:
      source: `.pth` or `.safetensors` file with MMPose's, official or timm names, with any common prefix; or the name
        of a published model, which is downloaded.
      config: the config that the weights were trained with.
      output: the new folder; without `head.*` arrays if the file holds only a backbone.
      ema: converts the weights under an EMAHook's names.

    Raises:
      InputError: the file cannot be downloaded or read, its architecture is not the config's, or the folder exists.
    """
    config_lib.check(config)
    check_free(output)
    save_folder(output, config, read_arrays(named.file_of(hub.local(source)), config, ema=ema))


def to_torch(source: str | os.PathLike, style: str, output: str | os.PathLike) -> str:
    """Writes a model as a PyTorch checkpoint.

    Args:
      source: a model that `checkpoint.load` takes, with or without a head.
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
    source = hub.local(source)
    model = checkpoint.load(source, whole=False)
    arrays: dict[str, Any] = {**model.params, **model.stats, **model.extra}
    if not named.is_named(source) and not is_folder(source):
        # PyTorch's own files have the counters, but use their values only with momentum=None.
        arrays |= {name.replace(".running_mean", COUNTER): np.int64(0) for name in model.stats if "mean" in name}
    tensors = {name: to_torch_layout(np.asarray(array)) for name, array in arrays.items()}
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
    shapes, source = {name: torch_shape(array) for name, array in ours.items()}, "the state dict"
    arrays = canonical(plain_names(tensors, source), shapes, source)
    filled = {name: jnp.array(from_torch_layout(array)) for name, array in arrays.items() if not name.endswith(COUNTER)}
    fill(model, {**ours, **filled})


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
    source = hub.local(values["input"])
    if pathlib.Path(source).is_dir():
        raise InputError(f"{values['input']}: is a folder; add --to {' or --to '.join(STYLES)} to convert it back")
    if values["config"]:
        return config_lib.load_config(values["config"])
    if not named.is_named(source):
        raise InputError(f"{source}: no such file, and no published model has this name{named.unknown(source)}")
    return named.config_of(source)


def _convert(values: Mapping[str, Any], config: ConfigDict) -> None:
    if values["to"]:
        origin = to_torch(values["input"], values["to"], values["output"])
    else:
        origin = values["input"]
        from_torch(origin, config, values["output"], ema=values["ema"])
    print(f"{origin} -> {values['output']}")


if __name__ == "__main__":
    main()
