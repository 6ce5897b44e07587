"""BatchNorm as in PyTorch, with statistics over groups of samples."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from hrnet_jax.models.names import split

MOMENTUM = 0.9  # share of the old statistics; 1 - PyTorch's momentum
EPSILON = 1e-5


class BatchNorm(nnx.Module):
    """Normalises over batch and space, with separate statistics for every `group_size` consecutive samples.

    A group corresponds to one GPU's batch in MMPose. If each device holds complete groups, no communication is needed,
    and results do not depend on the number of devices. As in PyTorch, the running variance is unbiased (n / (n - 1))
    and the variance used to normalise is biased. Running statistics are averaged over the groups
    (`running_averages`) and always float32. `use_running_average` follows `model.train()` and `model.eval()`.

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
        """Returns the normalised input; in training mode also sets the statistics to each group's (`running_averages`).

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
        self.mean.set_value(mean)
        self.var.set_value(var * (n / max(n - 1, 1)))
        return out


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalise(
    x: Float[Array, "batch h w features"], scale: Float[Array, " features"], bias: Float[Array, " features"], group: int
) -> tuple[Float[Array, "batch h w features"], Float[Array, "groups features"], Float[Array, "groups features"]]:
    """Returns the normalised input and each group's mean and (biased) variance, which are not differentiated."""
    return _forward(x, scale, bias, group)[0]


def _forward(x: Array, scale: Array, bias: Array, group: int) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
    """What `_normalise` returns, and what is kept for the gradient: the input and the statistics."""
    grouped = _grouped(x, group)
    mean, square = (total / _count(grouped) for total in _sums(grouped, jnp.square(grouped)))
    var = jnp.maximum(square - jnp.square(mean), 0)
    rate = jax.lax.rsqrt(var + EPSILON)
    gain = scale[None] * rate
    out = grouped * _spread(gain) + _spread(bias[None] - mean * gain)
    return (out.reshape(x.shape).astype(x.dtype), mean, var), (x, scale, mean, rate)


def _backward(
    group: int, kept: tuple[Array, ...], cotangents: tuple[Array, Array, Array]
) -> tuple[Array, Array, Array]:
    """The gradients of input, scale and bias (Ioffe and Szegedy 2015), from two sums over one reading of the arrays."""
    x, scale, mean, rate = kept
    change = _grouped(cotangents[0], group)
    normal = (_grouped(x, group) - _spread(mean)) * _spread(rate)
    bias_change, scale_change = _sums(change, change * normal)
    common = (_spread(bias_change) + normal * _spread(scale_change)) * (1 / _count(change))
    dx = _spread(scale[None] * rate) * (change - common)
    return dx.reshape(x.shape).astype(x.dtype), scale_change.sum(0), bias_change.sum(0)


_normalise.defvjp(_forward, _backward)


def _sums(a: Array, b: Array) -> tuple[Array, Array]:
    """The sums of two arrays [groups, samples, h, w, features] over samples and space.

    A GPU reads the arrays once if both sums are one reduction. The compiler for TPUs fuses two sums by itself, and
    estimates one reduction to be four times slower.
    """

    def together(a: Array, b: Array) -> tuple[Array, Array]:
        zero = jnp.float32(0)
        return tuple(jax.lax.reduce((a, b), (zero, zero), lambda x, y: (x[0] + y[0], x[1] + y[1]), (1, 2, 3)))

    def apart(a: Array, b: Array) -> tuple[Array, Array]:
        return a.sum((1, 2, 3)), b.sum((1, 2, 3))

    return jax.lax.platform_dependent(a, b, cuda=together, default=apart)


def _grouped(x: Array, group: int) -> Float[Array, "groups samples h w features"]:
    return x.reshape(-1, group, *x.shape[1:]).astype(jnp.float32)


def _spread(values: Float[Array, "groups features"]) -> Float[Array, "groups 1 1 1 features"]:
    return values[:, None, None, None]


def _count(grouped: Array) -> int:
    """The number of values per feature and group."""
    return grouped[0, ..., 0].size


@contextlib.contextmanager
def running_averages(model: nnx.Module) -> Iterator[None]:
    """Around a training-mode pass of a model: updates the running statistics from those of the pass's groups.

    All together, because groups may be on several devices, which then communicate once, and because a GPU would run
    small kernels for each module.
    """
    modules = [m for _, m in nnx.iter_modules(model) if isinstance(m, BatchNorm) and not m.use_running_average]
    variables = [variable for module in modules for variable in (module.mean, module.var)]
    before = [variable[...] for variable in variables]
    yield
    if not variables:
        return
    # Arrays of loops are [length, groups, features].
    groups = [jnp.moveaxis(variable[...], -2, 0) for variable in variables]
    mean = jnp.concatenate([values.reshape(len(values), -1) for values in groups], axis=1).mean(0)
    running = MOMENTUM * jnp.concatenate([old.ravel() for old in before]) + (1 - MOMENTUM) * mean
    for variable, new in zip(variables, split(running, [old.shape for old in before]), strict=True):
        variable.set_value(new)
