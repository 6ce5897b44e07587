"""Compiles the training and evaluation steps for a TPU slice or a GPU without having one, and reports memory and time.

    python -m hrnet_jax.aot --config configs/coco_aic_merge.py:bf16 --topology v5e:4x4
    python -m hrnet_jax.aot --config configs/coco_aic_merge.py:bf16 --topology h100 --config.batch_size=256

compiles the trainer's own train and eval steps for that slice or GPU, with the trainer's shardings and donation. It
prints memory compared to the chip's, FLOPs and HBM traffic, the minimum time for these, collectives, program size and
compile time; for TPUs also the compiler's estimated cycles; for GPUs kernels, without autotuning. A batch that does not
fit a TPU is refused with the compiler's message. TPUs need `pip install 'jax[tpu]'`, where W32 takes 4 to 18 minutes
and 8 GB on two cores, GPUs `pip install 'jax[cuda13]'` and two minutes. `--config.KEY=VALUE` overrides a key of the
config file.
"""

from __future__ import annotations

from hrnet_jax import cli
from hrnet_jax.tpu.chips import CHIPS, GPUS, Chip, Gpu

STEPS = ("train", "eval")

OPTIONS: cli.Options = {
    "config": (None, "config file, FILE or FILE:ARG"),
    "topology": (None, f"chip and shape of the slice, e.g. v5e:4x4 ({', '.join(CHIPS)}); or a GPU: {', '.join(GPUS)}"),
    "steps": (",".join(STEPS), "steps to compile"),
    "output": ("", "JSON file for all figures"),
}
cli.help_first(__name__, __doc__, OPTIONS)  # the imports below take seconds

import dataclasses
import functools
import importlib.metadata
import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import serialize_executable, topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from data_pipelines import storage
from data_pipelines.errors import InputError, extra
from data_pipelines.json_files import write_json
from data_pipelines.keypoints import keypoint_set
from hrnet_jax import config as config_lib
from hrnet_jax.codecs import create_codec
from hrnet_jax.inference.steps import make_eval_step
from hrnet_jax.mesh import create_mesh, on_mesh, replicated
from hrnet_jax.models import FunctionalModel, abstract_model, state_dict
from hrnet_jax.models.fold import abstract_weights
from hrnet_jax.tpu.hlo import collectives, kernels, tpu_traffic
from hrnet_jax.training.optimizer import create_optimizer, learning_rate
from hrnet_jax.training.step import make_train_step, new_state

logger = logging.getLogger(__name__)


# Lets libtpu describe absent chips instead of searching for them.
_ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # if unknown, libtpu only warns
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """A TPU slice or a GPU: its kind of chip and a mesh over its devices.

    A device is a chip, except on v4, where this compiler treats a chip's two cores as devices.
    """

    name: str
    chip: Chip
    mesh: Mesh
    chips: int
    hosts: int
    compiler: str = "libtpu"

    @property
    def share(self) -> float:
        """The fraction of a chip per device."""
        return self.chips / self.mesh.size


def measure(config: ConfigDict, topology: str, steps: Sequence[str] = STEPS) -> dict[str, Any]:
    """Compiles an experiment's steps for a slice.

    Args:
      config: made by a file under `configs/`; no data is read.
      topology: kind of chip and shape, e.g. "v5e:4x4".
      steps: "train", "eval" or both.

    Returns:
      Values common to all steps, and under `steps` one flat dict per step; bytes and FLOPs are per device and step.

    Raises:
      InputError: the slice or libtpu does not exist, batches do not divide by its devices, or a step does not fit.
    """
    if unknown := [step for step in steps if step not in STEPS]:
        raise InputError(f"--steps: unknown {', '.join(map(repr, unknown))}; there are {', '.join(STEPS)}")
    config_lib.check(config)
    slice_ = find_slice(topology)
    if config.devices not in (0, slice_.mesh.size):
        raise InputError(
            f"config.devices={config.devices}: all {slice_.mesh.size} devices of {topology} must be used; set it to 0"
        )
    config_lib.check_devices(config, slice_.mesh.size)
    if config.model.dtype != "bfloat16":
        logger.warning("config.model.dtype=%r: accelerators are fast in bfloat16 (variant bf16)", config.model.dtype)
    compiled = {step: _compile_and_measure(step, config, slice_) for step in steps}
    height, width = config.codec.input_size
    return {
        "topology": topology,
        "chips": slice_.chips,
        "devices": slice_.mesh.size,
        "hosts": slice_.hosts,
        "hbm_bytes": int(slice_.chip.hbm * slice_.share * 2**30),
        "model": f"{config.model.variant} {height}x{width} {config.codec.name} {config.model.dtype}",
        "group_size": config.model.group_size,
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", slice_.compiler)},
        "steps": compiled,
    }


