"""The recipe's steps, compiled for one device with what goes into them: what the speed benchmarks measure."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import coco, common
from data_pipelines.keypoints import keypoint_set
from hrnet_jax import aot
from hrnet_jax.mesh import create_mesh, replicated, shard_batch
from hrnet_jax.models import FunctionalModel, abstract_model, create_model, state_dict
from hrnet_jax.models.fold import make_fold
from hrnet_jax.training.optimizer import create_optimizer, learning_rate
from hrnet_jax.training.step import new_state


def experiment(
    variant: str, size: tuple[int, int], dtype: str, batch_size: int, overrides: Mapping[str, Any] | None = None
) -> ConfigDict:
    """The recipe of a variant at an input size (height, width); all steps take `batch_size` images."""
    name = f"{size[0]}x{size[1]}"
    config = coco.get_config(",".join(part for part in (variant, name) if part in common.VARIANTS))
    config.model.variant, config.model.dtype, config.codec.input_size = variant, dtype, size
    config.batch_size = config.eval.batch_size = batch_size
    config.update_from_flattened_dict(overrides or {})
    return config


class Step:
    """A step compiled for one device, and what goes in.

    Args:
      name: "train", the trainer's; "eval", the evaluator's, with BatchNorm folded into the convolutions.
      config: the recipe.
    """

    def __init__(self, name: str, config: ConfigDict):
        self.name, self.mesh = name, create_mesh(1)
        network = FunctionalModel.of(abstract_model(config, folded=name == "eval"))
        everywhere = replicated(self.mesh)
        params, stats = jax.device_put(state_dict(create_model(config)), everywhere)
        self.state: Any
        if name == "train":
            optimizer = create_optimizer(config, learning_rate(config, steps_per_epoch=1000), network.param_layout)
            self.state = jax.jit(lambda *arrays: new_state(network, *arrays, optimizer, config.ema))(params, stats)
        else:
            self.state = (make_fold(network, config.model.dtype, everywhere)(params, stats), {})
        self.batch = shard_batch(random_batch(config), self.mesh)
        started = time.perf_counter()
        self.lowered = aot.lower(name, config, self.mesh)
        traced = time.perf_counter()
        self.compiled = self.lowered.compile()
        self.trace_seconds, self.compile_seconds = traced - started, time.perf_counter() - traced

    def __call__(self, batch: dict[str, jax.Array]) -> Any:
        """Starts the step on a batch of `shard_batch`; returns what it measures, or keypoints and scores."""
        if self.name != "train":
            return self.compiled(*self.state, batch["image"])
        self.state, measured = self.compiled(self.state, batch)
        return measured

    def seconds(self, steps: int) -> float:
        """Of so many steps on the random batch."""
        begin = time.perf_counter()
        for _ in range(steps):
            out = self(self.batch)
        jax.block_until_ready(out)
        return time.perf_counter() - begin

    def cost(self) -> dict[str, float | None]:
        """FLOPs and bytes of a step, and its memory."""
        # Backends may leave any of the analyses out.
        lowered, compiled = self.lowered.cost_analysis() or {}, self.compiled.cost_analysis() or {}
        planned: Any = self.compiled.memory_analysis()
        stats = self.mesh.devices.flat[0].memory_stats() or {}
        return {
            "flops": lowered.get("flops"),
            "flops_compiled": compiled.get("flops"),
            "bytes": compiled.get("bytes accessed"),
            "planned_bytes": planned
            and planned.argument_size_in_bytes
            + planned.output_size_in_bytes
            - planned.alias_size_in_bytes
            + planned.temp_size_in_bytes,
            "peak_bytes": stats.get("peak_bytes_in_use"),
        }


def random_batch(config: ConfigDict, seed: int = 0) -> dict[str, np.ndarray]:
    """Crops of noise with keypoints in them."""
    rng, (height, width) = np.random.default_rng(seed), config.codec.input_size
    size, joints = config.batch_size, len(keypoint_set(config.keypoints))
    return {
        "image": rng.integers(0, 256, (size, height, width, 3), np.uint8),
        "keypoints": (rng.random((size, joints, 2)) * (width, height)).astype(np.float32),
        "visible": (rng.random((size, joints)) < 0.8).astype(np.float32),
        "source": np.zeros(size, np.int32),
    }
