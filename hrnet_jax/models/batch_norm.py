"""BatchNorm as in PyTorch, with statistics over groups of samples."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

MOMENTUM = 0.9
EPSILON = 1e-5


class BatchNorm(nnx.Module):
    """Normalises over batch and space, with separate statistics for every `group_size` consecutive samples.

    A group corresponds to one GPU's batch in MMPose. If each device holds complete groups, no communication is needed,
    and results do not depend on the number of devices. As in PyTorch, the running variance is unbiased (n / (n - 1))
    and the variance used to normalise is biased. Running statistics are averaged over the groups (`average_groups`)
    and always float32. `use_running_average` follows `model.train()` and `model.eval()`.

    Args:
      features: channels.
      dtype: type of the output; the arithmetic is float32.
      group_size: samples per group; None: the batch. A smaller batch is one group.
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
        """Returns the normalised input; in training mode also updates the running statistics of each group.

        Raises ValueError when the batch is larger than a group and not a multiple of it.
        """
        if self.use_running_average:
            gain = self.scale[...] * jax.lax.rsqrt(self.var[...] + EPSILON)
            offset = self.bias[...] - self.mean[...] * gain
            gain, offset = (values[None, None, None] for values in (gain, offset))
            return (x.astype(jnp.float32) * gain + offset).astype(self.dtype)

        batch, h, w, _ = x.shape
        group = min(self.group_size or batch, batch)
        if batch % group:
            raise ValueError(f"a batch of {batch} does not divide into BatchNorm groups of {group} samples")
        out, mean, var = _normalise(x, self.scale[...], self.bias[...], group)
        n = group * h * w
        self.mean.set_value(MOMENTUM * self.mean[...][None] + (1 - MOMENTUM) * mean)
        self.var.set_value(MOMENTUM * self.var[...][None] + (1 - MOMENTUM) * var * (n / max(n - 1, 1)))
        return out


# Of the intermediate values, only the statistics are stored for the backward pass.
@functools.partial(
    jax.checkpoint,
    policy=jax.checkpoint_policies.save_only_these_names("statistics"),
    prevent_cse=False,
    static_argnums=3,
)
def _normalise(
    x: Float[Array, "batch h w features"], scale: Float[Array, " features"], bias: Float[Array, " features"], group: int
) -> tuple[Float[Array, "batch h w features"], Float[Array, "groups features"], Float[Array, "groups features"]]:
    """Returns the normalised input and each group's mean and (biased) variance."""
    grouped = x.reshape(-1, group, *x.shape[1:]).astype(jnp.float32)
    mean = checkpoint_name(grouped.mean((1, 2, 3)), "statistics")
    # One pass over the activations: XLA computes both sums in the same read.
    square = checkpoint_name(jnp.square(grouped).mean((1, 2, 3)), "statistics")
    var = jnp.maximum(square - jnp.square(mean), 0)
    gain = scale[None] * jax.lax.rsqrt(var + EPSILON)
    offset = bias[None] - mean * gain
    gain, offset = (values[:, None, None, None] for values in (gain, offset))
    out = grouped * gain + offset
    return out.reshape(x.shape).astype(x.dtype), mean, var


def average_groups(model: nnx.Module) -> None:
    """Averages running statistics [groups, features] over the groups, in place, after a training-mode pass.

    Separate from the pass because groups may be on several devices: inside a loop, every iteration would communicate.
    """
    for _, module in nnx.iter_modules(model):
        if isinstance(module, BatchNorm) and not module.use_running_average:
            module.mean.set_value(module.mean[...].mean(-2))
            module.var.set_value(module.var[...].mean(-2))
