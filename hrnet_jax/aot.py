"""Config and TPU slice -> what the compiled steps take there, on a machine without a TPU.

    python -m hrnet_jax.aot --config configs/coco_aic_merge.py:bf16 --topology v5e:4x4

compiles the trainer's own train and eval steps for that slice, with the trainer's shardings and donation, and prints
memory against the chip's HBM, FLOPs and bytes, the least time that these take, collectives, program size and compile
time. A batch that does not fit is refused with the compiler's figure. Needs `pip install 'hrnet_jax[tpu]'`; W32 takes
4 to 18 minutes and 8 GB on two cores. Every `--config.KEY=VALUE` overrides a key of the config file, for example
`--config.batch_size=2048`.
"""

from __future__ import annotations

from hrnet_jax import cli

OPTIONS: cli.Options = {
    "config": (None, "config file, FILE or FILE:ARG"),
    "topology": (None, "chip and shape of the slice, as v5e:4x4; chips: v4, v5e, v5p, v6e"),
    "steps": ("train,eval", "which steps to compile"),
    "output": ("", "JSON file for all figures"),
}
cli.help_first(__name__, __doc__, OPTIONS)  # the imports below take seconds

import dataclasses
import importlib.metadata
import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.experimental import serialize_executable, topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from data_pipelines import storage
from data_pipelines.errors import InputError
from data_pipelines.json_files import write_json
from data_pipelines.keypoints import keypoint_set
from hrnet_jax import config as config_lib
from hrnet_jax.codecs import create_codec
from hrnet_jax.inference.steps import make_eval_step
from hrnet_jax.mesh import create_mesh, on_mesh, replicated
from hrnet_jax.models import Network, abstract_model, state_dict
from hrnet_jax.models.fold import fold
from hrnet_jax.tpu.hlo import collectives
from hrnet_jax.training.step import learning_rate, make_train_step, start

STEPS = ("train", "eval")

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Chip:
    """A chip's figures as its maker publishes them.

    Attributes:
      hbm: capacity, GiB.
      bandwidth: of the HBM, GB/s.
      compute: peak in bfloat16, TFLOP/s.
      ici: bandwidth to other chips, both directions together, GB/s.
      dimensions: of the network of chips.
    """

    hbm: int
    bandwidth: int
    compute: int
    ici: int
    dimensions: int


# cloud.google.com/tpu/docs/v4, v5e, v5p and v6e, read in November 2026. The page of the v4 does not give its ICI: six
# links of 50 GB/s a direction (Jouppi et al. 2023, "TPU v4: An Optically Reconfigurable Supercomputer").
CHIPS = {
    "v4": Chip(hbm=32, bandwidth=1200, compute=275, ici=600, dimensions=3),
    "v5e": Chip(hbm=16, bandwidth=819, compute=197, ici=400, dimensions=2),
    "v5p": Chip(hbm=95, bandwidth=2765, compute=459, ici=1200, dimensions=3),
    "v6e": Chip(hbm=32, bandwidth=1638, compute=918, ici=800, dimensions=2),
}

# What lets libtpu describe chips that are not there instead of looking for them.
_ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # it only warns when this is unknown
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """A TPU slice: its kind of chip and a mesh over its devices.

    A device is a chip, except on v4, where this compiler sees a chip's two cores.
    """

    name: str
    chip: Chip
    mesh: Mesh
    chips: int
    hosts: int

    @property
    def share(self) -> float:
        """The part of a chip that a device is."""
        return self.chips / self.mesh.size


def measure(config: ConfigDict, topology: str, steps: Sequence[str] = STEPS) -> dict[str, Any]:
    """Compiles an experiment's steps for a slice.

    Args:
      config: as made by a file under `configs/`; no data is read.
      topology: kind of chip and shape, e.g. "v5e:4x4".
      steps: which of "train" and "eval".

    Returns:
      What is the same for all steps, and under `steps` one flat dict each; all bytes and FLOPs are one device's a step.

    Raises:
      InputError: there is no such slice or libtpu, batches do not divide by its devices, or a step does not fit.
    """
    if unknown := [step for step in steps if step not in STEPS]:
        raise InputError(f"--steps: unknown {', '.join(map(repr, unknown))}; there are {', '.join(STEPS)}")
    config_lib.check(config)
    slice_ = find_slice(topology)
    if config.devices not in (0, slice_.mesh.size):
        raise InputError(f"config.devices={config.devices}: all {slice_.mesh.size} of {topology} take part")
    config_lib.check_devices(config, slice_.mesh.size)
    if config.model.dtype != "bfloat16":
        logger.warning("config.model.dtype=%r: recipes for TPUs compute in bfloat16 (variant bf16)", config.model.dtype)
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
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "libtpu")},
        "steps": compiled,
    }


