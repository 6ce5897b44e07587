"""What starting a training step costs the main thread: a step of the recipe's state that only counts.

    python -m benchmarks.dispatch                 # W32, on 1 and on 8 simulated devices
    python -m benchmarks.dispatch --arrays        # the same with one array per parameter, moment and statistic

Each number of devices is a process of its own. Shown are the state's arrays and the median CPU milliseconds of the
thread that starts a step.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import subprocess
import sys
import time
from typing import Any

STEPS = 50


def measure(devices: int, arrays: bool) -> str:
    """A row of the table, measured in this process."""
    import jax
    import numpy as np
    import optax

    from configs import coco
    from hrnet_jax.mesh import create_mesh, replicated
    from hrnet_jax.models import FunctionalModel, abstract_model, state_dict
    from hrnet_jax.training.step import new_state, to_items

    model = abstract_model(coco.get_config())
    network, optimizer = FunctionalModel.of(model), optax.adam(lambda step: 1e-3)
    shapes = state_dict(model)
    zeros = jax.tree.map(lambda array: np.zeros(array.shape, array.dtype), shapes)
    state: Any = new_state(network, *zeros, optimizer, 0.0)
    if arrays:
        state = jax.jit(functools.partial(to_items, network))(state)
    state = jax.device_put(state, replicated(create_mesh(devices)))
    step = jax.jit(lambda state, count: (state, count + 1), donate_argnums=0)
    count, seconds = np.int32(0), []
    for _ in range(STEPS):
        start = time.thread_time()
        state, _ = step(state, count)
        seconds.append(time.thread_time() - start)
        jax.block_until_ready(state)
    return f"| {devices} | {len(jax.tree.leaves(state))} | {1e3 * statistics.median(seconds):.3f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arrays", action="store_true", help="one array per name")
    parser.add_argument("--devices", type=int, help="measure in this process")
    arguments = parser.parse_args()
    if arguments.devices:
        print(measure(arguments.devices, arguments.arrays))
        return
    print("| devices | arrays of the state | ms of the main thread per step |\n| --: | --: | --: |", flush=True)
    for devices in (1, 8):
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
        command = [sys.executable, "-m", "benchmarks.dispatch", f"--devices={devices}"]
        subprocess.run([*command, *(["--arrays"] if arguments.arrays else [])], env=environment, check=True)


if __name__ == "__main__":
    main()