def find_slice(topology: str) -> Slice:
    """Describes a slice or a GPU by name. Raises InputError if its compiler is missing or does not know the name."""
    if topology in GPUS:
        return _find_gpu(topology)
    kind = topology.partition(":")[0]
    if kind not in CHIPS or not re.fullmatch(r"\w+:\d+(x\d+)*", topology):
        raise InputError(
            f"--topology={topology}: not CHIP:SHAPE, e.g. v5e:4x4, with a chip of {', '.join(CHIPS)}, and no GPU of "
            f"{', '.join(GPUS)}"
        )
    if topology.count("x") + 1 != CHIPS[kind].dimensions:
        raise InputError(f"--topology={topology}: slices of {kind} have {CHIPS[kind].dimensions} dimensions")
    try:
        importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        raise InputError(f"--topology: the TPU compiler is not installed: {extra('tpu')}") from None
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # A single chip is less than a host, the compiler's default unit.
    bounds = {"chips_per_host_bounds": (1, 1, 1)} if set(topology.partition(":")[2]) <= set("1x") else {}
    try:
        description = topologies.get_topology_desc(platform="tpu", topology_name=topology, **bounds)
    except (jax.errors.JaxRuntimeError, RuntimeError) as error:
        raise InputError(f"--topology={topology}: {_one_line(error)}") from None
    devices: Any = description.devices
    chips, hosts = {tuple(device.coords) for device in devices}, {device.process_index for device in devices}
    return Slice(topology, CHIPS[kind], create_mesh(devices), len(chips), len(hosts))


def _find_gpu(name: str) -> Slice:
    try:
        importlib.metadata.version("jax-cuda13-plugin")
    except importlib.metadata.PackageNotFoundError:
        raise InputError("--topology: the GPU compiler is not installed: pip install 'jax[cuda13]'") from None
    jax.devices()  # registers the plugin
    gpu = GPUS[name]
    description = topologies.get_topology_desc(
        platform="cuda", topology_name="", topology="1x1x1", target_config=_target(gpu)
    )
    return Slice(name, gpu.chip, create_mesh(description.devices), 1, 1, "jax-cuda13-plugin")


def _target(gpu: Gpu) -> str:
    """The description of a GPU that XLA takes in place of one: a GpuTargetConfigProto as text."""
    major, minor = gpu.capability
    device = {
        **{"threads_per_block_limit": 1024, "threads_per_warp": 32, "threads_per_core_limit": 2048},
        **{"thread_dim_limit_x": 1024, "thread_dim_limit_y": 1024, "thread_dim_limit_z": 64},
        **{"block_dim_limit_x": 2**31 - 1, "block_dim_limit_y": 65535, "block_dim_limit_z": 65535},
        **{"registers_per_core_limit": 65536, "registers_per_block_limit": 65536, "device_address_bits": 64},
        **{"shared_memory_per_block": 48 * 2**10, "shared_memory_per_block_optin": gpu.shared - 2**10},
        **{"shared_memory_per_core": gpu.shared, "core_count": gpu.cores, "fpus_per_core": gpu.float_units},
        **{"clock_rate_ghz": gpu.clock, "l2_cache_size": gpu.l2, "memory_bandwidth": gpu.chip.bandwidth * 10**9},
        "device_memory_size": gpu.chip.hbm * 2**30,
    }
    features = "ACCELERATED_FEATURES" if major >= 9 else "NONE"
    capability = f"cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {features} }}"
    fields = " ".join(f"{key}: {value}" for key, value in device.items())
    versions = 'driver_version: "13.0.0" runtime_version: "13.0.0" dnn_version: "9.10.0"'
    return (
        f'gpu_device_info {{ {fields} {capability} name: "{gpu.name}" {versions} }} platform_name: "CUDA" '
        f'dnn_version_info {{ major: 9 minor: 10 }} device_description_str: "{gpu.name}"'
    )