def find_slice(topology: str) -> Slice:
    """Describes a slice by its name. Raises InputError when libtpu is missing or does not know it."""
    kind = topology.partition(":")[0]
    if kind not in CHIPS or not re.fullmatch(r"\w+:\d+(x\d+)*", topology):
        raise InputError(f"--topology={topology}: not CHIP:SHAPE, as v5e:4x4, with a chip of {', '.join(CHIPS)}")
    if topology.count("x") + 1 != CHIPS[kind].dimensions:
        raise InputError(f"--topology={topology}: slices of {kind} have {CHIPS[kind].dimensions} dimensions")
    try:
        importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        raise InputError("--topology: the TPU compiler is not installed: pip install 'hrnet_jax[tpu]'") from None
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # A single chip is not a whole host, which the compiler otherwise takes for the unit.
    bounds = {"chips_per_host_bounds": (1, 1, 1)} if set(topology.partition(":")[2]) <= set("1x") else {}
    try:
        description = topologies.get_topology_desc(platform="tpu", topology_name=topology, **bounds)
    except (jax.errors.JaxRuntimeError, RuntimeError) as error:
        raise InputError(f"--topology={topology}: {_one_line(error)}") from None
    devices: Any = description.devices
    chips, hosts = {tuple(device.coords) for device in devices}, {device.process_index for device in devices}
    return Slice(topology, CHIPS[kind], create_mesh(devices), len(chips), len(hosts))


def lower(step: str, config: ConfigDict, mesh: Mesh) -> jax.stages.Lowered:
    """The trainer's step, "train" or "eval", on abstract arguments that lie on the mesh as the trainer's do."""
    model = abstract_model(config.model)
    network, codec = Network.of(model), create_codec(config.codec)
    params, stats = network.stack(state_dict(model))
    joints = keypoint_set(config.model.keypoints)
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
        folded = Network.of(abstract_model(config.model, folded=True))
        weights = jax.eval_shape(lambda params, stats: folded.stack(fold(params, stats)), *state_dict(model))
        eval_step: Any = make_eval_step(folded, codec, joints.flip_indices, config.eval.flip_test)
        return eval_step.lower(on_mesh(weights, replicated(mesh)), {}, batch["image"])
    # The length of an epoch is a constant of the schedule; it changes neither time nor memory.
    optimizer = optax.adam(learning_rate(config.optimizer, steps_per_epoch=1000))
    state = jax.eval_shape(lambda params, stats: start(params, stats, optimizer, config.ema), params, stats)
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
    logger.info("%s step for %s, %d images a chip: compiling", step, slice_.name, size // slice_.chips)
    started = time.monotonic()
    lowered = lower(step, config, slice_.mesh)
    traced, cpu = time.monotonic(), time.process_time()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise InputError(
            f"config.{key}={size}: {size // slice_.chips} images a chip do not fit {slice_.name}: {_one_line(error)}"
        ) from None
    seconds, cpu = time.monotonic() - traced, time.process_time() - cpu

    # Other compilers may answer None.
    memory: Any = compiled.memory_analysis()
    cost: Any = compiled.cost_analysis()
    text: Any = compiled.as_text()
    # The compiler counts a loop's body once; the parts of a batch are a loop.
    parts = config.accumulate if step == "train" else 1
    flops, accessed = parts * cost["flops"], parts * cost["bytes accessed"]
    chip, share = slice_.chip, slice_.share
    moved = collectives(text, slice_.mesh.size)
    # In a ring each device sends all but its own part, for a sum twice, over half of the links' bandwidth.
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
        "seconds": times,
        "bound": max(times, key=times.__getitem__),
        "collectives": [dataclasses.asdict(c) for c in moved],
        "trace_seconds": round(traced - started, 1),
        "compile_seconds": round(seconds, 1),
        "compile_cpu_seconds": round(cpu, 1),
    }


