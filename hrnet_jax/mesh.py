"""Devices and hosts: one mesh with a `data` axis, replicated state, batches split over it."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from data_pipelines.errors import InputError

logger = logging.getLogger(__name__)


def join_hosts() -> None:
    """Joins this process with the other processes of the run; must be called before any device is used.

    Cloud TPU, Slurm, Open MPI and Kubernetes are detected; otherwise JAX_COORDINATOR_ADDRESS (host:port of process 0),
    JAX_NUM_PROCESSES and JAX_PROCESS_ID must be set. Raises InputError if neither is the case.
    """
    names = {"num_processes": "JAX_NUM_PROCESSES", "process_id": "JAX_PROCESS_ID"}
    try:
        given: dict[str, Any] = {key: int(os.environ[name]) for key, name in names.items() if name in os.environ}
        jax.distributed.initialize(**given)
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"--distributed: {' '.join(str(error).split())[:200]}; set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and "
            "JAX_PROCESS_ID"
        ) from None


def is_main_host() -> bool:
    """Whether this process prints and writes."""
    return jax.process_index() == 0


def describe_devices() -> str:
    """The number of devices of each kind, e.g. `8 x NVIDIA H100`."""
    kinds = [device.device_kind for device in jax.devices()]
    return ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))


def log_devices(dtype: str) -> None:
    """Logs the devices, JAX's version and the compute type: the first line of a command that computes."""
    logger.info("%s, jax %s, compute in %s", describe_devices(), jax.__version__, dtype)


def from_main_host(function: Callable[[], Any]) -> Any:
    """Calls a function on the main host only, and returns its result on every host.

    Args:
      function: returns a JSON-serialisable value. All hosts must call `from_main_host` at the same point.

    Raises:
      InputError: on every host if the function raised it. Any other error is raised on the main host, and as an
        InputError on the others.
    """
    if jax.process_count() == 1:
        return function()
    answer: dict[str, Any] = {}
    failure: Exception | None = None
    if is_main_host():
        try:
            answer = {"value": function()}
        except Exception as error:
            failure, answer = error, {"error": str(error) or type(error).__name__}
    message = json.dumps(answer).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(message))))
    received = multihost_utils.broadcast_one_to_all(np.frombuffer(message.ljust(size)[:size], np.uint8))
    answer = json.loads(np.asarray(received).tobytes())
    if failure:
        raise failure
    if "error" in answer:
        raise InputError(answer["error"])
    return answer["value"]


def create_mesh(devices: Sequence[jax.Device] | int = 0) -> Mesh:
    """A mesh with the axis `data` over the given devices, or over the first N of all processes' devices; 0: all."""
    if isinstance(devices, int):
        if devices > len(jax.devices()):
            raise InputError(f"config.devices={devices}: only {len(jax.devices())} are available")
        devices = jax.devices()[: devices or None]
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays that are replicated on every device."""
    return NamedSharding(mesh, PartitionSpec())


def on_mesh(tree: Any, sharding: NamedSharding) -> Any:
    """The shapes and types of a tree of arrays, with a sharding."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree)


def shard_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, Any]:
    """Puts this host's part of a batch on its devices; returns global arrays, split along their first axis."""
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}


def split_evenly(batch: dict[str, jax.Array], parts: int, devices: int) -> dict[str, jax.Array]:
    """[B, ...] -> [parts, B / parts, ...]; each part has an equal share of each device's samples, which do not move."""

    def split(array: jax.Array) -> jax.Array:
        shape = array.shape[1:]
        return array.reshape(devices, parts, -1, *shape).swapaxes(0, 1).reshape(parts, -1, *shape)

    return {name: split(array) for name, array in batch.items()}


def host_part(array: jax.Array) -> np.ndarray:
    """This host's rows of an array that is split along its first axis."""
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def gather_hosts(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Concatenates each array over all hosts, bit for bit; names and sizes must be equal."""
    if jax.process_count() == 1:
        return arrays
    # As bytes, because JAX would convert 64-bit numbers to 32.
    raw = {name: np.ascontiguousarray(a).view(np.uint8).reshape(len(a), -1) for name, a in arrays.items()}
    gathered = multihost_utils.process_allgather(raw, tiled=True)
    return {
        name: np.ascontiguousarray(gathered[name]).view(a.dtype).reshape(-1, *a.shape[1:]) for name, a in arrays.items()
    }