def lower(step: str, config: ConfigDict, mesh: Mesh) -> jax.stages.Lowered:
    """The trainer's step, "train" or "eval", on abstract arguments with the trainer's shardings."""
    codec, joints = create_codec(config.codec), keypoint_set(config.keypoints)
    split = NamedSharding(mesh, PartitionSpec("data"))

    size = config.batch_size if step == "train" else config.eval.batch_size
    batch = {
        "image": jax.ShapeDtypeStruct((size, *config.codec.input_size, 3), jnp.uint8),
        "keypoints": jax.ShapeDtypeStruct((size, len(joints), 2), jnp.float32),
        "visible": jax.ShapeDtypeStruct((size, len(joints)), jnp.float32),
        "source": jax.ShapeDtypeStruct((size,), jnp.int32),
    }
    batch = on_mesh(batch, split)
    if step == "eval":
        folded = FunctionalModel.of(abstract_model(config, folded=True))
        weights = abstract_weights(folded, config.model.dtype, replicated(mesh))
        eval_step: Any = make_eval_step(folded, codec, joints.flip_indices, config.eval.flip_test)
        return eval_step.lower(weights, {}, batch["image"])
    model = abstract_model(config)
    network = FunctionalModel.of(model)
    # The epoch length is a constant of the schedule and affects neither time nor memory.
    optimizer = create_optimizer(config, learning_rate(config, steps_per_epoch=1000), network.param_layout)
    fresh = functools.partial(new_state, network, optimizer=optimizer, ema_decay=config.ema)
    state = jax.eval_shape(fresh, *state_dict(model))
    train_step: Any = make_train_step(
        *(network, codec, optimizer, len(config.data.train)),
        parts=config.accumulate,
        devices=mesh.size,
        ema_decay=config.ema,
    )
    return train_step.lower(on_mesh(state, replicated(mesh)), batch)