def format_report(report: Mapping[str, Any]) -> str:
    """What `measure` returns as a Markdown table, one column a step."""
    chip, share = CHIPS[report["topology"].partition(":")[0]], report["chips"] / report["devices"]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    unit = "chip" if share == 1 else "device"
    rows: list[list[str]] = [["", *report["steps"]], [":--", *["--:"] * len(report["steps"])]]

    def row(name: str, value: Callable[[Mapping[str, Any]], str]) -> None:
        rows.append([name, *(value(step) for step in report["steps"].values())])

    def gib(count: float) -> str:
        return f"{count / 2**30:.2f} GiB"

    row("global batch", lambda s: f"{s['batch_size']}")
    row(f"images a {unit}", lambda s: f"{s['images']}")
    row(f"memory a {unit}: arguments", lambda s: gib(s["argument_bytes"]))
    row("outputs, in the arguments' place", lambda s: gib(s["alias_bytes"]))
    row("outputs beside", lambda s: gib(s["output_bytes"] - s["alias_bytes"]))
    row("temporaries", lambda s: gib(s["temporary_bytes"]))
    row("program", lambda s: gib(s["program_bytes"]))
    row("**together**", lambda s: f"**{gib(_needed(s))}**")
    row(f"fits {gib(report['hbm_bytes'])}", lambda s: f"{_needed(s) / report['hbm_bytes']:.0%}")
    row("FLOPs an image", lambda s: f"{s['flops'] / s['images'] / 1e9:.1f} G")
    row("bytes an image", lambda s: f"{s['bytes'] / s['images'] / 1e9:.2f} GB")
    row(f"FLOPs a step and {unit}", lambda s: f"{s['flops'] / 1e12:.2f} T")
    row(f"bytes a step and {unit}", lambda s: f"{s['bytes'] / 1e9:.1f} GB")
    row(
        f"FLOPs a byte (the chip's ridge: {1e3 * chip.compute / chip.bandwidth:.0f})",
        lambda s: f"{s['flops'] / s['bytes']:.0f}",
    )
    row(f"least time at {chip.compute * share:g} TFLOP/s", lambda s: _milliseconds(s["seconds"]["compute"]))
    row(f"least time at {chip.bandwidth * share:g} GB/s HBM", lambda s: _milliseconds(s["seconds"]["HBM"]))
    row("least time of collectives", lambda s: _milliseconds(s["seconds"]["ICI"]))
    row("**bound by**", lambda s: f"**{s['bound']}**")
    row(f"images a second and {unit}, at most", lambda s: f"{s['images'] / s['seconds'][s['bound']]:.0f}")
    row(
        "collectives: their results",
        lambda s: (
            "; ".join(
                f"{c['count']} {c['kind']} over {c['devices']}: {c['bytes'] / 1e6:.1f} MB" for c in s["collectives"]
            )
            or "none"
        ),
    )
    row("executable file", lambda s: f"{s['executable_bytes'] / 1e6:.0f} MB")
    row(
        "tracing; compiling, seconds of CPU",
        lambda s: f"{s['trace_seconds']:.0f} s; {s['compile_seconds']:.0f} s, {s['compile_cpu_seconds']:.0f} s",
    )
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    return (
        f"{report['model']}, BatchNorm over {report['group_size'] or 'the batch'}, on {report['topology']}: "
        f"{report['chips']} chips, {report['hosts']} hosts ({versions})\n\n{table}"
    )


def _needed(step: Mapping[str, Any]) -> int:
    """The memory of all that a step brings; what of it is not there at once makes the real need smaller."""
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
    # Before a backend is: there may be a TPU or GPU, and others may be using it.
    jax.config.update("jax_platforms", "cpu")
    report = measure(config, values["topology"], values["steps"].split(","))
    print(format_report(report))
    if values["output"]:
        write_json(values["output"], report)


if __name__ == "__main__":
    main()
