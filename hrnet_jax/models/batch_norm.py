"""BatchNorm with PyTorch's statistics, taken over groups of samples."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

MOMENTUM = 0.9
EPSILON = 1e-5


class BatchNorm(nnx.Module):
    """Normalises over batch and space, with one set of statistics for every `group_size` consecutive samples.

    Groups stand for what one GPU of the reference held: with whole groups on a device no communication is needed,
    and a training run means the same thing on any number of devices. The running variance is PyTorch's, unbiased
    (n / (n - 1)), the normalising one biased; running statistics average over the groups and are float32 whatever
    the compute type. `use_running_average` follows `model.train()` and `model.eval()`.

    Args:
      features: channels.
      dtype: type of the output; the arithmetic is float32.
      group_size: samples a group, None for the whole batch. A smaller batch is one group.
    """

    def __init__(self, features: int, *, dtype: Any = jnp.float32, group_size: int | None = None):
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))
        self.mean = nnx.BatchStat(jnp.zeros(features))
        self.var = nnx.BatchStat(jnp.ones(features))
        self.dtype = dtype
        self.group_size = group_size
        self.use_running_average = True

    def __call__(self, x: Float[Array, "batch h w features"]) -> Float[Array, "batch h w features"]:
        """Returns the normalised input; in training mode also moves the running statistics.

        Raises ValueError when the batch is larger than a group and not a multiple of it.
        """
        if self.use_running_average:
            gain = self.scale[...] * jax.lax.rsqrt(self.var[...] + EPSILON)
            offset = self.bias[...] - self.mean[...] * gain
            return (x.astype(jnp.float32) * gain + offset).astype(self.dtype)

        batch, h, w, features = x.shape
        group = min(self.group_size or batch, batch)
        if batch % group:
            raise ValueError(f"a batch of {batch} does not divide into BatchNorm groups of {group} samples")
        grouped = x.reshape(batch // group, group, h, w, features).astype(jnp.float32)
        mean = grouped.mean((1, 2, 3))
        # One pass over the activations: XLA computes both sums in the same read.
        var = jnp.maximum(jnp.square(grouped).mean((1, 2, 3)) - jnp.square(mean), 0)

        n = group * h * w
        unbiased = var.mean(0) * (n / max(n - 1, 1))
        self.mean.set_value(MOMENTUM * self.mean[...] + (1 - MOMENTUM) * mean.mean(0))
        self.var.set_value(MOMENTUM * self.var[...] + (1 - MOMENTUM) * unbiased)

        gain = self.scale[...] * jax.lax.rsqrt(var + EPSILON)
        offset = self.bias[...] - mean * gain
        out = grouped * gain[:, None, None, None] + offset[:, None, None, None]
        return out.reshape(x.shape).astype(self.dtype)