def _compile_and_measure(step: str, config: ConfigDict, slice_: Slice) -> dict[str, Any]:
    key = "batch_size" if step == "train" else "eval.batch_size"
    size = config.batch_size if step == "train" else config.eval.batch_size
    logger.info("%s step for %s, %d images per chip: compiling", step, slice_.name, size // slice_.chips)
    started = time.monotonic()
    lowered = lower(step, config, slice_.mesh)
    traced, cpu = time.monotonic(), time.process_time()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise InputError(
            f"config.{key}={size}: {size // slice_.chips} images per chip do not fit {slice_.name}: {_one_line(error)}"
        ) from None
    seconds, cpu = time.monotonic() - traced, time.process_time() - cpu

    # Other compilers may return None.
    memory: Any = compiled.memory_analysis()
    cost: Any = compiled.cost_analysis()
    if cost is None:  # of a GPU: the program's FLOPs are counted as it is handed to the compiler
        cost = lower(step, config, create_mesh(jax.devices("cpu")[:1])).cost_analysis()
    text: Any = compiled.as_text()
    # The compiler counts a loop's body once; the parts of a batch run in a loop.
    parts = config.accumulate if step == "train" else 1
    flops = parts * cost["flops"]
    # Not the compiler's "bytes accessed", which for a TPU include what stays on the chip.
    launched, traffic = (kernels(text), None) if slice_.name in GPUS else ([], tpu_traffic(text))
    accessed = traffic.hbm_bytes if traffic else sum(entry.bytes for entry in launched)
    chip, share = slice_.chip, slice_.share
    moved = collectives(text, slice_.mesh.size)
    # In a ring, each device sends all parts but its own (twice for a sum), over half of the links' bandwidth.
    sent = sum((2 if c.kind == "all-reduce" else 1) * c.bytes * (1 - 1 / c.devices) for c in moved)
    times = {
        "compute": flops / (chip.compute * share * 1e12),
        "HBM": accessed / (chip.bandwidth * share * 1e9),
        "ICI": sent / (chip.ici * share / 2 * 1e9),
    }
    return {
        "batch_size": size,
        "images": size // slice_.mesh.size,
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "alias_bytes": memory.alias_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "peak_bytes": memory.peak_memory_in_bytes,
        "program_bytes": memory.generated_code_size_in_bytes,
        "executable_bytes": len(serialize_executable.serialize(compiled)[0]),
        "flops": flops,
        "bytes": accessed,
        "cycles": traffic and traffic.cycles,
        "estimated_seconds": traffic and chip.clock and traffic.cycles / (chip.clock * 1e9),
        "seconds": times,
        "bound": max(times, key=times.__getitem__),
        "collectives": [dataclasses.asdict(c) for c in moved],
        "kernels": [dataclasses.asdict(entry) for entry in launched],
        "trace_seconds": round(traced - started, 1),
        "compile_seconds": round(seconds, 1),
        "compile_cpu_seconds": round(cpu, 1),
    }


def format_report(report: Mapping[str, Any]) -> str:
    """Formats the result of `measure` as a Markdown table, one column per step."""
    kind = report["topology"].partition(":")[0]
    chip, share = GPUS[kind].chip if kind in GPUS else CHIPS[kind], report["chips"] / report["devices"]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    unit = "chip" if share == 1 else "device"
    rows: list[list[str]] = [["", *report["steps"]], [":--", *["--:"] * len(report["steps"])]]

    def row(name: str, value: Callable[[Mapping[str, Any]], str]) -> None:
        rows.append([name, *(value(step) for step in report["steps"].values())])

    def gib(count: float) -> str:
        return f"{count / 2**30:.2f} GiB"

    row("global batch", lambda s: f"{s['batch_size']}")
    row(f"images per {unit}", lambda s: f"{s['images']}")
    row(f"memory per {unit}: arguments", lambda s: gib(s["argument_bytes"]))
    row("outputs that reuse arguments", lambda s: gib(s["alias_bytes"]))
    row("other outputs", lambda s: gib(s["output_bytes"] - s["alias_bytes"]))
    row("temporaries", lambda s: gib(s["temporary_bytes"]))
    row("program", lambda s: gib(s["program_bytes"]))
    row("**total**", lambda s: f"**{gib(needed_bytes(s))}**")
    row(f"fits {gib(report['hbm_bytes'])}", lambda s: f"{needed_bytes(s) / report['hbm_bytes']:.0%}")
    row("FLOPs per image", lambda s: f"{s['flops'] / s['images'] / 1e9:.1f} G")
    row("HBM bytes per image", lambda s: f"{s['bytes'] / s['images'] / 1e9:.2f} GB")
    if kind in GPUS:
        row("of that: convolutions", lambda s: f"{_of_convolutions(s) / s['images'] / 1e9:.2f} GB")
        row(
            "kernels; of these, moving less than 1 MB",
            lambda s: f"{_sum(s['kernels'], 'count')}; {_sum(s['kernels'], 'small')}",
        )
    else:
        row("the compiler's estimate per image", lambda s: f"{s['cycles'] / s['images'] / 1e3:.0f} k cycles")
    row(f"FLOPs per step and {unit}", lambda s: f"{s['flops'] / 1e12:.2f} T")
    row(f"bytes per step and {unit}", lambda s: f"{s['bytes'] / 1e9:.1f} GB")
    row(
        f"FLOPs per byte (the chip's ridge: {1e3 * chip.compute / chip.bandwidth:.0f})",
        lambda s: f"{s['flops'] / s['bytes']:.0f}",
    )
    row(f"minimum time at {chip.compute * share:g} TFLOP/s", lambda s: _milliseconds(s["seconds"]["compute"]))
    row(f"minimum time at {chip.bandwidth * share:g} GB/s HBM", lambda s: _milliseconds(s["seconds"]["HBM"]))
    row("minimum time of collectives", lambda s: _milliseconds(s["seconds"]["ICI"]))
    row("**bound by**", lambda s: f"**{s['bound']}**")
    row(f"maximum images/s per {unit}", lambda s: f"{s['images'] / s['seconds'][s['bound']]:.0f}")
    if chip.clock:
        row("images/s by the compiler's estimate", lambda s: f"{s['images'] / s['estimated_seconds']:.0f}")
    row(
        "collectives and size of their results",
        lambda s: (
            "; ".join(
                f"{c['count']} {c['kind']} over {c['devices']}: {c['bytes'] / 1e6:.1f} MB" for c in s["collectives"]
            )
            or "none"
        ),
    )
    row("executable file", lambda s: f"{s['executable_bytes'] / 1e6:.0f} MB")
    row(
        "tracing; compiling, CPU time",
        lambda s: f"{s['trace_seconds']:.0f} s; {s['compile_seconds']:.0f} s, {s['compile_cpu_seconds']:.0f} s",
    )
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    return (
        f"{report['model']}, BatchNorm over {report['group_size'] or 'the batch'}, on {report['topology']}: "
        f"{report['chips']} chips, {report['hosts']} hosts ({versions})\n\n{table}"
    )


def _sum(entries: Sequence[Mapping[str, Any]], key: str) -> int:
    return sum(entry[key] for entry in entries)


def _of_convolutions(step: Mapping[str, Any]) -> int:
    return _sum([entry for entry in step["kernels"] if entry["kind"] == "convolution"], "bytes")


def needed_bytes(step: Mapping[str, Any]) -> int:
    """The sum of a step's memory; the real peak is smaller if not all exists at the same time."""
    beside = step["output_bytes"] - step["alias_bytes"]
    return step["argument_bytes"] + beside + step["temporary_bytes"] + step["program_bytes"]


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"


def _one_line(error: Exception) -> str:
    return re.sub(r"^[A-Z_]+: ", "", str(error).partition("\n")[0]).rstrip(".")


def main() -> None:
    """The command line."""
    cli.run(__doc__, OPTIONS, _aot, lambda values: config_lib.load_config(values["config"]))


def _aot(values: Mapping[str, Any], config: ConfigDict) -> None:
    if values["output"]:
        storage.check_output(values["output"])
    # Before a backend is initialised: a TPU or GPU may be in use by others.
    jax.config.update("jax_platforms", "cpu")
    report = measure(config, values["topology"], values["steps"].split(","))
    print(format_report(report))
    if values["output"]:
        write_json(values["output"], report)


if __name__ == "__main__":
    main()
